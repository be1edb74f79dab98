"""The pack for a GPU machine without a registry: what is in it, and what is left out."""

from __future__ import annotations

import re
import tomllib
import zipfile
from pathlib import Path

import pytest

from bench.gpu import pack

THERE = {"torch", "transformers", "accelerate", "huggingface_hub", "safetensors", "numpy"}
"""What the machine has: the four that the pack counts on, and what they depend on."""


def name_of(requirement: str) -> str:
    return re.split(r"[<>=\[; ]", requirement, maxsplit=1)[0].lower()


def test_the_list_holds_every_dependency_that_the_machine_lacks() -> None:
    """A new dependency of the package that nobody packs shows here and not on the rented machine."""
    project = tomllib.loads((pack.ROOT / "pyproject.toml").read_text())["project"]
    needed = {*project["dependencies"], *project["optional-dependencies"]["int8"], "pytest"}
    listed = [line for line in pack.LIST.read_text().splitlines() if line and line[0] != "#"]
    packed = {name_of(line) for line in [*listed, *pack.ALONE]}
    assert {name_of(line) for line in needed} <= packed | THERE


def wheel_of_bitsandbytes(folder: Path) -> Path:
    wheel = folder / "bitsandbytes-0.1-py3-none-any.whl"
    libraries = [
        f"bitsandbytes/libbitsandbytes_{kind}.so" for kind in ("cpu", "cuda126", "cuda130")
    ]
    names = ["bitsandbytes/__init__.py", *libraries]
    record = "".join(f"{name},sha256=x,1\n" for name in names)
    with zipfile.ZipFile(wheel, "w") as file:
        for name in names:
            file.writestr(name, name)
        file.writestr("bitsandbytes-0.1.dist-info/RECORD", record)
    return wheel


def test_bitsandbytes_keeps_one_cuda_library(tmp_path: Path) -> None:
    """The others are gone from the wheel and from its list of files."""
    wheel = wheel_of_bitsandbytes(tmp_path)
    pack.keep_one_library(wheel, "cuda130")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        record = file.read("bitsandbytes-0.1.dist-info/RECORD").decode()
        assert file.read("bitsandbytes/libbitsandbytes_cuda130.so").endswith(b"cuda130.so")
    assert not any("cuda126" in name for name in [*names, *record.splitlines()])
    assert len(names) == 4
    assert [line.partition(",")[0] for line in record.splitlines()] == names[:3]
    assert list(tmp_path.iterdir()) == [wheel]


def test_a_cuda_version_that_bitsandbytes_lacks_ends_the_packing(tmp_path: Path) -> None:
    """With the names of those that it has."""
    with pytest.raises(SystemExit, match=r"no library for cuda999: cpu, cuda126, cuda130"):
        pack.keep_one_library(wheel_of_bitsandbytes(tmp_path), "cuda999")


def test_a_pack_that_is_too_large_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The size of everything in it counts; the script and the check's own files are there."""

    def download(wheels: Path, _python: str) -> None:
        wheel_of_bitsandbytes(wheels)

    monkeypatch.setattr(pack, "_download", download)
    monkeypatch.setattr(pack, "_build", lambda _wheels: None)
    out = tmp_path / "pack"
    assert pack.main(["--out", str(out)]) == 0
    assert "bench.gpu" in (out / "run.sh").read_text()
    assert (out / "checkout" / "tests" / "whole_runs" / "test_cuda.py").is_file()
    assert not list(out.rglob("__pycache__"))
    monkeypatch.setattr(pack, "MOST_BYTES", 1000)
    assert pack.main(["--out", str(out)]) == 1
    assert "MB" in capsys.readouterr().err
