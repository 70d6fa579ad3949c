"""The word diff: what it marks is what differs, for any two texts."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Page

from tests.browser.conftest import pair
from tests.browser.test_judging import at

Pieces = list[dict[str, object]]


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """Any page of the server's origin: the module is imported into it."""
    from pipelines.annotate.items import Task
    from pipelines.annotate.serving import address, listen
    from pipelines.annotate.store import Store, sqlite_url
    from tests.browser.conftest import ServerThread

    store = Store(sqlite_url(tmp_path_factory.mktemp("diff") / "store.db"))
    store.configure(Task(mode="pairs", guidelines=""), "tests", False)
    bound = listen("127.0.0.1", 0)
    server = ServerThread(store, bound)
    page = browser.new_page()
    page.goto(address(bound))
    yield page
    page.close()
    server.close()
    store.close()


def difference(page: Page, left: str, right: str) -> dict[str, object]:
    return page.evaluate("async ([l, r]) => (await import('/diff.js')).difference(l, r)", [left, right])


def marked(pieces: Pieces) -> list[str]:
    return [str(p["text"]) for p in pieces if p["changed"]]


@pytest.mark.parametrize(
    ("left", "right", "only_left", "only_right"),
    [
        ("", "", [], []),
        ("same words", "same words", [], []),
        ("", "new", [], ["new"]),
        ("a b c", "a c", ["b "], []),
        ("one two three", "one 2 three", ["two"], ["2"]),
        ("red, green and blue", "black, white and blue", ["red, green"], ["black, white"]),  # the comma is chance
        ("日本語を話す", "日本語を書く", ["話す"], ["書く"]),  # words without spaces
    ],
)
def test_worked_examples(page, left, right, only_left, only_right):
    found = difference(page, left, right)
    assert found["unit"] == "words"
    assert marked(found["left"]) == only_left
    assert marked(found["right"]) == only_right


words = st.lists(st.sampled_from(["a", "b", "c", "the", " ", "\n", ", ", "é", "👍"]), max_size=60).map("".join)


@settings(max_examples=150, deadline=None)
@given(left=words, right=words)
def test_nothing_is_lost_and_what_is_unmarked_is_shared(page, left, right):
    found = difference(page, left, right)
    for side, text in (("left", left), ("right", right)):
        pieces = found[side]
        assert "".join(p["text"] for p in pieces) == text
        assert all(a["changed"] != b["changed"] for a, b in pairwise(pieces))
    if left == right:
        assert not marked(found["left"])
        assert not marked(found["right"])
    # Unmarked words stand in both texts in the same order; blanks between two changes may be marked on one side only.
    shared = [
        "".join(str(p["text"]) for p in found[side] if not p["changed"]).translate({ord(c): None for c in " \n,"})
        for side in ("left", "right")
    ]
    assert shared[0] == shared[1]


def test_texts_too_different_for_words_are_compared_by_lines_then_not_at_all(page):
    def other(prefix: str, n: int, end: str) -> str:
        return "".join(f"{prefix}{i}{end}" for i in range(n))

    texts = [f"first\n{other(prefix, 3000, ' ')}\nlast" for prefix in "xy"]
    by_line = difference(page, *texts)
    assert by_line["unit"] == "lines"
    assert [p["text"] for p in by_line["left"] if not p["changed"]] == ["first\n", "last"]
    texts = [f"first {other(prefix, 3000, chr(10))}last" for prefix in "xy"]
    neither = difference(page, *texts)
    assert neither["unit"] is None
    assert neither["left"][0] == {"text": "first ", "changed": False}
    assert neither["left"][-1] == {"text": "\nlast", "changed": False}


def test_long_texts_that_differ_little(serve, desk):
    text = "word " * 20_000
    annotation = serve([pair(1, text + "left", text + "right")])
    opened = desk().open(annotation.link())
    at(opened, 1)
    opened.keyboard.press("d")
    assert sorted(opened.locator("mark").all_inner_texts()) == ["left", "right"]
