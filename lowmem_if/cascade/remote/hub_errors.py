"""Why a download fails, in plain words: the Hub, the network or the disk."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from typing import Any, TypeVar

from lowmem_if.cascade import catalog
from lowmem_if.errors import HubError

_BUSY_WAITS = (1, 2, 4)
_T = TypeVar("_T")


def retry_busy(call: Callable[[], _T]) -> _T:
    """Call again while the Hub answers 5xx; the client itself does so for some calls only."""
    from huggingface_hub import errors

    for wait in _BUSY_WAITS:
        try:
            return call()
        except errors.HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
        time.sleep(wait)
    return call()


def foreign_errors() -> tuple[type[BaseException], ...]:
    """What huggingface_hub and the file system raise; our own bugs raise other classes."""
    from huggingface_hub import errors

    # errors.HTTPError is the root of the HTTP library that this huggingface_hub is built on.
    return (OSError, JSONDecodeError, errors.HTTPError)


@contextmanager
def plain_words(repository: str, revision: str) -> Iterator[None]:
    """Inside, errors of the Hub, the network and the disk are raised as `HubError`."""
    try:
        yield
    except foreign_errors() as error:
        raise HubError(_explain(error, repository, revision)) from error


def _explain(error: BaseException, repository: str, revision: str) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    trouble = why_unreachable(error)
    if trouble:
        return f"{trouble[0]}: {trouble[1]}; what is downloaded is kept"
    if isinstance(error, errors.HfHubHTTPError):
        return _explain_refusal(error, repository, revision)
    return _explain_disk(error, repository)


def why_unreachable(error: BaseException) -> tuple[str, str] | None:
    """(Why the Hub cannot be reached, what to do); None if something else is wrong."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status == 429:
            return "the Hub was asked too often (429)", "wait some minutes; a login allows more"
        return (f"the Hub is in trouble ({status})", "try again later") if status >= 500 else None
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set", "unset it and try again"
    if isinstance(error, errors.FileMetadataError | JSONDecodeError):
        return (
            f"what answers at {constants.ENDPOINT} is not the Hub",
            "check HF_ENDPOINT, the proxy, and whether this network wants a login in the browser",
        )
    if isinstance(error, errors.HTTPError | ConnectionError | TimeoutError):
        return f"no connection to {constants.ENDPOINT}", "check the network and try again"
    return None


def _explain_refusal(error: Any, repository: str, revision: str) -> str:
    from huggingface_hub import errors, get_token

    page = f"https://huggingface.co/{repository}"
    licence = catalog.IF_LICENCE_PAGE if repository.startswith("DeepFloyd/") else page
    status = error.response.status_code
    if status == 401 and get_token():
        return "the Hub does not know your token: `hf auth login` again, or set a valid HF_TOKEN"
    if isinstance(error, errors.GatedRepoError) and status == 401:
        return (
            f"{repository} needs a login: accept its licence on {licence}, then `hf auth login` or "
            "set HF_TOKEN"
        )
    if isinstance(error, errors.GatedRepoError):
        return (
            f"your account has not accepted the licence of {repository}: accept it on {licence}, "
            "then try again"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {revision!r}: choose one on {page}/commits/main"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no {repository} here, or it is private: check HF_ENDPOINT, or log in"
    if status == 403:
        return (
            f"your token may not read {repository}: let it read public gated repositories on "
            "https://huggingface.co/settings/tokens"
        )
    # Not error.request, which huggingface_hub 2.4 loses; and no query, which may hold a signature.
    return f"the Hub refused {error.response.url.path} ({status}): try another revision"


def _explain_disk(error: Any, repository: str) -> str:
    from huggingface_hub import constants

    cache, number = constants.HF_HUB_CACHE, getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {cache} is full: free some and try again; what is downloaded is kept"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{cache} cannot be written: set HF_HOME to a folder of yours, or mend its rights"
    if number is None:
        return f"the transfer of {repository} ended early: try again; what is downloaded is kept"
    return f"{cache} cannot be used ({os.strerror(number)}): set HF_HOME to another folder"
