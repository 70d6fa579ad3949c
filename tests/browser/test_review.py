"""What reviewers see and others do not: conflicts to decide, and how far the people agree."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import pair, single
from tests.browser.test_judging import at, at_end, shown, side_of
from tests.browser.test_looks import accessible


def disagree(serve, desk, items, answers, **task):
    """A server on which each of ``answers``' people has answered all ``items`` with their key."""
    annotation = serve(items, people=tuple(answers), reviewers=("rita",), overlap=len(answers), **task)
    for name, key in answers.items():
        page = desk().open(annotation.link(name))
        for number in range(1, len(items) + 1):
            at(page, number)
            if key == "w":
                page.keyboard.press("w")
                page.keyboard.type("<b>better</b>")
                page.keyboard.press("Escape")
                page.keyboard.press("t")
            else:
                page.keyboard.press(key)
        at_end(page)
    return annotation


def test_a_conflict_shows_what_was_answered_but_not_by_whom(serve, desk):
    annotation = disagree(serve, desk, [pair(1)], {"ada": "w", "grace": "ArrowLeft", "alan": "c"})
    graces = annotation.labels()[1][1]
    rita = desk()
    page = rita.open(annotation.link("rita"))
    page.click("text=Conflicts")
    given = page.locator(".given > ul > li")
    expect(given).to_have_count(3)
    first_is_left = shown(page, "left") == pair(1).responses[0].text
    side = "A is better" if (graces == "first") == first_is_left else "B is better"
    said = [words.splitlines()[0].split(": ")[1] for words in given.all_inner_texts()]
    assert said == ["Tie", side, "Can’t judge"]
    given.locator("summary").click()
    expect(given.locator(".source")).to_have_text("<b>better</b>")
    for name in ("ada", "grace", "alan"):
        assert name not in page.locator("main").inner_text()
    accessible(page)
    rita.complaints.none(annotation.base)


def test_the_reviewers_word_is_what_counts(serve, desk):
    from pipelines.annotate.tables import items as table

    items = [pair(1), pair(2)]
    annotation = disagree(serve, desk, items, {"ada": "ArrowLeft", "grace": "n"})
    rita = desk()
    page = rita.open(annotation.link("rita"))
    page.click("text=Conflicts")
    expect(page.locator(".given li").first).to_be_visible()
    expect(page.locator(".turn.user .text").last).to_have_text("Question 1?")
    page.keyboard.press("s")  # later
    expect(page.locator(".turn.user .text").last).to_have_text("Question 2?")
    chosen = shown(page, "right")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".turn.user .text").last).to_have_text("Question 1?")
    page.click("#answers [data-action=tie]")
    at_end(page, "No conflicts")
    rows = annotation.store.read(lambda db: db.execute(table.select().order_by(table.c.seq)).all())
    assert [row.state for row in rows] == ["decided", "decided"]
    assert rows[0].outcome == "tie"
    assert side_of(rows[1].outcome, items[1]) == chosen
    rita.complaints.none(annotation.base)


def test_agreement_is_shown(serve, desk):
    annotation = disagree(serve, desk, [pair(1), pair(2)], {"ada": "ArrowLeft", "grace": "ArrowLeft"})
    rita = desk()
    page = rita.open(f"{annotation.link('rita')}")
    page.click("text=Agreement")
    expect(page.locator(".figures")).to_contain_text("Krippendorff’s α")
    expect(page.locator(".figures")).to_contain_text("Left side chosen\n100%", use_inner_text=True)
    rows = page.locator("main tbody tr")
    expect(rows).to_have_count(2)
    assert rows.nth(0).locator("th").inner_text() == "ada"
    assert rows.nth(0).locator("td").first.inner_text() == "2"
    expect(page.locator(".counts")).to_contain_text("Labels\n4", use_inner_text=True)
    accessible(page)
    page.reload()  # the view stands in the address
    expect(page.locator(".figures")).to_be_visible()
    page.keyboard.press("t")  # no answers here
    page.click("text=Judge")
    at_end(page)
    assert len(annotation.labels()) == 4
    rita.complaints.none(annotation.base)


@pytest.mark.parametrize("view", ["conflicts", "agreement"])
def test_others_see_neither(serve, desk, view):
    annotation = serve([pair(1)], reviewers=("rita",))
    page = desk().open(annotation.link("ada"))
    at(page, 1)
    expect(page.locator("#views")).to_be_hidden()
    page.goto(f"{annotation.base}/#/{view}")
    at(page, 1)
    refused = page.evaluate(f"fetch('/api/{view}').then((response) => response.status)")
    assert refused == 403


def test_thumbs_in_conflict(serve, desk):
    annotation = disagree(serve, desk, [single(1)], {"ada": "y", "grace": "n"})
    page = desk().open(annotation.link("rita"))
    page.click("text=Conflicts")
    expect(page.locator(".given")).to_contain_text("Good")
    page.keyboard.press("n")
    at_end(page, "No conflicts")
    assert [row[1] for row in annotation.labels()] == ["up", "down", "down"]


def test_a_late_answer_does_not_overwrite_another_view(serve, desk):
    annotation = serve([pair(1)], reviewers=("rita",))
    page = desk().open(annotation.link("rita"))
    at(page, 1)
    held = []
    page.route("**/api/next", lambda route: held.append(route))
    page.keyboard.press("t")
    page.wait_for_function("() => document.querySelector('#answers button').disabled")
    page.click("text=Agreement")
    expect(page.locator(".figures")).to_be_visible()
    with page.expect_response("**/api/next"):
        [late] = held
        late.continue_()
    page.click("text=Conflicts")
    at_end(page, "No conflicts")
    page.unroute("**/api/next")
    page.click("text=Judge")
    at_end(page)
