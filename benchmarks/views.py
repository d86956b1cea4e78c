"""Views per second: whole batches on the device beside the published transforms, one image after another with PIL.

    python benchmarks/views.py [--sizes 256 512 1024] [--batch 64] [--repeats 15] [--images FOLDER]
    python benchmarks/views.py --dims 3 [--batch 16] [--repeats 9]      # cubes of 64 x 64 x 32, beside TransVW's view
    python benchmarks/views.py --genesis [--batch 16] [--repeats 9]     # the same, beside Models Genesis' view

One run, one thread, the contenders by turns in every repeat, medians. Decoding is left out on both sides: the baseline
starts from a PIL image in memory, the project from the uint8 batch. The baseline is the published recipe written
afresh: random resized crop, colour jitter, Gaussian blur, flip, to tensor, distortion in numpy, for two views; the
target is the grey crop. It works on RGB, as the published code does; `grey` is the same on one channel, which is
what a careful user of PIL would do. On a CPU the time is the process's own CPU time, since others may share the
machine; on a GPU it is wall time, and the row shows what the device makes beside one CPU core.
"""

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from published_volumes import GENESIS_BLOCKS, genesis_view, published_view
from published_volumes import shuffle as shuffle_cube
from torchvision import transforms

from dira_dist.views import ViewsConfig, make_views
from dira_dist.views.distortions.shuffling import shuffle_locally
from dira_dist.views.randomness import view_keys

VIEW_PX = 224


class PilBlur:
    """Gaussian blur by PIL with a standard deviation drawn for each view."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


CROP = transforms.RandomResizedCrop(VIEW_PX, scale=(0.2, 1.0))
INTENSITY = transforms.Compose(
    [
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        transforms.RandomApply([PilBlur()], p=0.5),
    ]
)
FLIP = transforms.RandomHorizontalFlip()
TO_TENSOR = transforms.ToTensor()


def random_block(low: int, high: int) -> tuple[slice, slice, slice]:
    """A block with sides from low to high pixels, somewhere inside the view."""
    height, width = random.randint(low, high), random.randint(low, high)
    top, left = random.randint(0, VIEW_PX - height), random.randint(0, VIEW_PX - width)
    return slice(None), slice(top, top + height), slice(left, left + width)


def cut_out(view: np.ndarray, inner: bool) -> np.ndarray:
    """Up to ten blocks to 0, or all but up to ten windows."""
    out = view.copy() if inner else np.zeros_like(view)
    for _ in range(10):
        block = random_block(10, 70) if inner else random_block(154, 174)
        out[block] = 0 if inner else view[block]
        if random.random() < 0.1:
            break
    return out


def shuffle(view: np.ndarray) -> np.ndarray:
    """Ten pairs of equal blocks trade places."""
    view = view.copy()
    for _ in range(10):
        here = random_block(10, 15)
        height, width = here[1].stop - here[1].start, here[2].stop - here[2].start
        top, left = random.randint(0, VIEW_PX - height), random.randint(0, VIEW_PX - width)
        there = slice(None), slice(top, top + height), slice(left, left + width)
        view[here], view[there] = view[there].copy(), view[here].copy()
    return view


def distort(view: np.ndarray) -> np.ndarray:
    """One of the four distortions, with the published probabilities."""
    number = random.random()
    if number < 0.30:
        return shuffle(view)
    if number < 0.65:
        return cut_out(view, inner=number < 0.60)
    return view


def published_views(image: Image.Image) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both distorted views and the target of one image."""
    crops = CROP(image), CROP(image)
    views = [distort(TO_TENSOR(FLIP(INTENSITY(crop))).numpy()) for crop in crops]
    return torch.from_numpy(views[0]), torch.from_numpy(views[1]), TO_TENSOR(crops[0].convert("L"))


def published_batch(images: list[Image.Image]) -> list[torch.Tensor]:
    """The batch, stacked as a loader does."""
    return [torch.stack(column) for column in zip(*(published_views(image) for image in images), strict=True)]


def sources(size_px: int, count: int, folder: Path | None) -> np.ndarray:
    """(count, size, size) uint8: real images shrunk to the size, or noise that was smoothed."""
    if folder:
        paths = sorted(folder.glob("*.png"))[:count]
        pictures = [np.asarray(Image.open(p).convert("L").resize((size_px, size_px))) for p in paths]
        return np.stack([pictures[k % len(pictures)] for k in range(count)])
    coarse = np.random.default_rng(0).integers(0, 256, (count, 32, 32), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(c).resize((size_px, size_px), Image.Resampling.BICUBIC)) for c in coarse]
    )


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """CPU time of one call or, on a GPU, its wall time with the device's work included."""
    if device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(size_px: int, batch: int, repeats: int, folder: Path | None, device: torch.device) -> dict[str, float]:
    """Median seconds for each contender's view, all contenders by turns in every repeat."""
    pixels = sources(size_px, batch, folder)
    grey = [Image.fromarray(image) for image in pixels[:8]]
    rgb = [image.convert("RGB") for image in grey]
    images = torch.from_numpy(pixels)[:, None].to(device)
    sizes_px = torch.full((batch, 2), size_px, device=device)
    ids = torch.arange(batch, device=device)
    config = ViewsConfig()

    epochs = iter(range(1 << 30))

    def project(images: torch.Tensor) -> object:
        epoch = torch.full_like(ids, next(epochs))
        return make_views(images, sizes_px, ids, epoch, seed=0, image_size=VIEW_PX, in_channels=1, config=config)

    deep = (images.int() * 257).to(torch.uint16)
    contenders: dict[str, tuple[Callable[[], object], int, torch.device]] = {
        "published": (lambda: published_batch(rgb), 2 * len(rgb), torch.device("cpu")),
        "views": (lambda: project(images), 2 * batch, device),
        "published, grey": (lambda: published_batch(grey), 2 * len(grey), torch.device("cpu")),
        "views, 16 bits": (lambda: project(deep), 2 * batch, device),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, (work, views, where) in contenders.items():
            times[name].append(seconds(work, where) / views)
    return {name: statistics.median(values[1:]) for name, values in times.items()}  # the first warms up


VOLUME_PX = (64, 64, 32)


def measure_volumes(cube_px: tuple[int, int, int], batch: int, repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds for each contender's view of a cube, by turns in every repeat.

    TransVW cuts its cubes at the size of the view; the project's are cut from stored cubes of `cube_px`.
    """
    drawn = np.random.default_rng(0)
    smooth = drawn.random((8, *VOLUME_PX))
    cubes = torch.from_numpy(drawn.integers(0, 65536, (batch, 1, *cube_px), dtype=np.uint16)).to(device)
    sizes_px, ids = torch.tensor([cube_px] * batch, device=device), torch.arange(batch, device=device)
    epochs = iter(range(1 << 30))

    def project() -> object:
        epoch = torch.full_like(ids, next(epochs))
        return make_views(
            cubes, sizes_px, ids, epoch, seed=0, image_size=VOLUME_PX, in_channels=1, config=ViewsConfig()
        )

    def published() -> object:
        return [published_view(cube, drawn) for cube in smooth]

    contenders = {
        "published": (published, len(smooth), torch.device("cpu")),
        "views": (project, 2 * batch, device),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, (work, views, where) in contenders.items():
            times[name].append(seconds(work, where) / views)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def report_volumes(batch: int, repeats: int, device: torch.device, name: str) -> None:
    """One line for cubes of the view's size, and one for larger ones, of which a crop is cut."""
    for cube_px in (VOLUME_PX, (96, 96, 48)):
        times = measure_volumes(cube_px, batch, repeats, device)
        each = ", ".join(f"{contender} {1e3 * value:.1f} ms" for contender, value in times.items())
        print(f"{name}, from {cube_px} voxels: {each} for a view; {times['published'] / times['views']:.1f} times")


GENESIS = ViewsConfig.model_validate(
    {
        "crop": {"scale": (1, 1), "ratio": (1, 1), "flip_probability": 0},
        "jitter": {"probability": 0},
        "blur": {"probability": 0},
        "distortion": {"name": "models_genesis"},
    }
)


def report_genesis(batch: int, repeats: int, device: torch.device, name: str) -> None:
    """Models Genesis' view with its own counts, and its shuffling alone, all contenders by turns.

    A published view takes ten times as long where it is shuffled as where it is not: of whole views the mean is told.
    """
    drawn = np.random.default_rng(0)
    smooth = drawn.random((8, *VOLUME_PX))
    cubes = torch.from_numpy(drawn.integers(0, 65536, (batch, 1, *VOLUME_PX), dtype=np.uint16)).to(device)
    views, ids = torch.rand(batch, 1, *VOLUME_PX, device=device), torch.arange(batch, device=device)
    sizes_px, epochs = torch.tensor([VOLUME_PX] * batch, device=device), iter(range(1 << 30))

    def project() -> object:
        epoch = torch.full_like(ids, next(epochs))
        return make_views(cubes, sizes_px, ids, epoch, seed=0, image_size=VOLUME_PX, in_channels=1, config=GENESIS)

    def shuffled() -> object:
        keys = view_keys(0, torch.full_like(ids, next(epochs)), ids, 1)[0]
        return shuffle_locally(views, keys, GENESIS_BLOCKS, 0.1)

    host = torch.device("cpu")
    contenders: dict[str, tuple[Callable[[], object], int, torch.device]] = {
        "published": (lambda: [genesis_view(cube, drawn) for cube in smooth], len(smooth), host),
        "views": (project, 2 * batch, device),
        "published shuffling": (lambda: [shuffle_cube(cube, drawn, GENESIS_BLOCKS) for cube in smooth[:2]], 2, host),
        "shuffling": (shuffled, batch, device),
    }
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    for _ in range(repeats + 1):
        for contender, (work, count, where) in contenders.items():
            times[contender].append(seconds(work, where) / count)
    mean = {contender: statistics.mean(values[1:]) for contender, values in times.items()}
    each = ", ".join(f"{contender} {1e3 * value:.1f} ms" for contender, value in mean.items())
    whole, alone = mean["published"] / mean["views"], mean["published shuffling"] / mean["shuffling"]
    print(f"{name}: {each}; a view {whole:.1f} times, its shuffling {alone:.1f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--dims", type=int, choices=(2, 3), default=2)
    parser.add_argument("--genesis", action="store_true", help="Models Genesis' view of cubes")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--images", type=Path, help="a folder of PNG files; made-up images without it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    print(
        f"{platform.machine()}, torch {torch.__version__}, one thread, batch {arguments.batch}, views of {VIEW_PX} px"
    )
    for device in map(torch.device, devices):
        name = torch.cuda.get_device_name() if device.type == "cuda" else "one CPU core"
        if arguments.genesis:
            report_genesis(arguments.batch, arguments.repeats, device, name)
            continue
        if arguments.dims == 3:
            report_volumes(arguments.batch, arguments.repeats, device, name)
            continue
        for size_px in arguments.sizes:
            times = measure(size_px, arguments.batch, arguments.repeats, arguments.images, device)
            rates = ", ".join(f"{contender} {1 / value:.0f}/s" for contender, value in times.items())
            ratio, grey = (times[name] / times["views"] for name in ("published", "published, grey"))
            print(f"{name}, from {size_px} px: {rates}; {ratio:.1f} times published, {grey:.1f} times its grey form")


if __name__ == "__main__":
    main()
