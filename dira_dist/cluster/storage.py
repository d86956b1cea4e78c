"""Where Ray keeps a run: a folder, or a bucket on any S3 server that the environment points at."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import fs

DEFAULT_REGION = "us-east-1"


def ray_storage(address: str) -> tuple[str, fs.FileSystem | None]:
    """``storage_path`` and ``storage_filesystem`` of a Ray ``RunConfig`` for a folder or ``s3://bucket/prefix``.

    The S3 client takes endpoint, region and credentials from the same environment variables as boto3
    (``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``, ``AWS_REGION``, ``AWS_DEFAULT_REGION``, ``AWS_ACCESS_KEY_ID``, ...).
    """
    if not address.startswith("s3://"):
        return str(Path(address.removeprefix("file://")).expanduser().absolute()), None
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    location = urlsplit(endpoint or "")
    filesystem = fs.S3FileSystem(
        endpoint_override=location.netloc or None,
        scheme=location.scheme or "https",
        region=region or (DEFAULT_REGION if endpoint else None),
        allow_bucket_creation=False,
    )
    return address.removeprefix("s3://"), filesystem
