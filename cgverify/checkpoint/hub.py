"""Fetch a checkpoint from the Hugging Face hub into its local cache. Each failure becomes one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from cgverify.checkpoint.config import read_config
from cgverify.checkpoint.files import PATTERNS
from cgverify.common.errors import UsageError, WeightsError

TOO_MANY_REQUESTS = 429


def download(hub_id: str, revision: str | None = None) -> Path:
    """Fetch the missing files of a checkpoint, and return its folder in the local cache.

    The config is fetched first: a checkpoint that is not CodeGen's is refused before its weights are fetched. These are
    fetched in one format, safetensors if there is a choice.

    Raises:
        UsageError: this is not a hub id, or the checkpoint is not CodeGen's.
        WeightsError: anything else fails, from the network to the disk.
    """
    folder = _fetch(hub_id, revision, ["config.json"])
    read_config(folder)
    _fetch(hub_id, revision, _patterns(hub_id, revision))
    return folder


def _patterns(hub_id: str, revision: str | None) -> list[str]:
    """Return the patterns of the files with a repository's weights."""
    try:
        files = HfApi().list_repo_files(hub_id, revision=revision)
    except Exception as error:  # the hub's client raises errors of several libraries
        raise WeightsError(_reason(error, hub_id, revision)) from error
    for patterns in PATTERNS.values():
        if any(fnmatchcase(file, pattern) for file in files for pattern in patterns):
            return patterns
    raise WeightsError(f"{hub_id} has no weights that cgverify reads: neither {' nor '.join(PATTERNS)}.")


def _fetch(hub_id: str, revision: str | None, patterns: Sequence[str]) -> Path:
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise UsageError(f"{hub_id!r} is neither a folder nor a hub id: {error}") from error
    except Exception as error:  # the hub's client raises errors of several libraries
        raise WeightsError(_reason(error, hub_id, revision)) from error


def _reason(error: BaseException, hub_id: str, revision: str | None) -> str:
    """Return why a checkpoint cannot be fetched, and what to do."""
    for cause in _causes(error):
        if isinstance(cause, GatedRepoError):
            return f"{hub_id} is gated: accept its terms on its page on the hub, then log in with `hf auth login`."
        if isinstance(cause, RevisionNotFoundError):
            return f"{hub_id} has no revision {revision!r} on the hub: give a branch, a tag or a commit."
        if isinstance(cause, RepositoryNotFoundError):
            return f"There is no {hub_id} on the hub, or it is private: check the name, or log in with `hf auth login`."
        if isinstance(cause, OfflineModeIsEnabled):
            return f"{hub_id} is not in the hub cache, and HF_HUB_OFFLINE is set: unset it to download."
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code == TOO_MANY_REQUESTS:
            return (
                f"The hub limits the number of requests: wait some minutes, or log in with `hf auth login` ({hub_id})."
            )
    last = list(_causes(error))[-1]
    lines = str(last).strip().splitlines() or [type(last).__name__]
    return f"Cannot fetch {hub_id} from the hub: {lines[0].rstrip('.')}. Check the network and the disk, and try again."


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
