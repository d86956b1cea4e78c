"""Features of files, by the encoder of any model."""

from pathlib import Path

import numpy as np
import torch
from pyarrow import parquet

from dira_dist.data.shards import read_index
from dira_dist.data.validation import ValidationStream
from dira_dist.evaluation.features import extract_features
from dira_dist.models.model_files import ModelFacts, write_model_folder
from dira_dist.models.unet import UNet, UNetConfig
from dira_dist.prediction.model import load_encoder
from dira_dist.prediction.options import EmbedOptions
from dira_dist.prediction.predict import embed
from tests.prediction.conftest import SIDE_PX, MakeModel


def features(dest: Path) -> tuple[list[str], np.ndarray]:
    held = parquet.read_table(dest / "features.parquet")
    return held.column(0).to_pylist(), np.stack(held["features"].to_numpy())


def test_features_of_a_set_and_of_its_files_are_those_of_the_evaluation(
    make_model: MakeModel, labelled: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = UNet(UNetConfig(encoder="resnet18", in_channels=1, decoder_channels=(8, 8, 8, 8, 8))).eval()
    job = "kind: pretrain\ndata: {train: nowhere, image_size: 32}\nmodel: {encoder: resnet18}\n"
    facts = ModelFacts("start", "resnet18", 1, SIDE_PX, trained=("discriminative",), fed={"image_size": 40})
    folder = write_model_folder(tmp_path / "start", network.state_dict(), facts, job=job)
    shards = labelled / "shards" / "test"
    options = EmbedOptions(processes=1, names="keys")
    embed(str(folder), str(shards), str(tmp_path / "set"), options)
    embed(str(folder), str(labelled / "images"), str(tmp_path / "files"), options)
    batches = ((batch.images, batch.sizes_px) for batch in ValidationStream(str(shards), batch_size=1))
    wanted = extract_features(network.encoder, batches, image_size=SIDE_PX, in_channels=1, device="cpu").numpy()
    keys, found = features(tmp_path / "set")
    assert found.dtype == np.float32 and len(found) == read_index(str(shards)).samples
    assert np.abs(found - wanted).max() < 1e-4
    names, of_files = features(tmp_path / "files")
    assert len(names) == 72
    places = [names.index(key) for key in keys]
    assert np.abs(of_files[places] - found).max() < 1e-4
    scaled = of_files / np.linalg.norm(of_files, axis=1, keepdims=True)
    nearest = (scaled @ scaled[places[0]]).argsort()[::-1]
    assert nearest[0] == places[0]


def test_the_encoder_of_a_fine_tuned_model_serves_too(make_model: MakeModel, labelled: Path, tmp_path: Path) -> None:
    for task in ("classify", "binary"):
        done = embed(
            str(make_model(task)), str(labelled / "shards" / "test"), str(tmp_path / task), EmbedOptions(processes=1)
        )
        _, found = features(tmp_path / task)
        assert done.rows == len(found) and found.shape[1] == 512
        assert load_encoder(make_model(task), "").fit == ("crop" if task == "classify" else "fit")
