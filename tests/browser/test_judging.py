"""A person labels a batch with keys, with the mouse, with a thumb; changes their mind; writes a better answer."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from pipelines.annotate.items import AnnotationItem
from preference.types import Message
from tests.browser.conftest import PHONE, pair, single


def at(page: Page, number: int) -> None:
    """Wait until item ``number`` is there and can be answered."""
    expect(page.locator(".turn.user .text").last).to_have_text(f"Question {number}?")
    expect(page.locator("#answers [data-action=skip]")).to_be_enabled()


def at_end(page: Page, title: str = "All done") -> None:
    expect(page.locator("#item")).to_have_text(title)


def shown(page: Page, side: str) -> str:
    return page.locator(f"#response-{side} .text").inner_text()


def side_of(choice: str, item: AnnotationItem) -> str:
    return item.responses[["first", "second"].index(choice)].text


KEYS = {"left": "ArrowLeft", "right": "ArrowRight", "tie": "t", "both_bad": "n", "cannot_judge": "c"}


@pytest.mark.parametrize("hand", ["keys", "mouse", "numbers"])
def test_a_batch_is_labelled_with_keys_or_the_mouse(serve, desk, hand):
    items = [pair(n) for n in range(1, 7)]
    annotation, ada = serve(items), desk()
    page = ada.open(annotation.link())
    verdicts = ["left", "right", "tie", "both_bad", "cannot_judge", "left"]
    numbers = {"left": "1", "tie": "2", "both_bad": "3", "right": "4", "cannot_judge": "5"}
    seen = []
    for number, verdict in enumerate(verdicts, start=1):
        at(page, number)
        seen.append(shown(page, verdict) if verdict in ("left", "right") else verdict)
        if hand == "mouse":
            page.click(f"#answers [data-action={verdict}]")
        else:
            page.keyboard.press((KEYS if hand == "keys" else numbers)[verdict])
    at_end(page)
    stored = annotation.labels()
    assert [row[0] for row in stored] == [item.id for item in items]
    choices = [(row[1], item) for row, item in zip(stored, items, strict=True)]
    said = [side_of(choice, item) if choice in ("first", "second") else choice for choice, item in choices]
    assert said == seen
    expect(page.locator("#progress-words")).to_contain_text("6 by you · 0 of 6 remaining")
    ada.complaints.none(annotation.base)


def test_the_code_leaves_the_address_bar_and_works_once(serve, desk):
    annotation, ada = serve([pair(1)]), desk()
    link = annotation.link()
    page = ada.open(link)
    at(page, 1)
    assert page.url == f"{annotation.base}/"
    assert page.evaluate("history.length") <= 2
    assert link.split("#")[1] not in page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    again = desk().open(link)
    expect(again.locator("main")).to_contain_text("You are not signed in")
    expect(again.locator("main")).to_contain_text("used")
    ada.open("about:blank")
    at(ada.open(link), 1)  # the person's own browser has a session
    ada.complaints.none(annotation.base)


def test_undo_brings_the_last_item_back_with_its_words(serve, desk):
    annotation = serve([pair(1), pair(2)])
    page = desk().open(annotation.link())
    at(page, 1)
    page.keyboard.press("r")
    page.keyboard.type("better told; u and s are letters here")
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    at(page, 2)
    page.keyboard.press("u")
    at(page, 1)
    expect(page.locator("#rationale")).to_have_value("better told; u and s are letters here")
    page.keyboard.press("n")
    at(page, 2)
    [(_, choice, rationale, _)] = annotation.labels()
    assert (choice, rationale) == ("both_bad", "better told; u and s are letters here")
    assert annotation.undone() == 1
    page.keyboard.press("t")
    at_end(page)
    page.click("#answers [data-action=undo]")  # also where no item is left
    at(page, 2)
    assert len(annotation.labels()) == 1


def test_nothing_to_undo_is_said_and_changes_nothing(serve, desk):
    annotation = serve([pair(1)])
    page = desk().open(annotation.link())
    at(page, 1)
    page.keyboard.press("u")
    expect(page.locator("[data-notice=message]")).to_contain_text("no label to take back")
    at(page, 1)


def test_a_skipped_item_goes_to_somebody_else(serve, desk):
    annotation = serve([pair(1), pair(2)], people=("ada", "grace"))
    page = desk().open(annotation.link())
    at(page, 1)
    page.keyboard.press("s")
    at(page, 2)
    page.keyboard.press("t")
    at_end(page)
    assert [row[0] for row in annotation.labels()] == [pair(2).id]
    at(desk().open(annotation.link("grace")), 1)


def test_a_better_answer_is_written(serve, desk):
    annotation = serve([pair(1)])
    page = desk().open(annotation.link())
    at(page, 1)
    page.keyboard.press("w")
    expect(page.locator("#written")).to_be_focused()
    page.click("text=Start from B")
    expect(page.locator("#written")).to_have_value(shown(page, "right"))
    page.locator("#written").fill("What I would have said.\n\nIn two paragraphs.")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    at_end(page)
    [(_, _, _, written)] = annotation.labels()
    assert written == "What I would have said.\n\nIn two paragraphs."


def test_strength_is_asked_after_the_side_and_can_be_left_out(serve, desk):
    items = [pair(n) for n in (1, 2, 3)]
    annotation = serve(items, strength=True)
    page = desk().open(annotation.link())
    at(page, 1)
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#strength-title")).to_have_text("How much better is A?")
    assert annotation.labels() == []
    page.keyboard.press("Escape")
    at(page, 1)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("3")
    at(page, 2)
    page.keyboard.press("t")  # a tie has no strength
    at(page, 3)
    page.click("#answers [data-action=left]")
    page.click("#answers [data-action=none]")
    at_end(page)
    from pipelines.annotate.tables import labels

    rows = annotation.store.read(lambda db: db.execute(labels.select().order_by(labels.c.id)).all())
    assert [row.strength for row in rows] == [3, None, None]


@pytest.mark.parametrize("device", ["desk", "phone"])
def test_thumbs_up_and_down(serve, desk, device):
    annotation = serve([single(n) for n in (1, 2, 3)])
    page = desk(**(PHONE if device == "phone" else {})).open(annotation.link())
    press = {"up": "y", "down": "n", "cannot_judge": "c"}
    for number, verdict in enumerate(press, start=1):
        at(page, number)
        expect(page.locator(".responses article")).to_have_count(1)
        expect(page.locator("[data-action=differences]")).to_have_count(0)
        if device == "phone":
            page.tap(f"#answers [data-action={verdict}]")
        else:
            page.keyboard.press(press[verdict])
    at_end(page)
    assert [row[1] for row in annotation.labels()] == ["up", "down", "cannot_judge"]


def test_all_turns_of_a_conversation_are_shown(serve, desk):
    turns = (
        Message("system", "Be brief."),
        Message("user", "Who wrote it?"),
        Message("assistant", "Somebody."),
        Message("user", "Question 1?"),
    )
    annotation = serve([pair(1, None, None, *turns)])
    page = desk().open(annotation.link())
    at(page, 1)
    assert page.locator(".turn h3").all_inner_texts() == ["System", "User", "Assistant", "User"]
    assert page.locator(".turn .text").all_inner_texts() == [turn.content for turn in turns]


def test_differences_are_marked_on_demand(serve, desk):
    annotation = serve([pair(1, "The cat sat on **the** mat.", "The dog sat on **the** mat!")])
    page = desk().open(annotation.link())
    at(page, 1)
    expect(page.locator("mark")).to_have_count(0)
    page.keyboard.press("d")
    assert sorted(page.locator("mark").all_inner_texts()) == ["!", ".", "cat", "dog"]
    assert "on **the** mat" in shown(page, "left")  # as written
    page.keyboard.press("d")
    expect(page.locator("mark")).to_have_count(0)
    expect(page.locator("#response-left strong")).to_have_text("the")


def test_the_warning_comes_first_and_once(serve, desk):
    annotation = serve([pair(1)], warning="Some of this is unpleasant.")
    page = desk().open(annotation.link())
    expect(page.locator("main")).to_contain_text("Some of this is unpleasant.")
    expect(page.locator(".response")).to_have_count(0)
    page.keyboard.press("t")  # answers nothing
    page.click("text=I understand")
    at(page, 1)
    page.reload()
    at(page, 1)
    assert annotation.labels() == []


def test_guidelines_and_keys_are_one_key_away_and_swallow_answers(serve, desk):
    annotation = serve([pair(1)])
    page = desk().open(annotation.link())
    at(page, 1)
    for key, dialog, words in (("g", "guidelines", "Be fair."), ("?", "help", "Undo: take back your last answer")):
        page.keyboard.press(key)
        expect(page.locator(f"#{dialog}")).to_be_visible()
        expect(page.locator(f"#{dialog}")).to_contain_text(words)
        page.keyboard.press("t")
        page.keyboard.press(key)
        expect(page.locator(f"#{dialog}")).to_be_hidden()
    page.keyboard.press("?")
    page.uncheck("#single-keys")
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    page.reload()
    at(page, 1)
    page.keyboard.press("t")
    assert annotation.labels() == []
    page.click("#answers [data-action=tie]")
    at_end(page)


def test_content_is_reported(serve, desk):
    from pipelines.annotate.tables import reports

    annotation = serve([pair(1)])
    page = desk().open(annotation.link())
    at(page, 1)
    page.keyboard.press("f")
    page.click("#report >> text=Send")  # without a reason nothing is sent
    expect(page.locator("#report")).to_be_visible()
    page.fill("#report-reason", "names a private person")
    page.click("#report >> text=Send")
    expect(page.locator("[data-notice=message]")).to_contain_text("Reported")
    page.keyboard.press("f")
    page.keyboard.press("Escape")
    at(page, 1)
    [row] = annotation.store.read(lambda db: db.execute(reports.select()).all())
    assert (row.item, row.reason) == (pair(1).id, "names a private person")
    page.keyboard.press("t")
    at_end(page)


def test_a_held_key_answers_one_item(serve, desk):
    annotation = serve([pair(1), pair(2)])
    page = desk().open(annotation.link())
    at(page, 1)
    page.keyboard.down("t")
    at(page, 2)
    page.keyboard.down("t")  # repeats while it is held
    page.keyboard.up("t")
    page.keyboard.press("s")
    at_end(page)
    assert len(annotation.labels()) == 1


def test_the_next_item_of_a_running_loop_appears_by_itself(serve, desk):
    annotation = serve([pair(1)], expecting=True)
    page = desk().open(annotation.link())
    at(page, 1)
    page.keyboard.press("t")
    at_end(page, "Waiting for the next item")
    annotation.store.add([pair(2)], step=2)
    at(page, 2)
    expect(page.locator("#item")).to_be_focused()
    expect(page.locator("#announcer")).to_contain_text("1 item remaining")
