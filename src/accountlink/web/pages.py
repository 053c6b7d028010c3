"""Write the page of a ticket: who connects what, and one button. It has no script and loads nothing."""

from __future__ import annotations

from html import escape

from accountlink.web.asked import Answer, answer_page
from accountlink.web.outcomes import TicketOffer
from accountlink.web.targets import Site


def answer_ticket(offer: TicketOffer, *, label: str | None, site: Site) -> Answer:
    """Show what a ticket is for, and ask.

    Args:
        offer: The provider, and the scopes that the user will be asked for.
        label: A name of the signed-in user, so that they see with whose account they continue.
        site: The application's addresses.
    """
    provider, verb = escape(offer.provider.name), "Reconnect" if offer.reconnects else "Connect"
    whose = "" if label is None else f"<p>You are signed in as <strong>{escape(label)}</strong>.</p>\n"
    scopes = "".join(f"<li><code>{escape(scope)}</code></li>" for scope in offer.scopes)
    asked_for = f"<p>{provider} will be asked for:</p>\n<ul>{scopes}</ul>\n" if scopes else ""
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{verb} {provider}</title>
</head>
<body>
<main>
<h1>{verb} your {provider} account</h1>
{whose}{asked_for}<p>Continue only if you asked for this yourself.</p>
<form method="post"><button type="submit">{verb} {provider}</button></form>
</main>
</body>
</html>
"""
    return answer_page(page, headers=_strict(site))


def _strict(site: Site) -> dict[str, str]:
    """Return the headers of a page that runs no script, loads nothing, and appears in no frame.

    Chromium holds ``form-action`` against every redirect that follows a form. The provider's own redirects are not
    known here, so it allows https as a whole; on a loopback site also http.
    """
    form_action = "'self' https:" if site.is_secure else "'self' https: http:"
    return {
        "content-security-policy": (
            f"default-src 'none'; base-uri 'none'; form-action {form_action}; frame-ancestors 'none'"
        ),
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }
