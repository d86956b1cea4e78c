"""A registered model as an ONNX file, for runtimes without torch: images in, features, logits and probabilities out.

What torch computes is computed by onnxruntime once more, on random images, before the file is given away.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dira_dist.config import RequestError
from dira_dist.files import write_with_checksum
from dira_dist.models.backbone import Size

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 18
INPUT = "images"
FACTS_KEY = "dira_dist"
TOLERANCE = 1e-4
TRIAL_BATCHES = (1, 2, 5)

ImageType = Literal["uint8", "uint16", "float32"]
_TYPES: Mapping[str, tuple[torch.dtype, float]] = {
    "uint8": (torch.uint8, 255.0),
    "uint16": (torch.uint16, 65535.0),
    "float32": (torch.float32, 1.0),
}


class OnnxNetwork(nn.Module):
    """A network behind its own scaling, and before what is made of its logits.

    Args:
        network: views ``(B, in_channels, *image_size)`` float32 in [0, 1] to its answer.
        white: the value of the images that is 1 in the views.
    """

    output_names: tuple[str, ...] = ("features",)

    def __init__(self, network: nn.Module, white: float) -> None:
        super().__init__()
        self.network = network
        self._white = white
        for module in self.modules():
            module.training = False  # a captured graph has no other mode, and refuses to be asked for one

    def answers(self, images: Tensor) -> Tensor:
        """What the network says of images ``(B, in_channels, *image_size)``."""
        answer: Tensor = self.network(images.to(torch.float32) / self._white)
        return answer

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the order of ``output_names``."""
        return (self.answers(images),)


class OnnxSupervised(OnnxNetwork):
    """A classifier or segmenter: logits, and probabilities ``(B, K)`` or ``(B, K, H, W)``.

    Args:
        network: to logits.
        white: see :class:`OnnxNetwork`.
        exclusive: whether the outputs are one another's alternatives.
        calibration: slopes and intercepts of the logits; empty where there is none.
    """

    output_names = ("logits", "probabilities")
    slopes: Tensor
    intercepts: Tensor

    def __init__(
        self, network: nn.Module, white: float, *, exclusive: bool, calibration: Mapping[str, Sequence[float]]
    ) -> None:
        super().__init__(network, white)
        self._exclusive = exclusive
        self.register_buffer("slopes", torch.tensor(calibration.get("slopes", (1.0,))))
        self.register_buffer("intercepts", torch.tensor(calibration.get("intercepts", (0.0,))))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits as they are, and calibrated probabilities."""
        logits = self.answers(images)
        across = (-1, *(1,) * (logits.ndim - 2))
        scaled = logits * self.slopes.view(across) + self.intercepts.view(across)
        return logits, scaled.softmax(1) if self._exclusive else scaled.sigmoid()


@dataclass(frozen=True)
class OnnxInput:
    """What is fed: ``(B, channels, *image_size)`` of a type.

    Attributes:
        channels: of the images.
        image_size: pixels, one for each axis, or the side of a square.
        type: of the values: the whole range of uint8 or uint16, or float32 in [0, 1].
    """

    channels: int
    image_size: Size
    type: ImageType = "uint8"

    @property
    def white(self) -> float:
        """The value that is white."""
        return _TYPES[self.type][1]

    @property
    def sides_px(self) -> tuple[int, ...]:
        """Along each spatial axis."""
        return (self.image_size,) * 2 if isinstance(self.image_size, int) else tuple(self.image_size)

    def random(self, count: int) -> Tensor:
        """Images of noise, the same ones for the same count."""
        generator = torch.Generator().manual_seed(count)
        noise = torch.rand(count, self.channels, *self.sides_px, generator=generator)
        return (noise * self.white).to(_TYPES[self.type][0])

    def lines(self, path: Path, outputs: Sequence[str]) -> str:
        """Python that computes the outputs of images by the file."""
        shape = ", ".join(map(str, ("N", self.channels, *self.sides_px)))
        values = " in [0, 1]" if self.type == "float32" else ""
        return "\n".join(
            (
                "import onnxruntime",
                f"session = onnxruntime.InferenceSession({str(path)!r})",
                f"# images: NumPy array ({shape}), {self.type}{values}",
                f'{", ".join(outputs)}{"," * (len(outputs) == 1)} = session.run(None, {{"{INPUT}": images}})',
            )
        )


def check_onnx_packages() -> None:
    """Raises:
    RequestError: what an export to ONNX needs is not installed.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise RequestError(
            f"--format onnx: not installed: {', '.join(missing)}; install them: `pip install 'dira-dist[onnx]'`"
        )


def known_image_type(name: str) -> ImageType:
    """The type of that name.

    Raises:
        RequestError: there is none.
    """
    for known in get_args(ImageType):
        if name == known:
            found: ImageType = known
            return found
    raise RequestError(f"--input-type {name!r}: allowed are {', '.join(get_args(ImageType))}")


def save_onnx(network: OnnxNetwork, fed: OnnxInput, path: Path, facts: Mapping[str, Any]) -> str:
    """Write a network as one ONNX file that takes any number of images, if onnxruntime says of it what torch says.

    Args:
        network: in evaluation mode.
        fed: what it takes.
        path: of the file; its sha256 is written beside it.
        facts: kept in the file's metadata under ``dira_dist``, as JSON.

    Returns:
        The sha256 in hexadecimal.

    Raises:
        RequestError: packages are missing, the network cannot be told in ONNX, or onnxruntime computes something else.
    """
    check_onnx_packages()
    content = _exported(network, fed, facts)
    _check_answers(network, fed, content)
    return write_with_checksum(path, lambda file: file.write_bytes(content))


def _exported(network: OnnxNetwork, fed: OnnxInput, facts: Mapping[str, Any]) -> bytes:
    """The file's content."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of each operator that it has no use for
    try:
        program = torch.onnx.export(
            network,
            (fed.random(2),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(network.output_names),
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    except Exception as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise RequestError(
            f"--format onnx: this network cannot be told in ONNX: {first}; take another format, or MLflow's model, "
            "which runs with torch alone"
        ) from error
    assert program is not None, "of the exporter by dynamo"
    model = program.model_proto
    _forget_where_it_was_made(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = FACTS_KEY, json.dumps(facts)
    return bytes(model.SerializeToString())


def _forget_where_it_was_made(model: Any) -> None:
    """The exporter notes for each operator the lines of Python that called it, with this machine's folders."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.ClearField("doc_string")


@torch.no_grad()
def _check_answers(network: OnnxNetwork, fed: OnnxInput, content: bytes) -> None:
    """Raises:
    RequestError: onnxruntime's outputs are further from torch's than ``TOLERANCE`` times the largest, or 1.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for count in TRIAL_BATCHES:
        images = fed.random(count)
        expected = [output.numpy() for output in network(images)]
        found = session.run(list(network.output_names), {INPUT: images.numpy()})
        for name, off in _differences(network.output_names, expected, found):
            if not off <= TOLERANCE:
                raise RequestError(
                    f"--format onnx: onnxruntime's {name} of {count} images are off torch's by {off:.2g}; at most "
                    f"{TOLERANCE:g} is allowed: nothing was written; take another format, and tell us of this encoder"
                )


def _differences(
    names: Sequence[str], expected: Sequence[npt.NDArray[Any]], found: Sequence[npt.NDArray[Any]]
) -> Iterator[tuple[str, float]]:
    for name, ours, theirs in zip(names, expected, found, strict=True):
        assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
        yield name, float(np.abs(ours - theirs).max()) / max(1.0, float(np.abs(ours).max()))
