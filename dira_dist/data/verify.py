"""A whole shard set read and compared with its index."""

import hashlib
from collections.abc import Iterator

from dira_dist.data.archive import older_generations, read_newest, tars_under_way
from dira_dist.data.generations import plain_address
from dira_dist.data.shards import EXTENSIONS, INDEX_NAME, ImageInfo, ImageMode, ShardInfo, read_index, read_recorded
from dira_dist.data.store import Store, StoreError, check_reachable, open_store
from dira_dist.data.tars import PlainTar, first_argument, unchecked_samples


def verify(address: str) -> list[str]:
    """Reads a whole set and compares it with its index; a line for each problem, none for a sound set.

    Raises:
        RequestError: the address cannot be read, or there is no index to compare with.
        StoreError: reading failed for longer than the retry policy allows.
    """
    check_reachable(plain_address(address))
    recorded, index = read_recorded(address), read_index(address)
    store = open_store(plain_address(address))
    problems = [] if recorded.is_intact else [f"{INDEX_NAME}: it was changed after it was written: its digest differs"]
    names = [shard.name for shard in index.shards]
    if names != sorted(set(names)):
        problems.append(f"{INDEX_NAME}: its shards are out of order, or stand in it twice")
    left = [shard for shard in index.shards if len(shard.gone) < shard.samples]
    problems += [problem for shard in left for problem in problems_of(store, shard, index.image)]
    return problems + [f"{name}: not in the index" for name in _strays(store)]


def _strays(store: Store) -> list[str]:
    """Tars that are in no generation, nor made just now by who adds to the set."""
    indexes = (read_newest(store).index, *older_generations(store))
    listed = {shard.name for index in indexes for shard in index.shards}
    under_way = tars_under_way(store)
    tars = [found.key for found in store.list() if found.key.endswith(".tar")]
    return sorted(key for key in tars if key not in listed and not key.endswith(under_way))


def problems_of(store: Store, shard: ShardInfo, image: ImageInfo) -> Iterator[str]:
    """What is wrong with one tar, by what its index says of it; nothing where it is sound.

    Raises:
        StoreError: it cannot be read.
    """
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
    meant = shard.samples_in_tar
    problems = [] if samples == meant else [f"{samples} samples, the index says {meant}"]
    if others:
        problems.append(f"{others} images are not {image.encoding} of mode {image.mode}, as the index says")
    return problems


_PNG_KINDS: dict[ImageMode, tuple[int, int]] = {"L": (8, 0), "I;16": (16, 0), "RGB": (8, 2)}  # bits, colour type


def _is_of_kind(data: bytes | None, image: ImageInfo) -> bool:
    """By the extension of the member, and for PNG by what its header says."""
    if data is None or image.encoding != "png":
        return data is not None
    return image.mode in _PNG_KINDS and data[24:26] == bytes(_PNG_KINDS[image.mode])
