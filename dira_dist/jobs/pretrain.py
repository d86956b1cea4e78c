"""``kind: pretrain``: a DiRA pretraining."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import Field

from dira_dist.config import Document, KeyPath, RequestError
from dira_dist.data.shards import ShardSetIndex
from dira_dist.jobs.base import TrainingJob, absolute_address
from dira_dist.jobs.presets import Preset, preset_lines, with_preset
from dira_dist.objectives import METHODS, MethodSection, default_method
from dira_dist.training.optimizer import OptimizerConfig
from dira_dist.training.pretrain.recipe import DEFAULT_STAGES, PretrainRecipe


class PretrainJob(PretrainRecipe, TrainingJob):
    """One DiRA pretraining: what ``kind: pretrain`` holds."""

    preset: Preset | None = Field(
        None,
        description="a published recipe, which fills in what the file leaves out; see docs/restorative.md",
    )

    @classmethod
    def completed(cls, document: Document) -> Document:
        """The optimiser with the method's own, and each stage with the job's batch, optimiser and loss weights.

        An optimiser takes over what was meant for it alone: settings of another one, above all its rate, would do harm.
        """
        given = json.loads(json.dumps(document.values))
        values = {"stages": json.loads(json.dumps(DEFAULT_STAGES))} | with_preset(given)
        method: type[MethodSection] | None = type(default_method())
        if isinstance(values.get("method"), dict):
            method = METHODS.get(str(values["method"].setdefault("name", default_method().name)))
            common = values.setdefault("optimizer", {})
            if method is not None and isinstance(common, dict):
                values["optimizer"] = _taken_over(common, method.own_optimizer) | common
        inherited: set[KeyPath] = set()
        for position, stage in enumerate(values["stages"] if isinstance(values["stages"], list) else []):
            if isinstance(stage, dict):
                taken = _complete_stage(stage, values, method.own_optimizer if method else {})
                inherited.update(("stages", position, *path) for path in taken)
        return replace(document, values=values, inherited=frozenset(inherited))

    def _resolved(self) -> dict[str, Any]:
        changes = super()._resolved()
        if self.probe is not None:
            probe = {"train": absolute_address(self.probe.train), "val": absolute_address(self.probe.val)}
            changes["probe"] = self.probe.model_copy(update=probe)
        if self.model.init is not None:
            changes["model"] = self.model.model_copy(update={"init": absolute_address(self.model.init)})
        return changes

    def filled_in(self) -> list[str]:
        return [] if self.preset is None else preset_lines(self.preset, self.model_dump(mode="json"))

    def shard_sets(self) -> Iterator[tuple[str, str, str]]:
        yield from super().shard_sets()
        if self.probe is not None:
            yield "probe-train", self.probe.train, "probe"
            yield "probe-val", self.probe.val, "probe"

    def weight_files(self) -> Iterator[tuple[str, str]]:
        if self.model.init is not None:
            yield "model.init", self.model.init

    def warnings(self, train: ShardSetIndex) -> list[str]:
        from dira_dist.jobs.guards import warnings  # guards know of this kind of job
        from dira_dist.jobs.recipe_guards import recipe_warnings

        return [*warnings(self), *recipe_warnings(self, train)]

    def check_workers(self) -> None:
        super().check_workers()
        local_batch = min(stage.global_batch for stage in self.stages) // self.resources.max_workers
        smallest = self.method.min_local_batch if self.parts().discriminates else 1
        if local_batch < smallest:
            raise RequestError(
                f"data.global_batch: {self.resources.max_workers} workers get {local_batch} samples of the smallest "
                f"batch each, and {self.method.name} needs {smallest}; raise the batch or lower resources.workers"
            )
        if self.execution.sync_batchnorm and self.resources.gpus_per_worker == 0:
            raise RequestError("execution.sync_batchnorm: only GPUs can; set it to false, or resources.gpus_per_worker")


def _complete_stage(
    stage: dict[str, Any], values: dict[str, Any], method_optimizer: Mapping[str, Any]
) -> Iterator[KeyPath]:
    """Takes over what the stage leaves out; yields the key paths, inside the stage, of what it took."""
    data = values.get("data")
    if isinstance(data, dict) and "global_batch" in data and "global_batch" not in stage:
        stage["global_batch"] = data["global_batch"]
        yield ("global_batch",)
    nothing: Mapping[str, Any] = {}
    for section, method_own in (("optimizer", method_optimizer), ("loss_weights", nothing)):
        own, common = stage.setdefault(section, {}), values.get(section, {})
        if isinstance(own, dict) and isinstance(common, dict):
            of_its_name = _taken_over(own, method_own) if "name" in own else {}
            for key, value in (of_its_name | _taken_over(own, common)).items():
                own[key] = value
                yield (section, key)


def _taken_over(own: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    """What a section takes over: all that it leaves out, or nothing where it names another optimiser."""
    if "name" in own and own["name"] != common.get("name", OptimizerConfig().name):
        return {}
    return {key: value for key, value in common.items() if key not in own}
