"""Networks that answer as one: the plain mean of what each says, as a logit."""

import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from dira_dist.config import RequestError
from dira_dist.models.ensemble import Ensemble, mean_logits
from dira_dist.models.fine_tuned_files import FORMAT, NETWORK, FineTunedFile, load_classifier
from dira_dist.models.supervised import Classifier, Segmenter
from dira_dist.models.unet import UNetConfig

LOGITS = st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=1, max_size=5)


@settings(deadline=None, max_examples=50)
@given(LOGITS)
def test_the_mean_of_probabilities_written_as_a_sum(logits: list[list[float]]) -> None:
    given_ = torch.tensor(logits, dtype=torch.float64)[:, None]
    single = mean_logits(given_, exclusive=False).sigmoid()[0]
    shared = mean_logits(given_, exclusive=True).softmax(1)[0]
    for column in range(3):
        plain = sum(1 / (1 + math.exp(-row[column])) for row in logits) / len(logits)
        assert single[column].item() == pytest.approx(plain, rel=1e-9)
        likeliest = [max(row) for row in logits]
        sums = [sum(math.exp(each - top) for each in row) for row, top in zip(logits, likeliest, strict=True)]
        parts = [math.exp(row[column] - top) / total for row, top, total in zip(logits, likeliest, sums, strict=True)]
        assert shared[column].item() == pytest.approx(sum(parts) / len(parts), rel=1e-9)


def test_what_all_are_sure_of_stays_finite() -> None:
    for exclusive in (False, True):
        found = mean_logits(torch.tensor([[[200.0, -200.0]], [[300.0, -90.0]]]), exclusive=exclusive)
        assert found.isfinite().all() and found[0, 0] > found[0, 1]


@pytest.mark.parametrize("kind", ["classify", "segment"])
@pytest.mark.parametrize("exclusive", [True, False])
@torch.no_grad()
def test_an_ensemble_is_the_mean_of_its_members_calibrated(
    kind: Literal["classify", "segment"], exclusive: bool
) -> None:
    torch.manual_seed(0)
    config = UNetConfig(encoder="tu-test_resnet", in_channels=1, decoder_channels=(8, 8, 8, 8, 8))
    members = [Classifier(config, 3) if kind == "classify" else Segmenter(config, 3) for _ in range(2)]
    ensemble = Ensemble(members, 3, exclusive=exclusive).eval()
    ensemble.slopes.copy_(torch.tensor([[0.5, 1.0, 2.0], [3.0, 1.0, 0.1]]))
    ensemble.intercepts.copy_(torch.tensor([[0.0, 1.0, -1.0], [0.2, 0.0, 0.3]]))
    images = torch.rand(2, 1, 32, 32)

    def chances(member: int) -> Tensor:
        logits = members[member](images)
        for column in range(3):
            logits[:, column] = (
                logits[:, column] * ensemble.slopes[member, column] + ensemble.intercepts[member, column]
            )
        return logits.softmax(1) if exclusive else logits.sigmoid()

    found = ensemble(images)
    answered = found.softmax(1) if exclusive else found.sigmoid()
    assert found.shape[:2] == (2, 3)
    torch.testing.assert_close(answered, (chances(0) + chances(1)) / 2, atol=1e-6, rtol=1e-5)


def test_a_heat_map_is_of_one_network(tmp_path: Path) -> None:
    facts = FineTunedFile(
        task="classify",
        kind="binary",
        classes=["a"],
        encoder="tu-test_resnet",
        in_channels=1,
        image_size=32,
        fit="crop",
        weights_names="timm",
        construction=[],
        features="",
    )
    (tmp_path / "model.json").write_bytes(FORMAT.dump(facts))
    save_file({"members.0.head.bias": torch.zeros(1)}, tmp_path / NETWORK)
    with pytest.raises(RequestError, match="the ensemble of several folds' classifiers, and a heat map is of one"):
        load_classifier(tmp_path)
