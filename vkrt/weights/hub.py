"""Find a model's weights on this machine, or fetch them from the Hugging Face hub."""

from __future__ import annotations

from errno import ENOSPC
from pathlib import Path
from types import ModuleType

from vkrt.arguments import flag, path, shown
from vkrt.catalog import Weights
from vkrt.errors import DownloadError, UnknownModelError
from vkrt.options import cache_folder

__all__ = ["find_local", "pull"]

# The first answer of the hub; a download itself may take as long as it needs.
ANSWER_SECONDS = 8.0


def pull(model: Weights, cache: Path | None = None, offline: bool = False) -> Path:
    """Return the weights file of a model, downloading it if it is not here yet.

    Looked at in this order: the package, a file put by hand into `cache`/checkpoints, earlier
    downloads in `cache`/hub, the hub cache of this user, the hub itself.

    Args:
        model: what to fetch.
        cache: folder of downloads; None is the default one (see vkrt.options.cache_folder).
        offline: never use the network; HF_HUB_OFFLINE=1 does the same.

    Raises:
        DownloadError: it is not here and can't be fetched; the message names the file, the
            hub id and where to put it.
    """
    if not all(hasattr(model, name) for name in ("name", "hub_id", "checkpoint", "packaged")):
        raise UnknownModelError(
            f"pull takes a model of vkrt.catalog, such as find(NAME) gives, not {shown(model)}"
        )
    cache = cache_folder() if cache is None else path("cache", cache, kind=DownloadError)
    offline = flag("offline", offline, kind=DownloadError)
    found = find_local(model, cache)
    if found is not None:
        return found
    if model.packaged is not None:
        raise DownloadError(
            f"this install lacks the weights of {model.name} ({model.packaged}): reinstall vkrt"
        )
    if model.hub_id is None or model.checkpoint is None:
        raise DownloadError(f"{model.name} has no download: give its checkpoint file")
    if offline:
        by_hand = instead(model, cache)
        raise DownloadError(
            f"{model.checkpoint} is not here: run `vkrt pull {model.name}`, or {by_hand}"
        )
    return download(model.hub_id, model.checkpoint, cache, instead(model, cache))


def find_local(model: Weights, cache: Path | None = None) -> Path | None:
    """Return the weights file of a model if it is on this machine; the network is not used."""
    cache = cache or cache_folder()
    if model.packaged is not None and model.packaged.is_file():
        return model.packaged
    if model.hub_id is None or model.checkpoint is None:
        return None
    by_hand = cache / "checkpoints" / model.checkpoint
    if by_hand.is_file():
        return by_hand
    hub = import_hub()
    if hub is None:
        return None
    # None is the cache that every program of this user shares.
    for folder in (cache / "hub", None):
        found = hub.try_to_load_from_cache(model.hub_id, model.checkpoint, cache_dir=folder)
        if isinstance(found, str):
            return Path(found)
    return None


def import_hub() -> ModuleType | None:
    """Return huggingface_hub, or None where it is not installed; it is slow to import."""
    try:
        import huggingface_hub
    except ImportError:
        return None
    return huggingface_hub


def instead(model: Weights, cache: Path) -> str:
    """Return what a user can do without this machine reaching the hub."""
    place = cache / "checkpoints" / str(model.checkpoint)
    return f"fetch {model.checkpoint} of {model.hub_id} and put it at {place}"


def download(hub_id: str, file: str, cache: Path, by_hand: str) -> Path:
    """Fetch a file into `cache`/hub.

    Raises:
        DownloadError: as in pull; the hub not answering takes seconds, not retries.
    """
    hub = import_hub()
    if hub is None:
        raise DownloadError(
            f"downloads need huggingface_hub: `pip install 'vkrt[hub]'`, or {by_hand}"
        )
    if hub.constants.HF_HUB_OFFLINE:
        raise DownloadError(f"HF_HUB_OFFLINE is set: unset it, or {by_hand}")
    try:
        # One request before the download, which would retry for half a minute without an answer.
        hub.get_hf_file_metadata(hub.hf_hub_url(hub_id, file), timeout=ANSWER_SECONDS)
        return Path(hub.hf_hub_download(hub_id, file, cache_dir=cache / "hub"))
    except Exception as error:
        raise DownloadError(f"{why(error, hub_id, file, cache)}: {by_hand}") from None


def why(error: Exception, hub_id: str, file: str, cache: Path) -> str:
    """Return in a few words why a download failed."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        return "can't reach the hub"
    if isinstance(error, errors.GatedRepoError):
        return f"{hub_id} asks you to accept its terms on the hub and to run `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no {hub_id}, or this user may not see it"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{hub_id} has no {file}"
    if isinstance(error, errors.HfHubHTTPError):
        return f"the hub answered {status_of(error)}"
    if isinstance(error, OSError) and (error.filename is not None or error.errno == ENOSPC):
        return f"can't write to {cache / 'hub'} ({error.strerror})"
    return "can't reach the hub"


def status_of(error: Exception) -> str:
    """Return how the hub answered, to end a sentence with."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return f"with status {status}" if status else "with an error"
