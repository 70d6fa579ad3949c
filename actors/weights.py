"""Weights on their way from the trainer to the samplers: buckets of safetensors, complete-then-marked.

A published version is a directory of bucket files; ``manifest.json`` is written last, by an atomic rename, and names
every tensor with the checksum of its bucket. Without a manifest there is no version. The directory lies in shared
memory when every sampler is on the trainer's node and under the run directory otherwise: same files, same reader.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from actors.files import checksum
from preference.types import Version

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"


class WeightsError(RuntimeError):
    """Published weights are missing, incomplete or damaged."""


@dataclass(frozen=True, slots=True)
class _Manifest:
    version: str
    buckets: dict[str, NonNegativeInt]
    bytes: NonNegativeInt


_manifest: TypeAdapter[_Manifest] = TypeAdapter(_Manifest)


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """A complete published version; iterating it reads (name, tensor), verifying each bucket's checksum."""

    directory: Path
    version: Version
    buckets: Mapping[str, int]  # file name -> CRC-32 of its bytes
    bytes: int

    @classmethod
    def open(cls, directory: Path) -> WeightFiles:
        """Read the manifest; raises WeightsError where there is none, or a damaged one."""
        try:
            manifest = _manifest.validate_json((directory / MANIFEST).read_bytes())
            version = Version.parse(manifest.version)
        except FileNotFoundError:
            raise WeightsError(f"{directory} holds no complete version: {MANIFEST} is missing") from None
        except (OSError, ValueError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise WeightsError(f"{directory / MANIFEST} is damaged: {why}") from None
        if strange := [name for name in manifest.buckets if Path(name).name != name or "\0" in name]:
            raise WeightsError(f"{directory / MANIFEST} is damaged: {strange[0]!r} is no file beside it")
        return cls(directory, version, manifest.buckets, manifest.bytes)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        from safetensors.torch import load_file

        for name, expected in self.buckets.items():
            try:
                found, _ = checksum(self.directory / name)
            except OSError as error:
                raise WeightsError(f"{self.directory / name} of weights {self.version}: {error}") from None
            if found != expected:
                raise WeightsError(f"{self.directory / name}: checksum mismatch in weights {self.version}")
            yield from load_file(self.directory / name).items()


@dataclass(slots=True)
class WeightWriter:
    """Writes one version bucket by bucket; ``finish`` makes it visible."""

    directory: Path
    version: Version
    _buckets: dict[str, int] = field(default_factory=dict)
    _bytes: int = 0

    def __post_init__(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)  # what a dead publisher left half-written
        self.directory.mkdir(parents=True)

    def add(self, tensors: Mapping[str, torch.Tensor]) -> None:
        from safetensors.torch import save_file

        name = f"bucket-{len(self._buckets):05d}.safetensors"
        save_file(dict(tensors), self.directory / name)  # straight from the tensors: half the time of save + write
        self._buckets[name], size = checksum(self.directory / name)
        self._bytes += size

    def finish(self) -> WeightFiles:
        manifest = {"version": str(self.version), "buckets": self._buckets, "bytes": self._bytes}
        partial = self.directory / (MANIFEST + ".partial")
        partial.write_text(json.dumps(manifest))
        os.replace(partial, self.directory / MANIFEST)
        return WeightFiles.open(self.directory)


def version_directory(root: Path, version: Version) -> Path:
    return root / f"weights-{version}"


def discard_before(root: Path, keep: Version) -> None:
    """Remove published versions older than ``keep`` (call it when every sampler serves ``keep``)."""
    for path in root.glob("weights-*"):
        try:
            version = Version.parse(path.name.removeprefix("weights-"))
        except ValueError:
            continue
        if version < keep:
            shutil.rmtree(path, ignore_errors=True)


def keep_version(published: Path, target: Path) -> WeightFiles:
    """A copy of a published version that outlives it and a power cut; by hard links where both are on one file system.

    Raises WeightsError where ``published`` is not complete.
    """
    weights = WeightFiles.open(published)
    shutil.rmtree(target, ignore_errors=True)  # what a dead attempt left half-written
    target.mkdir(parents=True)
    for name in weights.buckets:
        try:
            os.link(published / name, target / name)
        except OSError:
            shutil.copyfile(published / name, target / name)
        _sync(target / name)
    return _mark(target, weights.version, weights.buckets, weights.bytes)


def link_version(files: Sequence[Path], target: Path, version: Version) -> WeightFiles:
    """A model's own safetensors files as a version: linked to, not copied; read once for their checksums."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    found = {}
    for file in files:
        (target / file.name).symlink_to(file.resolve())
        found[file.name] = checksum(file)
    return _mark(target, version, {n: crc for n, (crc, _) in found.items()}, sum(size for _, size in found.values()))


def _mark(directory: Path, version: Version, buckets: Mapping[str, int], size: int) -> WeightFiles:
    """Make a version visible: the manifest is written last, and at once."""
    partial = directory / (MANIFEST + ".partial")
    partial.write_text(json.dumps({"version": str(version), "buckets": dict(buckets), "bytes": size}))
    _sync(partial)
    os.replace(partial, directory / MANIFEST)
    _sync(directory)
    return WeightFiles.open(directory)


def _sync(path: Path) -> None:
    """What is written is on the disk from here on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
