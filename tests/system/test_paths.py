"""Paths that are too long for Windows, and paths to type."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest
from other_systems import On
from runs import plan_of

from lowmem_if.cascade import safetensors_header
from lowmem_if.engine.run_folder import folder as folder_module
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.errors import HubError
from lowmem_if.system import paths
from lowmem_if.weights.hub import download, transfer


@pytest.mark.parametrize(
    ("absolute", "long"),
    [
        ("C:\\runs\\fox", "\\\\?\\C:\\runs\\fox"),
        ("\\\\server\\share\\fox", "\\\\?\\UNC\\server\\share\\fox"),
        ("\\\\?\\C:\\runs", "\\\\?\\C:\\runs"),
    ],
)
def test_long_paths_have_a_form_of_their_own(absolute: str, long: str) -> None:
    """Drives, network shares, and what has the form already."""
    assert paths.long_form(absolute) == long


def long_paths(monkeypatch: pytest.MonkeyPatch, *, work: bool) -> None:
    ntdll = SimpleNamespace(RtlAreLongPathsEnabled=lambda: 0x7F00 + work)
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: ntdll, raising=False)


def test_a_run_folder_leaves_room_for_its_files(on: On, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where Windows needs it a path gets the long form."""
    short, long = Path("/runs/fox"), Path("/runs") / ("x" * 200)
    assert paths.roomy(long) == long
    on("win32", paths)
    long_paths(monkeypatch, work=False)
    assert paths.roomy(short) == short
    assert str(paths.roomy(long)) == f"\\\\?\\{long}"
    long_paths(monkeypatch, work=True)
    assert paths.roomy(long) == long
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: object())  # an old Windows
    assert not paths.long_paths_work()


def test_everything_in_a_run_folder_goes_by_its_roomy_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made, opened and looked for: nothing uses the name that was given."""
    monkeypatch.setattr(folder_module, "roomy", lambda path: tmp_path / "other")
    folder = RunFolder.for_plan(tmp_path / "run", plan_of("demo", size=64))
    assert folder.path == tmp_path / "other"
    assert RunFolder.open(tmp_path / "run").path == tmp_path / "other"
    assert RunFolder.begun(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_path_that_is_too_long_is_told_with_what_to_do(
    on: On, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a download, and where a file seems to be missing."""
    long = Path("/hf") / ("x" * 150) / ("y" * 150)
    assert paths.too_long(long) == ""
    on("win32", paths)
    long_paths(monkeypatch, work=False)
    assert paths.too_long(Path("/hf/short")) == ""
    assert paths.too_long(Path("/hf") / ("x" * 250) / "y"), "its folder is too long"
    told = str(safetensors_header.unreadable(long, FileNotFoundError(2, "gone")))
    assert "305 characters" in told
    assert "HF_HOME" in told
    file = transfer.HubFile("a/b", "c" * 40, "x" * 200, 5)
    with pytest.raises(HubError, match="LongPathsEnabled"):
        download._check_paths([transfer.Download(file, "", "e" * 64)])
    long_paths(monkeypatch, work=True)
    assert paths.too_long(long) == ""


def test_paths_are_quoted_as_the_shell_wants_it(on: On) -> None:
    """cmd takes single quotes for a part of the name."""
    assert paths.quoted(Path("runs/a fox")) == "'runs/a fox'"
    assert "chmod" in paths.right_to_read()
    on("win32", paths)
    assert paths.quoted(Path("runs\\a fox")) == '"runs\\a fox"'
    assert paths.quoted(Path("runs\\fox")) == "runs\\fox"
    assert "chmod" not in paths.right_to_read()
