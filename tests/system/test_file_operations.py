"""Files on other systems: each one's way gives the same results, tried here by injection."""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from other_systems import On
from runs import plan_of

from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.errors import RunFolderError
from lowmem_if.system import file_operations
from lowmem_if.weights.files.atomic import write_bytes
from lowmem_if.weights.files.checkpoint import Checkpoint


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_bytes_are_read_from_where_they_are(on: On, tmp_path: Path, platform: str) -> None:
    """Positioned reads give the same bytes, whether the system has them or not."""
    on(platform, file_operations)
    (tmp_path / "file").write_bytes(bytes(range(100)))
    with (tmp_path / "file").open("rb") as stream:
        for offset, size in ((90, 20), (0, 5), (50, 1), (100, 3)):
            target = bytearray(size)
            count = file_operations.read_at(stream.fileno(), memoryview(target), offset)
            assert bytes(target[:count]) == bytes(range(100))[offset : offset + size]
        file_operations.drop_cached(stream.fileno())


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_a_checkpoint_knows_its_own_file(
    on: On, tiny: Path, platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that nobody touched is the one that was opened, even if `fstat` numbers it differently."""
    on(platform, file_operations)
    if platform == "win32":
        monkeypatch.setattr(file_operations, "os", SimpleNamespace(**vars(os) | {"fstat": None}))
    file = next((tiny / "stage_1/unet").glob("*.safetensors"))
    with Checkpoint((file,)) as checkpoint:
        checkpoint.check()


class Busy:
    """Raises `PermissionError` so many times, as Windows does while a scanner has the file open."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self) -> str:
        self.left -= 1
        if self.left >= 0:
            raise PermissionError(errno.EACCES, "another program has it open")
        return "done"


def test_windows_waits_for_who_has_a_file_open(on: On) -> None:
    """It is tried again for about a second, and then the error is raised."""
    on("win32", file_operations)
    assert file_operations.patiently(Busy(3)) == "done"
    begun = time.monotonic()
    with pytest.raises(PermissionError):
        file_operations.patiently(Busy(10**6))
    assert 0.3 < time.monotonic() - begun < 3
    with pytest.raises(FileNotFoundError):
        file_operations.patiently(lambda: Path("gone").replace("other"))


def test_elsewhere_a_refusal_is_final() -> None:
    """On POSIX nobody's reading keeps a file from being replaced."""
    busy = Busy(1)
    with pytest.raises(PermissionError):
        file_operations.patiently(busy)
    assert busy.left == 0


def test_a_file_is_written_although_a_scanner_has_it_open(
    on: On, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`write_bytes` survives it, and leaves nothing beside the file."""
    on("win32", file_operations)
    busy, rename = Busy(2), Path.replace

    def refuse(source: Path, target: Path) -> Path:
        busy()
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", refuse)
    write_bytes(tmp_path / "run.json", b"{}")
    assert busy.left == -1
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


class Msvcrt:
    """Windows' lock of a file's bytes: one holder, whoever opened it."""

    LK_NBLCK, LK_UNLCK = 2, 0
    held: int | None = None

    @classmethod
    def locking(cls, descriptor: int, mode: int, count: int) -> None:
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0
        assert count == 1
        if mode == cls.LK_UNLCK:
            cls.held = None
        elif cls.held is not None:
            raise OSError(errno.EACCES, "Permission denied")
        else:
            cls.held = descriptor


def test_a_run_folder_is_locked_on_windows(
    on: On, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second holder is refused, and the lock is free as soon as the first has let go."""
    on("win32", file_operations)
    monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt)
    folder = RunFolder.for_plan(tmp_path / "run", plan_of("demo", size=64))
    with folder.locked(), pytest.raises(RunFolderError, match="in use"), folder.locked():
        pass
    assert Msvcrt.held is None
    with folder.locked():
        pass
