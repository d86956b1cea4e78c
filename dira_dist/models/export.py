"""From the pretrained U-Net to weights that torchvision, timm and segmentation_models_pytorch load strictly.

A conversion is never believed: the target model is built, the weights are loaded into it, and its features of a random
image must be those of the pretrained encoder before anything is written.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from dira_dist.config import RequestError, per_axis
from dira_dist.files import write_with_checksum
from dira_dist.models.backbone import BackboneSection, Size
from dira_dist.models.precision import average_over_positions

Format = Literal["torchvision", "timm", "smp", "torch", "monai"]
StateDict = dict[str, Tensor]

TIMM_PREFIX = "tu-"
TRIAL_SIZES_PX = (64, 224)
RELATIVE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Exported:
    """Weights under another library's names, and how that library loads them.

    Attributes:
        state: name to tensor; loads strictly into the model that ``construction`` makes.
        construction: Python lines that make the model, without weights.
        features: Python expression for the features ``(B, C)`` of images ``x``.
        left_out: the encoder's own names of weights that its features do not depend on and the target has no place for.
        axes: the spatial ones of its images.
        code: files that the lines of construction import, which import torch alone; they go beside the weights.
    """

    state: StateDict
    construction: tuple[str, ...]
    features: str
    left_out: tuple[str, ...] = ()
    axes: str = "H, W"
    code: tuple[Path, ...] = ()

    def loading_lines(self, path: str | Path) -> str:
        """Python that loads a file of these weights strictly and computes features of images ``x``."""
        safetensors = str(path).endswith(".safetensors")
        imports = "from safetensors.torch import load_file" if safetensors else "import torch"
        read = f"load_file({str(path)!r})" if safetensors else f"torch.load({str(path)!r}, weights_only=True)"
        lines = [*self.construction, f"model.load_state_dict({read})", "model.eval()"]
        needed = [imports] if imports not in lines else []
        inputs = f"images x: (B, C, {self.axes}), float in [0, 1]"
        return "\n".join([*needed, *lines, f"# {inputs}; features: {self.features}"])


@dataclass
class _Candidate:
    """A model of the target library that might take the encoder's weights."""

    imports: str
    constructor: str
    model: nn.Module
    features: str = "model(x)"
    prefix: str = ""
    edits: list[str] = field(default_factory=list)

    def replace(self, path: str, module: nn.Module) -> None:
        """Put a module of torch.nn in the place of another, in the model and in the lines that make it."""
        self.model.set_submodule(path, module)
        place = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path.split("."))
        self.edits.append(f"model{place} = torch.nn.{module!r}")

    def construction(self) -> tuple[str, ...]:
        imports = [self.imports] if not self.edits or self.imports == "import torch" else ["import torch", self.imports]
        return (*imports, f"model = {self.constructor}", *self.edits)

    @torch.no_grad()
    def compute(self, x: Tensor) -> Tensor:
        """What the expression ``features`` says."""
        if self.features == "model(x)":
            result: Tensor = self.model(x)
            return result
        if self.features.startswith("model(x)[-1]"):
            return average_over_positions(self.model(x)[-1])
        part = self.features.removeprefix("model.").partition("(x)")[0]
        return average_over_positions(self.model.get_submodule(part)(x))


def export(unet_state: Mapping[str, Tensor], encoder: str, library: Format, in_channels: int) -> Exported:
    """The pretrained weights under the names of another library.

    ``smp`` gives the whole U-Net where ``unet_state`` has a decoder, the others the encoder. The number of input
    channels is converted exactly: a grey image repeated to three channels and the grey image itself have the same
    features.

    Args:
        unet_state: of the U-Net (``encoder.*``, ``decoder.*``, ``segmentation_head.*``) or of the encoder alone
            (``encoder.*``).
        encoder: its name in segmentation_models_pytorch.
        library: whose names.
        in_channels: of the exported model.

    Raises:
        RequestError: if the library has no such model; says which formats there are for this encoder.
    """
    if library in ("torch", "monai"):
        raise RequestError(
            f"format {library!r}: of 3D networks alone; possible for encoder {encoder!r}: smp, and torchvision or timm "
            "where they have it"
        )
    state = with_channels(unet_state, encoder, in_channels)
    if library == "smp":
        return _smp_export(state, encoder, in_channels)
    own = {name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")}
    with torch.random.fork_rng(devices=[]):
        exported = _first_that_fits(own, encoder, library, in_channels)
        if exported is not None:
            return exported
        others: tuple[Format, ...] = ("torchvision", "timm")
        possible = [
            other for other in others if other != library and _first_that_fits(own, encoder, other, in_channels)
        ]
    raise RequestError(
        f"format {library!r}: {library} has no model with the weights of encoder {encoder!r}; "
        f"possible for this encoder: {', '.join([*possible, 'smp'])}"
    )


def with_channels(unet_state: Mapping[str, Tensor], encoder: str, in_channels: int) -> StateDict:
    """The same network for 1 or 3 input channels, equal on grey images.

    Convolution is linear in its input: three equal channels times w_1, w_2, w_3 are one channel times their sum, and
    one channel times w is three equal channels times w/3 each.

    Args:
        unet_state: names begin with ``encoder.``; others are kept.
        encoder: its name in segmentation_models_pytorch.
        in_channels: wanted.

    Raises:
        RequestError: if the encoder's first layer is no plain convolution of its input, or other channels than grey and
            colour are to be converted.
    """
    state = {name: tensor.detach().cpu() for name, tensor in unet_state.items()}
    for name in _input_layers(encoder):
        weight = state[f"encoder.{name}"]
        if weight.ndim < 4:
            raise RequestError(f"encoder {encoder!r}: its input layer {name} is no convolution; keep its channels")
        if (weight.shape[1], in_channels) == (3, 1):
            weight = weight.double().sum(dim=1, keepdim=True).to(weight.dtype)
        elif (weight.shape[1], in_channels) == (1, 3):
            weight = (weight / 3).expand(-1, 3, *weight.shape[2:])
        elif weight.shape[1] != in_channels:
            own = weight.shape[1]
            raise RequestError(
                f"input channels: found {in_channels}, of a network that takes {own}; allowed: "
                f"{'1 (grey) and 3 (colour)' if own in (1, 3) else f'{own}, its own, for only grey and colour convert'}"
            )
        state[f"encoder.{name}"] = weight
    return {name: tensor.contiguous().clone() for name, tensor in state.items()}


def save_weights(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> str:
    """Write weights whole or not at all, with their sha256 in a file beside them (``sha256sum -c`` reads it).

    Args:
        state: name to tensor.
        path: ``.safetensors``, or ``.pt`` / ``.pth`` for ``torch.load(..., weights_only=True)``.
        metadata: words kept in a safetensors header.

    Returns:
        The sha256 in hexadecimal.

    Raises:
        RequestError: for another ending.
    """
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise RequestError(f"{path}: files of weights end in .safetensors, .pt or .pth")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if path.suffix == ".safetensors":
        return write_with_checksum(path, lambda file: _write_safetensors(tensors, file, metadata or {}))
    return write_with_checksum(path, lambda file: torch.save(tensors, file))


def _write_safetensors(tensors: StateDict, path: Path, metadata: Mapping[str, str]) -> None:
    """Equal weights and words are equal bytes.

    The library keeps the words of a header in a hash table whose order is another in every process, so they are added
    here, to the header that it writes without them. (Format: eight bytes of length, little-endian; JSON, filled with
    spaces to a multiple of eight bytes; the values.)
    """
    plain = save(tensors)
    header_end = 8 + int.from_bytes(plain[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    written = json.dumps(header | json.loads(plain[8:header_end]), separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    with path.open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        file.write(memoryview(plain)[header_end:])


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Hexadecimal sha256 of names, types, shapes and values: equal weights have it in whatever file they lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class FeatureProgram(nn.Module):
    """Views to features, as one graph: what :func:`save_feature_program` stores."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, views: Tensor) -> Tensor:
        """``(B, in_channels, *image_size)`` in [0, 1] to ``(B, C)``."""
        return average_over_positions(self.encoder(views)[-1])


def feature_network(
    unet_state: Mapping[str, Tensor], network: BackboneSection, in_channels: int | None = None
) -> nn.Module:
    """The pretrained encoder from views to features, in evaluation mode.

    Args:
        unet_state: names begin with ``encoder.``; others are left out.
        network: its section.
        in_channels: 1 or 3, where a 2D network has one of them and the other is wanted; its own if none.

    Raises:
        RequestError: see :func:`with_channels`.
    """
    if in_channels not in (None, network.in_channels):
        if network.dims != 2:
            raise RequestError(
                f"input channels: found {in_channels}; allowed: {network.in_channels}, the network's own"
            )
        unet_state = with_channels(unet_state, network.label, in_channels)
        network = network.model_copy(update={"in_channels": in_channels})
    return FeatureProgram(_encoder_with(unet_state, network)).eval()


def save_feature_program(
    unet_state: Mapping[str, Tensor], network: BackboneSection, image_size: Size, path: Path
) -> int:
    """Store the encoder with its code as a ``.pt2`` file, which ``torch.export.load`` runs with torch alone.

    Any number of images of ``image_size`` px goes in.

    Returns:
        Channels of the features.

    Raises:
        RequestError: if the encoder's code cannot be captured as a graph.
    """
    program = feature_network(unet_state, network)
    example = torch.zeros(2, network.in_channels, *per_axis(image_size, network.dims))
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad():
            graph = torch.export.export(program, (example,), dynamic_shapes={"views": {0: batch}})
    except Exception as error:
        raise RequestError(
            f"encoder {network.label!r} cannot be stored as a program: {str(error).splitlines()[0]}"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(graph, path)
    with torch.no_grad():
        return int(program(example).shape[1])


def _encoder_with(unet_state: Mapping[str, Tensor], network: BackboneSection) -> nn.Module:
    plain = network.model_copy(update={"init": None, "gradient_checkpointing": False})
    with torch.random.fork_rng(devices=[]):
        encoder = plain.build().encoder
    own = {name.removeprefix("encoder."): value for name, value in unet_state.items() if name.startswith("encoder.")}
    encoder.load_state_dict(own)
    return encoder.eval()


def _input_layers(encoder: str) -> list[str]:
    """Names of the weights whose shape depends on the number of input channels."""
    import segmentation_models_pytorch as smp

    with torch.random.fork_rng(devices=[]):
        grey, colour = (
            smp.encoders.get_encoder(encoder, in_channels=channels, weights=None).state_dict() for channels in (1, 3)
        )
    return [name for name, weight in colour.items() if weight.shape != grey[name].shape]


def _smp_export(state: StateDict, encoder: str, in_channels: int) -> Exported:
    decoder_channels = tuple(_decoder_channels(state))
    if not decoder_channels:
        own = {name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")}
        call = f"smp.encoders.get_encoder({encoder!r}, in_channels={in_channels}, weights=None)"
        lines = ("import segmentation_models_pytorch as smp", f"model = {call}")
        return Exported(own, lines, "model(x)[-1].mean((-2, -1))")
    classes = state["segmentation_head.0.weight"].shape[0]  # of other images than grey and colour all are restored
    call = (
        f"smp.Unet({encoder!r}, encoder_weights=None, decoder_channels={decoder_channels}, "
        f"in_channels={in_channels}, classes={classes}, activation='sigmoid')"
    )
    lines = ("import segmentation_models_pytorch as smp", f"model = {call}")
    return Exported(state, lines, "model.encoder(x)[-1].mean((-2, -1))")


def _decoder_channels(state: Mapping[str, Tensor]) -> Iterator[int]:
    block = 0
    while (weight := state.get(f"decoder.blocks.{block}.conv2.0.weight")) is not None:
        yield weight.shape[0]
        block += 1


def _first_that_fits(own: StateDict, encoder: str, library: Format, in_channels: int) -> Exported | None:
    """The first model of the library that takes the weights and gives the same features."""
    import segmentation_models_pytorch as smp

    reference = smp.encoders.get_encoder(encoder, in_channels=in_channels, weights=None)
    reference.load_state_dict(own)
    candidates = _torchvision_candidates if library == "torchvision" else _timm_candidates
    for candidate in candidates(encoder, in_channels):
        wanted = candidate.model.state_dict()
        state = {name.removeprefix(candidate.prefix): tensor for name, tensor in own.items()}
        if any(name not in state or state[name].shape != tensor.shape for name, tensor in wanted.items()):
            continue
        candidate.model.load_state_dict({name: state[name] for name in wanted})
        if _same_features(reference.eval(), candidate, in_channels):
            left_out = tuple(name for name in own if name.removeprefix(candidate.prefix) not in wanted)
            taken = {name: state[name] for name in wanted}
            return Exported(taken, candidate.construction(), candidate.features, left_out)
    return None


@torch.no_grad()
def _same_features(reference: nn.Module, candidate: _Candidate, in_channels: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    candidate.model.eval()
    for size_px in TRIAL_SIZES_PX:
        x = torch.rand(2, in_channels, size_px, size_px, generator=generator)
        try:
            expected, found = average_over_positions(reference(x)[-1]), candidate.compute(x)
        except (RuntimeError, AssertionError, ValueError):  # some encoders take one image size only: try the next
            continue
        if expected.shape != found.shape:
            return False
        return float((expected - found).abs().max()) <= RELATIVE_TOLERANCE * float(expected.abs().max())
    return False


def _library_name(encoder: str) -> str:
    return encoder.removeprefix(TIMM_PREFIX).removeprefix("timm-").replace("-", "_")


def _torchvision_candidates(encoder: str, in_channels: int) -> Iterator[_Candidate]:
    import torchvision

    name = _library_name(encoder)
    if name not in torchvision.models.list_models(torchvision.models):
        return
    prefix = "model." if encoder.startswith(TIMM_PREFIX) else ""
    for features in ("model(x)", "model.features(x).mean((-2, -1))"):
        model = torchvision.models.get_model(name, weights=None)
        candidate = _Candidate(
            "import torchvision", f"torchvision.models.{name}(weights=None)", model, features, prefix
        )
        for head in ("fc", "classifier"):
            if hasattr(model, head):
                candidate.replace(head, nn.Identity())
        if name.startswith("vgg"):
            candidate.replace("avgpool", nn.AdaptiveAvgPool2d(1))
        if in_channels != 3:
            _replace_input(candidate, in_channels)
        if features == "model(x)" or hasattr(model, "features"):
            yield candidate


def _replace_input(candidate: _Candidate, in_channels: int) -> None:
    path, conv = next((path, part) for path, part in candidate.model.named_modules() if isinstance(part, nn.Conv2d))
    fresh = nn.Conv2d(
        in_channels,
        conv.out_channels,
        (conv.kernel_size[0], conv.kernel_size[1]),
        (conv.stride[0], conv.stride[1]),
        conv.padding if isinstance(conv.padding, str) else (conv.padding[0], conv.padding[1]),
        bias=conv.bias is not None,
    )
    candidate.replace(path, fresh)


def _timm_candidates(encoder: str, in_channels: int) -> Iterator[_Candidate]:
    import timm

    name = encoder.removeprefix(TIMM_PREFIX) if encoder.startswith(TIMM_PREFIX) else _library_name(encoder)
    if not timm.is_model(name):
        return
    prefix = "model." if encoder.startswith(TIMM_PREFIX) else ""
    forms: tuple[tuple[dict[str, Any], str], ...] = (
        ({"num_classes": 0}, "model(x)"),
        ({"features_only": True}, "model(x)[-1].mean((-2, -1))"),
    )
    for options, features in forms:
        written = ", ".join(f"{key}={value}" for key, value in options.items())
        call = f"timm.create_model({name!r}, in_chans={in_channels}, {written})"
        try:
            model = timm.create_model(name, in_chans=in_channels, **options)
        except (RuntimeError, TypeError, AttributeError, AssertionError):  # not every model has every form
            continue
        yield _Candidate("import timm", call, model, features, prefix)


def export_classifier(
    encoder_state: Mapping[str, Tensor], head: nn.Linear, encoder: str, in_channels: int
) -> tuple[Format, Exported] | None:
    """A classifier under the names of torchvision, else timm, its last layer among them; none where neither has it.

    Args:
        encoder_state: ``encoder.*``.
        head: from the pooled features to K logits.
        encoder: its name in segmentation_models_pytorch.
        in_channels: of the network.
    """
    import segmentation_models_pytorch as smp

    own = {name.removeprefix("encoder."): tensor for name, tensor in encoder_state.items()}
    reference = smp.encoders.get_encoder(encoder, in_channels=in_channels, weights=None)
    reference.load_state_dict(own)
    makers = (("torchvision", _torchvision_candidates), ("timm", _timm_candidates))
    with torch.random.fork_rng(devices=[]):
        for library, candidates in makers:
            for candidate in candidates(encoder, in_channels):
                exported = _with_head(candidate, own, head)
                if exported is not None and _same_logits(reference.eval(), head, candidate, in_channels):
                    return library, exported  # type: ignore[return-value]
    return None


def _with_head(candidate: _Candidate, own: StateDict, head: nn.Linear) -> Exported | None:
    """The candidate with a last layer in its place, and the weights loaded; none where they do not fit."""
    if candidate.features != "model(x)":
        return None
    path = _make_room(candidate, head)
    state = {name.removeprefix(candidate.prefix): tensor for name, tensor in own.items()}
    state |= {f"{path}.weight": head.weight.detach(), f"{path}.bias": head.bias.detach()}
    wanted = candidate.model.state_dict()
    if any(name not in state or state[name].shape != tensor.shape for name, tensor in wanted.items()):
        return None
    taken = {name: state[name].cpu().contiguous() for name in wanted}
    candidate.model.load_state_dict(taken)
    return Exported(taken, candidate.construction(), "model(x)  # logits")


def _make_room(candidate: _Candidate, head: nn.Linear) -> str:
    """Puts an untrained layer of the right size where the model has its classifier; its path."""
    model: Any = candidate.model
    if candidate.imports == "import torchvision":
        path = next(name for name in ("fc", "classifier") if hasattr(model, name))
        candidate.edits = [edit for edit in candidate.edits if not edit.startswith(f"model.{path} ")]
        candidate.replace(path, nn.Linear(head.in_features, head.out_features))
        return path
    model.reset_classifier(head.out_features)
    candidate.edits.append(f"model.reset_classifier({head.out_features})")
    return str(next(name for name, module in model.named_modules() if module is model.get_classifier()))


@torch.no_grad()
def _same_logits(reference: nn.Module, head: nn.Linear, candidate: _Candidate, in_channels: int) -> bool:
    x = torch.rand(2, in_channels, 64, 64, generator=torch.Generator().manual_seed(0))
    candidate.model.eval()
    try:
        expected, found = head(average_over_positions(reference(x)[-1])), candidate.model(x)
    except (RuntimeError, AssertionError, ValueError):  # some encoders take one image size only
        return False
    return expected.shape == found.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
