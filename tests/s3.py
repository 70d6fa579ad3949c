"""A real local S3 server (moto's) for tests: another process could talk to it, and it can be made to throttle."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from werkzeug.serving import make_server

SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.'
    b"</Message></Error>"
)


class Server:
    """``environment`` is what a client needs; ``refuse`` decides about every request, by method and path."""

    def __init__(self, port: int) -> None:
        self.refuse: Callable[[str, str], bool] = lambda method, path: False
        self.requests: list[tuple[str, str]] = []
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def puts(self) -> list[str]:
        return [path for method, path in self.requests if method == "PUT"]


@contextmanager
def s3_server(*buckets: str) -> Iterator[Server]:
    """Serve until the block ends; the buckets are there."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app

    backend = DomainDispatcherApplication(create_backend_app)

    def application(environ: dict[str, Any], start: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        server.requests.append((method, path))
        if server.refuse(method, path):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [SLOW_DOWN]
        return backend(environ, start)

    listening = make_server("127.0.0.1", 0, application, threaded=True)
    server = Server(listening.port)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    given = server.environment
    client = boto3.client(
        "s3", endpoint_url=given["AWS_ENDPOINT_URL"], region_name="us-east-1", aws_access_key_id="test",
        aws_secret_access_key="test",
    )  # fmt: skip
    for bucket in buckets:
        client.create_bucket(Bucket=bucket)
    try:
        yield server
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
