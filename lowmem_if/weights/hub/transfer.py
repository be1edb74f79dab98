"""One file from the Hub into the Hugging Face cache; a broken transfer is continued.

The transfer goes through the client's `http_get` into a partial file of ours: `hf_hub_download` has
not continued a broken file since huggingface_hub 1.18 (each attempt, plain or Xet, begins again in a
temporary file of another name; huggingface_hub issue 4196). It still runs last, since it puts the
finished file into the snapshot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lowmem_if.cascade.locating.hub_folders import storage_folder
from lowmem_if.cascade.remote.hub_errors import retry_busy
from lowmem_if.errors import HubError
from lowmem_if.system.file_operations import remove, replace


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of everything that a `fetch` was asked for is done; cached files count as done.

    Attributes:
        done_bytes, total_bytes: equal in the last report.
        file: repository and path of the current file, empty in the first report.
    """

    done_bytes: int
    total_bytes: int
    file: str


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository at one commit, and where the cache keeps it."""

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
    def is_cached(self) -> bool:
        return self.snapshot.is_file() and size_of(self.snapshot) == self.size


@dataclass(frozen=True, slots=True)
class Download:
    """A missing file and its address; `etag` identifies its content (SHA-256 if large)."""

    file: HubFile
    url: str
    etag: str

    @property
    def blob(self) -> Path:
        return self.file.storage / "blobs" / self.etag

    @property
    def partial(self) -> Path:
        # Not the library's name: the .incomplete files of other clients may be sparse.
        return self.blob.with_name(f"{self.etag}.lowmem-if.incomplete")

    @property
    def lock(self) -> Path:
        # The library's own lock of this blob, so that its downloads and ours wait for each other.
        storage = self.file.storage
        return storage.parent / ".locks" / storage.name / f"{self.etag}.lock"


class Meter:
    """Turns the progress bar that `http_get` wants into reports."""

    def __init__(self, total: int, done: int, report: Callable[[Progress], None]) -> None:
        self._total, self._before, self._report = total, done, report
        self._file: HubFile | None = None
        self._within = 0

    def begin(self, file: HubFile, have: int) -> None:
        self._file, self._within = file, have
        self.update(0)

    def finish(self, file: HubFile) -> None:
        self.begin(file, file.size)
        self._file, self._before = None, self._before + file.size

    def update(self, count: float) -> None:
        if self._file is None:
            return
        # A server that ignores Range sends the first bytes again: never count past the file.
        self._within = min(self._within + int(count), self._file.size)
        name = f"{self._file.repository}/{self._file.path}"
        self._report(Progress(self._before + self._within, self._total, name))

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def missing_bytes_of(download: Download) -> int:
    """Bytes that are still to be downloaded."""
    size = download.file.size
    return 0 if size_of(download.blob) == size else max(0, size - size_of(download.partial))


def download(download: Download, meter: Meter) -> None:
    """Download a file, check it, and put it into the snapshot.

    Raises:
        HubError: it arrived damaged.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.file_download import are_symlinks_supported
    from huggingface_hub.utils import WeakFileLock

    file = download.file
    # Where links are impossible the snapshot holds the file itself; a blob would be a second copy.
    target = download.blob if are_symlinks_supported() else file.snapshot
    for folder in (download.blob.parent, download.lock.parent, target.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(download.lock):
        if size_of(target) != file.size:
            retry_busy(lambda: _transfer(download, meter))
            _verify(download)
            replace(download.partial, target)
        # A snapshot file that still has the wrong size is no link to the blob: remove it.
        if not file.is_cached:
            remove(file.snapshot)
    retry_busy(lambda: hf_hub_download(file.repository, file.path, revision=file.commit))
    meter.finish(file)


def _transfer(download: Download, meter: Meter) -> None:
    """Complete the partial file; connect again after a lost connection as long as bytes arrive."""
    from huggingface_hub import errors
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    # Compressed answers cannot be continued in the middle.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    while True:
        if size_of(download.partial) > download.file.size:
            remove(download.partial)
        have = size_of(download.partial)
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
            if answered or size_of(download.partial) <= have:
                raise
        else:
            return


def _verify(download: Download) -> None:
    with download.partial.open("rb") as stream:
        is_sha256 = len(download.etag) == 64
        same = not is_sha256 or hashlib.file_digest(stream, "sha256").hexdigest() == download.etag
    if not same or size_of(download.partial) != download.file.size:
        remove(download.partial)
        raise HubError(
            f"{download.file.path} of {download.file.repository} arrived damaged and was dropped: try "
            "again; if it happens twice, check the disk and the proxy"
        )
