"""Words in real MR volumes: cubes of a word look alike, and it is told of a stranger's cube."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from dira_dist.data.ingest import ShardOptions, shard
from dira_dist.models.unet3d import UNet3dConfig
from dira_dist.prediction.model import Features, Model
from dira_dist.vocabulary.options import WordsOptions
from dira_dist.vocabulary.words import make_words
from tests.vocabulary.test_vocabulary_words import samples


def cubes_of(address: Path) -> tuple[np.ndarray, np.ndarray]:
    """The cubes of the words' own size, each with mean 0 and length 1, and their words."""
    own = [(cube.ravel(), metadata["labels"]["word"]) for key, metadata, cube in samples(address) if key[-2:] == "00"]
    flat = np.stack([cube for cube, _ in own]).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True), np.array([word for _, word in own])


def test_words_of_the_hippocampus(shared_data: Path, tmp_path: Path) -> None:
    volumes = ShardOptions(content="volumes", intensity="percentiles:0.5,99.5", processes=1, salt_file=_salt(tmp_path))
    shard(shared_data / "hippocampus-mr" / "images", tmp_path / "volumes", volumes)
    torch.manual_seed(0)
    network = Features(UNet3dConfig(width=4, levels=3).build().encoder).eval()
    model = Model("drawn", hashlib.sha256(b"drawn").hexdigest(), network, (32, 48, 32), 1, "crop", {}, 3, False)
    options = WordsOptions(
        words=8, nearest=10, cube=(16, 16, 16), sizes=1, apart=0.15, content_filter="above:mean,0.3",
        split={"train": 0.8, "val": 0.2},
    )  # fmt: skip
    make_words(str(tmp_path / "volumes"), str(tmp_path / "words"), model, options)
    cubes, words = cubes_of(tmp_path / "words" / "train")
    others, their_words = cubes_of(tmp_path / "words" / "val")
    alike, same = cubes @ cubes.T, words[:, None] == words[None]
    np.fill_diagonal(alike, np.nan)
    assert np.nanmean(alike[same]) > np.nanmean(alike[~same]) + 0.15
    for word in sorted(set(words)):
        own = words == word
        assert np.nanmean(alike[np.ix_(own, own)]) > np.nanmean(alike[np.ix_(own, ~own)]), word
    found = words[(others @ cubes.T).argmax(axis=1)]
    assert (found == their_words).mean() > 3 / 8, "three times chance, by the nearest cube of another patient"


def _salt(folder: Path) -> str:
    file = folder / "salt"
    file.write_text("the same keys on every machine")
    return str(file)
