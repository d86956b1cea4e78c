"""``kind: finetune``: a classifier or a segmenter from few labels."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from dira_dist.config import MAY_CHANGE, RequestError, without_credentials
from dira_dist.data.samples import read_samples
from dira_dist.data.shards import ShardSetIndex
from dira_dist.jobs.base import Settled, TrainingJob, absolute_address
from dira_dist.models.backbone import BackboneSection
from dira_dist.models.choice import read_model
from dira_dist.models.weights import WEIGHT_FILES
from dira_dist.training.finetune.labels import settled
from dira_dist.training.finetune.recipe import Classify, FinetuneRecipe, Parts
from dira_dist.training.task import Start

if TYPE_CHECKING:
    from dira_dist.registry.starting import FoundStart


class FinetuneJob(FinetuneRecipe, TrainingJob):
    """One fine-tuning, or with ``data.folds`` one of each fold: what ``kind: finetune`` holds."""

    max_concurrent: Annotated[int, Field(ge=1)] | None = Field(
        None, description="folds side by side; left out, as many as the cluster holds", json_schema_extra=MAY_CHANGE
    )

    @model_validator(mode="after")
    def _concurrent_are_folds(self) -> Self:
        if self.max_concurrent is not None and not self.is_ensemble:
            raise ValueError(
                f"found max_concurrent {self.max_concurrent}; it says how many folds run side by side, and there is "
                "one fit: leave it out, or give data.folds without data.fold"
            )
        return self

    def settle(self, sets: Mapping[str, ShardSetIndex], recorded: Mapping[str, Any] | None) -> Settled:
        """The network and which parts of it are taken over, by the start; the classes, by the sets."""
        start = self._find_start(recorded)
        model = self._model(start)
        changes: dict[str, Any] = {"model": model}
        if start is not None:
            values = {"parts": self._parts(start), "pinned": without_credentials(start.address)}
            changes["start"] = self.start.model_copy(update=values)
        if isinstance(self.task, Classify):
            # the fits of folds do not see the test set, so that it has no say in what they all answer
            seen = [name for name in sets if name != "test" or self.data.folds is None]
            labels = {name: read_samples(self._address(name), sets[name]).labels for name in seen}
            changes["task"] = settled(self.task, labels)
        job = self.model_copy(update=changes)
        recorded_form = {name: section.model_dump(mode="json") for name, section in changes.items()}
        return Settled(job, recorded_form, _as_start(job, start), tuple(_differences(self, start)))

    def _find_start(self, recorded: Mapping[str, Any] | None) -> "FoundStart | None":
        """What the run of this name began with, though the alias that it named may have moved."""
        from dira_dist.registry.starting import find_start  # mlflow takes seconds to import

        if self.start.is_random:
            return None
        pinned = (recorded or {}).get("start", {}).get("pinned")
        try:
            return find_start(pinned or self.start.address, self.tracking)
        except RequestError as error:
            raise RequestError(f"start.from: {error}") from error

    def _model(self, start: "FoundStart | None") -> BackboneSection:
        """The job's own section goes before the start's, and must be the same network."""
        known = start.model if start is not None and start.model is not None else {}
        if self.model is None:
            return read_model(known)
        own, other = self.model, read_model(known) if known else self.model
        if own.label != other.label:
            key = "model.encoder" if own.dims == other.dims == 2 else "model"
            raise RequestError(
                f"{key}: {own.label}, and the start is a {other.label}: leave the section out to take "
                "the start's network, or start from another model"
            )
        return own

    def _parts(self, start: "FoundStart") -> Parts:
        asked = self.start.parts or ("encoder_decoder" if self.segments and start.has_decoder else "encoder")
        if asked == "encoder_decoder" and not self.segments:
            raise RequestError(
                "start.parts: encoder_decoder, and a classifier has no decoder: set it to encoder, or leave it out"
            )
        if asked == "encoder_decoder" and not start.has_decoder:
            raise RequestError(
                f"start.parts: encoder_decoder, and {start.address} has no trained decoder: set it to encoder, or "
                "start from a stage that restores (dir, dira, re, rea)"
            )
        return asked

    def _address(self, shard_set: str) -> str:
        return str(getattr(self.data, shard_set))

    def _resolved(self) -> dict[str, Any]:
        changes = super()._resolved()
        if self.data.test is not None:
            changes["data"] = changes["data"].model_copy(update={"test": absolute_address(self.data.test)})
        if not self.start.is_random and not self.start.address.startswith(("models:", "runs:")):
            changes["start"] = self.start.model_copy(update={"from": absolute_address(self.start.address)})
        return changes

    def shard_sets(self) -> Iterator[tuple[str, str, str]]:
        yield from super().shard_sets()
        if self.data.test is not None:
            yield "test", self.data.test, "test"

    def weight_files(self) -> Iterator[tuple[str, str]]:
        if not self.start.is_random and Path(self.start.address).suffix in WEIGHT_FILES:
            yield "start.from", self.start.address

    def check_workers(self) -> None:
        super().check_workers()
        if self.execution.sync_batchnorm and self.resources.gpus_per_worker == 0:
            raise RequestError("execution.sync_batchnorm: only GPUs can; set it to false, or resources.gpus_per_worker")


def _as_start(job: FinetuneJob, start: "FoundStart | None") -> Start | None:
    """The weights, tried on the network, and what became of each key."""
    if start is None:
        return None
    from dira_dist.training.finetune.networks import build_networks

    report = build_networks(job, start.weights).start
    assert report is not None
    return Start(start.weights, (f"start: {without_credentials(start.address)}", *report.lines()))


def _differences(job: FinetuneJob, start: "FoundStart | None") -> Iterator[str]:
    """Where the job feeds the network something else than its start was trained on."""
    if start is None:
        return
    if start.image_size is not None and start.image_size != job.data.image_size:
        yield (
            f"data.image_size is {job.data.image_size}, and the start was trained on views of {start.image_size} px: "
            f"set it to that unless the larger or smaller view is meant"
        )
    known = (start.model or {}).get("in_channels")
    if known is not None and job.model is not None and job.model.in_channels != known:
        yield (
            f"model.in_channels is {job.model.in_channels}, and the start takes {known}: its first kernels are summed "
            "or repeated; leave model.in_channels out to feed what it was trained on"
        )
