"""A registered model's folder brought here, every file checked."""

from collections.abc import Collection
from pathlib import Path

from mlflow.exceptions import MlflowException

from dira_dist.config import RequestError
from dira_dist.data.store import check_reachable
from dira_dist.files import sha256_of
from dira_dist.models.model_files import CHECKSUMS, read_checksums
from dira_dist.registry.download import Progress, StoreSource, download, download_unchecked, source_of
from dira_dist.registry.lookup import find_version
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.server import connect, in_one_sentence

FOLDER_IN_VERSION = "data/model"  # where MLflow's pyfunc flavour keeps the folder it was given


def fetch(
    address: str,
    dest: Path,
    config: TrackingConfig,
    progress: Progress | None = None,
    only: Collection[str] | None = None,
    sha256: str | None = None,
) -> Path:
    """Bring a registered model's folder here; every file is checked, and what is here already stays.

    Args:
        address: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, or ``runs:/RUN_ID`` (the newest version of a run).
        dest: folder to write to; a fetch that was broken off goes on there.
        config: where the registry is.
        progress: called with the bytes that are here and the bytes in all.
        only: names of the files wanted; all where left out.
        sha256: of the list of the files' sums, as whoever registered the model has told it; compared before anything
            else is fetched. Without it the files are known to be whole, and not to be theirs.

    Returns:
        ``dest``.

    Raises:
        RequestError: for an unknown model, version, alias or run, with the nearest known ones; for damaged files; and
            if the registry is away or refuses the credentials.
    """
    config = config.resolve_paths()
    if config.uri is None:
        raise RequestError(f"{address}: no registry is known; give tracking.uri or set MLFLOW_TRACKING_URI")
    client = connect(config.uri)
    try:
        version = find_version(client, config.uri, address)
        place = client.get_model_version_download_uri(version.name, version.version)
    except MlflowException as error:  # such as a version that was deleted between two questions
        raise RequestError(f"{address}: {in_one_sentence(error)}") from error
    try:
        folder = f"{place.rstrip('/')}/{FOLDER_IN_VERSION}"
        source = source_of(folder, config.uri)
        if isinstance(source, StoreSource):
            check_reachable(folder)
        check_sum(download_unchecked(source, CHECKSUMS, dest), sha256)
        checksums = read_checksums(dest)
        wanted = {name: digest for name, digest in checksums.items() if only is None or name in only}
        download(source, wanted, dest, progress)
    except RequestError as error:
        raise RequestError(f"{address}: {error}") from error
    return dest


def check_sum(file: Path, sha256: str | None) -> None:
    """Holds the file that names what a model is made of against the sum that somebody was told; None: nobody was.

    Raises:
        RequestError: it is another one.
    """
    found = sha256_of(file)
    if sha256 is not None and found != sha256.lower():
        raise RequestError(
            f"--sha256 {sha256[:12]}...: this model's is {found[:12]}...: it is another model than the one you were "
            "told of; ask its maker, and do not load it before"
        )
