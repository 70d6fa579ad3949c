"""Inputs that nobody meant: real ones with pieces replaced, removed, repeated, nested and garbled."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

_WORDS = st.sampled_from(
    ["", " ", "\n", "\0", "\ud800", "\U0010ffff", "\u202e", "..", "../../x", "~", "~nobody/x", "$HOME/x", "/",
     "a" * 5000, "{{ conversation }}", "{% for x in y %}", "%s", "1.0", "-1", "nan", "true", "null", "<script>",
     "'; DROP TABLE x; --",
     "chosen", "rejected", "human", "A", "0" * 16]
)  # fmt: skip
_NUMBERS = st.sampled_from(
    [0, -1, 1, 2, 2**31, 2**63, 10**400, -(2**63), 0.5, 1e308, -0.0, math.inf, -math.inf, math.nan]
)


def _deep(levels: int) -> Any:
    value: Any = []
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


_LEAVES = st.one_of(st.none(), st.booleans(), _NUMBERS, _WORDS, st.text(max_size=8), st.integers())
VALUES: st.SearchStrategy[Any] = st.one_of(
    _LEAVES,
    st.lists(_LEAVES, max_size=3),
    st.dictionaries(st.text(max_size=4), _LEAVES, max_size=3),
    st.builds(_deep, st.sampled_from([3, 60])),
)
"""Any JSON value, preferring those that break programs."""


@st.composite
def mutants(draw: Draw, documents: Sequence[Any]) -> Any:
    """One of ``documents`` (JSON values) with up to three pieces changed."""
    value = copy.deepcopy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 3]))):
        value = _mutated(draw, value)
    return value


def _mutated(draw: Draw, root: Any) -> Any:
    holder = {"": root}
    parent, key = draw(st.sampled_from(list(_places(holder))))
    match draw(st.sampled_from(["replace", "remove", "repeat", "wrap", "move", "rename"])):
        case "replace":
            parent[key] = draw(VALUES)
        case "remove" if parent is not holder:
            del parent[key]
        case "repeat" if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        case "wrap":
            parent[key] = [parent[key]] if draw(st.booleans()) else {"value": parent[key]}
        case "move":
            other, name = draw(st.sampled_from(list(_places(holder))))
            parent[key] = copy.deepcopy(other[name])
        case "rename" if isinstance(parent, dict) and parent is not holder:
            parent[draw(st.sampled_from(["", "id", "kind", "name", "prompt", "value"]) | st.text(max_size=4))] = (
                parent.pop(key)
            )
    return holder[""]


def _places(value: Any) -> Any:
    """(parent, key) of every value inside ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


_BYTES = st.sampled_from(
    [b"", b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"[" * 3000, b'{"a":' * 3000,
     b"9" * 5000, b"&a [*a]", b"*a", b"!!python/object/apply:os.system [true]", b"\t", b"---\n", b"NaN", b"\\ud800",
     b'"', b",", b"}", b"\xe2\x80\xa8", b"\x1b[2J"]
)  # fmt: skip


def encoded(values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Values as JSON."""
    return values.map(lambda value: json.dumps(value).encode())


@st.composite
def garbled(draw: Draw, documents: Sequence[bytes]) -> bytes:
    """One of ``documents`` with bytes changed, inserted, cut out, repeated or cut off."""
    data = bytearray(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.integers(0, 40)))
        match draw(st.sampled_from(["insert", "flip", "cut", "repeat", "end"])):
            case "insert":
                data[at:at] = draw(_BYTES | st.binary(max_size=4))
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at:to]
            case "repeat":
                data[at:at] = data[at:to]
            case "end":
                del data[at:]
    return bytes(data)


def lines(records: Sequence[Any]) -> bytes:
    """JSON lines; half of a surrogate pair stays an escape."""
    return b"".join(json.dumps(r).encode() + b"\n" for r in records)


@st.composite
def line_files(draw: Draw, records: Sequence[Any]) -> bytes:
    """A JSONL file with a mutant in it, mostly alone; now and then garbled."""
    others = draw(st.just([]) | st.lists(st.sampled_from(records), max_size=2))
    data = lines([*others, draw(mutants(records))])
    return data if draw(st.integers(0, 3)) else draw(garbled([data]))
