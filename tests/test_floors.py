"""What the README says of the floors up to training/: what they need, and what they do without."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dira_dist

ROOT = Path(__file__).parents[1]
FLOORS = ("training", "evaluation", "runs", "search", "objectives", "models", "views", "data")
WITHOUT = ("ray", "mlflow", "boto3", "botocore", "moto")

IMPORT_ALL = """
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {without}:
            raise ImportError(f"{{name}} is absent")

sys.meta_path.insert(0, Absent())
import dira_dist
count = 0
for floor in {floors}:
    package = importlib.import_module(f"dira_dist.{{floor}}")
    for module in pkgutil.walk_packages(package.__path__, f"dira_dist.{{floor}}."):
        importlib.import_module(module.name)
        count += 1
print(count)
"""


def test_the_floors_up_to_training_import_without_ray_mlflow_and_boto3() -> None:
    script = IMPORT_ALL.format(without=WITHOUT, floors=FLOORS)
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 80


OF_S3 = {"boto3", "botocore", "urllib3", "mypy_boto3_s3"}
"""What the store imports where somebody opens an S3 one."""


def _imported(file: Path) -> Iterator[str]:
    """Within functions, too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name.partition(".")[0] for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).partition(".")[0]


def test_the_readme_names_what_they_need() -> None:
    package = Path(dira_dist.__file__).parent
    files = [*package.glob("*.py"), *(file for floor in FLOORS for file in (package / floor).rglob("*.py"))]
    files = [file for file in files if file.name not in ("cli.py", "__main__.py")]
    found = {name for file in files for name in _imported(file)} - sys.stdlib_module_names - {"dira_dist"} - OF_S3
    named = {"yaml": "PyYAML", "PIL": "Pillow", "sklearn": "scikit-learn"}
    (paragraph,) = [
        text for text in (ROOT / "README.md").read_text().split("\n\n") if text.startswith("Everything up to and with")
    ]
    missing = {named.get(name, name) for name in found} - set(re.findall(r"[\w-]+", paragraph))
    assert not missing
    assert not found & set(WITHOUT)


def test_the_package_has_the_job_files_of_the_project() -> None:
    own = {file.name: file.read_bytes() for file in (ROOT / "dira_dist" / "quickstart" / "jobs").glob("*.yaml")}
    assert own == {file.name: file.read_bytes() for file in (ROOT / "jobs").glob("*.yaml")} != {}
