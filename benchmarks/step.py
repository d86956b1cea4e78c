"""The `dira` step beside a plain statement of the published recipe: images per second and peak memory, as ratios.

    python benchmarks/step.py                                # CPU
    python benchmarks/step.py --only memory --batch 64       # CPU
    python benchmarks/step.py --device cuda --batch 128 --compile
    python benchmarks/step.py --dims 3 --width 16 --image-size 64 64 32      # cubes, beside TransVW's step; CPU

With `--dims 3` the recipe is TransVW's (`published_volumes.py`), and the project's step is `dir` with MoCo-v2, which
encodes a second view beside what TransVW computes.

All variants take the same views in turn, one step each per round, so that whatever else the machine does falls on all
of them; figures are medians over the rounds. On a busy CPU, `--clock cpu` counts the process's own seconds: give it one
thread (OMP_NUM_THREADS=1), for threads that wait for one another count too. On a GPU memory is the allocator's peak; on
a CPU it is the peak of all living tensors, counted operation by operation in two steps of their own.
"""

import argparse
import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from published import PublishedStep
from published_volumes import PublishedVolumeStep
from torch import Tensor

from dira_dist.models.backbone import BackboneSection
from dira_dist.models.unet import UNetConfig
from dira_dist.models.unet3d import UNet3dConfig
from dira_dist.objectives.moco_v2 import MoCoV2Config
from dira_dist.objectives.parts import Objective, active_parts
from dira_dist.training.execution import ExecutionConfig
from dira_dist.training.memory import LiveTensors
from dira_dist.training.precision import Precision
from dira_dist.training.pretrain.networks import build_networks
from dira_dist.training.pretrain.task import pretrain_step
from dira_dist.views import Views

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Step = Callable[[Views, int], object]


@dataclass(frozen=True)
class Setting:
    """What is measured, from the command line."""

    dims: int
    encoder: str
    width: int
    image_size: tuple[int, ...]
    batch: int
    in_channels: int
    device: str
    precision: Precision
    compile: bool
    rounds: int
    clock: str


def _drawn(view: Tensor | None) -> Tensor:
    assert view is not None, "the benchmark draws both views and the target"
    return view


def build(variant: str, setting: Setting) -> Step:
    """The step of one variant: `published`, `project` or `checkpointing`."""
    torch.manual_seed(0)
    if variant == "published" and setting.dims == 3:
        words = PublishedVolumeStep(setting.width, setting.device)
        return lambda views, step_in_stage: words(views.view_1, _drawn(views.target))
    if variant == "published":
        published = PublishedStep(setting.encoder, setting.in_channels, setting.device)
        return lambda views, step_in_stage: published(views.view_1, _drawn(views.view_2), _drawn(views.target))
    objective: Objective = "dira" if setting.dims == 2 else "dir"
    model, parts = model_of(setting, variant == "checkpointing"), active_parts(objective)
    return pretrain_step(
        build_networks(model, MoCoV2Config(), parts=parts, seed=0),
        objective,
        execution=ExecutionConfig(compile=setting.compile),
        precision=setting.precision,
        device=setting.device,
        total_steps=10_000,
    )


def model_of(setting: Setting, checkpointing: bool) -> BackboneSection:
    """The project's network."""
    if setting.dims == 3:
        return UNet3dConfig(width=setting.width, gradient_checkpointing=checkpointing)
    channels = 3 if setting.in_channels == 3 else 1
    return UNetConfig(encoder=setting.encoder, in_channels=channels, gradient_checkpointing=checkpointing)


def views(setting: Setting) -> Views:
    """One batch of random views, grey repeated to the channels."""
    shape = (setting.batch, 1, *setting.image_size)
    generator = torch.Generator().manual_seed(0)
    first, second, target = (torch.rand(shape, generator=generator).to(setting.device) for _ in range(3))
    repeats = (1, 1 if setting.dims == 3 else setting.in_channels, *(1 for _ in setting.image_size))
    return Views(first.repeat(repeats), second.repeat(repeats), target, torch.arange(setting.batch))


def seconds(step: Step, batch: Views, number: int, setting: Setting) -> float:
    """Time of one step."""
    clock = CLOCKS[setting.clock]
    began = clock()
    step(batch, number)
    if setting.device == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def interleaved(
    steps: dict[tuple[str, str], Step], batch: Views, setting: Setting
) -> dict[tuple[str, str], list[float]]:
    """Times of each variant, one step of each per round; two rounds before them are not counted."""
    times: dict[tuple[str, str], list[float]] = {name: [] for name in steps}
    for number in range(-2, setting.rounds):
        for name, step in steps.items():
            elapsed = seconds(step, batch, max(number, 0), setting)
            if number >= 0:
                times[name].append(elapsed)
    return times


def peak_bytes(variant: str, setting: Setting) -> int:
    """The most memory that tensors take at one moment of a step, weights and optimiser included."""
    batch = views(setting)
    if setting.device == "cuda":
        gc.collect()  # compiled modules of the variant before hold on to themselves
        before = torch.cuda.memory_allocated()
        step = build(variant, setting)
        step(batch, 0)  # kernels are looked for and compiled in it
        torch.cuda.reset_peak_memory_stats()
        step(batch, 1)
        return torch.cuda.max_memory_allocated() - before
    with LiveTensors() as live:
        step = build(variant, setting)
        for number in range(2):  # the second has the optimiser's state from its start
            step(batch, number)
    return int(live.peak_bytes)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--dims", type=int, choices=(2, 3), default=2)
    parser.add_argument("--encoder", default="resnet50", help="of images")
    parser.add_argument("--width", type=int, default=16, help="of the network of cubes; as published: 64")
    parser.add_argument("--image-size", type=int, nargs="+", help="224, or 64 64 32 of cubes")
    parser.add_argument("--batch", type=int, default=128 if cuda else 8)
    parser.add_argument("--in-channels", type=int, choices=(1, 3), default=3, help="as published: 3")
    parser.add_argument("--device", default="cuda" if cuda else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=20 if cuda else 5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--only", choices=("times", "memory"), help="one of the two; both where left out")
    return parser.parse_args()


def setting_of(options: argparse.Namespace, precision: Precision) -> Setting:
    """The command line's setting in one precision."""
    size = options.image_size or ([224] if options.dims == 2 else [64, 64, 32])
    return Setting(
        options.dims,
        options.encoder,
        options.width,
        tuple(size) if len(size) > 1 else tuple(size) * options.dims,
        options.batch,
        options.in_channels,
        options.device,
        precision,
        options.compile,
        options.rounds,
        options.clock,
    )


def main() -> None:
    """Measures and prints one line per variant and precision; ratios are to the published recipe of the same run."""
    options = arguments()
    torch.backends.cudnn.benchmark = True  # for the recipe too, as whoever runs it on images of one size would
    settings = {precision: setting_of(options, precision) for precision in options.precision}
    plain = next(iter(settings.values()))
    runs = {("published", "fp32"): plain}
    runs |= {(variant, name): each for name, each in settings.items() for variant in ("project", "checkpointing")}
    peaks = {} if options.only == "times" else {run: peak_bytes(run[0], each) for run, each in runs.items()}
    steps = {} if options.only == "memory" else {run: build(run[0], each) for run, each in runs.items()}
    times = interleaved(steps, views(plain), plain)
    machine = torch.cuda.get_device_name() if plain.device == "cuda" else platform.machine()
    if torch.backends.cudnn.allow_tf32 and plain.device == "cuda":
        machine += ", fp32 convolutions in TF32"
    print(f"{machine}, torch {torch.__version__}, {torch.get_num_threads()} threads, {plain}")
    for run in runs:
        report(run, times, peaks, plain.batch)


def report(
    run: tuple[str, str],
    times: dict[tuple[str, str], list[float]],
    peaks: dict[tuple[str, str], int],
    batch: int,
) -> None:
    """One line: images per second, and ratios to the recipe and, for checkpointing, to the step without it."""
    reference, whole = ("published", "fp32"), ("project", run[1])
    line = f"{run[0]:13} {run[1]}"
    if times:
        middle = statistics.median(times[run])
        line += f"  {batch / middle:8.2f} images/s  x{statistics.median(times[reference]) / middle:5.2f}"
        line += f"  spread {min(times[run]) / middle:.2f}-{max(times[run]) / middle:.2f}"
    if peaks:
        line += f"  peak {peaks[run] / 2**20:8.0f} MiB  x{peaks[run] / peaks[reference]:.2f}"
    if run[0] == "checkpointing":
        line += "  against project:"
        line += f" time x{middle / statistics.median(times[whole]):.2f}" if times else ""
        line += f" memory x{peaks[run] / peaks[whole]:.2f}" if peaks else ""
    print(line)


if __name__ == "__main__":
    main()
