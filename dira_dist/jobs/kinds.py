"""The kinds of job that train something, by name: a further kind is a file of this folder and its import here."""

from collections.abc import Iterator

from dira_dist.jobs import finetune, pretrain  # noqa: F401  (each kind is found once its file is imported)
from dira_dist.jobs.base import TrainingJob


def kinds() -> dict[str, type[TrainingJob]]:
    """Every kind that is known by now, those that a plug-in or a test defines included."""
    return {str(job.model_fields["kind"].default): job for job in _concrete(TrainingJob)}


def _concrete(job: type[TrainingJob]) -> Iterator[type[TrainingJob]]:
    for each in job.__subclasses__():
        if not each.model_fields["kind"].is_required():
            yield each
        yield from _concrete(each)
