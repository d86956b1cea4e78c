"""Every command of docs/kubernetes.md is one that there is; a back-up by the page's words is restored by them."""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from dira_dist.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
COMMANDS = re.findall(r"^ *\$ (.+)$", PAGE, re.MULTILINE)
OVERLAYS = sorted(set(re.findall(r"kubectl (?:apply|delete) -k (k8s/[\w/-]+\w)(?![\w/.])", PAGE)))
POSTGRES = shutil.which("initdb") and shutil.which("postgres") and shutil.which("pg_dump")
USER = {"user": "nobody"} if os.geteuid() == 0 else {}  # PostgreSQL refuses to run as root


def words_of(command: str) -> list[list[str]]:
    """The words of each program of a pipeline, redirections left out."""
    words = shlex.split(re.sub(r"\$\(.*?\)(?=\s|$)", "VALUE", command))
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "|":
            parts.append([])
        elif word not in {"<", ">", "&"}:
            parts[-1].append(word)
    return parts


def test_the_page_has_commands_and_nothing_but_known_programs_in_them() -> None:
    programs = {part[0] for command in COMMANDS for part in words_of(command)}
    assert programs == {"docker", "kubectl", "dira-dist", "export"}
    assert len(COMMANDS) > 15


@pytest.mark.parametrize(
    "command", [each for each in COMMANDS if "dira-dist " in each and "kubectl -n dira get" not in each]
)
def test_our_own_commands_are_read(command: str) -> None:
    for program, *words in words_of(command):
        if program == "dira-dist":
            group: Any = typer.main.get_command(app)
            name = program
            while hasattr(group, "commands"):
                name, words = words[0], words[1:]
                group = group.commands[name]
            group.make_context(name, words)


@pytest.mark.parametrize("folder", OVERLAYS)
def test_folders_that_are_applied_render(folder: str, kustomize: Callable[[str], list[Any]]) -> None:
    if folder != "k8s/secrets":  # from files that are not in git
        assert kustomize(folder.removeprefix("k8s/"))


def test_folders_stand_in_the_tables_of_jobs() -> None:
    for cell in re.findall(r"^\| `(?:gpu|spot|kueue|smoke)` \|(.+)\|$", PAGE, re.MULTILINE):
        for name in re.findall(r"`([\w/]+)`", cell):
            assert (ROOT / "k8s" / "overlays" / name / "kustomization.yaml").exists()


@pytest.fixture
def database() -> Iterator[dict[str, str]]:
    """A PostgreSQL of this test's own, spoken to as the pod's shell does; its environment."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if USER:
        shutil.chown(folder, **USER)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    subprocess.run(
        ["initdb", "-D", folder / "data", "-U", "mlflow", "-A", "trust", "--no-sync"], check=True, **quiet, **USER
    )
    options = ["-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off"]
    server = subprocess.Popen(["postgres", "-D", folder / "data", *options], **quiet, **USER)
    environment = os.environ | {"PGHOST": str(folder), "POSTGRES_USER": "mlflow", "POSTGRES_DB": "records"}
    while subprocess.run(["pg_isready"], env=environment, **quiet).returncode:
        assert server.poll() is None, "PostgreSQL ended"
    subprocess.run(["createdb", "--username", "mlflow", "records"], check=True, env=environment)
    yield environment
    server.terminate()
    server.wait(timeout=60)
    shutil.rmtree(folder)


def shell_of(command: str) -> str:
    """What the pod's shell is given."""
    (found,) = re.findall(r"-- sh -c '(.+?)'", command)
    return str(found)


@pytest.mark.skipif(not POSTGRES, reason="no PostgreSQL on this machine")
def test_what_the_page_backs_up_it_restores(database: dict[str, str], tmp_path: Path) -> None:
    def sql(text: str) -> str:
        command = [
            "psql",
            "--username",
            "mlflow",
            "--dbname",
            "records",
            "--tuples-only",
            "--no-align",
            "--command",
            text,
        ]
        return subprocess.run(command, check=True, env=database, capture_output=True, text=True).stdout.strip()

    back_up, restore = (next(each for each in COMMANDS if program in each) for program in ("pg_dump", "pg_restore"))
    sql("CREATE TABLE runs (name text PRIMARY KEY, loss float); INSERT INTO runs VALUES ('a', 0.5), ('b', 0.25)")
    with (tmp_path / "mlflow.dump").open("wb") as file:
        subprocess.run(["sh", "-c", shell_of(back_up)], check=True, env=database, stdout=file)
    sql("DELETE FROM runs; INSERT INTO runs VALUES ('c', 1)")
    for _ in range(2):  # over what is there, and over an empty database
        with (tmp_path / "mlflow.dump").open("rb") as file:
            subprocess.run(["sh", "-c", shell_of(restore)], check=True, env=database, stdin=file)
        assert sql("SELECT name, loss FROM runs ORDER BY name") == "a|0.5\nb|0.25"
        sql("DROP TABLE runs")
