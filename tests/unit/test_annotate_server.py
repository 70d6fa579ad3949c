"""The annotation server's HTTP interface, as a page and as an attacker would use it."""

from __future__ import annotations

import re

import pytest

from tests.unit.annotating import Make, Site, Visitor, item, store


@pytest.fixture
def make(tmp_path) -> Make:
    made: list[Site] = []

    def site(items: int = 3, **rules) -> Site:
        directory = tmp_path / str(len(made))
        directory.mkdir()
        made.append(Site(store(directory, items, **rules)))
        return made[-1]

    yield site
    for site_ in made:
        site_.store.close()


def test_a_person_labels_everything(make) -> None:
    site = make(3)
    ann = site.visitor("ann")
    offered = ann.post("next")
    assert offered["progress"] == {"mine": 0, "remaining": 3, "total": 3, "seconds_per_item": None}
    assert offered["item"]["messages"] == [{"role": "user", "content": "question 0"}]
    assert {offered["item"]["left"], offered["item"]["right"]} == {"answer 0a", "answer 0b"}
    assert offered["item"]["lease_expires"] == site.clock() + 600
    ann.label("left", seconds=4)
    ann.label("tie", seconds=8)
    ann.label("both_bad", seconds=6)
    end = ann.post("next")
    assert end["item"] is None
    assert end["reason"] == "done"
    assert end["progress"] == {"mine": 3, "remaining": 0, "total": 3, "seconds_per_item": 6}


def test_an_item_held_is_offered_again_and_in_the_same_order(make) -> None:
    ann = make(3).visitor("ann")
    assert ann.post("next")["item"] == ann.post("next")["item"]


def test_waiting_while_a_run_may_add_more_or_others_hold_items(make) -> None:
    running = make(0, expecting=True).visitor("ann")
    assert running.post("next")["reason"] == "waiting"
    site = make(1)
    site.visitor("ann").next()
    assert site.visitor("bob").post("next")["reason"] == "waiting"


def test_the_order_is_blind_and_random_by_item_and_person(make) -> None:
    site = make(64)
    sides = []
    for name in ("ann", "bob"):
        visitor = site.visitor(name)
        for _ in range(32):
            shown = visitor.post("next")["item"]
            assert set(shown) == {"id", "messages", "left", "right", "lease_expires"}
            sides.append(shown["left"].endswith("a"))
            visitor.post("label", item=shown["id"], verdict="left")
    assert 8 < sum(sides) < 56  # of 64 fair coins: p < 1e-9 outside


# -- labels ----------------------------------------------------------------------------------------------------------


def test_the_same_label_twice_is_one_label(make) -> None:
    site = make(2)
    ann = site.visitor("ann")
    first = ann.next()
    body = {"item": first, "verdict": "left", "strength": 2, "rationale": "clearer", "seconds": 3.0}
    assert ann.post("label", **body) == ann.post("label", **{**body, "seconds": 9.0})
    assert ann.post("next")["progress"]["mine"] == 1


def test_another_verdict_for_a_labelled_item_is_refused(make) -> None:
    ann = make(2).visitor("ann")
    first = ann.label("left")
    answer = ann.post("label", 409, item=first, verdict="tie")
    assert "undo" in answer["error"]
    assert answer["kept"] is False


def test_undo_takes_the_last_label_back_and_offers_its_item(make) -> None:
    site = make(2)
    ann = site.visitor("ann")
    first = ann.label("left", seconds=10)
    second = ann.next()
    again = ann.post("undo")
    assert again["item"]["id"] == first
    assert again["progress"] == {"mine": 0, "remaining": 2, "total": 2, "seconds_per_item": None}
    ann.post("label", item=first, verdict="right")
    assert ann.next() == second
    ann.post("undo")
    ann.post("label", item=first, verdict="tie")
    assert site.store.counts().decided == 1
    assert ann.next() == second


def test_nothing_to_undo(make) -> None:
    assert "no label" in make(1).visitor("ann").post("undo", 409)["error"]


def test_a_consumed_label_cannot_be_undone(make) -> None:
    site = make(2)
    ann = site.visitor("ann")
    first = ann.label("left")
    assert site.store.consume(1, [first]) == 1
    assert "step 1" in ann.post("undo", 409)["error"]


def test_skip_gives_back_for_others_but_not_for_oneself(make) -> None:
    site = make(2)
    ann, bob = site.visitor("ann"), site.visitor("bob")
    first = ann.next()
    ann.post("skip", item=first)
    ann.post("skip", item=first)  # the page may repeat what it got no answer to
    assert ann.next() != first
    assert bob.next() == first


def test_a_lease_ends_and_a_late_label_is_kept_while_the_item_is_open(make) -> None:
    site = make(2)
    ann, bob = site.visitor("ann"), site.visitor("bob")
    first = ann.next()
    site.clock.now += 601
    assert bob.next() == first
    late = ann.post("label", 409, item=first, verdict="tie")
    assert late["kept"] is True
    assert "kept" in late["error"]
    bob.post("label", item=first, verdict="tie")  # who holds the lease is in time
    assert site.store.counts().decided == 1


def test_a_late_label_for_a_decided_item_is_not_kept(make) -> None:
    site = make(2)
    ann, bob = site.visitor("ann"), site.visitor("bob")
    first = ann.next()
    site.clock.now += 601
    bob.post("next")
    bob.post("label", item=first, verdict="tie")
    late = ann.post("label", 409, item=first, verdict="left")
    assert late["kept"] is False
    assert ann.post("next")["progress"]["mine"] == 0


def test_an_ended_lease_that_nobody_took_is_still_good(make) -> None:
    site = make(1)
    ann = site.visitor("ann")
    first = ann.next()
    site.clock.now += 601
    ann.post("label", item=first, verdict="tie")


def test_overlap_asks_several_people_and_nobody_twice(make) -> None:
    site = make(2, overlap=2)
    ann, bob, cat = (site.visitor(n) for n in ("ann", "bob", "cat"))
    assert ann.label() != ann.label()
    assert ann.post("next")["item"] is None
    assert ann.post("next")["progress"]["remaining"] == 0
    assert bob.post("next")["progress"]["remaining"] == 2
    first = bob.next()
    second = cat.next()
    assert first != second  # each needs one more label, so two more people never hold the same
    bob.post("label", item=first, verdict="tie")
    cat.post("label", item=second, verdict="tie")
    assert site.store.counts().decided == 2
    assert bob.post("next")["item"] is None


def test_labels_mode(make) -> None:
    ann = make(2, mode="labels").visitor("ann")
    shown = ann.post("next")["item"]
    assert shown["response"] == "answer 0a"
    assert "left" not in shown
    ann.label("up")
    assert "up, down, cannot_judge" in ann.post("label", 422, item=ann.next(), verdict="left")["error"]


def test_task_says_how_to_judge(make) -> None:
    ann = make(1, warning="Careful.", strength=True, write=False).visitor("ann")
    assert ann.get("task") == {
        "guidelines": "Choose.", "warning": "Careful.", "mode": "pairs", "strength": True, "rationale": True,
        "write": False,
    }  # fmt: skip


def test_reports_are_kept_once(make) -> None:
    site = make(1)
    ann = site.visitor("ann")
    first = ann.next()
    for _ in range(2):
        ann.post("report", item=first, reason="names a private person")
    rev = site.visitor("rev", "reviewer")
    assert rev.get("agreement")["counts"]["reports"] == 1


@pytest.mark.parametrize("path", ["label", "skip", "report"])
def test_an_unknown_item_is_said_to_be_unknown(make, path) -> None:
    ann = make(1).visitor("ann")
    more = {"label": {"verdict": "tie"}, "skip": {}, "report": {"reason": "x"}}[path]
    assert "unknown" in ann.post(path, 404, item="0123456789abcdef", **more)["error"]


# -- review ----------------------------------------------------------------------------------------------------------


def disagreeing(site: Site) -> tuple[str, Visitor, Visitor]:
    ann, bob = site.visitor("ann"), site.visitor("bob")
    first = ann.choose("a", rationale="shorter")
    assert bob.choose("b") == first
    return first, ann, bob


def test_a_conflict_goes_to_a_reviewer_whose_word_decides(make) -> None:
    site = make(1, overlap=2)
    rev = site.visitor("rev", "reviewer")
    first, ann, _ = disagreeing(site)
    assert site.store.counts().conflicts == 1
    found = rev.get("conflicts")
    assert found["total"] == 1
    (conflict,) = found["items"]
    assert {x["verdict"] for x in conflict["labels"]} == {"left", "right"}
    assert "shorter" in {x["rationale"] for x in conflict["labels"]}
    assert "ann" not in {x["annotator"] for x in conflict["labels"]}
    by_side = {x["verdict"]: x for x in conflict["labels"]}
    assert (by_side["left"]["rationale"] == "shorter") == conflict["left"].endswith("a")
    verdict = "left" if conflict["left"].endswith("b") else "right"
    for _ in range(2):
        rev.post("resolve", item=first, verdict=verdict, rationale="right one")
    (decided,) = site.store.unconsumed(1)
    assert decided.decision.outcome == "second"
    assert decided.decision.probability == 0
    assert [g.rationale for g in decided.labels] == ["right one"]
    assert rev.get("conflicts") == {"items": [], "total": 0}
    assert "reviewer" in ann.post("undo", 409)["error"]


def test_a_reviewer_may_think_again_until_a_batch_has_learned_from_it(make) -> None:
    site = make(1, overlap=2)
    rev = site.visitor("rev", "reviewer")
    first, _, _ = disagreeing(site)
    rev.post("resolve", item=first, verdict="tie")
    rev.post("resolve", item=first, verdict="both_bad")
    assert site.store.unconsumed(1)[0].decision.outcome == "both_bad"
    site.store.consume(1, [first])
    assert "step 1" in rev.post("resolve", 409, item=first, verdict="tie")["error"]


def test_undo_of_one_label_ends_the_conflict(make) -> None:
    site = make(1, overlap=2)
    site.visitor("rev", "reviewer")
    _, ann, _ = disagreeing(site)
    ann.post("undo")
    assert (site.store.counts().open, site.store.counts().conflicts) == (1, 0)
    ann.choose("b")
    assert site.store.counts().decided == 1


def test_without_a_reviewer_the_majority_decides_or_it_is_a_tie(make) -> None:
    site = make(1, overlap=2)
    disagreeing(site)
    assert site.store.unconsumed(1)[0].decision.outcome == "tie"
    site = make(1, overlap=3)
    disagreeing(site)
    site.visitor("cat").choose("b")
    decided = site.store.unconsumed(1)[0].decision
    assert decided.outcome == "second"
    assert decided.probability == pytest.approx(1 / 3)


def test_annotators_see_neither_conflicts_nor_agreement(make) -> None:
    ann = make(1).visitor("ann")
    for path in ("conflicts", "agreement"):
        assert "reviewers" in ann.get(path, 403)["error"]
    assert "reviewers" in ann.post("resolve", 403, item="x", verdict="tie")["error"]


def test_agreement_of_two_people(make) -> None:
    site = make(4, overlap=2)
    ann, bob, rev = site.visitor("ann"), site.visitor("bob"), site.visitor("rev", "reviewer")
    for a, b in zip("aabb", "aaba", strict=True):
        ann.choose(a, seconds=2)
        bob.choose(b, seconds=4)
    found = rev.get("agreement")
    assert found["alpha"] == pytest.approx(1 - 7 * 2 / (2 * 5 * 3))
    assert [(p["annotator"], p["labels"], p["seconds"]) for p in found["annotators"]] == [("ann", 4, 2), ("bob", 4, 4)]
    assert found["annotators"][0]["agreement"]["rate"] == 0.75
    assert found["seconds"] == 3
    assert found["left"]["n"] == 8
    assert found["counts"]["items_conflict"] == 1


# -- sessions and attacks --------------------------------------------------------------------------------------------


def test_a_code_works_once(make) -> None:
    site = make(1)
    code = site.code("ann")
    assert Visitor(site.client()).post("session", code=code)["annotator"] == "ann"
    for bad in (code, "", "x", code[:-1] + "?", "0" * 16 + "." + code.partition(".")[2]):
        assert "link" in Visitor(site.client()).post("session", 401, code=bad)["error"]


def test_a_code_expires_and_a_new_link_replaces_the_old(make) -> None:
    site = make(1)
    old = site.code("ann")
    new = site.code("ann")
    Visitor(site.client()).post("session", 401, code=old)
    site.clock.now += 8 * 24 * 3600
    Visitor(site.client()).post("session", 401, code=new)


def test_a_session_survives_a_reload_and_ends_after_twelve_hours(make) -> None:
    site = make(1)
    ann = site.visitor("ann")
    assert ann.get("session") == {"annotator": "ann", "role": "annotator", "csrf": ann.csrf}
    site.clock.now += 12 * 3600
    ann.get("session", 401)
    ann.post("next", 401)


def test_a_closed_session_is_over(make) -> None:
    ann = make(1).visitor("ann")
    ann.post("session/close")
    ann.post("next", 401)


@pytest.mark.parametrize("token", ["", "0" * 64, "ü"])
def test_a_forged_csrf_token_changes_nothing(make, token) -> None:
    site = make(1)
    ann = site.visitor("ann")
    forged = ann.client.post("/api/next", headers={"X-CSRF-Token": token.encode()})
    assert forged.status_code == 403
    assert "X-CSRF-Token" in forged.json()["error"]


def test_a_forged_cookie_is_no_session(make) -> None:
    site = make(1)
    ann = site.visitor("ann")
    (name,) = ann.client.cookies.keys()
    id = ann.client.cookies[name].partition(".")[0]
    for forged in (f"{id}.guess", id, "..", "x" * 5000):
        client = site.client(cookies={name: forged})
        assert client.get("/api/task").status_code == 401


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(make, tmp_path) -> None:
    site = make(1)
    answer = site.client().post("/api/session", json={"code": site.code("ann")})
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Max-Age=43200"} <= set(re.split("; ?", cookie))
    assert "Secure" not in cookie
    tls = site.client(base_url="https://testserver").post("/api/session", json={"code": site.code("ann")})
    assert "Secure" in tls.headers["set-cookie"]


def test_every_answer_forbids_what_the_page_does_not_need(make) -> None:
    site = make(1)
    for path in ("/", "/healthz", "/api/task", "/nowhere"):
        headers = site.client().get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert "data:" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"


def test_guessing_codes_is_slowed_down(make) -> None:
    client = make(1).client()
    statuses = [client.post("/api/session", json={"code": f"guess.{i}"}).status_code for i in range(12)]
    assert statuses == [401] * 10 + [429] * 2


def test_too_many_requests_wait(make) -> None:
    ann = make(1).visitor("ann")
    statuses = [ann.client.get("/api/task").status_code for _ in range(402)]
    assert statuses == [200] * 400 + [429] * 2


def test_strangers_are_slowed_down(make) -> None:
    site = make(1)
    statuses = [site.client().get("/api/task").status_code for _ in range(102)]
    assert statuses == [401] * 100 + [429] * 2


def test_an_oversized_body_is_refused_and_nothing_is_recorded(make) -> None:
    site = make(1)
    ann = site.visitor("ann")
    first = ann.next()
    assert "262144" in ann.post("label", 413, item=first, verdict="tie", rationale="x" * 300_000)["error"]
    assert "written" in ann.post("label", 422, item=first, verdict="tie", written="x" * 60_000)["error"]
    assert ann.post("next")["progress"]["mine"] == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (b"[]", "body"),
        (b'{"verdict": "tie"}', "item"),
        (b'{"item": "x", "verdict": "tie", "strength": 7}', "strength"),
        (b'{"item": "x", "verdict": "tie", "seconds": -1}', "seconds"),
        (b'{"item": "x", "verdict": "tie", "admin": true}', "admin"),
        (b'{"item": "x", "verdict": "best"}', "verdict"),
        (b'{"item": "x", "verdict": "tie", "rationale": "\\u0000"}', "rationale"),
        (b'{"item": "x", "verdict": "tie", "written": "\\ud800"}', "body"),
        (b"\xff\xfe", "body"),
    ],
)
def test_a_bad_body_is_answered_with_the_field(make, body, field) -> None:
    ann = make(1).visitor("ann")
    answer = ann.client.post("/api/label", content=body, headers={"X-CSRF-Token": ann.csrf})
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(field)


def test_nothing_without_a_session(make) -> None:
    client = make(1).client()
    assert client.get("/api/task").status_code == 401
    assert client.post("/api/next", json={}).status_code == 401
    assert client.get("/healthz").json() == {"status": "ok"}


def test_secrets_are_not_in_the_database(make, tmp_path) -> None:
    site = make(1)
    code = site.code("ann")
    ann = site.visitor("bob")
    cookie = next(iter(ann.client.cookies.values()))
    stored = b"".join(p.read_bytes() for p in tmp_path.glob("0/labels.db*"))
    for secret in (code.partition(".")[2], cookie.partition(".")[2], ann.csrf):
        assert secret.encode() not in stored
    assert item(0).id.encode() in stored  # the search would have found them
