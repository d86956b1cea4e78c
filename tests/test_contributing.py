"""The walked examples of CONTRIBUTING.md, done; and what has to be said twice in the project's files is said alike."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

import dira_dist

ROOT = Path(__file__).resolve().parents[1]

USE_OF_THE_METHOD = """
import torch
from pydantic import TypeAdapter
from dira_dist.models.unet import UNetConfig
from dira_dist.objectives import GlobalBatch, MethodConfig
from dira_dist.objectives.method import MethodInputs

view = torch.rand(4, 1, 8, 8)
encode = lambda images: images.flatten(1)
losses = []
for strength in (1.0, 3.0):
    section = TypeAdapter(MethodConfig).validate_python({"name": "pull", "strength": strength})
    method = section.build(torch.nn.Identity(), 64)
    inputs = MethodInputs(encode, pooled=encode(view), second_view=view.flip(3))
    assert section.needs == {"pooled", "second_view"}
    losses.append(method(inputs, GlobalBatch((4,))))
assert losses[0] > 0 and torch.isclose(losses[1], 3 * losses[0])
print("done")
"""

USE_OF_THE_ENCODER = """
import torch
from dira_dist.models import resnet18_narrow
from dira_dist.models.unet import UNet, UNetConfig, check_image_size

config = UNetConfig(encoder="tu-resnet18_narrow")
check_image_size(config, 64)
pooled, restoration = UNet(config)(torch.rand(2, 1, 64, 64))
assert pooled.shape == (2, 256) and restoration.shape == (2, 1, 64, 64)
print("done")
"""


def _example(heading: str) -> str:
    """The Python block below a heading of CONTRIBUTING.md."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return section.partition("```python\n")[2].partition("```")[0]


def _try(file: str, source: str, use: str, folder: Path) -> None:
    """Puts a file into a copy of the package, and uses it from there."""
    package = Path(dira_dist.__file__).parent
    shutil.copytree(package, folder / "dira_dist", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "dira_dist" / file).write_text(source)
    environment = os.environ | {"PYTHONPATH": str(folder)}
    ran = subprocess.run([sys.executable, "-c", use], cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.stdout.strip() == "done", ran.stderr


def test_the_example_of_a_method_is_one(tmp_path: Path) -> None:
    _try("objectives/pull.py", _example("Add a discriminative method"), USE_OF_THE_METHOD, tmp_path)


def test_the_example_of_an_encoder_is_one(tmp_path: Path) -> None:
    _try("models/resnet18_narrow.py", _example("Add an encoder"), USE_OF_THE_ENCODER, tmp_path)


def test_commits_run_what_make_lint_runs() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\nlint: ")[2].partition("\n\n")[0]
    commands = [line.partition("$(BIN)/")[2].split() for line in recipe.splitlines() if "$(BIN)/" in line]
    tools = [" ".join(word for word in command if word != "." and "/" not in word) for command in commands]
    hooks = [hook for repo in _read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert [hook["entry"].removeprefix(".venv/bin/") for hook in hooks] == tools


def test_version_and_title_are_the_same_everywhere() -> None:
    citation = _read("CITATION.cff")
    assert citation["version"] == dira_dist.__version__
    assert f"\n## {dira_dist.__version__} - {citation['date-released']}\n" in (ROOT / "CHANGELOG.md").read_text()
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert citation["preferred-citation"]["title"] in readme


def _read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())
