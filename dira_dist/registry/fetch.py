"""A registered model's folder brought here, every file checked."""

from collections.abc import Collection
from pathlib import Path

from mlflow.exceptions import MlflowException

from dira_dist.config import RequestError, without_credentials
from dira_dist.data.store import check_reachable
from dira_dist.models.model_files import CHECKSUMS, read_checksums
from dira_dist.registry.download import Progress, StoreSource, download, download_unchecked, source_of
from dira_dist.registry.lookup import find_version
from dira_dist.tracking.config import TrackingConfig
from dira_dist.tracking.server import connect

FOLDER_IN_VERSION = "data/model"  # where MLflow's pyfunc flavour keeps the folder it was given


def fetch(
    address: str,
    dest: Path,
    config: TrackingConfig,
    progress: Progress | None = None,
    only: Collection[str] | None = None,
) -> Path:
    """Bring a registered model's folder here; every file is checked, and what is here already stays.

    Args:
        address: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, or ``runs:/RUN_ID`` (the newest version of a run).
        dest: folder to write to; a fetch that was broken off goes on there.
        config: where the registry is.
        progress: called with the bytes that are here and the bytes in all.
        only: names of the files wanted; all where left out.

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
        raise RequestError(f"{address}: {without_credentials(str(error))[:300]}") from error
    try:
        folder = f"{place.rstrip('/')}/{FOLDER_IN_VERSION}"
        source = source_of(folder, config.uri)
        if isinstance(source, StoreSource):
            check_reachable(folder)
        download_unchecked(source, CHECKSUMS, dest)
        checksums = read_checksums(dest)
        wanted = {name: digest for name, digest in checksums.items() if only is None or name in only}
        download(source, wanted, dest, progress)
    except RequestError as error:
        raise RequestError(f"{address}: {error}") from error
    return dest
