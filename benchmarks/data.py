"""Files per second and core from an archive to shards; samples per second and core from S3 to a batch ready for the
device, beside the published path; and what else the stream promises: waiting, arithmetic at scale, the cost of a cold
resume.

    python benchmarks/data.py [--images FOLDER] [--samples 2048] [--repeats 5] [--only shard]

One run, the contenders by turns in every repeat, medians. Rates are per second of the process's own CPU time, all its
threads included, since others may share the machine; the S3 server is a process of its own and not counted.

The published path decodes each PNG at full size (1024 px) with PIL and makes two distorted views and the target on the
CPU, one sample after another; it reads from memory, which flatters it. The project decodes shards whose images were
resized once to 256 px; its views are made on the device, in whole batches (`benchmarks/views.py`), so a batch of uint8
images is what is ready for it. `decoding alone` is the published path without its transforms.

Sharding is measured on files of 1024 px that become 512 px, beside Pillow's own way with its PNG level 4, into tars
alike; with the bytes of both results and the rate at which the stream's decoder reads them. Memory is that of a fresh
process that shards one large raster, per pixel of it.
"""

import argparse
import io
import logging
import multiprocessing
import os
import platform
import random
import shutil
import statistics
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from views import published_views

from dira_dist.data import ranges
from dira_dist.data import store as store_module
from dira_dist.data.cache import CacheConfig
from dira_dist.data.decode import decode_image
from dira_dist.data.ingest import ShardOptions, shard
from dira_dist.data.lanes import LaneReader, ReadOptions, ShardSet
from dira_dist.data.order import Order
from dira_dist.data.shards import Encoding, PublishedShard, Sample, publish_index, publish_shard, read_index, shard_name
from dira_dist.data.store import open_store
from dira_dist.data.stream import ShardStream
from dira_dist.data.tars import PlainTar, checked_samples

STORED_PX, FULL_PX = 256, 1024
BATCH, LANES, WINDOW = 64, 8, 32
GPUS, IMAGES_PER_GPU_S = 8, 2000


def serve(answer: Connection) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    answer.send(server.get_host_and_port()[1])
    threading.Event().wait()


@contextmanager
def s3_server() -> Iterator[None]:
    """An S3 server in a process of its own, and the environment that points clients at it."""
    import boto3

    mine, other = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(other,), daemon=True)
    process.start()
    endpoint = f"http://127.0.0.1:{mine.recv()}"
    os.environ |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bench")
    yield
    process.terminate()
    process.join()


def coded(image: Image.Image, form: str) -> bytes:
    out = io.BytesIO()
    image.save(out, form, quality=90)
    return out.getvalue()


def full_size_images(folder: Path | None, count: int = 64) -> list[Image.Image]:
    """Real images of 1024 px, or noise that was smoothed."""
    if folder:
        return [Image.open(p).convert("L").resize((FULL_PX, FULL_PX)) for p in sorted(folder.rglob("*.png"))[:count]]
    coarse = np.random.default_rng(0).integers(0, 256, (count, 256, 256), dtype=np.uint8)
    return [Image.fromarray(c).resize((FULL_PX, FULL_PX), Image.Resampling.BICUBIC) for c in coarse]


def write_set(address: str, images: list[Image.Image], form: str, samples: int, per_shard: int) -> None:
    stored = [coded(image.resize((STORED_PX, STORED_PX)), form) for image in images]
    encoding: Encoding = "png" if form == "PNG" else "jpeg"
    store, published = open_store(address), list[PublishedShard | None]()
    for first in range(0, samples, per_shard):
        shard = (
            Sample(f"k{n:06d}", stored[n % len(stored)], encoding, STORED_PX, STORED_PX, {"labels": {"number": n}})
            for n in range(first, min(first + per_shard, samples))
        )
        published.append(publish_shard(store, shard_name(len(published)), shard))
    publish_index(store, [each for each in published if each], mode="L", encoding=encoding)


def stream_epoch(address: str, samples: int, cache: CacheConfig | None = None) -> int:
    options = ReadOptions(cache=cache)
    with ShardStream(address, options, global_batch=BATCH, lanes=LANES, shuffle_window=WINDOW) as stream:
        return sum(len(next(stream)) for _ in range(samples // BATCH))


def published(files: list[bytes]) -> int:
    columns = zip(*(published_views(Image.open(io.BytesIO(f)).convert("RGB")) for f in files), strict=True)
    return [len(torch.stack(column)) for column in columns].pop()


def published_decoding(files: list[bytes]) -> int:
    return len([np.asarray(Image.open(io.BytesIO(f)).convert("RGB")) for f in files])


def rates(contenders: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Median samples per second of CPU time."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, work in contenders.items():
            start = time.process_time()
            samples = work()
            found[name].append(samples / (time.process_time() - start))
    return {name: statistics.median(values[1:]) for name, values in found.items()}  # the first warms up


def throughput(images: list[Image.Image], samples: int, repeats: int, cache_dir: str) -> dict[str, float]:
    full = [coded(image, "PNG") for image in images[:16]]
    cache = CacheConfig(dir=cache_dir, max_bytes=1 << 40)
    found = rates(
        {
            "published": lambda: published(full),
            "published, decoding alone": lambda: published_decoding(full),
            "stream, PNG": lambda: stream_epoch("s3://bench/PNG", samples),
            "stream, PNG, disk cache": lambda: stream_epoch("s3://bench/PNG", samples, cache),
            "stream, JPEG": lambda: stream_epoch("s3://bench/JPEG", samples),
        },
        repeats,
    )
    for name, rate in found.items():
        print(
            f"{name}: {rate:.0f} samples/s and core; {rate / found['published']:.1f} times the published path, "
            f"{rate / found['published, decoding alone']:.1f} times its decoding alone"
        )
    return found


SHARDED_PX = 512
LARGE_PX = 16_000


def sharding(images: list[Image.Image], folder: Path, repeats: int) -> None:
    """An archive of PNG files of 1024 px to shards of 512 px: Pillow's way and the project's, by turns."""
    source = folder / "archive"
    source.mkdir()
    for number, image in enumerate(images):
        (source / f"{number:04d}.png").write_bytes(coded(image, "PNG"))
    (folder / "salt").write_text("0123456789abcdef")
    options = ShardOptions(salt_file=str(folder / "salt"), processes=1, image_size=SHARDED_PX, overwrite=True)

    def by_pillow() -> int:
        shutil.rmtree(folder / "pillow", ignore_errors=True)
        store = open_store(str(folder / "pillow"))
        published = publish_shard(store, shard_name(0), map(pillow_sample, files))
        assert published is not None, "there are files"
        publish_index(store, [published], mode="L", encoding="png")
        return len(files)

    def by_shard() -> int:
        shutil.rmtree(folder / "set", ignore_errors=True)
        return shard(source, folder / "set", options).samples

    files = sorted(source.iterdir())
    found = rates({"Pillow, level 4": by_pillow, "shard": by_shard}, repeats)
    stored = {
        "Pillow, level 4": stored_images(str(folder / "pillow")),
        "shard": stored_images(str(folder / "set")),
    }
    decoding = rates({name: partial(decode_all, data) for name, data in stored.items()}, repeats)
    base = {"rate": found["Pillow, level 4"], "decoding": decoding["Pillow, level 4"]}
    size = statistics.mean(map(len, stored["Pillow, level 4"]))
    for name, data in stored.items():
        mean = statistics.mean(map(len, data))
        print(
            f"sharding, {name}: {found[name]:.0f} files/s and core, {found[name] / base['rate']:.2f} times; "
            f"{mean / 1e3:.1f} kB each, {mean / size:.3f} times; decoded at {decoding[name]:.0f} images/s and core, "
            f"{decoding[name] / base['decoding']:.2f} times"
        )


def pillow_sample(path: Path) -> Sample:
    image = Image.fromarray(np.asarray(Image.open(path).convert("L")))
    small = image.resize((SHARDED_PX, SHARDED_PX), Image.Resampling.BICUBIC, reducing_gap=3.0)
    out = io.BytesIO()
    Image.fromarray(np.asarray(small)).save(out, "PNG", compress_level=4)
    return Sample(path.stem, out.getvalue(), "png", SHARDED_PX, SHARDED_PX, {"labels": {}})


def decode_all(images: list[bytes]) -> int:
    for image in images:
        decode_image(image, "L")
    return len(images)


def stored_images(address: str) -> list[bytes]:
    images = list[bytes]()
    for info in read_index(address).shards:
        with open_store(address).open(info.name) as stream:
            images += [sample["png"] for sample in checked_samples(PlainTar(stream, info.bytes), info)]
    return images


def large_rasters(folder: Path) -> None:
    """Peak memory for one raster of 256 megapixels, in bytes per pixel, by kind and size of the result."""
    ramp = np.tile(np.arange(LARGE_PX, dtype=np.uint16) * 4, (LARGE_PX, 1))
    small = Image.fromarray((ramp >> 8).astype(np.uint8))
    kinds = {"PNG, 8 bits": ("png", small), "TIFF, 16 bits": ("tif", Image.fromarray(ramp))}
    for name, (suffix, image) in kinds.items():
        source = folder / f"large-{suffix}"
        source.mkdir()
        image.save(source / f"a.{suffix}", compress_level=1)
        for size in (SHARDED_PX, None):
            peak = peak_bytes(source, folder / "large-set", folder / "salt", size)
            print(f"memory, {name}, to {size or 'its own'} px: {peak / LARGE_PX**2:.1f} bytes per pixel")


def peak_bytes(source: Path, dest: Path, salt: Path, size: int | None) -> int:
    """Of a fresh process that shards, less what it holds before."""
    mine, other = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=shard_alone, args=(other, source, dest, salt, size))
    process.start()
    peak: int = mine.recv()
    process.join()
    return peak


def shard_alone(answer: Connection, source: Path, dest: Path, salt: Path, size: int | None) -> None:
    shutil.rmtree(dest, ignore_errors=True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the parent at the fork
    before = memory_kib("VmRSS")
    shard(source, dest, ShardOptions(salt_file=str(salt), processes=1, image_size=size))
    answer.send((memory_kib("VmHWM") - before) * 1024)


def memory_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def waiting(found: dict[str, float], samples: int) -> None:
    """Waiting of a consumer of a known speed: measured here with one loader process, projected to a node of 8 GPUs."""
    options = ReadOptions(loader_workers=1)
    with ShardStream("s3://bench/PNG", options, global_batch=BATCH, lanes=LANES, shuffle_window=WINDOW) as s:
        next(s)
        start = time.perf_counter()
        for _ in range(samples // BATCH):
            next(s)
        supply = samples // BATCH * BATCH / (time.perf_counter() - start)
        for part in (0.5, 0.75, 0.9):
            print(
                f"one loader process gives {supply:.0f} samples/s; a consumer of {part:.0%} of that waits "
                f"{consume(s, BATCH / (part * supply), samples // BATCH):.1%} of its time"
            )
    demand = GPUS * IMAGES_PER_GPU_S
    for name in ("published", "stream, PNG", "stream, JPEG"):
        shares = ", ".join(f"{cores} cores {max(0.0, 1 - cores * found[name] / demand):.0%}" for cores in (96, 192))
        print(
            f"projected to {demand} samples/s, {GPUS} GPUs: {name} fills {demand / found[name]:.0f} cores; "
            f"waits of step time with {shares}"
        )


def consume(stream: ShardStream, step_s: float, steps: int) -> float:
    """Share of time spent in ``next`` by a consumer whose step takes ``step_s``."""
    waited_s, start_s = 0.0, time.perf_counter()
    for _ in range(steps):
        before_s = time.perf_counter()
        next(stream)
        waited_s += time.perf_counter() - before_s
        time.sleep(step_s)
    return waited_s / (time.perf_counter() - start_s)


def walk(order: Order, blocks: int) -> int:
    """Reads off the order of ``blocks`` blocks of each lane, as the loaders do; returns the samples."""
    samples = 0
    for lane in range(order.lanes):
        row = 0
        for _ in range(blocks):
            block = order.block(lane, row)
            samples += sum(len(span) for span in block.spans)
            row = block.stop_row
    return samples


def arithmetic(repeats: int) -> None:
    """Cost per sample and memory of the order, small and large, by turns."""
    scales = {"1M in 1k shards": 1_000, "100M in 100k shards": 100_000}
    orders = {name: Order(np.full(shards, 1000), lanes=64, window=128, seed=0) for name, shards in scales.items()}
    cost: dict[str, list[float]] = {name: [] for name in scales}
    draw: dict[str, list[float]] = {name: [] for name in scales}
    for repeat in range(repeats + 1):
        for name, order in orders.items():
            start = time.process_time()
            order.block(0, (repeat + 1) * order.rows_per_epoch)  # draws an epoch
            drawn = time.process_time()
            samples = walk(order, 20)
            cost[name].append((time.process_time() - drawn) / samples)
            draw[name].append((drawn - start) / order.samples)
    total = {name: statistics.median(cost[name][1:]) + statistics.median(draw[name][1:]) for name in scales}
    small, large = total.values()
    for name in scales:
        print(
            f"order, {name}: {total[name] * 1e9:.0f} ns per sample, {memory(scales[name]) / scales[name]:.0f} bytes "
            f"per shard held"
        )
    print(f"order: a sample costs {large / small:.2f} times as much in the large set")


def memory(shards: int) -> int:
    counts = np.full(shards, 1000)
    tracemalloc.start()
    order = Order(counts, lanes=64, window=128, seed=0)
    for epoch in range(4):
        order.block(0, epoch * order.rows_per_epoch)
    held = tracemalloc.get_traced_memory()[0] + counts.nbytes
    tracemalloc.stop()
    return held


def resume() -> None:
    """Bytes until the first rows are there, for a start and for resumes at many places."""
    index = read_index("s3://bench/PNG")
    order = Order([shard.samples for shard in index.shards], lanes=LANES, window=WINDOW, seed=0)
    largest = max(shard.bytes for shard in index.shards)
    start = [downloaded(order, lane, 0) for lane in range(LANES)]
    worst = 0.0
    rows = random.Random(0).sample(range(2 * order.rows_per_epoch), 24)
    for row in rows:
        worst = max(worst, *((downloaded(order, lane, row) - start[lane]) / largest for lane in range(LANES)))
    print(f"cold resume at {len(rows)} places of {LANES} lanes: at most {worst:.2f} shards per lane more than a start")


def downloaded(order: Order, lane: int, row: int) -> int:
    total = 0

    class Counting(ranges.RangeReader):
        def _next_range(self) -> bytes:
            nonlocal total
            data = super()._next_range()
            total += len(data)
            return data

    vars(store_module)["RangeReader"] = Counting
    with ThreadPoolExecutor(1) as pool:
        reader = LaneReader(
            ShardSet("s3://bench/PNG", read_index("s3://bench/PNG")), order, lane, pool, threading.Event()
        )
        reader.load(row)
        reader.close()
    vars(store_module)["RangeReader"] = ranges.RangeReader
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="a folder of PNG files; made-up images without it")
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=["shard", "stream"], help="one half alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, batches of {BATCH}, {STORED_PX} px stored")
    if arguments.only != "stream":
        with tempfile.TemporaryDirectory() as folder:
            sharding(full_size_images(arguments.images), Path(folder), arguments.repeats)
            large_rasters(Path(folder))
    if arguments.only == "shard":
        return
    with s3_server(), tempfile.TemporaryDirectory() as cache_dir:
        images = full_size_images(arguments.images)
        for form in ("PNG", "JPEG"):
            write_set(f"s3://bench/{form}", images, form, arguments.samples, arguments.samples // 16)
        found = throughput(images, arguments.samples, arguments.repeats, cache_dir)
        waiting(found, arguments.samples)
        ranges.RANGE_BYTES = 256 << 10  # as fine beside these shards as 8 MiB beside shards of 100 MB
        resume()
    arithmetic(arguments.repeats)


if __name__ == "__main__":
    main()
