"""Where a browser may be sent: plain paths of the application, and URLs that it listed."""

from __future__ import annotations

from urllib.parse import unquote, urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accountlink.errors import ReturnTargetRejected
from accountlink.web.targets import Site, origin_of

PAGE = "https://app.example/settings"
LISTED = "https://other.example/done?from=app"
SITE = Site.of(callback_url="https://app.example/callback", page=PAGE, allowed=[LISTED])


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "https:evil.example",
        "https:/evil.example",
        "https://evil.example",
        "HTTPS://evil.example",
        "///evil.example",
        "/%09/evil.example",
        "/%2f/evil.example",
        "/%2F%2Fevil.example",
        "/%252f/evil.example",
        "/%25252f%25252fevil.example",
        "/%5cevil.example",
        "/%255cevil.example",
        "@evil.example",
        "evil.example",
        "/\r\nSet-Cookie: a=b",
        "/%0d%0aSet-Cookie:a=b",
        "/%00",
        "/ evil",
        "/path#fragment",
        "javascript:alert(1)",
        "data:text/html,x",
        "",
        "?next=/",
        "./relative",
        "../up",
        "/é",
        "/\u202eevil",
        "/" + "a" * 2_000,
        "https://other.example/done",
        "https://other.example/done?from=app&x=1",
        "https://other.example:443/done?from=app",
        f"{LISTED}#fragment",
        7,
        b"/path",
        ["/path"],
    ],
)
def test_a_target_that_may_lead_elsewhere_is_refused(target: object) -> None:
    """A24: also where a server behind ours decodes once more. An empty target is none."""
    if target == "":
        assert SITE.checked(target) is None
        return
    with pytest.raises(ReturnTargetRejected):
        SITE.checked(target)


@pytest.mark.parametrize(
    "target", ["/", "/settings", "/settings/", "/a/b.c?d=e&f=%20g", "/a%20b", "/~user/@name", "/?next=/x", "/a?u=a:b@c"]
)
def test_a_plain_path_is_on_the_pages_origin(target: str) -> None:
    """The browser is sent to a complete URL, so that no later redirect reads the path in another way."""
    assert f"https://app.example{target}" == SITE.checked(target)


def test_a_listed_url_is_taken_as_it_is() -> None:
    """Compared as a whole, and never with a transfer token."""
    assert LISTED == SITE.checked(LISTED)
    assert PAGE == SITE.for_token(LISTED)
    assert PAGE == SITE.for_token(None)
    assert "https://app.example/x" == SITE.for_token("https://app.example/x")


def test_a_long_target_is_refused_at_once() -> None:
    """A40: the check takes as many steps as the target has characters, however it ends."""
    with pytest.raises(ReturnTargetRejected):
        SITE.checked("/" + "a" * 1_900 + "\\")


@given(st.text(alphabet=st.sampled_from("/\\%2f5cC0dDaA9:@?#.evil \t\r\n"), max_size=30))
def test_no_accepted_target_leaves_the_origin(text: str) -> None:
    """A24: whatever is accepted, a browser that resolves it, decoded up to three times, stays."""
    try:
        url = SITE.checked(text)
    except ReturnTargetRejected:
        return
    if url is None:
        return
    for _ in range(4):
        assert "app.example" == urlsplit(urljoin(PAGE, text)).hostname
        text = unquote(text)
    assert "https://app.example" == origin_of(url)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://app.example/x", "https://app.example"),
        ("https://app.example:443/x", "https://app.example"),
        ("https://app.example:8443/x", "https://app.example:8443"),
        ("http://localhost:8000/x", "http://localhost:8000"),
        ("http://[::1]:8000/x", "http://[::1]:8000"),
        ("https://APP.example/x", "https://app.example"),
    ],
)
def test_an_origin_is_written_as_browsers_write_it(url: str, origin: str) -> None:
    """Without the default port, in lower case, with brackets around IPv6."""
    assert origin == origin_of(url)
