"""Checks of a shown page that a browser alone can do: names, headings, tables, contrast, width."""

from pathlib import Path

from tests.testnet.browser import Browser

_CHECKS = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


def check_accessible(browser: Browser) -> None:
    """Nothing of the list above is wrong with what is shown."""
    found = browser.run(_CHECKS)
    assert found == [], found


def check_narrow(browser: Browser, width: int) -> None:
    """Nothing sticks out at this width."""
    sticking = browser.run(
        "return document.documentElement.scrollWidth > arguments[0] ? "
        "[...document.querySelectorAll('body *')]"
        ".filter(e => e.getBoundingClientRect().right > arguments[0] + 1)"
        ".slice(0, 5).map(e => e.outerHTML.slice(0, 160)) : []",
        width,
    )
    assert sticking == [], sticking
