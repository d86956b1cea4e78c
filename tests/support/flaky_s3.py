"""A real S3 server over HTTP that can be told to fail."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from dira_dist.environment import environment


class FlakyS3:
    """moto's server behind a door: while ``failing`` is set it answers everything with 503 SlowDown.

    Attributes:
        slow_s: seconds that it lets every upload wait.
        refused: requests that were answered so.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for every request
        self.failing = threading.Event()
        self.refused = 0
        self.slow_s = 0.0
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self.failing.is_set():
            self.refused += 1
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>later</Message></Error>"]
        if environ["REQUEST_METHOD"] == "PUT":
            time.sleep(self.slow_s)
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()


@contextmanager
def flaky_s3(bucket: str) -> Iterator[FlakyS3]:
    """One with a bucket, which the environment points every client at while the block runs."""
    server = FlakyS3()
    credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        with environment(AWS_ENDPOINT_URL=server.endpoint, **credentials):
            boto3.client("s3").create_bucket(Bucket=bucket)
            yield server
    finally:
        server.stop()
