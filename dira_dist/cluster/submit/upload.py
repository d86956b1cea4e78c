"""What travels to the cluster with a job: its file, what that names here, and what its user includes; nothing else.

A working tree holds what no cluster should see: credentials, keys, salts, images of patients.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dira_dist.config import RequestError, Section, flatten
from dira_dist.data.shards import INDEX_NAME
from dira_dist.runs.folder import MANIFEST, RUN

_INPUT_MARKS = (INDEX_NAME, RUN, MANIFEST)  # a shard set, a run, a checkpoint
_NOT_READ = {"checkpoint", "tracking"}
_NEVER_MEANT = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache")


@dataclass(frozen=True)
class Upload:
    """Files and folders of a working directory.

    Attributes:
        folder: the working directory.
        paths: what travels, relative to it.
    """

    folder: Path
    paths: tuple[Path, ...]

    def described(self) -> str:
        """One line: what travels, and that the rest does not."""
        names = ", ".join(path.as_posix() for path in self.paths)
        return f"uploading {names}; nothing else of {self.folder} (--include PATH adds a file or folder)"

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """A folder that holds just that, while the block runs."""
        with tempfile.TemporaryDirectory(prefix="dira-submit-") as scratch:
            for path in self.paths:
                _stage(self.folder / path, Path(scratch) / path)
            yield Path(scratch)


def upload_of(file: Path, job: Section, folder: Path, include: Sequence[Path | str] = ()) -> Upload:
    """What a job needs of a working directory.

    Args:
        file: the job file, in the folder.
        job: validated.
        folder: the working directory.
        include: files and folders in it that travel as well.

    Raises:
        RequestError: a file outside the folder, or an included one that is not there.
    """
    wanted = [_inside(folder, file), *_named(folder, job), *(_included(folder, Path(path)) for path in include)]
    return Upload(folder, tuple(dict.fromkeys(path.relative_to(folder) for path in wanted)))


def _inside(folder: Path, path: Path) -> Path:
    if not path.is_relative_to(folder):
        raise RequestError(f"{path}: not inside {folder}, which the cluster's paths start at; submit from its folder")
    return path


def _included(folder: Path, path: Path) -> Path:
    there = _inside(folder, Path(os.path.normpath(folder / path)))
    if not there.exists():
        raise RequestError(f"--include {path}: there is no such file or folder in {folder}")
    return there


def _named(folder: Path, job: Section) -> Iterator[Path]:
    """Files, shard sets, runs and checkpoints that the job reads and that lie in the folder."""
    for key, value in flatten(job.model_dump(mode="json")).items():
        if not isinstance(value, str) or not value or _NOT_READ & set(key.split(".")):
            continue
        path = Path(os.path.normpath(folder / value))
        if path != folder and path.is_relative_to(folder) and (path.is_file() or _is_input(path)):
            yield path


def _is_input(path: Path) -> bool:
    return any((path / mark).is_file() for mark in _INPUT_MARKS)


def _stage(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=_NEVER_MEANT, copy_function=_link, dirs_exist_ok=True)
    else:
        _link(source, target)


def _link(source: str | Path, target: str | Path) -> None:
    """Another name for the file; a copy where the file system gives none."""
    try:
        os.link(os.path.realpath(source), target)
    except FileExistsError:
        return
    except OSError:
        shutil.copy2(source, target)
