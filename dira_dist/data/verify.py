"""A whole shard set read and compared with its index."""

import hashlib
from collections.abc import Iterator

from dira_dist.data.shards import EXTENSIONS, INDEX_NAME, ImageInfo, ImageMode, ShardInfo, read_index
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
    problems = [] if index.is_intact else [f"{INDEX_NAME}: it was changed after it was written: its digest differs"]
    names = [shard.name for shard in index.shards]
    if names != sorted(set(names)):
        problems.append(f"{INDEX_NAME}: its shards are out of order, or stand in it twice")
    problems += [problem for shard in index.shards for problem in _problems_of(store, shard, index.image)]
    listed = set(names)
    strays = sorted(found.key for found in store.list() if found.key.endswith(".tar") and found.key not in listed)
    return problems + [f"{name}: not in the index" for name in strays]


def _problems_of(store: Store, shard: ShardInfo, image: ImageInfo) -> Iterator[str]:
    found = store.stat(shard.name)
    if found is None:
        yield f"{shard.name}: missing"
    elif found.bytes != shard.bytes:
        yield f"{shard.name}: {found.bytes} bytes, the index says {shard.bytes}"
    else:
        sha256 = hashlib.sha256()
        with store.open(shard.name) as stream:
            source = PlainTar(stream, shard.bytes, sha256.update)
            problems = _problems_inside(source, shard, image)
            source.drain()  # a damaged tar is read to its end all the same, for its digest
        if sha256.hexdigest() != shard.sha256:
            yield f"{shard.name}: sha256 is {sha256.hexdigest()}, the index says {shard.sha256}"
        else:
            yield from (f"{shard.name}: {problem}" for problem in problems)


def _problems_inside(source: PlainTar, shard: ShardInfo, image: ImageInfo) -> list[str]:
    samples = others = 0
    try:
        for sample in unchecked_samples(source, shard):
            samples += 1
            others += not _is_of_kind(sample.get(EXTENSIONS[image.encoding]), image)
    except StoreError:
        raise
    except Exception as error:  # a damaged tar shows in many ways, in tarfile and in WebDataset
        return [f"damaged: {first_argument(error)}"]
    problems = [] if samples == shard.samples else [f"{samples} samples, the index says {shard.samples}"]
    if others:
        problems.append(f"{others} images are not {image.encoding} of mode {image.mode}, as the index says")
    return problems


_PNG_KINDS: dict[ImageMode, tuple[int, int]] = {"L": (8, 0), "I;16": (16, 0), "RGB": (8, 2)}  # bits, colour type


def _is_of_kind(data: bytes | None, image: ImageInfo) -> bool:
    """By the extension of the member, and for PNG by what its header says."""
    if data is None or image.encoding != "png":
        return data is not None
    return image.mode in _PNG_KINDS and data[24:26] == bytes(_PNG_KINDS[image.mode])
