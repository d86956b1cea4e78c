"""An S3 server inside this process, for trying things out without an account."""

import logging
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from dira_dist.config import RequestError
from dira_dist.environment import environment


@contextmanager
def embedded_s3(bucket: str) -> Iterator[str]:
    """A real S3 server over HTTP on a free loopback port, with one bucket; yields its endpoint.

    While the block runs the environment points every S3 client of this process, and of those it starts, at it. What
    the server holds is in memory and goes with it.

    Raises:
        RequestError: the package's ``local`` extra is not installed.
    """
    try:
        from moto.server import ThreadedMotoServer
    except ImportError as error:
        raise RequestError("the embedded S3 server is not installed: pip install 'dira-dist[local]'") from error
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        direct.open(urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")).close()
        with environment(
            AWS_ENDPOINT_URL=endpoint,
            AWS_ENDPOINT_URL_S3=endpoint,
            AWS_ACCESS_KEY_ID="embedded",
            AWS_SECRET_ACCESS_KEY="embedded",
            AWS_DEFAULT_REGION="us-east-1",
            NO_PROXY=",".join(filter(None, [os.environ.get("NO_PROXY"), str(host)])),
        ):
            yield endpoint
    finally:
        server.stop()
