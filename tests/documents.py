"""The pages as a reader meets them: fenced blocks, the commands in them, links, and names of code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PROGRAMS = ("rondo", "make", "python", "bash", "ray", "kubectl", "helm", "docker", "torchrun")
OUTSIDE = {"kubectl": "cluster", "helm": "cluster", "docker": "docker"}
"""What a page says before a block that cannot be tried here: ``<!-- needs: cluster -->``."""


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int
    needs: str
    """What it takes that not every machine has: cluster, docker, gpu; empty: nothing."""


@dataclass(frozen=True)
class Command:
    """A line that a reader may type; ``words`` as a shell passes them on, without variables for the environment."""

    words: tuple[str, ...]
    line: int
    needs: str
    whole: bool = True
    """False: named in a sentence, where arguments may be left out."""

    def __str__(self) -> str:
        return f"line {self.line}: {' '.join(self.words)}"


def blocks(text: str) -> Iterator[Block]:
    pattern = re.compile(r"^(?:<!-- needs: (\w+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for found in pattern.finditer(text):
        yield Block(found[2], found[3], text.count("\n", 0, found.start(3)) + 1, found[1] or "")


def commands(text: str) -> Iterator[Command]:
    """Those of its blocks, then those in its sentences."""
    for block in blocks(text):
        if block.language not in ("", "bash", "console"):
            continue
        joined = re.sub(r"\\\n\s*", " ", block.text).splitlines()
        typed = [line[2:] for line in joined if line.startswith("$ ")] or joined
        for line in typed:
            if (words := split(line)) and words[0] in PROGRAMS:
                yield Command(words, block.line, block.needs)
    prose = re.sub(r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    for found in re.finditer(r"`((?:rondo|make|python -m|bash) [^`]+)`", prose):
        yield Command(split(found[1].replace("\\|", "|")), prose.count("\n", 0, found.start()) + 1, "", whole=False)


def split(line: str) -> tuple[str, ...]:
    """Words of a command; of a choice in brackets all, and of RUN|FILE the first."""
    line = re.sub(r"\[([^\[\]]+)\](?:\.\.\.)?(?=\s|$)", r"\1", line).replace("$$", "")
    try:
        words = [w for w in shlex.split(line, comments=True) if w not in ("...", "&")]
    except ValueError:  # prose with an apostrophe
        return ()
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return tuple(re.sub(r"\|.*", "", w) if re.fullmatch(r"[A-Z|]+", w) else w for w in words)


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings."""
    found: dict[str, int] = {}
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for title in re.findall(r"^#+ (.+)$", outside, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
        if found[slug]:
            found[f"{slug}-{found[slug]}"] = 0
    return set(found)


def links(text: str) -> list[tuple[str, str]]:
    """(file, anchor) of every link within the repository; the file is empty for the page itself."""
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", outside)
    return [tuple(t.partition("#")[::2]) for t in targets if not re.match(r"[a-z]+:", t)]  # type: ignore[misc]


def named_code(text: str) -> tuple[set[str], set[str]]:
    """(files, dotted names) of the repository that stand in backticks."""
    rooms = "actors|benchmarks|configs|deploy|docs|pipelines|preference|scripts|tests"
    files = set(re.findall(rf"`((?:{rooms})/[\w./-]+)`", text))
    return files, set(re.findall(rf"`((?:{rooms})(?:\.[A-Za-z_]\w*)+)`", text))
