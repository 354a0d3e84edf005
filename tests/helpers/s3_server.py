"""Serves S3 on loopback with calls that fail now and then, for tests of faults in a store.

`serve()` runs this file as a child process, which any other process can use too; it ends with its parent.
"""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

KEY, SECRET = "test-key", "test-secret"
KINDS = ("error-500", "slow-down", "dropped", "lost-answer")
CONTROL = "/-/faults"


@dataclass(frozen=True)
class Server:
    """A running server: its endpoint, its bucket, and the environment that a process needs to use it."""

    endpoint: str
    bucket: str

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    @property
    def env(self) -> dict[str, str]:
        """The variables that a process needs; AWS_MAX_ATTEMPTS=1 leaves the retries to the program under test."""
        return {
            "FSSPEC_S3": json.dumps({"endpoint_url": self.endpoint, "key": KEY, "secret": SECRET}),
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }

    def faults(self, rate: float | None = None, kinds: tuple[str, ...] = KINDS) -> dict[str, int]:
        """Set the share of calls that fail from now on, if given; returns the number of calls so far by their fate."""
        query = "" if rate is None else f"?{rate}&{','.join(kinds)}"
        with urlopen(f"{self.endpoint}{CONTROL}{query}") as response:
            counts: dict[str, int] = json.load(response)
        return counts


@contextmanager
def serve(rate: float = 0.0, seed: int = 0, bucket: str = "bucket") -> Iterator[Server]:
    """A server with an empty bucket for the duration of the block; a share `rate` of the calls fails."""
    command = [sys.executable, str(Path(__file__)), bucket, str(seed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            endpoint = process.stdout.readline().strip()
            assert endpoint, "the S3 server did not start"
            server = Server(endpoint, bucket)
            server.faults(rate)
            yield server
        finally:
            process.stdin.close()
            process.wait(timeout=60)


class Faults:
    """WSGI middleware that drops or fails a seeded random share of the calls."""

    def __init__(self, app: Callable[..., Any], seed: int) -> None:
        self.app, self.random = app, random.Random(seed)
        self.rate, self.kinds = 0.0, KINDS
        self.counts: Counter[str] = Counter()
        # moto checks and then writes on a conditional PUT; real stores are atomic, so one call at a time.
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["PATH_INFO"] == CONTROL:
            return self.control(environ, start_response)
        # Read the body even of a call that fails: otherwise a client that is still sending gets a reset.
        environ["wsgi.input"] = BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        with self.lock:
            kind = self.random.choice(self.kinds) if self.random.random() < self.rate else "served"
            self.counts[kind] += 1
            if kind == "error-500":
                return self.fail(environ, start_response, "500 Internal Server Error", "InternalError")
            if kind == "slow-down":
                return self.fail(environ, start_response, "503 Slow Down", "SlowDown")
            if kind == "dropped":
                return self.hang_up(environ)
            if kind == "lost-answer":
                list(self.app(environ, lambda *_: None))
                return self.hang_up(environ)
            return self.app(environ, start_response)

    def control(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        with self.lock:
            if environ["QUERY_STRING"]:
                rate, kinds = environ["QUERY_STRING"].split("&")
                self.rate, self.kinds = float(rate), tuple(kinds.split(","))
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self.counts).encode()]

    def fail(self, environ: dict[str, Any], start_response: Callable[..., Any], status: str, code: str) -> list[bytes]:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [text]

    def hang_up(self, environ: dict[str, Any]) -> list[bytes]:
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError("injected")


def main(bucket: str, seed: str) -> None:
    """Serve, print the endpoint, and end when the parent closes standard input or dies."""
    # These imports take most of a second, which a test that imports this file for `serve` does not need.
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from moto.s3.models import s3_backends
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    s3_backends["123456789012"]["aws"].create_bucket(bucket, "us-east-1")
    app = Faults(DomainDispatcherApplication(create_backend_app), int(seed))

    class Handler(MotoRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None:
            """Write nothing: a failing test has its own output."""

        def connection_dropped(self, *_: Any, **__: Any) -> None:
            """Expected."""

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
