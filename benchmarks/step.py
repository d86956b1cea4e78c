"""The `dira` step beside a plain statement of the published recipe: images per second and peak memory, as ratios.

    python benchmarks/step.py                                # CPU
    python benchmarks/step.py --only memory --batch 64       # CPU
    python benchmarks/step.py --device cuda --batch 128 --compile

All variants take the same views in turn, one step each per round, so that whatever else the machine does falls on all
of them; figures are medians over the rounds. On a busy CPU, `--clock cpu` counts the process's own seconds: give it one
thread (OMP_NUM_THREADS=1), for threads that wait for one another count too. On a GPU memory is the allocator's peak; on
a CPU it is the peak of all living tensors, counted operation by operation in two steps of their own.
"""

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dira_dist.models.unet import UNetConfig
from dira_dist.objectives.moco_v2 import MoCoV2Config
from dira_dist.training.execution import ExecutionConfig
from dira_dist.training.step import Precision, TrainStep, build_networks
from dira_dist.views import Views

QUEUE, OUTPUTS, TEMPERATURE, MOMENTUM = 65_536, 128, 0.2, 0.999
WEIGHTS = {"discriminative": 1.0, "restorative": 10.0, "adversarial": 0.001}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Step = Callable[[Views, int], object]


class PublishedNetwork(nn.Module):
    """U-Net and projection head in one forward pass, as the recipe has them for queries and for keys."""

    def __init__(self, encoder: str, in_channels: int) -> None:
        super().__init__()
        self.backbone = smp.Unet(encoder, encoder_weights=None, in_channels=in_channels, activation="sigmoid")
        features = self.backbone.encoder.out_channels[-1]
        self.fc = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, OUTPUTS))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone.encoder(image)
        restored = self.backbone.segmentation_head(self.backbone.decoder(features))
        return F.normalize(self.fc(features[-1].mean(dim=(2, 3))), dim=1), restored


class PublishedStep:
    """The recipe from its description: eager, float32, and with its waste.

    The key encoder runs its decoder for nothing; the U-Net's step leaves gradients on the discriminator that are
    cleared unused; the discriminator looks at real and restored images in two passes.
    """

    def __init__(self, encoder: str, in_channels: int, device: str) -> None:
        self.query = PublishedNetwork(encoder, in_channels).to(device)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.discriminator = _published_discriminator().to(device)
        self.queue = F.normalize(torch.randn(OUTPUTS, QUEUE, device=device), dim=0)
        self.position = 0
        self.optimizer = torch.optim.SGD(self.query.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
        self.player = torch.optim.Adam(self.discriminator.parameters(), 2e-4, betas=(0.5, 0.999))

    def __call__(self, views: Views, step_in_stage: int) -> None:
        queries, restored = self.query(views.view_1)
        with torch.no_grad():
            for slow, fast in zip(self.key.parameters(), self.query.parameters(), strict=True):
                slow.data = slow.data * MOMENTUM + fast.data * (1 - MOMENTUM)
            keys, _ = self.key(views.view_2)
        own = torch.einsum("nc,nc->n", queries, keys)[:, None]
        logits = torch.cat([own, torch.einsum("nc,ck->nk", queries, self.queue.clone().detach())], dim=1) / TEMPERATURE
        discriminative = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
        self._enqueue(keys)
        fooled = (self.discriminator(restored) - 1).square().mean()
        losses = {
            "discriminative": discriminative,
            "restorative": F.mse_loss(restored, views.target),
            "adversarial": fooled,
        }
        self.optimizer.zero_grad()
        sum(WEIGHTS[name] * loss for name, loss in losses.items()).backward()
        self.optimizer.step()
        self._play(views.target, restored.detach())

    def _play(self, target: Tensor, restored: Tensor) -> None:
        self.player.zero_grad()
        real = (self.discriminator(target) - 1).square().mean()
        (0.5 * (real + self.discriminator(restored).square().mean())).backward()
        self.player.step()

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        self.queue[:, self.position : self.position + len(keys)] = keys.T
        self.position = (self.position + len(keys)) % QUEUE


def _published_discriminator() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, 64, 3, 2, 1), nn.LeakyReLU(0.2, True)]
    for inputs, outputs, stride in ((64, 128, 2), (128, 256, 2), (256, 512, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.InstanceNorm2d(outputs), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(512, 1, 3, 1, 1))


@dataclass(frozen=True)
class Setting:
    """What is measured, from the command line."""

    encoder: str
    image_size: int
    batch: int
    in_channels: int
    device: str
    precision: Precision
    compile: bool
    rounds: int
    clock: str


def build(variant: str, setting: Setting) -> Step:
    """The step of one variant: `published`, `project` or `checkpointing`."""
    torch.manual_seed(0)
    if variant == "published":
        return PublishedStep(setting.encoder, setting.in_channels, setting.device)
    model = UNetConfig(
        encoder=setting.encoder,
        in_channels=3 if setting.in_channels == 3 else 1,
        gradient_checkpointing=variant == "checkpointing",
    )
    return TrainStep(
        build_networks(model, MoCoV2Config(queue_size=QUEUE), seed=0),
        "dira",
        execution=ExecutionConfig(compile=setting.compile),
        precision=setting.precision,
        device=setting.device,
        total_steps=10_000,
    )


def views(setting: Setting) -> Views:
    """One batch of random views, grey repeated to the channels."""
    shape = (setting.batch, 1, setting.image_size, setting.image_size)
    generator = torch.Generator().manual_seed(0)
    first, second, target = (torch.rand(shape, generator=generator).to(setting.device) for _ in range(3))
    repeats = (1, setting.in_channels, 1, 1)
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
        torch.cuda.reset_peak_memory_stats()
        _two_steps(build(variant, setting), batch)
        return torch.cuda.max_memory_allocated()
    with LiveTensors() as live:
        _two_steps(build(variant, setting), batch)
    return live.peak_bytes


def _two_steps(step: Step, batch: Views) -> None:
    """The second has the optimiser's state from its start."""
    for number in range(2):
        step(batch, number)


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive after each operation, each storage once.

    What a process holds also has the allocator's slack and the kernels' scratch in it; this has neither, is the same
    at every run, and is what autograd and the recipe are answerable for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = operation(*arguments, **(named or {}))
        for tensor in tree_leaves((arguments, result)):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: kept for key, kept in self._alive.items() if not kept[0].expired()}
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._alive.values()))
        return result


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
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
    return Setting(
        options.encoder,
        options.image_size,
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
    settings = {precision: setting_of(options, precision) for precision in options.precision}
    plain = next(iter(settings.values()))
    runs = {("published", "fp32"): plain}
    runs |= {(variant, name): each for name, each in settings.items() for variant in ("project", "checkpointing")}
    peaks = {} if options.only == "times" else {run: peak_bytes(run[0], each) for run, each in runs.items()}
    steps = {} if options.only == "memory" else {run: build(run[0], each) for run, each in runs.items()}
    times = interleaved(steps, views(plain), plain)
    machine = torch.cuda.get_device_name() if plain.device == "cuda" else platform.machine()
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
