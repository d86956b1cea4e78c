"""The methods held against lightly's, in the environment that `make lightly` builds beside this one.

From the same weights on the same views both must find the same losses, step after step. A training magnifies rounding,
up to a hundredfold at each step: float64 shows equality at the rates that a training has, float32 at such shares of
them that it is not drowned. `benchmarks/compare_lightly.py` goes on to longer trainings and what they are worth.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compare_lightly import CASES, LIGHTLY, start, train_here, train_there
from safetensors.torch import save_file
from torch import Tensor

from dira_dist.quickstart.phantom import make_phantom
from dira_dist.views import ViewsConfig, make_views

STEPS, BATCH, SIZE_PX = 20, 8, 32

pytestmark = pytest.mark.skipif(not LIGHTLY.is_file(), reason=f"no lightly at {LIGHTLY}: make lightly")


@pytest.fixture(scope="module")
def views() -> dict[str, Tensor]:
    """Two views of eight phantoms, others at each step: (steps, B, 1, H, W) uint8."""
    images = torch.from_numpy(np.stack([make_phantom(0, number, 48).image for number in range(BATCH)]))[:, None]
    sizes_px, ids = torch.full((BATCH, 2), images.shape[-1]), torch.arange(BATCH)
    made = [
        make_views(
            images,
            sizes_px,
            ids,
            torch.full((BATCH,), step),
            seed=0,
            image_size=SIZE_PX,
            in_channels=1,
            config=ViewsConfig(),
            with_target=False,
        )
        for step in range(STEPS)
    ]
    pairs = {"view_1": [each.view_1 for each in made], "view_2": [each.view_2 for each in made]}
    return {name: (torch.stack(each) * 255).round().to(torch.uint8) for name, each in pairs.items()}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("method", CASES)
def test_twenty_steps_in_float64_are_those_of_lightly(method: str, views: dict[str, Tensor], tmp_path: Path) -> None:
    _assert_same_training(method, torch.float64, 1.0, 1e-6, views, tmp_path / "views")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("method", "rate_share"), [("moco_v2", 0.01), ("barlow_twins", 1e-4), ("simsiam", 1.0)])
def test_twenty_steps_in_float32_are_those_of_lightly(
    method: str, rate_share: float, views: dict[str, Tensor], tmp_path: Path
) -> None:
    _assert_same_training(method, torch.float32, rate_share, 1e-4, views, tmp_path / "views")


def _assert_same_training(
    method: str, dtype: torch.dtype, rate_share: float, tolerance: float, views: dict[str, Tensor], file: Path
) -> None:
    case = replace(CASES[method], lr=CASES[method].lr * rate_share)
    networks = start(method, case, seed=0).to(dtype)
    save_file(views, file)
    expected = train_there(LIGHTLY, case, networks, file)
    found = train_here(case, networks, views)
    assert len(set(expected.losses)) == STEPS
    # SimSiam's loss lies between -1 and 1 and begins at 0: beside that no rounding is small.
    assert found.losses == pytest.approx(expected.losses, rel=tolerance, abs=tolerance / 100)
    for name, weight in expected.encoder.items():
        if weight.is_floating_point():
            torch.testing.assert_close(found.encoder[name], weight, rtol=tolerance, atol=tolerance, msg=name)
