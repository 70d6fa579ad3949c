"""Where a run's files can be kept besides its own directory: a second directory, or a bucket that speaks S3.

Objects are written whole or not at all, and can be created on the condition that they are not there yet; nothing is
ever renamed. Keys are relative paths joined by "/".
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

from pipelines.ledger.journal import LedgerError, saving

_ATTEMPTS = 10  # of one request: with the client's back-off (20 s at most between two) about two minutes
_THROTTLED = ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "ServiceUnavailable", "503")


class StorageError(LedgerError):
    """A storage cannot be reached, refuses, or holds something else than it should."""


@dataclass(slots=True)
class Traffic:
    """What a storage was asked. ``retried`` requests were sent again, ``throttled`` of them at the server's wish."""

    uploaded_bytes: int = 0
    retried: int = 0
    throttled: int = 0


class Storage(Protocol):
    url: str
    traffic: Traffic

    def put(self, key: str, data: bytes) -> None:
        """Make ``data`` the whole content of ``key``."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """The same, but only where there is no ``key`` yet; whether it was so. Of several at once one succeeds."""
        ...

    def get(self, key: str) -> bytes | None:
        """The content of ``key``; None where there is none."""
        ...

    def upload(self, key: str, path: Path) -> None: ...

    def download(self, key: str, path: Path) -> None: ...

    def keys(self, prefix: str = "") -> list[str]:
        """Every key that begins with ``prefix``, in order."""
        ...

    def delete(self, keys: Iterable[str]) -> None: ...

    def age(self, key: str) -> float | None:
        """Seconds since ``key`` was written last, both times by the storage's own clock; None where there is none."""
        ...


def open_storage(url: str, name: str) -> Storage:
    """``name`` below ``url``: ``s3://bucket/prefix``, or the path of a directory, which is made where it is missing.

    An S3 client takes credentials, region and endpoint from the environment, as AWS's own tools do. Raises StorageError
    where the storage does not answer.
    """
    if url.startswith("s3://"):
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        return S3Storage(bucket, "/".join(p for p in (prefix.strip("/"), name) if p))
    directory = Path(url).expanduser() / name
    with saving("a copy of the run", directory):
        directory.mkdir(parents=True, exist_ok=True)
    return DirectoryStorage(directory)


class DirectoryStorage:
    """A directory, local or shared (NFS): new content is linked or renamed into place once it is whole and synced."""

    def __init__(self, directory: Path) -> None:
        self._directory, self.url, self.traffic = directory, str(directory), Traffic()

    def put(self, key: str, data: bytes) -> None:
        with self._whole(key) as partial:
            partial.write_bytes(data)
        self.traffic.uploaded_bytes += len(data)

    def create(self, key: str, data: bytes) -> bool:
        path = self._directory / key
        with saving("a copy of the run", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                return False
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        self.traffic.uploaded_bytes += len(data)
        return True

    def get(self, key: str) -> bytes | None:
        try:
            return (self._directory / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def upload(self, key: str, path: Path) -> None:
        with self._whole(key) as partial:
            shutil.copyfile(path, partial)
        self.traffic.uploaded_bytes += path.stat().st_size

    def download(self, key: str, path: Path) -> None:
        source = self._directory / key
        if not source.is_file():
            raise StorageError(f"{self.url} has no {key}")
        with saving("what is restored", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)

    def keys(self, prefix: str = "") -> list[str]:
        folder = self._directory / prefix.rpartition("/")[0]
        found = (p.relative_to(self._directory).as_posix() for p in folder.rglob("*") if p.is_file())
        return sorted(k for k in found if k.startswith(prefix) and not k.endswith(".partial"))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self._directory / key
            path.unlink(missing_ok=True)
            for parent in path.parents:  # folders are there for files alone
                if parent == self._directory:
                    break
                with suppress(OSError):
                    parent.rmdir()

    def age(self, key: str) -> float | None:
        mark = self._directory / f".clock-{os.getpid()}-{time.monotonic_ns()}"
        with saving("a copy of the run", mark):
            mark.touch()
            now = mark.stat().st_mtime  # the file server's clock, if it is one
            mark.unlink()
        try:
            return now - (self._directory / key).stat().st_mtime
        except FileNotFoundError:
            return None

    @contextmanager
    def _whole(self, key: str) -> Iterator[Path]:
        path = self._directory / key
        partial = path.with_name(f"{path.name}.partial")
        with saving("a copy of the run", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)


class S3Storage:
    """A prefix in a bucket. Requests are repeated with growing pauses where the server is busy or out of reach."""

    def __init__(self, bucket: str, prefix: str) -> None:
        import boto3
        from botocore.config import Config

        self._bucket, self._prefix, self.traffic = bucket, prefix, Traffic()
        self.url = f"s3://{bucket}/{prefix}"
        with self._refusals("opened"):
            retries = {"mode": "standard", "total_max_attempts": _ATTEMPTS}
            config = Config(retries=retries, connect_timeout=10, read_timeout=60)  # type: ignore[arg-type]
            self._s3: Any = boto3.session.Session().client("s3", config=config)
            self._s3.meta.events.register("needs-retry.s3", self._count)
            self._s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)

    def _count(self, response: Any, caught_exception: Exception | None, **_: Any) -> None:
        """An event of botocore's, after every answer and before it is decided whether the request is repeated."""
        status = response[0].status_code if response is not None else 0
        if caught_exception is None and status < 500 and status != 429:
            return
        self.traffic.retried += 1
        code = response[1].get("Error", {}).get("Code", "") if response is not None else ""
        if status == 429 or code in _THROTTLED:
            self.traffic.throttled += 1

    def put(self, key: str, data: bytes) -> None:
        with self._refusals(f"written: {key}"):
            self._s3.put_object(Bucket=self._bucket, Key=self._key(key), Body=data)
        self.traffic.uploaded_bytes += len(data)

    def create(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        try:
            with self._refusals(f"written: {key}", passing=("PreconditionFailed", "ConditionalRequestConflict")):
                self._s3.put_object(Bucket=self._bucket, Key=self._key(key), Body=data, IfNoneMatch="*")
        except ClientError:
            return self.get(key) == data  # a repeated request may meet what its own first attempt has written
        self.traffic.uploaded_bytes += len(data)
        return True

    def get(self, key: str) -> bytes | None:
        from botocore.exceptions import ClientError

        try:
            with self._refusals(f"read: {key}", passing=("NoSuchKey",)):
                content: bytes = self._s3.get_object(Bucket=self._bucket, Key=self._key(key))["Body"].read()
        except ClientError:
            return None
        return content

    def upload(self, key: str, path: Path) -> None:
        with self._refusals(f"written: {key}"):
            self._s3.upload_file(str(path), self._bucket, self._key(key), Config=_transfer())
        self.traffic.uploaded_bytes += path.stat().st_size

    def download(self, key: str, path: Path) -> None:
        with saving("what is restored", path), self._refusals(f"read: {key}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._s3.download_file(self._bucket, self._key(key), str(path), Config=_transfer())

    def keys(self, prefix: str = "") -> list[str]:
        with self._refusals("listed"):
            pages = self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._key(prefix)
            )  # fmt: skip
            found = [o["Key"] for page in pages for o in page.get("Contents", ())]
        return sorted(k.removeprefix(f"{self._prefix}/") for k in found)

    def delete(self, keys: Iterable[str]) -> None:
        names = [{"Key": self._key(k)} for k in keys]
        with self._refusals("deleted from"):
            for start in range(0, len(names), 1000):  # S3's limit a request
                found = self._s3.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": names[start : start + 1000], "Quiet": True}
                )
                for failed in found.get("Errors", ())[:1]:
                    raise StorageError(f"{self.url}: {failed.get('Key')} cannot be deleted: {failed.get('Message')}")

    def age(self, key: str) -> float | None:
        from botocore.exceptions import ClientError

        try:
            with self._refusals(f"read: {key}", passing=("404", "NoSuchKey")):
                head = self._s3.head_object(Bucket=self._bucket, Key=self._key(key))
        except ClientError:
            return None
        now = parsedate_to_datetime(head["ResponseMetadata"]["HTTPHeaders"]["date"])
        age: float = (now - head["LastModified"]).total_seconds()
        return age

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    @contextmanager
    def _refusals(self, what: str, passing: tuple[str, ...] = ()) -> Iterator[None]:
        """The client's errors as StorageErrors; answers with a code in ``passing`` are left to the caller."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        fix = "see checkpoint.storage, the AWS_* variables and the bucket's policy"
        try:
            yield
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in passing:
                raise
            raise StorageError(f"{self.url} cannot be {what}: {error}; {fix}") from error
        except NoCredentialsError as error:
            fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
            raise StorageError(f"{self.url} cannot be {what}: no credentials; {fix}") from error
        except (BotoCoreError, Boto3Error) as error:
            raise StorageError(f"{self.url} cannot be {what}: {error}; {fix}") from error


def _transfer() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=64 * 2**20, multipart_chunksize=64 * 2**20, max_concurrency=4)
