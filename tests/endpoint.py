"""A scripted OpenAI-compatible endpoint on loopback: it answers, refuses, breaks off or hangs as it is told."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Request:
    body: dict[str, Any]
    headers: dict[str, str]
    number: int  # 0-based

    @property
    def text(self) -> str:
        return self.body["messages"][-1]["content"]


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes | dict[str, Any] = b""
    headers: dict[str, str] = field(default_factory=dict)


HANG, DROP = Answer(status=-1), Answer(status=-2)
"""Answer nothing until the server closes; close the connection without an answer."""


def completion(text: str, probabilities: dict[str, float] | None = None, tokens: tuple[int, int] = (100, 1)) -> Answer:
    """A chat completion that says ``text``, with top_logprobs of its first token where probabilities are given."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if probabilities is not None:
        top = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in probabilities.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": -0.1, "bytes": None, "top_logprobs": top}]}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    return Answer(body={"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})


def refusal(status: int, message: str = "no", code: str | None = None, **headers: str) -> Answer:
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    return Answer(status, {"error": {"message": message, "type": "error", "code": code}}, named)


@dataclass
class Server:
    url: str
    requests: list[Request] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)


@contextmanager
def endpoint(script: Callable[[Request], Answer]) -> Iterator[Server]:
    """Serve ``script``; what it is asked is kept in ``requests``, in order of arrival."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                headers = {k.lower(): v for k, v in self.headers.items()}
                request = Request(body, headers, len(server.requests))
                server.requests.append(request)
            answer = script(request)
            if answer is HANG:
                server.closing.wait()
            if answer.status < 0:
                self.close_connection = True
                return
            data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {"content-type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_port}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        http.shutdown()
        http.server_close()
        thread.join()
