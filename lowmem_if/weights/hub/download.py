"""From the Hub into the Hugging Face cache, file by file; a broken download goes on.

The transfer goes through the client's `http_get` into a partial file of ours: `hf_hub_download` has
not continued a broken file since huggingface_hub 1.18 (each attempt, plain or Xet, starts anew in a
temporary file of another name; huggingface_hub issue 4196). It still has the last word here, since it
puts the finished file into the snapshot.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lowmem_if.cascade.locate import storage_folder
from lowmem_if.errors import HubError
from lowmem_if.system.file_operations import remove, replace
from lowmem_if.system.paths import too_long
from lowmem_if.units import GB, format_bytes
from lowmem_if.weights.hub.hub_errors import plain_words, retry_busy

SPARE_BYTES = GB
"""Disk that a download leaves free."""


@dataclass(frozen=True, slots=True)
class RepoFiles:
    """The files to have of one repository, fixed to one commit.

    Attributes:
        repository: its name on the Hub.
        revision: the commit, 40 hex digits.
        files: path in the repository and size in bytes of each.
        asked: the branch, tag or commit that `revision` was resolved from.
    """

    repository: str
    revision: str
    files: tuple[tuple[str, int], ...]
    asked: str = "main"

    @property
    def total_bytes(self) -> int:
        return sum(size for _, size in self.files)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a `fetch` is, over everything it was asked for; what was cached counts as done.

    Attributes:
        done_bytes, total_bytes: equal in the last report.
        file: repository and path of the file on its way, empty in the first report.
    """

    done_bytes: int
    total_bytes: int
    file: str


def ignore(progress: Progress) -> None:
    """Report to nobody."""


def missing_bytes(repo_files: Iterable[RepoFiles]) -> int:
    """Bytes that are not in the cache yet; a partly downloaded file counts whole."""
    return sum(file.size for file in _missing(repo_files))


def _check_home() -> None:
    """Without a home folder the library's cache would be a folder named `~` where the user stands."""
    from huggingface_hub import constants

    if constants.HF_HUB_CACHE.startswith("~"):
        raise HubError("there is no home folder to download to: set HF_HOME to a folder of yours")


def fetch(repo_files: Iterable[RepoFiles], *, report: Callable[[Progress], None] = ignore) -> None:
    """Download what is not in the cache yet; a broken download goes on where it stopped.

    The Hub is asked about every missing file, and the disk measured, before the first byte. Each
    file is checked against its size and, if it is a large one, its SHA-256. A cached file of the
    wrong size is fetched again. With nothing missing, no network is used.

    Raises:
        HubError: not logged in, licence not accepted, no network, a full or read-only disk, a
            damaged transfer. What was downloaded is kept, except a file that came damaged.
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
    meter = _Meter(total, done, report)
    for download in downloads:
        with plain_words(download.file.repository, download.file.commit):
            _download(download, meter)
    for r in repo_files:
        with plain_words(r.repository, r.asked):
            _point(r)


@dataclass(frozen=True, slots=True)
class _File:
    repository: str
    commit: str
    path: str
    size: int

    @property
    def storage(self) -> Path:
        return storage_folder(self.repository)

    @property
    def snapshot(self) -> Path:
        return self.storage / "snapshots" / self.commit / self.path

    @property
    def is_here(self) -> bool:
        return self.snapshot.is_file() and _size(self.snapshot) == self.size


@dataclass(frozen=True, slots=True)
class _Download:
    """A missing file and where it comes from; `etag` names its content (SHA-256 if large)."""

    file: _File
    url: str
    etag: str

    @property
    def blob(self) -> Path:
        return self.file.storage / "blobs" / self.etag

    @property
    def partial(self) -> Path:
        # A name of our own: what other clients leave as .incomplete may be sparse.
        return self.blob.with_name(f"{self.etag}.lowmem-if.incomplete")

    @property
    def lock(self) -> Path:
        # The library's own lock of this blob, so that its downloads and ours wait for each other.
        storage = self.file.storage
        return storage.parent / ".locks" / storage.name / f"{self.etag}.lock"


class _Meter:
    """Turns the progress bar that `http_get` wants into reports."""

    def __init__(self, total: int, done: int, report: Callable[[Progress], None]) -> None:
        self._total, self._before, self._report = total, done, report
        self._file: _File | None = None
        self._within = 0

    def begin(self, file: _File, have: int) -> None:
        self._file, self._within = file, have
        self.update(0)

    def finish(self, file: _File) -> None:
        self.begin(file, file.size)
        self._file, self._before = None, self._before + file.size

    def update(self, count: float) -> None:
        if self._file is None:
            return
        # A server that ignores Range sends the first bytes again: never count past the file.
        self._within = min(self._within + int(count), self._file.size)
        name = f"{self._file.repository}/{self._file.path}"
        self._report(Progress(self._before + self._within, self._total, name))

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def _size(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def _missing(repo_files: Iterable[RepoFiles]) -> list[_File]:
    missing = []
    for r in repo_files:
        with plain_words(r.repository, r.asked):
            files = [_File(r.repository, r.revision, path, size) for path, size in r.files]
            missing += [file for file in files if not file.is_here]
    return missing


def _look_up(file: _File) -> _Download:
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(file.repository, file.path, revision=file.commit)
    with plain_words(file.repository, file.commit):
        etag = retry_busy(lambda: get_hf_file_metadata(url).etag)
        if not etag:
            raise errors.FileMetadataError(f"{url} has no ETag")
    return _Download(file, url, etag)


def _check_paths(downloads: list[_Download]) -> None:
    """Raise `HubError` before the first byte if a file's path is too long for this system."""
    for download in downloads:
        for path in (download.file.snapshot, download.partial, download.lock):
            if why := too_long(path):
                raise HubError(f"{path}: {why}")


def _check_disk(downloads: list[_Download]) -> None:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    needed = sum(_still_to_come(download) for download in downloads)
    free = shutil.disk_usage(next(p for p in (cache, *cache.parents) if p.exists())).free
    if needed and needed + SPARE_BYTES > free:
        raise HubError(
            f"the download needs {format_bytes(needed)} of disk and {format_bytes(SPARE_BYTES)} to "
            f"spare, {format_bytes(free)} are free in {cache}: free some, or set HF_HOME to a "
            "folder on a larger disk"
        )


def _still_to_come(download: _Download) -> int:
    size = download.file.size
    return 0 if _size(download.blob) == size else max(0, size - _size(download.partial))


def _download(download: _Download, meter: _Meter) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.file_download import are_symlinks_supported
    from huggingface_hub.utils import WeakFileLock

    file = download.file
    # Where links are impossible the snapshot holds the file itself; a blob would be a second copy.
    target = download.blob if are_symlinks_supported() else file.snapshot
    for folder in (download.blob.parent, download.lock.parent, target.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(download.lock):
        if _size(target) != file.size:
            retry_busy(lambda: _transfer(download, meter))
            _verify(download)
            replace(download.partial, target)
        # A snapshot file that is still of the wrong size is no link to the blob: out of the way.
        if not file.is_here:
            remove(file.snapshot)
    retry_busy(lambda: hf_hub_download(file.repository, file.path, revision=file.commit))
    meter.finish(file)


def _transfer(download: _Download, meter: _Meter) -> None:
    """Complete the partial file; go on after a lost connection as long as bytes keep coming."""
    from huggingface_hub import errors
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    # Compressed answers cannot be continued in the middle.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    while True:
        if _size(download.partial) > download.file.size:
            remove(download.partial)
        have = _size(download.partial)
        meter.begin(download.file, have)
        try:
            with download.partial.open("ab") as stream:
                http_get(
                    download.url,
                    stream,
                    resume_size=have,
                    headers=headers,
                    expected_size=download.file.size,
                    tqdm_class=lambda **_: meter,
                )
        except errors.HTTPError as error:
            answered = isinstance(error, errors.HfHubHTTPError)
            if answered or _size(download.partial) <= have:
                raise
        else:
            return


def _verify(download: _Download) -> None:
    with download.partial.open("rb") as stream:
        is_sha256 = len(download.etag) == 64
        same = not is_sha256 or hashlib.file_digest(stream, "sha256").hexdigest() == download.etag
    if not same or _size(download.partial) != download.file.size:
        remove(download.partial)
        raise HubError(
            f"{download.file.path} of {download.file.repository} came damaged and was dropped: try "
            "again; if it happens twice, check the disk and the proxy"
        )


def _point(repo_files: RepoFiles) -> None:
    """Let the name that was asked for mean this commit, now that its files are complete."""
    if repo_files.asked == repo_files.revision:
        return
    reference = storage_folder(repo_files.repository) / "refs" / repo_files.asked
    if reference.is_file() and reference.read_text(encoding="ascii").strip() == repo_files.revision:
        return
    reference.parent.mkdir(parents=True, exist_ok=True)
    draft = reference.with_name(f"{reference.name}.{os.getpid()}.tmp")
    draft.write_text(repo_files.revision, encoding="ascii")
    replace(draft, reference)
