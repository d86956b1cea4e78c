"""The catalogue of all figures that a job reports: what each is called, what it means, which way is better.

Whoever reports, shows, exports, compares or searches by a figure takes its name from here. A family stands for all
names that begin with its own: ``train/loss/`` for ``train/loss/restorative``.
"""

import re
from dataclasses import dataclass
from typing import Literal

Mode = Literal["max", "min"]
_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")

TRAIN, VAL, TEST, PROBE, SEARCH, SYSTEM = "train/", "val/", "test/", "probe/", "search/", "system/"


@dataclass(frozen=True)
class Metric:
    """A figure, or a family of them.

    Attributes:
        name: as MLflow and the job file know it.
        description: what it measures, in words.
        unit: of its values; empty for a plain number.
        better: whether more or less of it is better; none where neither is.
        prometheus: its name there, without the ``ray_`` that Ray puts before it; empty where it is not exported.
        counted: whether it counts what happened since the last report, so that its values add up.
        family: whether it stands for all figures whose names begin with its own.
        of_views: whether it is measured on views as the job's ``views`` section makes them.
    """

    name: str
    description: str
    unit: str = ""
    better: Mode | None = None
    prometheus: str = ""
    counted: bool = False
    family: bool = False
    of_views: bool = False

    def of(self, member: str) -> str:
        """The name of a member of the family; what MLflow takes in no name, such as of a class, becomes ``_``."""
        assert self.family
        return f"{self.name}{_NOT_IN_NAMES.sub('_', member)}"

    def covers(self, name: str) -> bool:
        """Whether a reported name is this figure, or a member of the family."""
        return name.startswith(self.name) if self.family else name == self.name

    def member(self, name: str) -> str:
        """Which member of the family it covers a name is: what :meth:`of` was given."""
        assert self.family
        return name.removeprefix(self.name)


# Of training, over all workers since the last report.
LOSS = Metric(f"{TRAIN}loss/", "loss, unweighted", better="min", prometheus="dira_loss", family=True)
WEIGHTED = Metric(f"{TRAIN}weighted/", "loss times its weight", better="min", family=True)
GRAD_NORM = Metric(f"{TRAIN}grad_norm", "norm of the gradient", prometheus="dira_gradient_norm")
LEARNING_RATE = Metric(f"{TRAIN}learning_rate", "learning rate", prometheus="dira_learning_rate")
IMAGES_PER_S = Metric(
    f"{TRAIN}images_per_s",
    "images trained on per second, over all workers",
    "images/s",
    better="max",
    prometheus="dira_images_per_second",
)
STEP_S = Metric(f"{TRAIN}step_s", "seconds per optimiser step", "s", better="min", prometheus="dira_step_seconds")
DATA_WAIT_SHARE = Metric(
    f"{TRAIN}data_wait_share",
    "share of the time the slowest worker waits for images",
    better="min",
    prometheus="dira_data_wait_share",
)
MEMORY_PEAK_BYTES = Metric(
    f"{TRAIN}memory_peak_bytes", "peak memory of the fullest worker", "bytes", prometheus="dira_memory_peak_bytes"
)
SKIPPED_STEPS = Metric(
    f"{TRAIN}skipped_steps",
    "steps skipped for a value that was not finite",
    better="min",
    prometheus="dira_skipped_steps",
    counted=True,
)
BAD_SAMPLES = Metric(
    f"{TRAIN}bad_samples",
    "samples replaced because they were unreadable",
    better="min",
    prometheus="dira_bad_samples",
    counted=True,
)
WITHDRAWN_SAMPLES = Metric(
    f"{TRAIN}withdrawn_samples",
    "samples replaced because they were withdrawn from the set since the run began",
    counted=True,
)
SAMPLE_FINGERPRINT = Metric(
    f"{TRAIN}sample_fingerprint", "sum over the samples' fingerprints; equal for equal samples", counted=True
)
WORKERS = Metric(f"{TRAIN}workers", "training processes")
STAGE = Metric(f"{TRAIN}stage", "stage in training, from 1", prometheus="dira_stage")
SAMPLES = Metric(
    f"{TRAIN}samples", "samples consumed since the start of the run", "samples", prometheus="dira_samples_consumed"
)
RESTARTS = Metric(f"{TRAIN}restarts", "times the workers started anew since the driver did", better="min")
STEPS_DONE_AGAIN = Metric(f"{TRAIN}steps_done_again", "steps repeated after such restarts", "steps", better="min")

# Of the networks of a checkpoint, on the validation set.
PSNR = Metric(f"{VAL}psnr", "peak signal-to-noise ratio of restored images", "dB", better="max", of_views=True)
SSIM = Metric(f"{VAL}ssim", "structural similarity of restored images", better="max", of_views=True)
RANKME = Metric(f"{VAL}rankme", "effective rank of the features (RankMe)", better="max")
FEATURE_STD = Metric(f"{VAL}feature_std", "spread of the features on the sphere; 1 is even", better="max")
UNIFORMITY = Metric(f"{VAL}uniformity", "uniformity of the features on the sphere", better="min")
COLLAPSED = Metric(f"{VAL}collapsed", "1 where the encoder hardly tells its inputs apart, else 0", better="min")
ALIGNMENT = Metric(f"{VAL}alignment", "distance between two views' features", better="min", of_views=True)

# Of a classifier or a segmenter, on the labelled sets of its job; those of single classes end with the class. On the
# test set, and in the report on val, the ends of their intervals come with them.
VAL_LOSS = Metric(f"{VAL}loss", "cross-entropy of what is known", better="min")
VAL_AUROC = Metric(f"{VAL}auroc", "area under the ROC curve", better="max", family=True)
VAL_AVERAGE_PRECISION = Metric(
    f"{VAL}average_precision", "area under the precision-recall curve", better="max", family=True
)
VAL_ACCURACY = Metric(f"{VAL}accuracy", "share of right answers", better="max")
VAL_BALANCED_ACCURACY = Metric(f"{VAL}balanced_accuracy", "mean over the classes of the share found", better="max")
VAL_DICE = Metric(f"{VAL}dice", "overlap of masks (Dice), mean over cases", better="max", family=True)
VAL_IOU = Metric(f"{VAL}iou", "overlap of masks (Jaccard), mean over cases", better="max", family=True)
VAL_REPORT = Metric(f"{VAL}report/", "figure of the report on val", family=True)
VAL_LOCALIZATION = Metric(f"{VAL}report/localization/", "a classifier's maps beside true lesions, on val", family=True)
TEST_FIGURE = Metric(TEST, "figure of the chosen networks on the test set", family=True)
TEST_LOCALIZATION = Metric(
    f"{TEST}localization/", "a classifier's maps beside true lesions, on the test set", family=True
)

# Of the frozen encoder, on the labelled sets of the job's probe.
# They come with other fractions of the labels, the ends of their interval and the spread over draws of the labels, too.
PROBE_AUROC = Metric(f"{PROBE}auroc", "AUROC of the linear probe", better="max", family=True)
PROBE_ACCURACY = Metric(f"{PROBE}accuracy", "accuracy of the linear probe", better="max", family=True)
KNN_AUROC = Metric(f"{PROBE}knn_auroc", "AUROC of the k-NN probe", better="max", family=True)
KNN_ACCURACY = Metric(f"{PROBE}knn_accuracy", "accuracy of the k-NN probe", better="max")
KNN_K = Metric(f"{PROBE}knn_k", "neighbours of the k-NN probe, chosen on what it learns from")
COMMON_GROUPS = Metric(
    f"{PROBE}common_groups", "share of the probe's val set whose patients its train set has, too", better="min"
)

# Of a search's parent run, by the number of trials that have ended.
TRIALS = Metric(SEARCH, "trials that ended in this way", "trials", family=True)
BEST = Metric(f"{SEARCH}best ", "figure of the best trial so far", family=True)

# Of a comparison's parent run, by the number of images that were learned from: a curve for each start.
COMPARED = Metric("compare/", "figure on the test set of a start's fits, mean over the seeds", family=True)

# Of a machine, named after it; Prometheus alone has the last three.
MACHINE = Metric(SYSTEM, "processor, memory, network and GPUs of a machine", family=True)
STEP = Metric("step", "optimiser steps taken since the start of the run", "steps", prometheus="dira_step")
CHECKPOINT_TIME_S = Metric(
    "checkpoint/time_s",
    "when the newest checkpoint was committed, Unix time",
    "s",
    prometheus="dira_checkpoint_timestamp_seconds",
)
CHECKPOINT_STEP = Metric(
    "checkpoint/step", "optimiser step of the newest checkpoint", "steps", prometheus="dira_checkpoint_step"
)

CATALOGUE: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))

# By which checkpoints and models are compared where their task names nothing that was measured: the first that was.
RANKING = (PROBE_AUROC.name, RANKME.name)


def find(name: str) -> Metric | None:
    """The catalogue's entry of a reported name; the longest that covers it, or none."""
    covering = [metric for metric in CATALOGUE if metric.covers(name)]
    return max(covering, key=lambda metric: len(metric.name), default=None)


def better(name: str) -> Mode:
    """Whether more or less of a figure is better; more where the catalogue does not say."""
    found = find(name)
    return found.better if found is not None and found.better is not None else "max"
