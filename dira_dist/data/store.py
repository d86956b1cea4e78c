"""Where bytes live: a folder or an S3 bucket behind one small protocol. The only file that imports boto3.

Reads of S3 objects go in ranges. A body that breaks half-way is continued where it broke, with ``Range`` and
``If-Match`` on the object's ETag, so that what comes out is one version of the object or an error; botocore's own
retries end where the body begins. Server errors, throttling, time-outs and resets are borne with a jittered back-off
for as long as :class:`RetryPolicy` says. Writes are whole or absent.
"""

import contextlib
import io
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar
from urllib.parse import unquote

from dira_dist.config import RequestError
from dira_dist.data.folder import LocalStore, ObjectInfo
from dira_dist.data.ranges import WHOLE, ObjectRange, RangeReader
from dira_dist.data.retry import (
    ChangedObjectError,
    DeniedObjectError,
    MissingObjectError,
    Retrier,
    RetryPolicy,
    StoreError,
    code_of,
    status_of,
)

__all__ = [
    "ChangedObjectError",
    "DeniedObjectError",
    "LocalStore",
    "MissingObjectError",
    "ObjectInfo",
    "RetryPolicy",
    "S3Store",
    "Store",
    "StoreError",
    "asking",
    "check_reachable",
    "open_store",
]

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

PART_BYTES = 256 << 20
PAGE_OBJECTS = 1000
_UNKNOWN_CONDITION = (400, 501)  # answers of servers that know no conditional writes


class Store(Protocol):
    """A flat space of keys below an address. Safe to use from threads, to pickle and to carry over a fork.

    Methods raise :class:`MissingObjectError`, :class:`DeniedObjectError`, :class:`ChangedObjectError` or
    :class:`StoreError`.
    """

    @property
    def address(self) -> str:
        """What :func:`open_store` was given."""

    def join(self, key: str) -> str:
        """The full address of ``key``."""

    def read_bytes(self, key: str) -> bytes:
        """The whole object."""

    def write_bytes(self, key: str, data: bytes) -> str:
        """Writes an object, whole or not at all, and returns its ETag."""

    def upload(self, key: str, path: str | os.PathLike[str]) -> str:
        """Writes an object from a local file, whole or not at all, and returns its ETag."""

    def read_version(self, key: str) -> tuple[bytes, str]:
        """The whole object, and the mark by which :meth:`write_version` knows it."""

    def write_version(self, key: str, data: bytes, replaces: str | None) -> str:
        """Writes an object where the one that stands there has the mark ``replaces`` (None: where none stands).

        Of several that try at once, one succeeds; which needs a server that obeys ``If-None-Match`` and ``If-Match``.
        A success whose answer was lost may be told as a :class:`ChangedObjectError`, too: look at what stands there.

        Returns:
            The mark of what was written.

        Raises:
            ChangedObjectError: another object stands there, or none.
        """

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with ``prefix``, in the order of their keys."""

    def stat(self, key: str) -> ObjectInfo | None:
        """What is known of an object, or none where there is none."""

    def delete(self, key: str) -> None:
        """Removes an object; no error where there is none."""

    def open(self, key: str, meant: ObjectRange = WHOLE) -> BinaryIO:
        """A forward reader of what is ``meant``; trouble while reading shows in its ``read``."""


def open_store(address: str, retry: RetryPolicy | None = None) -> Store:
    """The store at ``s3://bucket/prefix``, ``file:///folder`` or a plain path. Touches nothing yet.

    Raises:
        RequestError: an address of another kind.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return LocalStore(address)
    if scheme == "file":
        return LocalStore(unquote(rest), address)
    if scheme != "s3":
        raise RequestError(f"{address}: the scheme {scheme}:// is not known; use s3://bucket/prefix or a plain path.")
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise RequestError(f"{address}: there is no bucket in it; write s3://bucket/prefix.")
    return S3Store(bucket, prefix.strip("/"), retry or RetryPolicy(), address=address)


class S3Store:
    """A bucket, or a prefix of one, spoken to through boto3; endpoint and credentials come from the environment.

    Args:
        bucket: its name.
        prefix: without slashes at its ends; may be empty.
        retry: how long failures are retried.
        part_bytes: larger objects are written in parts of this size (5 MiB at least, says S3).
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        retry: RetryPolicy | None = None,
        *,
        address: str | None = None,
        part_bytes: int = PART_BYTES,
    ) -> None:
        self.bucket, self.prefix = bucket, prefix
        self.retry = retry or RetryPolicy()
        self._address = address or f"s3://{bucket}/{prefix}"
        self._part_bytes = part_bytes

    @property
    def address(self) -> str:
        return self._address

    def join(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._key(key)}"

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _name(self, key: str) -> dict[str, Any]:
        return {"Bucket": self.bucket, "Key": self._key(key)}

    @property
    def _client(self) -> "S3Client":
        return _client(self.retry.connect_timeout_s, self.retry.read_timeout_s)

    def _retrying(self, what: str, action: "Callable[[S3Client], T]") -> T:
        """Does ``action`` until it succeeds, fails for good, or its time is over."""
        retrier = Retrier(what, self.retry)
        while True:
            try:
                return action(self._client)
            except Exception as error:
                retrier.wait(error)

    def read_bytes(self, key: str) -> bytes:
        with self.open(key) as stream:
            return stream.read()

    def write_bytes(self, key: str, data: bytes) -> str:
        name = self._name(key)
        answer = self._retrying(f"write {self.join(key)}", lambda client: client.put_object(**name, Body=data))
        return answer["ETag"].strip('"')

    def read_version(self, key: str) -> tuple[bytes, str]:
        name = self._name(key)

        def get(client: "S3Client") -> tuple[bytes, str]:
            answer = client.get_object(**name)
            return answer["Body"].read(), answer["ETag"]

        return self._retrying(f"read {self.join(key)}", get)

    def write_version(self, key: str, data: bytes, replaces: str | None) -> str:
        wanted: Any = {"IfNoneMatch": "*"} if replaces is None else {"IfMatch": replaces}
        name, what = self._name(key), f"write {self.join(key)}"
        try:
            answer = self._retrying(what, lambda client: client.put_object(**name, Body=data, **wanted))
        except MissingObjectError as error:  # S3's answer to If-Match where nothing stands
            raise ChangedObjectError(f"could not {what}: the object that it replaces is gone") from error
        except StoreError as error:
            if isinstance(error.__cause__, Exception) and status_of(error.__cause__) in _UNKNOWN_CONDITION:
                return f'"{self.write_bytes(key, data)}"'
            raise
        return answer["ETag"]

    def upload(self, key: str, path: str | os.PathLike[str]) -> str:
        path = Path(path)
        if path.stat().st_size > self._part_bytes:
            return self._upload_in_parts(key, path)

        def put(client: "S3Client") -> str:
            with path.open("rb") as body:  # anew for every try
                return client.put_object(**self._name(key), Body=body)["ETag"].strip('"')

        return self._retrying(f"upload {self.join(key)}", put)

    def _upload_in_parts(self, key: str, path: Path) -> str:
        name = self._name(key)
        what = f"upload {self.join(key)}"
        upload_id = self._retrying(what, lambda client: client.create_multipart_upload(**name))["UploadId"]
        try:
            with path.open("rb") as source:
                parts: list[Any] = []
                while data := source.read(self._part_bytes):
                    parts.append(self._upload_part(what, name, upload_id, len(parts) + 1, data))
            done = {**name, "UploadId": upload_id, "MultipartUpload": {"Parts": parts}}
            answer = self._retrying(what, lambda client: client.complete_multipart_upload(**done))
        except BaseException:
            with contextlib.suppress(Exception):  # the server forgets unfinished parts by its own rules
                self._client.abort_multipart_upload(**name, UploadId=upload_id)
            raise
        return answer["ETag"].strip('"')

    def _upload_part(self, what: str, name: Mapping[str, Any], upload_id: str, number: int, data: bytes) -> Any:
        part = {**name, "UploadId": upload_id, "PartNumber": number, "Body": data}
        answer = self._retrying(f"{what}, part {number}", lambda client: client.upload_part(**part))
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        start = self._key(prefix)
        token: dict[str, Any] = {}
        while True:
            page = self._page(start, token)
            for found in page.get("Contents", []):
                key = found["Key"][len(self._key("")) :]
                yield ObjectInfo(key, found["Size"], found["ETag"].strip('"'))
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _page(self, start: str, token: Mapping[str, Any]) -> Any:
        request = {"Bucket": self.bucket, "Prefix": start, "MaxKeys": PAGE_OBJECTS, **token}
        return self._retrying(f"list s3://{self.bucket}/{start}", lambda client: client.list_objects_v2(**request))

    def stat(self, key: str) -> ObjectInfo | None:
        name = self._name(key)
        try:
            found = self._retrying(f"look up {self.join(key)}", lambda client: client.head_object(**name))
        except MissingObjectError:
            return None
        return ObjectInfo(key, found["ContentLength"], found["ETag"].strip('"'))

    def delete(self, key: str) -> None:
        name = self._name(key)
        self._retrying(f"delete {self.join(key)}", lambda client: client.delete_object(**name))

    def open(self, key: str, meant: ObjectRange = WHOLE) -> BinaryIO:
        raw = RangeReader(
            lambda request: self._client.get_object(**self._name(key), **request),
            self.join(key),
            self.retry,
            meant,
        )
        return io.BufferedReader(raw, buffer_size=1 << 16)


_clients: "dict[tuple[Any, ...], S3Client]" = {}
_clients_lock = threading.Lock()


def _forget_clients() -> None:
    """A forked child makes clients of its own: connections, and locks that other threads held, do not fork."""
    global _clients_lock
    _clients_lock = threading.Lock()
    _clients.clear()


os.register_at_fork(after_in_child=_forget_clients)


def _client(connect_timeout_s: float, read_timeout_s: float) -> "S3Client":
    """This process's client for the present environment, made on first use."""
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    key = (connect_timeout_s, read_timeout_s, environment)
    with _clients_lock:
        if key not in _clients:
            _clients[key] = _new_client(connect_timeout_s, read_timeout_s)
        return _clients[key]


def _new_client(connect_timeout_s: float, read_timeout_s: float) -> "S3Client":
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=connect_timeout_s,
        read_timeout=read_timeout_s,
        retries={"total_max_attempts": 1},  # every retry is ours, under one policy for all of them
        max_pool_connections=64,
        request_checksum_calculation="when_required",  # trailers are beyond many servers that speak S3
        response_checksum_validation="when_required",
    )
    session = boto3.session.Session()
    # an endpoint of one's own asks for no region, AWS itself for one
    region = session.region_name or "us-east-1"
    return session.client("s3", config=config, region_name=region)


def check_reachable(address: str, *, write: bool = False) -> None:
    """Asks once, before long work starts, whether ``address`` can be read, or with ``write`` written.

    Raises:
        RequestError: with the remedy: no credentials, bucket missing, endpoint unreachable, access denied, no folder.
    """
    with asking(address) as store:
        if isinstance(store, S3Store):
            _check_s3(store, write)
        else:
            _check_folder(Path(store.join("")), write)


@contextlib.contextmanager
def asking(address: str) -> Iterator[Store]:
    """A store for the first questions of somebody who waits for the answer: it gives up in seconds.

    Raises:
        RequestError: with the remedy, where a bucket does not answer what is asked.
    """
    store = open_store(address, RetryPolicy(timeout_s=0.0, connect_timeout_s=5.0, read_timeout_s=10.0))
    try:
        yield store
    except StoreError as error:
        if not isinstance(store, S3Store):
            raise
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise RequestError(f"{store.address}: {_remedy(cause, store)}") from error


def _check_folder(folder: Path, write: bool) -> None:
    if not write:
        if not folder.is_dir():
            raise RequestError(f"there is no folder {folder}; check the path (a relative one starts at {Path.cwd()}).")
        return
    ground = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not ground.is_dir() or not os.access(ground, os.W_OK | os.X_OK):
        raise RequestError(f"{folder} cannot be written: {ground} is no folder that this user may write to.")
    with tempfile.TemporaryFile(dir=ground):
        pass


def _check_s3(store: S3Store, write: bool) -> None:
    found = next(iter(store.list()), None)
    if write:
        probe = f".write-check-{uuid.uuid4().hex}"
        store.write_bytes(probe, b"")
        store.delete(probe)
    if found is None and not write:
        raise RequestError(f"{store.address}: the bucket answers, but holds nothing there; check the prefix.")


def _remedy(error: Exception, store: S3Store) -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    code, status, kind = code_of(error), status_of(error), type(error).__name__
    if "Credential" in kind or kind in ("ProfileNotFound", "TokenRetrievalError"):
        return "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
    if code == "NoSuchBucket" or status == 404:
        return f"there is no bucket {store.bucket!r} at {endpoint}; create it or check AWS_ENDPOINT_URL."
    if status in (401, 403):
        return f"access denied ({code}) by {endpoint}; check the credentials and what their user may do there."
    if status == 0:
        return f"the endpoint {endpoint} cannot be reached ({error}); check AWS_ENDPOINT_URL and the network."
    return f"{endpoint} answered {status} {code}: {error}"
