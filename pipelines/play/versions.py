"""Earlier versions of the policy on disk: what may still be asked to play, and nothing else.

    run directory/players/0.4/   a published version (``actors.weights``), kept before its step is marked trained
    run directory/players/0.0/   the initial policy: links to the model directory, made when it is first loaded

What was published after the checkpoint that a run went back to is dead and removed: it never plays again.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from actors.weights import WeightFiles, WeightsError, keep_version, link_version
from pipelines.prepare_model import weight_files
from preference.league import INITIAL
from preference.types import Version

Keep = Callable[[Path, Path], Awaitable[None]]
"""(published version, where it is to be kept): copies it from wherever the first can be seen."""


async def keep_here(published: Path, target: Path) -> None:
    """A ``Keep`` for weights that this process sees."""
    await asyncio.to_thread(keep_version, published, target)


class Versions:
    """The directory of one run. Of every step there is at most one version in the weights' lineage."""

    def __init__(self, directory: Path, model_path: Path, done: int, keep: Keep = keep_here) -> None:
        """``done``: steps that the weights of this attempt begin with; ``model_path``: the initial policy."""
        self._directory, self._model, self._keep = directory, model_path, keep
        self._incarnation: int | None = None
        self._serving = INITIAL  # what an engine that comes up anew would still load
        found = (version for path in directory.glob("*.*") if (version := _complete(path)) is not None)
        self._versions = {v.step: v for v in sorted(found) if v != INITIAL}
        self.rewind(done)

    @property
    def versions(self) -> tuple[Version, ...]:
        """What is kept, oldest first; the initial policy is not counted among them."""
        return tuple(self._versions[step] for step in sorted(self._versions))

    def rewind(self, done: int) -> None:
        """The weights went back to ``done`` steps."""
        self._done = done
        self.keep_only([v for v in self._versions.values() if v.step <= done])

    def published(self, version: Version) -> None:
        """Weights are out. Those of a new incarnation come first as they were at the step that it goes on from."""
        if self._incarnation is not None and version.incarnation > self._incarnation:
            self.rewind(version.step)
        self._incarnation = version.incarnation

    async def keep(self, published: Path, version: Version) -> None:
        """Keep a published version. What a run goes on from is here already, by its older name."""
        if version.step > self._done:
            await self._keep(published, self._path(version))
            self._versions[version.step] = version

    def keep_only(self, needed: Collection[Version]) -> None:
        """Remove everything else, but what was asked for last."""
        self._versions = {step: v for step, v in self._versions.items() if v in needed}
        kept = {self._path(v) for v in (INITIAL, self._serving, *self._versions.values())}
        for path in self._directory.glob("*.*"):
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)

    async def directory(self, version: Version) -> Path:
        """Where the weights of ``version`` are, to be served. Raises WeightsError where they are not any more."""
        path = self._path(version)
        if version == INITIAL and _complete(path) is None:
            await asyncio.to_thread(link_version, weight_files(self._model), path, INITIAL)
        if _complete(path) is None:
            raise WeightsError(
                f"{path}: the weights of version {version} are to play and are not there. A run with opponents keeps "
                f"them itself: bring the directory back from a copy, or start the run anew"
            )
        self._serving = version
        return path

    def _path(self, version: Version) -> Path:
        return self._directory / str(version)


def _complete(path: Path) -> Version | None:
    """The version that ``path`` holds whole, if it does."""
    try:
        version = WeightFiles.open(path).version
    except (WeightsError, OSError, ValueError, KeyError):
        return None
    return version if path.name == str(version) else None
