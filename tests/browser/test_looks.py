"""Usable by everybody: axe finds nothing on any screen, phones fit, focus and announcements follow the items."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import PHONE, pair
from tests.browser.test_judging import at, at_end

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
RICH = """# Title

**bold** [link](https://example.org) `code`

```python
x = 1
```

| a |
|---|
| 1 |

> quoted

\u202eend"""


def accessible(page: Page) -> None:
    found = Axe().run(page, options={"runOnly": RULES, "resultTypes": ["violations"]}).response["violations"]
    assert [(v["id"], [node["html"] for node in v["nodes"]]) for v in found] == []


@pytest.mark.parametrize(
    "options",
    [{}, {"color_scheme": "dark"}, PHONE, {**PHONE, "color_scheme": "dark"}],
    ids=["light", "dark", "phone", "phone-dark"],
)
def test_every_screen_is_accessible(serve, desk, options):
    annotation = serve([pair(1, RICH, RICH + " more"), pair(2)], warning="Unpleasant things.", strength=True)
    ada = desk(**options)
    page = ada.open(annotation.link())
    expect(page.locator("main button.primary")).to_be_visible()
    accessible(page)
    page.click("main button.primary")
    at(page, 1)
    accessible(page)
    for key in ("d", "w", "Escape", "r", "Escape"):
        page.keyboard.press(key)
    accessible(page)
    for key, dialog in (("g", "guidelines"), ("?", "help"), ("f", "report")):
        page.keyboard.press(key)
        expect(page.locator(f"#{dialog}")).to_be_visible()
        accessible(page)
        page.keyboard.press("Escape")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#strength-title")).to_be_focused()
    accessible(page)
    page.keyboard.press("2")
    at(page, 2)
    page.keyboard.press("u")
    expect(page.locator("[data-notice=message]")).to_be_visible()
    accessible(page)
    page.keyboard.press("t")
    at(page, 2)
    page.keyboard.press("t")
    at_end(page)
    accessible(page)
    page.click("#leave")
    expect(page.locator("main")).to_contain_text("You are not signed in")
    accessible(page)
    ada.complaints.none(annotation.base)


def test_a_phone_shows_everything_without_sideways_scrolling(serve, desk):
    table = "| " + " | ".join(["column"] * 30) + " |\n|" + "---|" * 30
    annotation = serve([pair(1, f"{table}\n\n" + "x" * 500, "`" + "y" * 500 + "`"), pair(2)])
    page = desk(**PHONE).open(annotation.link())
    at(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["viewport"]["width"]
    boxes = {side: page.locator(f"#response-{side}").bounding_box() for side in ("left", "right")}
    assert boxes["left"]["y"] + boxes["left"]["height"] <= boxes["right"]["y"]  # below each other
    for button in page.locator("button:visible").all():
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= 44, button.inner_text()
    answers = page.locator("#answers").bounding_box()
    assert answers["height"] < 0.25 * PHONE["viewport"]["height"]
    page.tap("#answers [data-action=right]")
    at(page, 2)
    assert len(annotation.labels()) == 1


def test_both_responses_of_a_desk_stand_side_by_side(serve, desk):
    page = desk().open(serve([pair(1)]).link())
    at(page, 1)
    left, right = (page.locator(f"#response-{side}").bounding_box() for side in ("left", "right"))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    assert left["width"] == right["width"]


def test_focus_and_announcements_follow_the_items(serve, desk):
    page = desk().open(serve([pair(n) for n in (1, 2, 3)]).link())
    at(page, 1)
    heading, announcer = page.locator("#item"), page.locator("#announcer[aria-live=polite]")
    expect(heading).to_be_focused()
    expect(announcer).to_contain_text("3 items remaining")
    page.click("#answers [data-action=tie]")
    at(page, 2)
    expect(heading).to_be_focused()
    expect(announcer).to_contain_text("2 items remaining")
    page.keyboard.press("?")
    page.keyboard.press("Escape")
    expect(heading).to_be_focused()
    page.keyboard.press("r")
    expect(page.locator("#rationale")).to_be_focused()
    page.keyboard.press("Escape")
    expect(heading).to_be_focused()
    for landmark in ("banner", "main"):
        expect(page.get_by_role(landmark)).to_have_count(1)
    expect(page.get_by_role("article", name="Response A")).to_have_count(1)
    expect(page.get_by_role("group", name="Which is better?")).to_have_count(1)
    expect(page.get_by_role("progressbar", name="1 by you · 2 of 3 remaining")).to_have_count(1)


@pytest.mark.parametrize("wish", ["reduce", "no-preference"])
def test_nothing_moves_for_who_asked_for_it(serve, desk, wish):
    page = desk(reduced_motion=wish).open(serve([pair(1)]).link())
    at(page, 1)
    moving = "[...document.querySelectorAll('*')].filter((n) => parseFloat(getComputedStyle(n).transitionDuration) > 0)"
    assert (page.evaluate(f"{moving}.length") == 0) == (wish == "reduce")
    assert page.evaluate("document.getAnimations().length") == 0
