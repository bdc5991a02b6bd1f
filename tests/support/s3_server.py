"""A real S3 protocol server on loopback (moto), which can be told to fail."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable
from threading import Lock, Thread
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

Fault = Callable[[dict[str, Any]], tuple[str, list[tuple[str, str]], bytes] | None]
"""a request's WSGI environment -> status, headers and body to answer with, or None to serve it"""


class S3Server:
    """moto behind a gate that a test may close."""

    def __init__(self) -> None:
        self.served = DomainDispatcherApplication(create_backend_app)
        self.fault: Fault | None = None
        self.requests = 0
        self.one_at_a_time = Lock()
        """S3 checks a condition and writes in one step, moto in two."""
        self.server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=QuietRequestHandler)
        self.thread = Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests += 1
        answer = self.fault(environ) if self.fault else None
        if answer is None:
            conditional = "HTTP_IF_MATCH" in environ or "HTTP_IF_NONE_MATCH" in environ
            with self.one_at_a_time if conditional else contextlib.nullcontext():
                return self.served(environ, start_response)
        status, headers, body = answer
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [body]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """The standard variables that lead to this server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="test",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()


class QuietRequestHandler(MotoRequestHandler):
    """Without a line on stderr for each request."""

    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        """Nothing."""


def error(status: str, code: str, message: str = "told to", **headers: str) -> Any:
    """An error as S3 words it."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    return status, [("Content-Type", "application/xml"), *((k.replace("_", "-"), v) for k, v in headers.items())], body


if __name__ == "__main__":  # in a process of its own, until its input ends
    print(json.dumps(S3Server().environment), flush=True)
    sys.stdin.read()
