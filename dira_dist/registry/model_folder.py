"""The folder of any model, wherever it is: registered, in a run's checkpoints, or on this disk."""

import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from dira_dist.config import RequestError, dump_yaml
from dira_dist.files import sha256_of
from dira_dist.models.fine_tuned_files import is_fine_tuned
from dira_dist.models.model_files import CHECKSUMS, FACTS, damaged_files
from dira_dist.models.weights import WEIGHT_FILES
from dira_dist.registry.checkpoint import download_checkpoint
from dira_dist.registry.download import Progress
from dira_dist.registry.fetch import check_sum, fetch
from dira_dist.registry.publish import chosen_checkpoint
from dira_dist.runs.folder import MANIFEST
from dira_dist.tracking.config import TrackingConfig
from dira_dist.training.task import About, recipe_of
from dira_dist.training.trained_on import TrainedOn


def fetch_model_folder(
    model: str,
    work: Path,
    config: TrackingConfig,
    wanted: Callable[[bool], Collection[str]],
    progress: Progress | None = None,
    *,
    as_registered: bool = False,
    sha256: str | None = None,
) -> Path:
    """A folder with what is wanted of a model; that of a checkpoint is made first, as its run would make it.

    Args:
        model: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``runs:/RUN_ID``; the folder or prefix of a checkpoint,
            or of a run, whose newest checkpoint is meant; or a model's own folder.
        work: folder to write to; a call that was broken off goes on there.
        config: where the registry is.
        wanted: names of the files, told whether the model was fine-tuned. A version that has not all of them is older.
        progress: called with the bytes that are here and the bytes in all.
        as_registered: whether of a run's checkpoints the chosen one is meant, with the run's report on it, and is to
            remember its sets, which are read for that; else the one that is named, or the newest.
        sha256: what :func:`content_sum` gives of the model that is meant, where it is known from elsewhere.

    Raises:
        RequestError: there is no such model, it is damaged, or its registry or storage does not answer.
    """
    if model.startswith(("models:", "runs:")):
        folder = fetch(model, work, config, progress, only=(FACTS,), sha256=sha256)
        return fetch(model, work, config, progress, only=(FACTS, *wanted(is_fine_tuned(folder))), sha256=sha256)
    if (Path(model) / FACTS).is_file():
        if damaged := damaged_files(Path(model)):
            raise RequestError(f"{model}: {damaged[0]} is damaged or missing; fetch the model again")
        check_sum(Path(model) / CHECKSUMS, sha256)
        return Path(model)
    if Path(model).suffix in WEIGHT_FILES:
        raise RequestError(
            f"{model}: is a file of weights, which does not say what they are fed and what they answer: give the model "
            "that it was pulled from (models:/NAME@ALIAS or runs:/ID), or its folder"
        )
    found, report = download_checkpoint(model, work, progress, sha256), dict[str, bytes]()
    if as_registered:
        found, report = chosen_checkpoint(found, model, work / "chosen", progress)
    checkpoint, recipe = found.checkpoint, recipe_of(found.checkpoint.job)
    shutil.rmtree(work / "model", ignore_errors=True)  # of a call that was broken off while it wrote
    about = About(
        checkpoint.job["name"],
        job=dump_yaml(checkpoint.job),
        report=report,
        trained_on=recipe.trained_on() if as_registered else TrainedOn(),
    )
    return recipe.build_task().package(checkpoint.tensors, checkpoint.position, work / "model", about).folder


def content_sum(folder: Path, work: Path) -> str:
    """The one sum that names all of a model that was brought here: of its list of sums, or of a checkpoint's manifest.

    Args:
        folder: what :func:`fetch_model_folder` gave.
        work: what it was given.
    """
    manifest = work / MANIFEST
    return sha256_of(manifest if manifest.is_file() else folder / CHECKSUMS)
