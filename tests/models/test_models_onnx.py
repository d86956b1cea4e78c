"""ONNX files: the same answers in onnxruntime as in torch and in MLflow's model, or no file at all."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from dira_dist.config import RequestError
from dira_dist.models import onnx_files
from dira_dist.models.export import feature_network
from dira_dist.models.onnx_files import OnnxInput, OnnxNetwork, OnnxSupervised, save_onnx
from dira_dist.models.supervised import Classifier, Segmenter
from dira_dist.models.unet import UNet, UNetConfig

SIZE_PX = 32
CONFIG = UNetConfig(encoder="resnet18", in_channels=1, decoder_channels=(8, 8, 8, 8, 8))
SLOPES, INTERCEPTS = [1.7, 0.6, 2.0], [0.1, -0.4, 0.0]


def run(path: Path, images: Any) -> list[Any]:
    return list(onnxruntime.InferenceSession(path).run(None, {"images": images}))


@torch.no_grad()
def test_a_classifier_says_its_calibrated_probabilities_of_8_bit_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Classifier(CONFIG, 3).eval()
    network.head.weight.mul_(3)
    fed, path = OnnxInput(1, SIZE_PX, "uint8"), tmp_path / "new" / "c.onnx"
    calibration = {"slopes": SLOPES, "intercepts": INTERCEPTS}
    digest = save_onnx(
        OnnxSupervised(network, fed.white, exclusive=False, calibration=calibration), fed, path, {"classes": ["a"]}
    )
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.with_name("c.onnx.sha256").read_text() == f"{digest}  c.onnx\n"
    onnx.checker.check_model(onnx.load(path), full_check=True)
    kept = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert json.loads(kept["dira_dist"]) == {"classes": ["a"]}
    images = np.random.default_rng(0).integers(0, 256, (7, 1, SIZE_PX, SIZE_PX), dtype=np.uint8)
    logits, probabilities = run(path, images)
    expected = network(torch.from_numpy(images) / 255.0)
    assert np.abs(logits - expected.numpy()).max() < 1e-4
    by_hand = 1 / (1 + np.exp(-(expected.numpy() * SLOPES + INTERCEPTS)))
    assert np.abs(probabilities - by_hand).max() < 1e-4 and by_hand.std() > 0.01
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        run(path, images / np.float32(255))


@torch.no_grad()
def test_a_segmenter_and_an_encoder_take_other_types(tmp_path: Path) -> None:
    torch.manual_seed(0)
    segmenter, unet = Segmenter(CONFIG, 3).eval(), UNet(CONFIG).eval()
    deep = OnnxInput(1, SIZE_PX, "uint16")
    save_onnx(OnnxSupervised(segmenter, deep.white, exclusive=True, calibration={}), deep, tmp_path / "s.onnx", {})
    images = np.random.default_rng(0).integers(0, 65536, (3, 1, SIZE_PX, SIZE_PX), dtype=np.uint16)
    views = torch.from_numpy(images.astype(np.float32) / 65535)
    logits, probabilities = run(tmp_path / "s.onnx", images)
    assert np.abs(logits - segmenter(views).numpy()).max() < 1e-4
    assert np.abs(probabilities - segmenter(views).softmax(1).numpy()).max() < 1e-4

    colour = OnnxInput(3, SIZE_PX, "float32")
    features = feature_network(unet.state_dict(), unet.config, 3)
    save_onnx(OnnxNetwork(features, colour.white), colour, tmp_path / "e.onnx", {})
    (found,) = run(tmp_path / "e.onnx", views.expand(-1, 3, -1, -1).numpy())
    assert np.abs(found - unet(views)[0].numpy()).max() < 1e-4
    content = b"".join(file.read_bytes() for file in tmp_path.glob("*.onnx"))
    assert str(Path(onnx_files.__file__).parent).encode() not in content, "where it was made is nobody's concern"


class Forgetful(nn.Module):
    """Another answer each time that it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, views: Tensor) -> Tensor:
        self.asked += 1
        return views.mean((2, 3)) + self.asked


def test_a_file_that_answers_otherwise_is_not_written(tmp_path: Path) -> None:
    fed = OnnxInput(1, SIZE_PX)
    with pytest.raises(RequestError, match=r"features of . images are off torch's by .*nothing was written"):
        save_onnx(OnnxNetwork(Forgetful(), fed.white), fed, tmp_path / "f.onnx", {})
    assert not list(tmp_path.iterdir())


def test_missing_packages_and_unknown_types_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="--input-type 'int8': allowed are uint8, uint16, float32"):
        onnx_files.known_image_type("int8")
    monkeypatch.setattr(onnx_files, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(RequestError, match=r"not installed: onnxscript; .*dira-dist\[onnx\]"):
        onnx_files.check_onnx_packages()
