"""What a quickstart is shown on: synthetic radiographs, or CT volumes; how its archive is made and sharded."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dira_dist.data.ingest import ShardOptions
from dira_dist.quickstart.phantom import PATTERNS, write_archive
from dira_dist.quickstart.phantom_volume import write_volumes

_JOBS = Path(__file__).parent / "jobs"


class Subject(Protocol):
    """An archive of phantoms, and the job that pretrains on it."""

    @property
    def what(self) -> str:
        """Such as ``480 synthetic radiographs``."""

    @property
    def shards(self) -> str:
        """Where its shard set lies in the bucket."""

    @property
    def job_file(self) -> Path:
        """Of the pretraining."""

    @property
    def compare_file(self) -> Path | None:
        """Of the comparison of starts that follows; none where there is no such."""

    @property
    def format(self) -> str:
        """Library whose names the weights are pulled under."""

    def write(self, archive: Path, seed: int) -> None:
        """Draws the archive: ``images``, ``masks`` and ``labels.csv`` of a user."""

    def options(self, archive: Path) -> ShardOptions:
        """How it is sharded."""

    def own(self) -> Iterator[str]:
        """The commands for images of one's own, a line each."""


@dataclass(frozen=True)
class Radiographs:
    """Flat images, split by patient in three."""

    count: int = 1200
    side_px: int = 48
    shards: str = "shards"
    job_file: Path = _JOBS / "pretrain-quickstart.yaml"
    compare_file: Path = _JOBS / "compare-quickstart.yaml"
    format: str = "timm"

    @property
    def what(self) -> str:
        return f"{self.count} synthetic radiographs"

    def write(self, archive: Path, seed: int) -> None:
        write_archive(archive, self.count, seed, size_px=self.side_px, patterns=PATTERNS)

    def options(self, archive: Path) -> ShardOptions:
        return ShardOptions(
            **_common(archive),
            image_size=None,
            label_columns=("finding", "findings", "pattern"),
            boxes=str(archive / "boxes.csv"),
            split={"train": 0.7, "val": 0.1, "test": 0.2},
        )

    def own(self) -> Iterator[str]:
        yield "dira-dist shard IMAGES/ SHARDS/ --split train=0.9,val=0.1    # folders, or s3://bucket/prefix"
        yield "dira-dist init SHARDS/    # writes pretrain.yaml for them and this machine"
        yield "dira-dist check pretrain.yaml && dira-dist run pretrain.yaml"


@dataclass(frozen=True)
class Volumes:
    """CT volumes, of which cubes are cut."""

    count: int = 40
    cube: tuple[int, int, int] = (32, 32, 24)
    cubes_per_volume: int = 8
    shards: str = "cubes"
    job_file: Path = _JOBS / "pretrain-quickstart-volumes.yaml"
    compare_file: None = None
    format: str = "torch"

    @property
    def what(self) -> str:
        return f"{self.count * self.cubes_per_volume} cubes of {self.count} synthetic CT volumes"

    def write(self, archive: Path, seed: int) -> None:
        write_volumes(archive, self.count, seed)

    def options(self, archive: Path) -> ShardOptions:
        return ShardOptions(
            **_common(archive),
            content="cubes",
            cube=self.cube,
            cubes_per_volume=self.cubes_per_volume,
            intensity="range:-1000,1000",
            split={"train": 0.75, "val": 0.25},
        )

    def own(self) -> Iterator[str]:
        yield "dira-dist shard VOLUMES/ SHARDS/ --content cubes --cube 96,96,48 --intensity range:-1000,1000 \\"
        yield "    --split train=0.9,val=0.1 --group-by patient    # CT; MR: --intensity percentiles:0.5,99.5"
        yield "dira-dist init SHARDS/    # writes pretrain.yaml for them and this machine"
        yield "dira-dist check pretrain.yaml && dira-dist run pretrain.yaml"


def _common(archive: Path) -> dict[str, Any]:
    """Phantoms are nobody's images: a salt that everybody knows makes the same shards on every machine."""
    salt = archive / "salt"
    salt.write_text(hashlib.sha256(b"phantoms").hexdigest())
    return {
        "labels": str(archive / "labels.csv"),
        "masks": str(archive / "masks"),
        "group_by": "patient",
        "salt_file": str(salt),
    }
