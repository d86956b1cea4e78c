"""Samples of three sequences go to a 2D model that takes sequences, and to none that takes colour."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from torch import nn

from dira_dist.config import RequestError
from dira_dist.data.ingest import ShardOptions, shard
from dira_dist.prediction.model import Model
from dira_dist.prediction.options import EmbedOptions
from dira_dist.prediction.sets import find_samples


def model(rgb: bool) -> Model:
    return Model("m", "d" * 64, nn.Identity(), 16, 3, "crop", {}, 2, rgb)


def test_a_set_of_three_sequences(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "salt").write_text("0123456789abcdef")
    for number, name in enumerate(("t1", "t2", "flair")):
        voxels = np.random.default_rng(number).integers(0, 1000, (16, 16, 4)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1, 2, 1])), tmp_path / "images" / f"p_{name}.nii.gz")
    options = ShardOptions(
        salt_file=str(tmp_path / "salt"), processes=1, content="slices", channels=("t1", "t2", "flair"), image_size=None
    )
    address = shard(tmp_path / "images", tmp_path / "set", options).parts["all"].address
    assert len(find_samples(address, model(rgb=False), EmbedOptions()).entries) == 4
    with pytest.raises(RequestError, match="three sequences, and the model takes red"):
        find_samples(address, model(rgb=True), EmbedOptions())
