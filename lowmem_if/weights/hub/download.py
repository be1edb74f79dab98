"""Download what is missing from the Hub into the Hugging Face cache, if it fits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lowmem_if.cascade.locating.hub_folders import storage_folder
from lowmem_if.cascade.remote.hub_errors import plain_words, retry_busy
from lowmem_if.errors import HubError
from lowmem_if.system.file_operations import replace
from lowmem_if.system.paths import too_long
from lowmem_if.units import GB, format_bytes
from lowmem_if.weights.hub.transfer import (
    Download,
    HubFile,
    Meter,
    Progress,
    download,
    missing_bytes_of,
)

SPARE_BYTES = GB
"""Disk that a download leaves free."""


@dataclass(frozen=True, slots=True)
class RepoFiles:
    """The files of one repository that are needed, at one commit.

    Attributes:
        repository: its name on the Hub.
        revision: the commit, 40 hex digits.
        files: path in the repository and size in bytes of each.
        asked: the branch, tag or commit that was resolved to `revision`.
    """

    repository: str
    revision: str
    files: tuple[tuple[str, int], ...]
    asked: str = "main"

    @property
    def total_bytes(self) -> int:
        return sum(size for _, size in self.files)


def missing_bytes(repo_files: Iterable[RepoFiles]) -> int:
    """Bytes of the files that are not in the cache yet; partial files count as missing."""
    return sum(file.size for file in _missing(repo_files))


def _check_home() -> None:
    """Raise `HubError` without a home folder: the cache would be a folder named `~` here."""
    from huggingface_hub import constants

    if constants.HF_HUB_CACHE.startswith("~"):
        raise HubError("there is no home folder to download to: set HF_HOME to a folder of yours")


def fetch(
    repo_files: Iterable[RepoFiles], *, report: Callable[[Progress], None] = lambda _progress: None
) -> None:
    """Download what is not in the cache yet; a broken download is continued.

    The Hub is asked about every missing file, and the disk measured, before the first byte. Each
    file is checked against its size and, if it is a large one, its SHA-256. A cached file of the
    wrong size is fetched again. With nothing missing, no network is used.

    Raises:
        HubError: not logged in, licence not accepted, no network, a full or read-only disk, a
            damaged transfer. What was downloaded is kept, except a damaged file.
    """
    repo_files = tuple(repo_files)
    missing = _missing(repo_files)
    total = sum(r.total_bytes for r in repo_files)
    done = total - sum(file.size for file in missing)
    if missing:
        _check_home()
    report(Progress(done, total, ""))
    downloads = [_look_up(file) for file in missing]
    _check_paths(downloads)
    _check_disk(downloads)
    meter = Meter(total, done, report)
    for each in downloads:
        with plain_words(each.file.repository, each.file.commit):
            download(each, meter)
    for r in repo_files:
        with plain_words(r.repository, r.asked):
            _point(r)


def _missing(repo_files: Iterable[RepoFiles]) -> list[HubFile]:
    missing = []
    for r in repo_files:
        with plain_words(r.repository, r.asked):
            files = [HubFile(r.repository, r.revision, path, size) for path, size in r.files]
            missing += [file for file in files if not file.is_cached]
    return missing


def _look_up(file: HubFile) -> Download:
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(file.repository, file.path, revision=file.commit)
    with plain_words(file.repository, file.commit):
        etag = retry_busy(lambda: get_hf_file_metadata(url).etag)
        if not etag:
            raise errors.FileMetadataError(f"{url} has no ETag")
    return Download(file, url, etag)


def _check_paths(downloads: list[Download]) -> None:
    """Raise `HubError` before the first byte if a file's path is too long for this system."""
    for each in downloads:
        for path in (each.file.snapshot, each.partial, each.lock):
            if why := too_long(path):
                raise HubError(f"{path}: {why}")


def _check_disk(downloads: list[Download]) -> None:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    needed = sum(map(missing_bytes_of, downloads))
    free = shutil.disk_usage(next(p for p in (cache, *cache.parents) if p.exists())).free
    if needed and needed + SPARE_BYTES > free:
        raise HubError(
            f"the download needs {format_bytes(needed)} of disk and {format_bytes(SPARE_BYTES)} to "
            f"spare, {format_bytes(free)} are free in {cache}: free some, or set HF_HOME to a "
            "folder on a larger disk"
        )


def _point(repo_files: RepoFiles) -> None:
    """Let the name that was asked for refer to this commit, now that its files are complete."""
    if repo_files.asked == repo_files.revision:
        return
    reference = storage_folder(repo_files.repository) / "refs" / repo_files.asked
    if reference.is_file() and reference.read_text(encoding="ascii").strip() == repo_files.revision:
        return
    reference.parent.mkdir(parents=True, exist_ok=True)
    draft = reference.with_name(f"{reference.name}.{os.getpid()}.tmp")
    draft.write_text(repo_files.revision, encoding="ascii")
    replace(draft, reference)
