"""The registered classifier or segmenter: its folder, and its answers where dira_dist is not installed."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file

from dira_dist.config import RequestError
from dira_dist.formats import FormatError
from dira_dist.models import predictor
from dira_dist.models.fine_tuned_files import (
    NETWORK,
    PROGRAM,
    WEIGHTS,
    FineTunedFacts,
    is_fine_tuned,
    read_fine_tuned,
    write_fine_tuned_folder,
)
from dira_dist.models.model_files import damaged_files, read_facts
from dira_dist.models.supervised import Classifier, Segmenter, SupervisedNetwork
from dira_dist.models.unet import UNetConfig
from dira_dist.views import center_view, frame_view
from dira_dist.views.labelled import labelled_views

SIZE_PX = 32
CLASSES = ("effusion", "mass", "nodule")
Answer = npt.NDArray[Any]
KINDS = {"classify": ("binary", "multiclass", "multilabel"), "segment": ("binary", "multiclass", "regions")}
MODELS = [(task, kind) for task, kinds in KINDS.items() for kind in kinds]
SLOPES, INTERCEPTS, THRESHOLDS = [1.7, 0.6, 2.0], [0.1, -0.4, 0.0], [0.3, 0.6, 0.45]

ABSENT = ("dira_dist", "torchvision", "timm", "segmentation_models_pytorch", "monai")

USE = f"""
import sys
class Refuse:
    def find_spec(self, name, *rest):
        if name.split('.')[0] in {ABSENT}:
            raise ImportError(name + ' is not there')
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
import json, numpy, predictor
images = numpy.load('images.npz')
for folder, outputs in json.loads(sys.argv[2]).items():
    model = predictor._load_pyfunc(folder)
    for output in outputs:
        params = None if output is None else dict(output=output)
        for name in images.files:
            numpy.save(f'{{folder}}/{{output}}-{{name}}.npy', model.predict(images[name], params=params))
"""


def network_of(task: str, kind: str, in_channels: int) -> SupervisedNetwork:
    torch.manual_seed(3)
    config = UNetConfig(encoder="resnet18", in_channels=in_channels, decoder_channels=(8, 8, 8, 8, 8))
    outputs = 1 if kind == "binary" else len(CLASSES)
    network: SupervisedNetwork
    network = Classifier(config, outputs) if task == "classify" else Segmenter(config, outputs)
    with torch.no_grad():  # logits that differ from image to image and from pixel to pixel
        for name, weight in network.named_parameters():
            if name in ("head.weight", "segmentation_head.0.weight"):
                weight.mul_(20)
    return network.eval()


def facts_of(task: Any, kind: str, in_channels: int) -> FineTunedFacts:
    count = 1 if kind == "binary" else len(CLASSES)
    classify = task == "classify"
    slopes = [SLOPES[0]] * count if kind == "multiclass" else SLOPES[:count]
    intercepts = [0.0] * count if kind == "multiclass" else INTERCEPTS[:count]
    return FineTunedFacts(
        name=f"{task}-{kind}",
        task=task,
        kind=kind,
        classes=CLASSES[:count],
        encoder="resnet18",
        in_channels=in_channels,
        image_size=SIZE_PX,
        fit="crop" if classify else "fit",
        calibration={"slopes": slopes, "intercepts": intercepts} if classify else {},
        thresholds=tuple(THRESHOLDS[:count]) if classify else (),
        label=("finding",) if classify else ("mask",),
        quality={"val/auroc": 0.7123},
        settings={"optimizer.lr": 2e-4},
        data={"digest": "abcdef", "samples": 400},
        origin={"run": "r1"},
    )


@pytest.fixture(scope="module")
def images() -> dict[str, Answer]:
    """Of every type that a model takes, taller and wider than its frame and smaller."""
    draw = np.random.default_rng(0)
    small = draw.integers(0, 256, (3, 1, 5, 7), dtype=np.uint8).repeat(8, 2).repeat(8, 3)  # 40 x 56, in blocks
    return {
        "grey": small,
        "sixteen": small.astype(np.uint16) * 257,
        "float": small / np.float32(255),
        "colour": draw.integers(0, 256, (2, 3, 48, 20), dtype=np.uint8),
        "many": np.tile(small, (12, 1, 1, 1)),  # more than at once
        "little": small[:, :, 3:20, 5:17].copy(),
    }


@pytest.fixture(scope="module")
def home(images: Mapping[str, Answer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models lie, with the answers of a process that has torch and numpy alone."""
    home = tmp_path_factory.mktemp("models")
    asked = {}
    for task, kind in MODELS:
        write_fine_tuned_folder(
            home / f"{task}-{kind}",
            network_of(task, kind, 1),  # type: ignore[arg-type]
            facts_of(task, kind, 1),
            job="kind: finetune\n",
            report={"report.md": b"# Report\n\n## Figures\nAUROC 0.71\n", "report.json": b"{}"},
            pictures={"test/roc": np.zeros((8, 8, 3), np.uint8)},
        )
        asked[f"{task}-{kind}"] = (None, *predictor.OUTPUTS[task])
    code = home / "code"
    code.mkdir()
    for module in (predictor, center_view, frame_view):
        shutil.copy(str(module.__file__), code)
    np.savez(home / "images.npz", **images)
    command = [sys.executable, "-c", USE, str(code), json.dumps(asked)]
    ran = subprocess.run(command, cwd=home, timeout=300, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return home


def answer(home: Path, task: str, kind: str, output: str | None, name: str) -> Answer:
    found: Answer = np.load(home / f"{task}-{kind}" / f"{output}-{name}.npy")
    return found


def logits_of(task: str, kind: str, images: Answer) -> torch.Tensor:
    """By the network itself, behind the views of training and validation."""
    pixels = torch.from_numpy(images)
    sizes = torch.tensor([images.shape[2:]] * len(images))
    numbers = torch.arange(len(images))
    views = labelled_views(
        pixels,
        sizes,
        numbers,
        numbers,
        seed=0,
        image_size=SIZE_PX,
        in_channels=1,
        fit="crop" if task == "classify" else "fit",
    )
    with torch.no_grad():
        found: torch.Tensor = network_of(task, kind, 1)(views.images)
    return found


@pytest.mark.parametrize("kind", KINDS["classify"])
def test_a_classifier_gives_the_probabilities_and_decisions_of_its_report(
    home: Path, images: Mapping[str, Answer], kind: str
) -> None:
    facts = facts_of("classify", kind, 1)
    for name in ("grey", "colour", "little"):
        logits = logits_of("classify", kind, images[name])
        found = answer(home, "classify", kind, "logits", name)
        assert (found.dtype, found.shape) == (np.float32, tuple(logits.shape))
        assert np.abs(found - logits.numpy()).max() < 1e-4
        scaled = found * np.array(facts.calibration["slopes"]) + np.array(facts.calibration["intercepts"])
        raised = np.exp(scaled)
        wanted = raised / raised.sum(1, keepdims=True) if kind == "multiclass" else raised / (1 + raised)
        chances = answer(home, "classify", kind, "probabilities", name)
        assert chances.dtype == np.float32
        assert np.abs(chances - wanted).max() < 1e-5
        decisions = answer(home, "classify", kind, "decisions", name)
        assert decisions.dtype == np.bool_
        assert (decisions == (wanted > np.array(facts.thresholds))).all()
        assert (answer(home, "classify", kind, None, name) == chances).all(), "what is given unless asked otherwise"


@pytest.mark.parametrize("kind", KINDS["segment"])
def test_a_segmenter_answers_in_the_pixels_of_the_image(home: Path, images: Mapping[str, Answer], kind: str) -> None:
    for name in ("grey", "colour", "little"):
        size = images[name].shape[2:]
        logits = logits_of("segment", kind, images[name])
        framed = logits.softmax(1) if kind == "multiclass" else logits.sigmoid()
        wanted = frame_view.unfit(framed, size).numpy()
        chances = answer(home, "segment", kind, "probabilities", name)
        assert (chances.dtype, chances.shape) == (np.float32, (len(logits), logits.shape[1], *size))
        assert np.abs(chances - wanted).max() < 1e-4
        masks = answer(home, "segment", kind, "masks", name)
        assert (answer(home, "segment", kind, None, name) == masks).all()
        if kind == "multiclass":
            assert (masks.dtype, masks.shape) == (np.uint8, (len(logits), *size))
            assert (masks == chances.argmax(1)).all()
        else:
            assert (masks.dtype, masks.shape) == (np.bool_, chances.shape)
            assert (masks == (chances > 0.5)).all()
        assert len(np.unique(masks)) > 1, "the test would see nothing otherwise"


@pytest.mark.parametrize(("task", "kind"), MODELS)
def test_every_type_of_the_same_image_has_the_same_answer(home: Path, task: str, kind: str) -> None:
    grey = answer(home, task, kind, "probabilities", "grey")
    for name in ("sixteen", "float"):
        assert np.abs(answer(home, task, kind, "probabilities", name) - grey).max() < 1e-4
    many = answer(home, task, kind, "probabilities", "many")
    assert len(many) == 36 > predictor.IMAGES_AT_ONCE
    assert np.abs(many - np.tile(grey, (12, *(1,) * (grey.ndim - 1)))).max() < 1e-4


def test_an_answer_that_there_is_not_is_refused_with_those_that_there_are(
    home: Path, images: Mapping[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "center_view", center_view)
    monkeypatch.setitem(sys.modules, "frame_view", frame_view)
    for task, others in (("classify", "probabilities, decisions, logits"), ("segment", "masks, probabilities")):
        model = predictor._load_pyfunc(str(home / f"{task}-binary"))
        with pytest.raises(ValueError, match=f"output 'maps': allowed are {others}"):
            model.predict(images["grey"], params={"output": "maps"})
        with pytest.raises(ValueError, match="int64"):
            model.predict(images["grey"].astype(np.int64))
        with pytest.raises(ValueError, match="allowed is"):
            model.predict(images["grey"][:, 0])


@pytest.mark.parametrize(("task", "kind"), MODELS)
def test_the_folder_is_whole_and_says_what_a_stranger_must_know(home: Path, task: str, kind: str) -> None:
    folder = home / f"{task}-{kind}"
    for file in folder.glob("*.npy"):
        file.unlink()
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    own = {NETWORK, PROGRAM, WEIGHTS, "model.json", "README.md", "SHA256SUMS", "job.yaml"}
    assert files == own | {"report/report.md", "report/report.json", "pictures/test-roc.png"}
    assert damaged_files(folder) == []
    sums = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sums.keys() == files - {"SHA256SUMS"}
    assert sums[NETWORK] == hashlib.sha256((folder / NETWORK).read_bytes()).hexdigest()
    told = read_fine_tuned(folder)
    facts = facts_of(task, kind, 1)
    assert (told.task, told.kind, told.classes, told.label) == (task, kind, list(facts.classes), list(facts.label))
    assert (told.thresholds, told.calibration) == (list(facts.thresholds), dict(facts.calibration))
    state = load_file(folder / NETWORK)
    network = network_of(task, kind, 1)
    network.load_state_dict(state, strict=True)
    card = (folder / "README.md").read_text()
    for words in (
        *facts.classes,
        "abcdef",
        "AUROC 0.71",
        "## Intended use",
        "## Limits",
        "no medical device",
        "patent",
    ):
        assert words in card


@pytest.mark.parametrize("task", ["classify", "segment"])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_the_lines_of_the_card_load_the_weights(
    task: str, in_channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(task, "multiclass", in_channels)
    folder = write_fine_tuned_folder(
        tmp_path / "model",
        network,  # type: ignore[arg-type]
        facts_of(task, "multiclass", in_channels),
        job="",
        report={},
        pictures={},
    )
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec((folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0], names)
    x = torch.rand(2, in_channels, 64, 64)
    with torch.no_grad():
        assert (names["model"](x) - network(x)).abs().max() <= 1e-5


def test_the_two_kinds_of_model_are_told_apart(home: Path, tmp_path: Path) -> None:
    folder, file = home / "segment-binary", tmp_path / "model.json"
    assert is_fine_tuned(folder)
    with pytest.raises(RequestError, match="holds a classifier or segmenter, and what is wanted is a pretrained model"):
        read_facts(folder)
    for reads in (read_facts, read_fine_tuned, is_fine_tuned):
        with pytest.raises(RequestError, match=r"holds no model\.json"):
            reads(tmp_path)
    file.write_text(json.dumps({"version": 2, "encoder": "resnet18", "settings": {"task": "no key of the file"}}))
    assert not is_fine_tuned(tmp_path)
    with pytest.raises(RequestError, match="holds no classifier or segmenter"):
        read_fine_tuned(tmp_path)
    whole = (folder / "model.json").read_bytes()
    file.write_bytes(whole.replace(b'"in_channels"', b'"channels"'))
    with pytest.raises(FormatError, match="damaged"):
        read_fine_tuned(tmp_path)
    file.write_bytes(whole.replace(b'"version": 3', b'"version": 9'))
    with pytest.raises(FormatError, match="format version 9"):
        read_fine_tuned(tmp_path)
