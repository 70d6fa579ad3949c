"""People in a running loop, over real HTTP and real databases: what was acknowledged is never lost or doubled."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from sqlalchemy import create_engine, select

from configs.judges import HumanJudge
from configs.schema import Deadlines
from pipelines.annotate.command import Serving, open_target, people_of
from pipelines.annotate.items import AnnotationError, Task
from pipelines.annotate.judge import HumanPool, match_item
from pipelines.annotate.people import erase
from pipelines.annotate.serving import ServerProcess, address, listen, make_links
from pipelines.annotate.store import STORE_NAME, Store, sqlite_url
from pipelines.annotate.tables import items, labels, people
from preference.types import CandidateGroup, JudgeFailure, Match, Outcome, Rating, Verdict
from tests.annotators import Annotator
from tests.factories import candidate, prompt
from tests.integration.conftest import BIN, ROOT, run
from tests.unit.annotating import item

DEADLINES = Deadlines(start_s=60, call_s=60)


# -- databases -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgres() -> Iterator[Callable[[], str]]:
    """Makes empty databases on a PostgreSQL of this module's own; skips where none is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL in /usr/lib/postgresql (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="the extra rondo[postgres] is not installed")
    bin, directory = found[-1].parent, Path(tempfile.mkdtemp(prefix="rondo-pg-", dir="/tmp"))
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(directory, "postgres")
        as_user = {"user": "postgres", "extra_groups": []}
    data = directory / "data"

    def tool(name: str, *words: str) -> None:
        done = subprocess.run([bin / name, *words], capture_output=True, text=True, cwd=directory, **as_user)
        assert done.returncode == 0, done.stdout + done.stderr

    tool("initdb", "-D", str(data), "-A", "trust", "-U", "rondo", "--no-sync")
    options = f"-c listen_addresses='' -c unix_socket_directories='{directory}'"
    tool("pg_ctl", "-D", str(data), "-o", options, "-w", "-l", str(directory / "log"), "start")
    made = 0

    def database() -> str:
        nonlocal made
        made += 1
        url = f"postgresql+psycopg://rondo@/{{}}?host={directory}"
        admin = create_engine(url.format("postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as db:
            db.exec_driver_sql(f"CREATE DATABASE rondo_{made}")
        admin.dispose()
        return url.format(f"rondo_{made}")

    yield database
    tool("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
    shutil.rmtree(directory)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "labels.db")
    made: str = request.getfixturevalue("postgres")()
    return made


def filled(url: str, count: int, **rules: Any) -> Store:
    made = Store(url)
    made.configure(Task(**{"mode": "pairs", "guidelines": "g", "gold_share": 0.0, **rules}), "test", expecting=False)
    made.add([item(i) for i in range(count)], step=1)
    return made


@contextmanager
def served(store: Store, log: Path) -> Iterator[tuple[ServerProcess, str]]:
    bound = listen("127.0.0.1", 0)
    server = ServerProcess(store.url, bound, log)
    try:
        asyncio.run(server.ready(60))
        yield server, address(bound)
    finally:
        server.close()


def annotators(store: Store, base: str, count: int) -> list[Annotator]:
    names = [f"person {i}" for i in range(count)]
    store.add_people(names, "annotator")
    return [Annotator(base, url.partition("#")[2], seed) for seed, (_, url) in
            enumerate(make_links(store, base, names))]  # fmt: skip


def stored(store: Store) -> list[tuple[str, str]]:
    """(item, name) of every label that stands."""
    query = select(labels.c.item, people.c.name).join(people, people.c.id == labels.c.person)
    return [tuple(r) for r in store.read(lambda db: db.execute(query.where(labels.c.undone.is_(None))).all())]


def consistent(store: Store) -> None:
    """The counters that are kept beside the labels say what the labels say."""

    def check(db: Any) -> None:
        given = Counter(db.execute(select(labels.c.item).where(labels.c.undone.is_(None))).scalars())
        state = store.state()
        rows = db.execute(select(items)).all()
        assert all(r.labels == given[r.id] for r in rows)
        assert state.total == len(rows)
        assert state.open == sum(r.state == "open" for r in rows)
        by_person = Counter(db.execute(select(labels.c.person).where(labels.c.undone.is_(None))).scalars())
        assert all(p.labels == by_person[p.id] for p in db.execute(select(people)).all())

    store.read(check)


# -- many people at once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [1, 3])
def test_fifty_people_at_once_lose_and_double_nothing(url, tmp_path, overlap) -> None:
    with filled(url, 300 // overlap, overlap=overlap) as store, served(store, tmp_path / "log") as (_, base):
        crowd = annotators(store, base, 50)

        async def work() -> None:
            await asyncio.gather(*(a.work() for a in crowd))

        asyncio.run(work())
        assert {a.reason for a in crowd} <= {"done", "waiting"}  # waiting: others held the last ones
        confirmed = [(i, f"person {a.seed}") for a in crowd for i in a.acknowledged]
        assert sorted(confirmed) == sorted(stored(store))
        assert len(set(confirmed)) == len(confirmed) == 300
        assert max(Counter(i for i, _ in confirmed).values()) == overlap
        consistent(store)


def test_what_was_acknowledged_survives_kill_9(url, tmp_path) -> None:
    """Twice: kill the server under load while people go on, on the same address."""
    with filled(url, 600) as store, served(store, tmp_path / "log") as (server, base):
        crowd = annotators(store, base, 20)

        async def kill_at(count: int) -> None:
            while sum(len(a.acknowledged) for a in crowd) < count:
                await asyncio.sleep(0.005)
            assert server.pid is not None
            before = [(i, f"person {a.seed}") for a in crowd for i in a.acknowledged]
            os.kill(server.pid, signal.SIGKILL)
            psutil.wait_procs([psutil.Process(server.pid)], timeout=30)
            assert set(before) <= set(stored(store))  # before anything could be sent again
            server.keep_running()

        async def work() -> None:
            async def kills() -> None:
                await kill_at(150)
                await kill_at(400)

            await asyncio.gather(kills(), *(a.work() for a in crowd))

        asyncio.run(work())
        confirmed = [(i, f"person {a.seed}") for a in crowd for i in a.acknowledged]
        assert sorted(confirmed) == sorted(stored(store))
        assert len(set(confirmed)) == 600
        assert sum(a.retries for a in crowd) > 0  # requests were cut off, and sent again
        assert not any(a.unconfirmed for a in crowd)
        consistent(store)


def test_two_servers_on_one_store(url, tmp_path) -> None:
    """The run's page and `rondo annotate` may serve the same items at once."""
    with (
        filled(url, 200) as store,
        served(store, tmp_path / "one") as (_, one),
        served(store, tmp_path / "two") as (_, two),
    ):
        crowd = annotators(store, one, 20)
        for a in crowd[10:]:
            a.base = two

        async def work() -> None:
            await asyncio.gather(*(a.work() for a in crowd))

        asyncio.run(work())
        confirmed = [i for a in crowd for i in a.acknowledged]
        assert len(set(confirmed)) == len(confirmed) == 200
        consistent(store)


def test_the_server_ends_with_its_parent(tmp_path) -> None:
    """Even if the parent is killed: a run that died leaves no server behind on its port."""
    filled(sqlite_url(tmp_path / "labels.db"), 1).close()
    code = (
        "import asyncio, sys, time; from pathlib import Path; from pipelines.annotate.serving import *\n"
        "server = ServerProcess(sys.argv[1], listen('127.0.0.1', 0), Path(sys.argv[2]))\n"
        "asyncio.run(server.ready(60)); print(server.pid, flush=True); time.sleep(600)"
    )
    words = [sys.executable, "-c", code, sqlite_url(tmp_path / "labels.db"), str(tmp_path / "log")]
    parent = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    server = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    assert psutil.wait_procs([server], timeout=30)[1] == []


def test_a_server_that_cannot_start_is_said_with_its_log(tmp_path) -> None:
    Store(sqlite_url(tmp_path / "labels.db")).close()  # without a task
    server = ServerProcess(sqlite_url(tmp_path / "labels.db"), listen("127.0.0.1", 0), tmp_path / "log")
    with pytest.raises(AnnotationError, match=r"3 times by itself.*has no task"):
        asyncio.run(server.ready(300))
    server.close()


def test_erasing_somebody_leaves_their_choices(url, tmp_path) -> None:
    with filled(url, 4, overlap=2) as store, served(store, tmp_path / "log") as (_, base):
        ann, bob = annotators(store, base, 2)
        asyncio.run(give(ann, "first", rationale="as Ann would say", written="Ann's own words"))
        asyncio.run(give(bob, "first", most=3))
        before = store.counts()
        assert store.write(lambda db: erase(db, "person 0")) == 4
        store.vacuum()
        assert store.counts() == before
        decided = store.unconsumed(1)
        assert [[g.annotator for g in d.labels] for d in decided] == [["", "person 1"]] * 3
        assert not any(g.written or g.rationale for d in decided for g in d.labels)
        consistent(store)
        assert people_of(store) == [("person 1", "annotator")]


def test_forwarded_headers_count_only_behind_tls(tmp_path) -> None:
    """Else anybody could pretend to be another address, or to come over TLS."""
    with filled(sqlite_url(tmp_path / "labels.db"), 1) as store:
        seen = {}
        for behind_tls in (False, True):
            bound = listen("127.0.0.1", 0)
            server = ServerProcess(store.url, bound, tmp_path / "log", behind_tls)
            asyncio.run(server.ready(60))
            seen[behind_tls] = asyncio.run(forwarding(address(bound), annotators(store, "", 1)[0].code))
            server.close()
    assert seen == {False: (False, [401] * 10 + [429] * 2), True: (True, [401] * 12)}


async def forwarding(base: str, code: str) -> tuple[bool, list[int]]:
    """(is the cookie for TLS only, what many wrong codes from as many pretended addresses are answered)."""
    async with aiohttp.ClientSession() as http:
        statuses = []
        for i in range(12):
            headers = {"X-Forwarded-For": f"203.0.113.{i}", "X-Forwarded-Proto": "https"}
            async with http.post(f"{base}/api/session", json={"code": "wrong"}, headers=headers) as answer:
                statuses.append(answer.status)
            if i == 8:  # before the limit
                async with http.post(f"{base}/api/session", json={"code": code}, headers=headers) as answer:
                    secure = "Secure" in answer.headers["Set-Cookie"]
        return secure, statuses


# -- the judge -------------------------------------------------------------------------------------------------------


def match(number: int, step: int = 1) -> Match:
    name = f"p{step}-{number}"
    return Match(prompt(name), candidate(name, 0), candidate(name, 1))


@pytest.fixture
def pool(tmp_path) -> Iterator[Callable[..., tuple[HumanPool, list[str]]]]:
    """Starts a HumanPool on the run directory; again for a resumed run."""
    made: list[HumanPool] = []

    def start(**knobs: Any) -> tuple[HumanPool, list[str]]:
        said: list[str] = []
        judge = HumanJudge(kind="human", port=0, gold_share=0.0, **knobs)
        made.append(HumanPool(judge, tmp_path / "run", DEADLINES, tmp_path / "logs", "judge", said.append, 0.02))
        return made[-1], said

    yield start
    for p in made:
        p.close()


def people_behind(said: list[str]) -> list[Annotator]:
    """Those whose links were announced."""
    (text,) = said
    found = []
    for seed, line in enumerate(text.splitlines()[1:]):
        base, _, code = line.partition(": ")[2].partition("/#")
        found.append(Annotator(base, code, seed))
    return found


async def give(person: Annotator, verdict: str, most: int = 10**6, **more: Any) -> None:
    """The same verdict on everything that is offered, ``most`` times."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        person._http = http
        person._csrf = (await person._post("session", code=person.code))["csrf"]
        for _ in range(most):
            offered = (await person._post("next"))["item"]
            if offered is None:
                return
            said = verdict
            if verdict in ("first", "second"):  # candidates' texts end with their number
                wanted = "0" if verdict == "first" else "1"
                said = "left" if offered["left"].endswith(wanted) else "right"
            await person._post("label", item=offered["id"], verdict=said, **more)


def test_the_loop_waits_for_people_and_gets_their_verdicts(pool) -> None:
    judge, said = pool()
    matches = [match(i) for i in range(4)]

    async def loop() -> None:
        await judge.ready()
        await judge.submit(1, matches)
        await judge.submit(1, matches)  # as a resumed run does
        waiting = asyncio.create_task(judge.collect(1))
        (person,) = people_behind(said)
        await give(person, "second", rationale="plainer", written="best of all", strength=3, seconds=2.5)
        answers = await waiting
        assert {a.id for a in answers} == {match_item(m).id for m in matches}
        for a in answers:
            verdict = a.judgement
            assert isinstance(verdict, Verdict)
            assert verdict.first_id.endswith("/0")
            assert (verdict.outcome, verdict.probability, verdict.seconds) == (Outcome.SECOND, 0.0, 2.5)
            assert (verdict.rationale, a.written, a.strength) == ("plainer", ("best of all",), 3.0)
            assert verdict.judge.name == "human"
            assert [x.annotator for x in a.labels] == ["annotator"]
        assert {a.judgement for a in await judge.collect(1)} == {
            a.judgement for a in answers
        }  # until consumed, and after
        await judge.consumed(1, [a.id for a in answers])
        assert len(await judge.collect(1)) == 4
        await judge.submit(2, [])
        assert await judge.collect(2) == []

    asyncio.run(loop())


def test_quorum_goes_on_and_late_answers_feed_a_later_batch(pool) -> None:
    judge, said = pool(quorum=0.5)

    async def loop() -> None:
        await judge.ready()
        await judge.submit(1, [match(i) for i in range(4)])
        (person,) = people_behind(said)
        await give(person, "first", most=2)
        first = await judge.collect(1)
        assert len(first) == 2
        await judge.consumed(1, [a.id for a in first])
        await judge.submit(2, [match(i, 2) for i in range(2)])
        again = Annotator(person.base, judge_link(judge, person), 1)
        await give(again, "tie", most=3)  # the two that are late, and one of two of the second step
        second = await judge.collect(2)
        assert [a.step for a in second] == [1, 1, 2]
        assert all(isinstance(a.judgement, Verdict) and a.judgement.outcome is Outcome.TIE for a in second)
        await judge.consumed(2, [a.id for a in second])
        await judge.submit(3, [])
        assert await judge.collect(3) == []

    asyncio.run(loop())


def judge_link(judge: HumanPool, person: Annotator) -> str:
    """A new code for the only annotator: each works once."""
    return make_links(judge._store, person.base, ["annotator"])[0][1].partition("#")[2]


def test_a_deadline_goes_on_with_what_there_is_but_not_with_nothing(pool) -> None:
    judge, said = pool(deadline_s=0.01)

    async def loop() -> None:
        await judge.ready()
        await judge.submit(1, [match(i) for i in range(3)])
        waiting = asyncio.create_task(judge.collect(1))
        (person,) = people_behind(said)
        await give(person, "both_bad", most=1)
        answers = await waiting
        assert len(answers) == 1
        assert answers[0].both_bad
        assert answers[0].judgement.outcome is Outcome.TIE  # type: ignore[union-attr]

    asyncio.run(loop())


def test_nobody_could_judge_is_an_abstention(pool) -> None:
    judge, said = pool()

    async def loop() -> None:
        await judge.ready()
        await judge.submit(1, [match(0)])
        (person,) = people_behind(said)
        await give(person, "cannot_judge", rationale="Finnish")
        (answer,) = await judge.collect(1)
        assert isinstance(answer.judgement, JudgeFailure)
        assert answer.judgement.outcome is Outcome.ABSTAIN
        assert "Finnish" in answer.judgement.error

    asyncio.run(loop())


def test_people_who_disagree_wait_for_the_reviewer(pool) -> None:
    judge, said = pool(annotators=("ann", "bob"), reviewers=("rev",), overlap=2)

    async def loop() -> None:
        await judge.ready()
        await judge.submit(1, [match(0), match(1)])
        ann, bob, rev = people_behind(said)
        await give(ann, "first")
        await give(bob, "second")
        waiting = asyncio.create_task(judge.collect(1))
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
            rev._http = http
            rev._csrf = (await rev._post("session", code=rev.code))["csrf"]
            async with http.get(f"{rev.base}/api/conflicts") as found:
                conflicts = (await found.json())["items"]
            assert len(conflicts) == 2
            for c in conflicts:
                side = "left" if c["left"].endswith("1") else "right"
                await rev._post("resolve", item=c["id"], verdict=side)
        answers = await waiting
        assert [a.judgement.outcome for a in answers] == [Outcome.SECOND] * 2  # type: ignore[union-attr]

    asyncio.run(loop())


def test_thumbs_are_ratings(pool) -> None:
    judge, said = pool(mode="labels", annotators=("ann", "bob"), overlap=2)
    group = CandidateGroup(prompt("p"), (candidate("p", 0), candidate("p", 1)))

    async def loop() -> None:
        await judge.ready()
        await judge.submit_responses(1, [group])
        ann, bob = people_behind(said)
        await give(ann, "up")
        await give(bob, "up", most=1)
        bob = Annotator(bob.base, make_links(judge._store, bob.base, ["bob"])[0][1].partition("#")[2])
        await give(bob, "down")
        answers = await judge.collect(1)
        values = {a.judgement.candidate_id: a.judgement.value for a in answers if isinstance(a.judgement, Rating)}
        assert sorted(values) == ["p/0", "p/1"]
        assert sorted(values.values()) == [0.5, 1.0]

    asyncio.run(loop())


def test_a_run_that_died_finds_its_answers_again(pool, tmp_path) -> None:
    """The first process is gone after its ledger had one answer; the second asks the same and loses nothing."""
    judge, said = pool()
    matches = [match(i) for i in range(3)]

    async def first() -> None:
        await judge.ready()
        await judge.submit(1, matches)
        (person,) = people_behind(said)
        await give(person, "first", most=2)
        await judge.consumed(1, [match_item(matches[0]).id])

    asyncio.run(first())
    assert judge._server is not None
    assert judge._server.pid is not None
    os.kill(judge._server.pid, signal.SIGKILL)
    resumed, said_again = pool()

    async def second() -> None:
        await resumed.ready()
        await resumed.submit(1, matches)
        (person,) = people_behind(said_again)
        await give(person, "first")
        answers = await resumed.collect(1)
        assert {a.id for a in answers} == {match_item(m).id for m in matches}

    asyncio.run(second())


def test_a_server_that_dies_comes_back_while_the_run_waits(pool) -> None:
    judge, said = pool()

    async def loop() -> None:
        await judge.ready()
        await judge.submit(1, [match(0)])
        waiting = asyncio.create_task(judge.collect(1))
        assert judge._server is not None
        assert judge._server.pid is not None
        os.kill(judge._server.pid, signal.SIGKILL)
        (person,) = people_behind(said)
        await give(person, "first")
        assert len(await waiting) == 1

    asyncio.run(loop())


def test_what_the_run_may_not_say_aloud(pool, tmp_path) -> None:
    """Codes are told to the person at the terminal, and stand in no file."""
    judge, said = pool()

    async def loop() -> None:
        await judge.ready()
        await judge.submit(1, [match(0)])
        (person,) = people_behind(said)
        await give(person, "first")
        await judge.collect(1)

    asyncio.run(loop())
    (person,) = people_behind(said)
    secret = person.code.partition(".")[2].encode()
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert files
    assert not any(secret in p.read_bytes() for p in files)


# -- the command -----------------------------------------------------------------------------------------------------


def test_rondo_annotate_serves_a_file_until_it_is_stopped(tmp_path) -> None:
    path = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"q {i}", "response_a": "x", "response_b": "y"} for i in range(5)]
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    words = [BIN / "rondo", "annotate", path, "--port", "0", "--annotator", "ann"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, "PYTHONUNBUFFERED": "1"})  # fmt: skip
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(3)]
    base, _, code = said[1].strip().removeprefix("ann: ").partition("/#")
    person = Annotator(base, code)
    asyncio.run(person.work())
    assert (len(person.acknowledged), person.reason) == (5, "done")
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=60)[0]
    assert "5 of 5 items are decided" in rest
    exported = run(BIN / "rondo", "annotate", path, "--export", tmp_path / "out.jsonl")
    assert exported.returncode == 0, exported.stderr
    judged = sum(verdict != "cannot_judge" for verdict in person.acknowledged.values())
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == judged
    assert f"{judged} records written" in exported.stdout


def test_a_run_is_annotated_by_its_name(pool, tmp_path) -> None:
    from pipelines.ledger.ledger import RunRecord, write_record

    judge, _ = pool()
    fields = {"judge.kind": "escalation", "judge.then.kind": "human", "judge.then.store": ""}
    write_record(tmp_path / "run", RunRecord("hash", fields, "mlflow", 1, 0))
    with open_target("run", str(tmp_path), []) as store:
        assert store.url == sqlite_url(tmp_path / "run" / STORE_NAME)
        assert people_of(store) == [("annotator", "annotator")]
    assert Serving().port == 8700
    assert judge.name == "human"
