"""Environment variables for a while."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

VERBOSE = "DIRA_DIST_VERBOSE"
"""Set where `--verbose` asks for what Ray and MLflow say of themselves."""


@contextmanager
def environment(**settings: str) -> Iterator[None]:
    """Variables of this process, and of those it starts, while the block runs; afterwards they are what they were."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
