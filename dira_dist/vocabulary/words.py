"""``dira-dist words``: a set of whole volumes to sets of cubes that carry a visual word.

Two passes over the volumes, one of which lies in memory at a time: the first takes their features, and looks where the
references have a content that is kept; the second cuts the cubes. Both together are short beside the training that
follows, so that a call that is broken off begins anew.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dira_dist.config import RequestError
from dira_dist.data.ingest.plan import WHOLE
from dira_dist.data.ingest.sharding import PartReport
from dira_dist.data.shards import ShardSetIndex, read_index
from dira_dist.data.store import check_reachable, open_store
from dira_dist.prediction.model import Model, files_of, load_encoder
from dira_dist.prediction.predict import absolute
from dira_dist.prediction.work import device_of
from dira_dist.registry.model_folder import fetch_model_folder
from dira_dist.tracking.config import tracking_at
from dira_dist.views import check_viewable
from dira_dist.vocabulary.cutting import LABEL, Cutter
from dira_dist.vocabulary.destination import FORMAT, SHEET, STATE, Vocabulary, begin, is_finished
from dira_dist.vocabulary.finding import find_words
from dira_dist.vocabulary.options import WordsOptions
from dira_dist.vocabulary.plan import WordsPlan
from dira_dist.vocabulary.sheet import ROWS, as_png

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class WordsReport:
    """What was made.

    Attributes:
        dest: where.
        parts: the sets.
        words: how many there are.
        patients: by part how many of how many patients each word is cut of.
        has_patients: whether the volumes say whose they are.
        was_complete: whether all was there already.
    """

    dest: str
    parts: Mapping[str, PartReport]
    words: int
    patients: Mapping[str, tuple[int, int]]
    has_patients: bool
    was_complete: bool = False

    def lines(self) -> Iterator[str]:
        """The summary for a person."""
        for name, part in self.parts.items():
            label, (nearest, patients) = "" if name == WHOLE else f"{name}: ", self.patients[name]
            size = f"{part.samples} cubes in {part.shards} shards, {part.bytes / 1e6:.1f} MB"
            yield f"{label}{size}, at {part.address}: {self.words} words, each of {nearest} of {patients} patients"
        if self.was_complete:
            yield "nothing to do: all of it was there"
        if not self.has_patients:
            yield "note: the volumes name no patient, so that each counts as one (shard --group-by says whose they are)"
        shown = f" of the first {ROWS}" if self.words > ROWS else ""
        yield f"look at the words: {self.dest.rstrip('/')}/{SHEET}, a row for each{shown}"
        yield f"in a job: method: {{name: visual_words, label: {LABEL}, words: {self.words}}}"


def words(
    volumes: str,
    dest: str,
    encoder: str,
    options: WordsOptions | None = None,
    *,
    tracking_uri: str | None = None,
    progress: Progress | None = None,
) -> WordsReport:
    """Finds visual words in a set of whole volumes, and makes sets of cubes that carry them as the label ``word``.

    Haghighi et al., *Transferable Visual Words* (IEEE TMI 2021), section III-A.

    Args:
        volumes: address of a set of ``dira-dist shard --content volumes`` with ``--intensity``.
        dest: folder or prefix for the sets, ``words.json`` and ``words.png``; with a split each set at ``dest/PART``.
        encoder: of 3D; see :func:`dira_dist.registry.model_folder.fetch_model_folder`.
        options: how.
        tracking_uri: MLflow; ``MLFLOW_TRACKING_URI`` if none.
        progress: called with the volumes read and to read, each counted twice.

    Raises:
        RequestError: set, encoder, options and ``dest`` do not fit together; nothing was overwritten.
        StoreError: source or destination failed for longer than retries last.
    """
    options = options or WordsOptions()
    with tempfile.TemporaryDirectory() as scratch:
        folder = fetch_model_folder(encoder, Path(scratch), tracking_at(tracking_uri), files_of, as_registered=True)
        model = load_encoder(folder, encoder)
    return make_words(volumes, dest, model, options, progress)


def make_words(
    volumes: str, dest: str, model: Model, options: WordsOptions, progress: Progress | None = None
) -> WordsReport:
    """The same with a network that is here already.

    Raises:
        RequestError, StoreError: see :func:`words`.
    """
    index = read_index(volumes)
    _check_set(volumes, index, model)
    _check_places(volumes, dest)
    plan = WordsPlan(volumes, index, dest, model, options)
    nearest = plan.nearest  # which refuses too few patients
    check_reachable(dest, write=True)
    was_complete = is_finished(open_store(dest), plan.request)
    if not was_complete:
        _make(plan, device_of(options.device), progress)
    patients = {part: (nearest[part], len(known)) for part, known in plan.patients.items()}
    parts = {part: _part_report(plan.address_of(part), was_complete) for part in plan.ids}
    return WordsReport(dest, parts, options.words, patients, plan.table.has_groups, was_complete)


def _make(plan: WordsPlan, device: str, progress: Progress | None) -> None:
    """Both passes, the picture, and last of all the indexes; nothing is written before the words are found."""
    done, total = 0, 2 * len(plan.table)

    def tell() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    found, store = find_words(plan, device, tell), open_store(plan.dest)
    begin(store, plan.request)
    cutter = Cutter(plan, found, tell)
    published = {part: cutter.publish(part) for part in plan.ids}
    store.write_bytes(SHEET, as_png(cutter.sheet()))
    for part, shards in published.items():
        cutter.publish_index(part, shards)
    store.write_bytes(STATE, FORMAT.dump(Vocabulary(plan.request, found, finished=True)))


def _check_set(address: str, index: ShardSetIndex, model: Model) -> None:
    """Raises:
    RequestError: it holds no whole volumes on 16 bits, or the model takes others.
    """
    request = index.made_by.get("request", {})
    if index.image.axes != 3:
        raise RequestError(
            f"{address}: is a set of images, and words are cut of whole volumes: dira-dist shard ... --content volumes"
        )
    if request.get("content") == "cubes":
        raise RequestError(
            f"{address}: is a set of cubes, and words are cut of whole volumes: dira-dist shard ... --content volumes"
        )
    if model.dims != 3:
        raise RequestError(f"{model.address}: is a model of images; give one of 3D (model: {{name: unet3d}})")
    if index.image.dtype != "uint16":
        raise RequestError(
            f"{address}: holds {index.image.dtype}, and words are cut of volumes on 16 bits: make the set with "
            "--intensity (range:-1000,1000 for CT in HU, percentiles:0.5,99.5 for MR)"
        )
    try:
        check_viewable(index.image, model.dims, model.in_channels)
    except RequestError as error:
        raise RequestError(f"{address}: the set has {error}") from None


def _check_places(volumes: str, dest: str) -> None:
    """Raises:
    RequestError: a set would lie within another.
    """
    source, target = (absolute(address).rstrip("/") + "/" for address in (volumes, dest))
    if source.startswith(target) or target.startswith(source):
        raise RequestError(
            f"{dest}: DEST lies in VOLUMES, or around it; no set is changed in place: give another folder"
        )


def _part_report(address: str, was_complete: bool) -> PartReport:
    index = read_index(address)
    return PartReport(
        address=address,
        samples=index.samples,
        shards=len(index.shards),
        bytes=index.bytes,
        digest=index.digest,
        resumed_shards=0,
        was_complete=was_complete,
    )
