"""Serve the page: in this process (``rondo annotate``), or as a child of a run, which may die and come back.

The run holds the listening socket and the child inherits it: people keep their address, and a child that is started
anew answers the connections that queued meanwhile. The child ends with its parent, even if that is killed: it reads a
pipe that only the parent holds open.

    python -m pipelines.annotate.serving  < {"url": ..., "socket": 5, "secure": false}
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import urlopen

import uvicorn

from pipelines.annotate.items import AnnotationError
from pipelines.annotate.people import new_code
from pipelines.annotate.server import application
from pipelines.annotate.store import Store

_STOP_S = 10.0
_MOST_FAILURES = 3


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises AnnotationError naming host and port where they cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(2048)
    except OSError as error:
        raise AnnotationError(
            f"cannot serve on host = {host}, port = {port}: {error.strerror or error}; "
            f"choose another port (0: any free one)"
        ) from None
    return bound


def address(bound: socket.socket, public_url: str = "") -> str:
    """The URL that people open, without a slash at its end."""
    if public_url:
        return public_url.rstrip("/")
    host, port = bound.getsockname()[:2]
    if host in _ANY:
        host = socket.getfqdn()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


_ANY = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # addresses to serve on, and where this machine then finds itself


def _reachable(host: str) -> str:
    return _ANY.get(host, f"[{host}]" if ":" in host else host)


def link(base: str, code: str) -> str:
    """What one person opens. Browsers do not send what follows the #, so no log of a server ever holds the code."""
    return f"{base}/#{code}"


def make_links(store: Store, base: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """(name, link with a fresh one-time code) of each; raises AnnotationError where nobody has that name."""
    now = time.time()
    return store.write(lambda db: [(name, link(base, new_code(db, name, now))) for name in names])


def is_tls(public_url: str) -> bool:
    return urlsplit(public_url).scheme == "https"


def server(store: Store, *, behind_tls: bool, trusted_proxies: str = "127.0.0.1,::1") -> uvicorn.Server:
    """A uvicorn server, not yet running. Forwarded headers count only behind TLS, and only from ``trusted_proxies``."""
    config = uvicorn.Config(
        application(store, secure=behind_tls),
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=behind_tls,
        forwarded_allow_ips=trusted_proxies if behind_tls else "",
        timeout_graceful_shutdown=int(_STOP_S) // 2,
    )
    return uvicorn.Server(config)


class ServerProcess:
    """The page's server as a child of this process, on a socket that this process holds."""

    def __init__(self, url: str, bound: socket.socket, log_file: Path, behind_tls: bool = False) -> None:
        self._url, self._socket, self._log_file, self._behind_tls = url, bound, log_file, behind_tls
        self._process: subprocess.Popen[str] | None = None
        self._failures = 0

    def keep_running(self) -> None:
        """Start the server, or start it again if it has died; raises AnnotationError where it ends again and again."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            # Killed, it may come back for as long as it takes. Ended by itself, it will do so again.
            self._failures = self._failures + 1 if self._process.returncode > 0 else 0
            if self._failures == _MOST_FAILURES:
                words = self._log_file.read_text(errors="replace").strip().splitlines()
                raise AnnotationError(
                    f"the annotation server ended {self._failures} times by itself, last with {words[-1:]}: "
                    f"see {self._log_file}"
                )
        self._start()

    async def ready(self, seconds: float) -> None:
        """Wait until the page is served; raises AnnotationError after ``seconds``."""
        host, port = self._socket.getsockname()[:2]
        url = f"http://{_reachable(host)}:{port}/healthz"
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.keep_running()
            # The socket listens already: this waits in its queue until the server answers, or is dead.
            with suppress(OSError):
                await asyncio.to_thread(lambda: urlopen(url, timeout=2).close())
                return
        raise AnnotationError(f"the annotation server did not answer within {seconds:.0f} s: see {self._log_file}")

    def _start(self) -> None:
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.annotate.serving"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[self._socket.fileno()],
                text=True,
                cwd=Path(__file__).parents[2],
                start_new_session=True,  # Ctrl-C is for the run, which ends the server when it has ended itself
            )
        settings = {"url": self._url, "socket": self._socket.fileno(), "behind_tls": self._behind_tls}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(settings) + "\n")  # not as arguments: the URL may hold a password
        self._process.stdin.flush()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def close(self) -> None:
        """Stop the server; what it has acknowledged is in the store."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._socket.close()


def main(settings: IO[str]) -> None:
    given = json.loads(settings.readline())
    running = server(Store(given["url"]), behind_tls=given["behind_tls"])

    def stop_with_parent() -> None:
        settings.read()  # returns at the end of the pipe: the parent closed it or is dead
        running.should_exit = True

    threading.Thread(target=stop_with_parent, daemon=True).start()
    running.run(sockets=[socket.socket(fileno=given["socket"])])
    os._exit(0)  # the thread above may still be reading


if __name__ == "__main__":
    main(sys.stdin)
