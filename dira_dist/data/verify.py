"""A whole shard set read and compared with its index."""

import hashlib
from collections.abc import Iterator

from dira_dist.data.shards import ShardInfo, read_index
from dira_dist.data.store import Store, StoreError, check_reachable, open_store
from dira_dist.data.tars import PlainTar, first_argument, unchecked_samples


def verify(address: str) -> list[str]:
    """Reads a whole set and compares it with its index; a line for each problem, none for a sound set.

    Raises:
        RequestError: the address cannot be read, or there is no index to compare with.
        StoreError: reading failed for longer than the retry policy allows.
    """
    check_reachable(address)
    index = read_index(address)
    store = open_store(address)
    problems = [problem for shard in index.shards for problem in _problems_of(store, shard)]
    listed = {shard.name for shard in index.shards}
    strays = sorted(found.key for found in store.list() if found.key.endswith(".tar") and found.key not in listed)
    return problems + [f"{name}: not in the index" for name in strays]


def _problems_of(store: Store, shard: ShardInfo) -> Iterator[str]:
    found = store.stat(shard.name)
    if found is None:
        yield f"{shard.name}: missing"
    elif found.bytes != shard.bytes:
        yield f"{shard.name}: {found.bytes} bytes, the index says {shard.bytes}"
    else:
        sha256 = hashlib.sha256()
        with store.open(shard.name) as stream:
            source = PlainTar(stream, shard.bytes, sha256.update)
            problem = _problem_inside(source, shard)
            source.drain()  # a damaged tar is read to its end all the same, for its digest
        if sha256.hexdigest() != shard.sha256:
            yield f"{shard.name}: sha256 is {sha256.hexdigest()}, the index says {shard.sha256}"
        elif problem:
            yield f"{shard.name}: {problem}"


def _problem_inside(source: PlainTar, shard: ShardInfo) -> str:
    try:
        samples = sum(1 for _ in unchecked_samples(source, shard))
    except StoreError:
        raise
    except Exception as error:  # a damaged tar shows in many ways, in tarfile and in WebDataset
        return f"damaged: {first_argument(error)}"
    return "" if samples == shard.samples else f"{samples} samples, the index says {shard.samples}"
