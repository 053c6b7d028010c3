"""Accessibility: what axe finds wrong with a page as it is now, in the browser of the tests."""

from __future__ import annotations

from typing import Final

from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped]  # it ships no types
from playwright.async_api import Page

_RULES: Final = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
_OPTIONS: Final = {"runOnly": list(_RULES), "resultTypes": ["violations"]}


async def violations(page: Page) -> list[str]:
    """Let axe look at a page, and return each rule that it breaks with the elements that break it.

    axe is run by the browser's debugger, which no Content Security Policy of the page concerns. What moves must have
    come to rest: a colour in the middle of a fade is not the colour that users see.
    """
    results = await Axe().run(page, options=_OPTIONS)
    return [
        f"{each['id']}: {', '.join(str(node['target']) for node in each['nodes'])}"
        for each in results.response["violations"]
    ]
