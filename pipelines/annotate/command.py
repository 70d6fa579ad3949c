"""``rondo annotate``: serve a run's items, a store's, or those of a plain file; links, erasure, exchange."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from configs.judges import HumanJudge
from pipelines.annotate.exchange import Format, export_labels, import_labels
from pipelines.annotate.items import AnnotationError, Role, Task
from pipelines.annotate.people import erase, known_people
from pipelines.annotate.reading import read_gold, read_items
from pipelines.annotate.serving import address, is_tls, listen, make_links, server
from pipelines.annotate.store import STORE_NAME, Store, sqlite_url
from pipelines.ledger.ledger import read_record

Say = Callable[[str], None]
_DATABASES = (".db", ".sqlite", ".sqlite3")


@dataclass(frozen=True, slots=True)
class Serving:
    """How the page is reached."""

    host: str = "127.0.0.1"
    port: int = 8700
    behind_tls: bool = False
    public_url: str = ""
    trusted_proxies: str = "127.0.0.1,::1"


def open_target(target: str, root: str, knobs: Sequence[str]) -> Store:
    """The store of a run (directory or name), a database (URL or file), or a file of items, which is read into one.

    ``knobs``: ``KEY=VALUE`` of ``HumanJudge``, for a file of items. Raises AnnotationError.
    """
    path = Path(target).expanduser()
    if path.is_file() and path.suffix not in _DATABASES:
        return _of_file(path, knobs)
    if knobs:
        raise AnnotationError(f"{knobs[0]}: knobs are for files of items; a run's stand in its configuration")
    if "://" in target:
        return Store(target)
    if path.suffix in _DATABASES:
        return Store(sqlite_url(path), create=False)
    run = path if path.is_dir() else Path(root).expanduser() / target
    record = read_record(run)
    if record is None:
        raise AnnotationError(f"{target}: no run, database or file of items is there (runs are looked for in {root})")
    human = next((k.removesuffix("kind") for k, v in record.fields.items() if k.endswith(".kind") and v == "human"), "")
    if not human:
        raise AnnotationError(f"{run}: no judge of this run is human")
    url = record.fields.get(f"{human}store", "")
    return Store(url) if url else Store(sqlite_url(run / STORE_NAME), create=False)


def _of_file(path: Path, knobs: Sequence[str]) -> Store:
    """Items of a file in a database beside it, which keeps the labels; the same file again adds what is new in it."""
    given = _knobs(knobs)
    read = read_items(path, given.get("mode"))
    judge = _judge({"mode": read[0].item.mode, **given})
    gold = read_gold(judge)
    store = Store(judge.store or sqlite_url(path.with_suffix(f".{STORE_NAME}")))
    store.configure(Task.of(judge), path.name, expecting=False)
    store.add_gold(gold)  # first: a gold item that also stands in the file stays gold
    store.add([r.item for r in read])
    store.add_people(judge.annotators if "annotators" in given else (), "annotator")
    store.add_people(judge.reviewers, "reviewer")
    return store


def _knobs(words: Sequence[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise AnnotationError(f"{word!r} is not of the form KEY=VALUE")
        try:
            given[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise AnnotationError(f"{word!r}: the value is not valid YAML: {error}") from None
    return given


def _judge(given: dict[str, Any]) -> HumanJudge:
    try:
        return HumanJudge.model_validate({"kind": "human", **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise AnnotationError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}; got {first['input']!r}") from None


def add_people(store: Store, annotators: Sequence[str], reviewers: Sequence[str]) -> list[str]:
    """Add those who are named; returns whose links to print: theirs, or everybody's where nobody is named."""
    store.add_people(annotators, "annotator")
    store.add_people(reviewers, "reviewer")
    named = list(dict.fromkeys([*annotators, *reviewers]))
    if not named:
        named = [name for name, _ in people_of(store)]
    if not named:
        store.add_people(("annotator",), "annotator")
        named = ["annotator"]
    return named


def people_of(store: Store) -> list[tuple[str, Role]]:
    return store.read(known_people)


def serve(store: Store, serving: Serving, names: Sequence[str], say: Say) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    store.state()
    bound = listen(serving.host, serving.port)
    base = address(bound, serving.public_url)
    say(f"serving {store.shown_url} on {base}")
    for name, url in make_links(store, base, names):
        say(f"  {name}: {url}")
    say("each link works once; `rondo annotate ... --link NAME` makes a new one; Ctrl-C stops, labels are kept")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises again what it was stopped by
    behind_tls = serving.behind_tls or is_tls(serving.public_url)
    running = server(store, behind_tls=behind_tls, trusted_proxies=serving.trusted_proxies)
    try:
        running.run(sockets=[bound])
    except KeyboardInterrupt:
        pass
    finally:
        bound.close()
        counts = store.counts()
        say(f"stopped: {counts.decided} of {counts.items} items are decided, {counts.conflicts} in conflict")


def new_link(store: Store, serving: Serving, name: str, say: Say) -> None:
    base = serving.public_url.rstrip("/") or f"http://{serving.host}:{serving.port}"
    say(make_links(store, base, [name])[0][1])


def forget(store: Store, name: str, say: Say) -> None:
    """Erase a person; what they wrote is gone from the database's files, too."""
    count = store.write(lambda db: erase(db, name))
    store.vacuum()
    say(f"{name} is erased; the choices of {count} labels stay, under nobody's name")


def write_file(store: Store, path: Path, format: Format, say: Say) -> None:
    done = export_labels(store, path, format)
    left = f"; {done.left_out} items left out, which are not decided" if done.left_out else ""
    say(f"{done.written} records written to {path}{left}")


def read_file(store: Store, path: Path, say: Say) -> None:
    done = import_labels(store, path)
    say(f"{done.items} new items and {done.labels} new labels out of {path}")
