"""A label is neither lost nor doubled: without a network, over reloads and restarts, when sessions and leases end."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, Route, expect

from pipelines.annotate.serving import ServerProcess
from tests.browser.conftest import ServerThread, kill, pair
from tests.browser.test_judging import at, at_end

NETWORK = "[data-notice=network]"


def kept(page: Page) -> int:
    """Labels in the browser's storage."""
    return page.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('rondo.label.')).length")


def test_without_a_network_a_label_waits_and_is_sent_once(serve, desk):
    annotation, ada = serve([pair(1), pair(2)]), desk()
    page = ada.open(annotation.link())
    at(page, 1)
    ada.context.set_offline(True)
    page.keyboard.press("t")
    expect(page.locator(NETWORK)).to_contain_text("cannot be reached")
    expect(page.locator(NETWORK)).to_contain_text("1 answer kept in this browser")
    page.keyboard.press("n")  # the answer is given already
    assert kept(page) == 1
    assert annotation.labels() == []
    ada.context.set_offline(False)  # the browser says so, the page sends at once
    at(page, 2)
    expect(page.locator(NETWORK)).to_have_count(0)
    assert kept(page) == 0
    assert [row[:2] for row in annotation.labels()] == [(pair(1).id, "tie")]


def test_an_answer_that_got_lost_does_not_double_the_label(serve, desk):
    annotation, ada = serve([pair(1), pair(2)]), desk()
    ada.page.clock.install()
    page = ada.open(annotation.link())
    at(page, 1)
    requests = []

    def lose_the_first_answer(route: Route) -> None:
        requests.append(route.request.post_data_json)
        if len(requests) > 1:
            return route.continue_()
        assert route.fetch().ok  # the server has stored it
        return route.abort()

    page.route("**/api/label", lose_the_first_answer)
    page.clock.pause_at(page.evaluate("Date.now()"))  # nothing is tried again before the button is pressed
    page.keyboard.press("t")
    expect(page.locator(NETWORK)).to_contain_text("1 answer kept")
    assert len(annotation.labels()) == 1
    page.click(f"{NETWORK} >> text=Try now")
    at(page, 2)
    assert len(annotation.labels()) == 1
    assert requests == [requests[0]] * 2
    assert kept(page) == 0


def test_a_label_survives_a_reload(serve, desk):
    annotation, ada = serve([pair(1), pair(2)]), desk()
    page = ada.open(annotation.link())
    at(page, 1)
    page.route("**/api/label", lambda route: route.abort())
    page.keyboard.press("t")
    expect(page.locator(NETWORK)).to_be_visible()
    page.reload()
    expect(page.locator(NETWORK)).to_contain_text("1 answer kept")
    page.unroute("**/api/label")
    at(page, 2)  # by itself
    assert [row[:2] for row in annotation.labels()] == [(pair(1).id, "tie")]


def test_a_reload_keeps_the_item_and_what_was_typed(serve, desk):
    annotation, ada = serve([pair(1), pair(2)]), desk()
    page = ada.open(annotation.link())
    at(page, 1)
    order = page.locator(".response .text").all_inner_texts()
    page.keyboard.press("w")
    page.keyboard.type("A better")
    page.reload()
    at(page, 1)
    assert page.locator(".response .text").all_inner_texts() == order
    expect(page.locator("#written")).to_have_value("A better")
    page.keyboard.press("t")
    at(page, 2)
    expect(page.locator("#written")).to_have_value("")
    [(_, _, _, written)] = annotation.labels()
    assert written == "A better"


def test_a_killed_server_costs_nothing(serve, desk):
    annotation, ada = serve([pair(n) for n in range(1, 6)], own_process=True), desk()
    server = annotation.server
    assert isinstance(server, ServerProcess)
    page = ada.open(annotation.link())
    pids = set()
    for number in range(1, 5):
        at(page, number)
        pids.add(server.pid)
        if number in (2, 3):
            kill(server)
        page.keyboard.press("t")
        if number in (2, 3):
            expect(page.locator("#answers [data-action=tie]")).to_be_disabled()
            server.keep_running()
    at(page, 5)
    assert [row[0] for row in annotation.labels()] == [pair(n).id for n in range(1, 5)]
    assert len(pids) == 3


def test_a_session_that_ends_keeps_the_answer_for_the_next(serve, desk):
    annotation, ada = serve([pair(1), pair(2)]), desk()
    assert isinstance(annotation.server, ServerThread)
    page = ada.open(annotation.link())
    at(page, 1)
    annotation.server.ahead = 13 * 3600
    page.keyboard.press("t")
    expect(page.locator("main")).to_contain_text("You are not signed in")
    expect(page.locator("main")).to_contain_text("1 answer kept in this browser")
    expect(page.locator("main")).to_contain_text("rondo annotate --link NAME")
    assert annotation.labels() == []
    page.goto(annotation.link())  # in the same tab: only the fragment changes
    at(page, 2)
    assert page.url == f"{annotation.base}/"
    assert [row[:2] for row in annotation.labels()] == [(pair(1).id, "tie")]


def test_answers_never_go_out_under_another_name(serve, desk):
    annotation, shared = serve([pair(1), pair(2)], people=("ada", "grace")), desk()
    page = shared.open(annotation.link("ada"))
    at(page, 1)
    other = shared.context.new_page()
    other.goto(annotation.link("grace"))
    at(other, 2)
    page.keyboard.press("t")  # ada's tab, with grace's cookie
    expect(page.locator("main")).to_contain_text("Somebody else has signed in")
    assert annotation.labels() == []
    other.keyboard.press("n")
    at_end(other, "Waiting for the next item")
    assert [row[:2] for row in annotation.labels()] == [(pair(2).id, "both_bad")]


def test_a_lease_that_runs_out_is_said_before_and_after(serve, desk):
    annotation, ada = serve([pair(1), pair(2)], people=("ada", "grace"), lease_s=600.0), desk()
    assert isinstance(annotation.server, ServerThread)
    ada.page.clock.install()
    page = ada.open(annotation.link())
    at(page, 1)
    expect(page.locator("[data-notice=lease]")).to_have_count(0)
    page.clock.fast_forward("09:10")
    expect(page.locator("[data-notice=lease]")).to_contain_text("Less than a minute is left")
    page.clock.fast_forward("01:00")
    expect(page.locator("[data-notice=lease]")).to_contain_text("The time for this item is over")
    annotation.server.ahead = 700
    at(desk().open(annotation.link("grace")), 1)  # given to somebody else
    page.keyboard.press("t")  # kept all the same: nobody has answered meanwhile
    expect(page.locator("[data-notice=message]")).to_contain_text("label was kept")
    at(page, 2)
    assert [row[:2] for row in annotation.labels()] == [(pair(1).id, "tie")]


def test_an_item_that_was_decided_meanwhile_is_said(serve, desk):
    annotation, ada = serve([pair(1), pair(2)], people=("ada", "grace"), lease_s=600.0), desk()
    assert isinstance(annotation.server, ServerThread)
    page = ada.open(annotation.link())
    at(page, 1)
    annotation.server.ahead = 700
    grace = desk().open(annotation.link("grace"))
    at(grace, 1)
    grace.keyboard.press("n")
    at(grace, 2)
    page.keyboard.press("t")
    expect(page.locator("[data-notice=message]")).to_contain_text("was not kept")
    assert [row[:2] for row in annotation.labels()] == [(pair(1).id, "both_bad")]
    assert kept(page) == 0


@pytest.mark.parametrize("button", ["Try again", "Discard"])
def test_an_answer_for_another_task_at_this_address_is_not_dropped_silently(serve, desk, button):
    annotation, ada = serve([pair(1)]), desk()
    page = ada.open(annotation.link())
    at(page, 1)
    page.evaluate(
        """() => localStorage.setItem("rondo.label.ada.0123456789abcdef",
            JSON.stringify({label: {item: "0123456789abcdef", verdict: "tie"}, since: 1}))"""
    )
    page.reload()
    at(page, 1)
    expect(page.locator("[data-notice=refused]")).to_contain_text("1 answer given on another task")
    page.click(f"[data-notice=refused] >> text={button}")
    expect(page.locator("[data-notice=refused]")).to_have_count(1 if button == "Try again" else 0)
    at(page, 1)
    assert kept(page) == (1 if button == "Try again" else 0)
    page.keyboard.press("t")
    at_end(page)


def test_words_that_are_refused_come_back_into_their_field(serve, desk):
    annotation, ada = serve([pair(1)]), desk()
    page = ada.open(annotation.link())
    at(page, 1)
    page.keyboard.press("r")
    page.evaluate("document.getElementById('rationale').removeAttribute('maxlength')")
    page.locator("#rationale").fill("x" * 6000)
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    expect(page.locator("[data-notice=message]")).to_contain_text("ationale")
    at(page, 1)
    expect(page.locator("#rationale")).to_have_value("x" * 6000)
    page.locator("#rationale").fill("shorter")
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    at_end(page)
    assert [row[2] for row in annotation.labels()] == ["shorter"]


def test_leaving_ends_the_session(serve, desk):
    annotation, ada = serve([pair(1)]), desk()
    page = ada.open(annotation.link())
    at(page, 1)
    page.click("#leave")
    expect(page.locator("main")).to_contain_text("You have left")
    page.reload()
    expect(page.locator("main")).to_contain_text("You are not signed in")
    expect(page.locator(".response")).to_have_count(0)
