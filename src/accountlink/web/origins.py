"""Tell requests of the application's own pages from those of another site."""

from __future__ import annotations

from typing import Any

from accountlink.errors import CrossSiteRequest
from accountlink.web.asked import Asked
from accountlink.web.targets import Site


def refuse_other_sites(asked: Asked[Any], site: Site) -> None:
    """Refuse a request that another site's page may have sent with the user's cookies.

    The origins to trust come from the configuration, and never from the ``Host`` header. ``Sec-Fetch-Site`` comes from
    the browser itself: no page can set it. So ``same-origin`` counts even beside ``Origin: null``, which browsers send
    from a page with ``Referrer-Policy: no-referrer``, such as that of a ticket. A request without cookies and without
    both headers is no browser's, and nobody's cookies speak in it.

    Raises:
        CrossSiteRequest: It may come from another site.

    Source: net/http's ``CrossOriginProtection`` of Go; Fetch Metadata Request Headers, section 2.3 (W3C).
    """
    origin, relation = asked.headers.get("origin"), asked.headers.get("sec-fetch-site")
    if origin is not None and (origin == site.origin or origin in site.trusted):
        return
    if relation is None and (origin is not None or asked.has_cookies):
        raise CrossSiteRequest
    if relation not in {None, "same-origin", "none"}:
        raise CrossSiteRequest
