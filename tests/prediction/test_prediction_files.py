"""A model over ordinary files."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dira_dist.prediction.options import PredictOptions
from dira_dist.prediction.predict import predict
from tests.prediction.conftest import MakeModel

HERE = {"processes": 1}


def table(dest: Path, name: str = "predictions") -> list[dict[str, str]]:
    with (dest / f"{name}.csv").open() as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("task", ["classify", "findings", "binary", "segment", "regions"])
def test_try(task, make_model: MakeModel, labelled: Path, tmp_path: Path) -> None:
    import time
    model = make_model(task)
    start=time.time()
    done = predict(str(model), str(labelled / "images"), str(tmp_path / "out"), PredictOptions(**HERE, overlays=task in("binary","segment","regions")))
    print("\n".join(done.lines()), time.time()-start)
    print(table(tmp_path / "out")[:2])
    print(sorted(p.name for p in (tmp_path/"out").rglob("*"))[:5])
