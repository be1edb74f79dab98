"""The notebooks run from top to bottom, and what stands in them came from what stands in them."""

from __future__ import annotations

import base64
import io
import os
import re
import sys
from importlib import util
from pathlib import Path
from typing import Any

import nbformat
import numpy
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
NAMES = ("01_first_image", "colab_free_tier")
MOST_BYTES = 1_500_000
OF_THE_MACHINE = re.compile(r"lowmem-if (probe|plan|show)|lm\.probe\(\)|memory\.png")
"""Cells whose outputs tell of the machine that ran them."""
TIMES = re.compile(r"(?<=done in )[^<]*")
PICTURES = re.compile(r"data:image/jpeg;base64,([^\"]+)")


def load_execute() -> Any:
    """`notebooks/execute.py`, which is in no package."""
    spec = util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = load_execute()


def committed(name: str) -> Any:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def test_all_notebooks_are_tested() -> None:
    """One that is added here is run here."""
    assert [file.stem for file in execute.notebooks()] == [*NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_the_outputs_were_made_by_the_cells(name: str) -> None:
    """Whoever changes a cell runs `make notebooks`."""
    notebook = committed(name)
    assert notebook.metadata["lowmem_if"]["outputs_made_by"] == execute.sources_digest(notebook)
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in ran] == [*range(1, len(ran) + 1)]
    assert not [o for cell in ran for o in cell.outputs if o.output_type == "error"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_pictures_and_is_small(name: str) -> None:
    """Real ones, in a file that a browser opens at once; and nothing of the machine it was made on."""
    file = ROOT / "notebooks" / f"{name}.ipynb"
    assert file.stat().st_size < MOST_BYTES
    outputs = [o for cell in committed(name).cells for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 3
    assert not re.search(r"/(home|root|work|tmp)/", file.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_only_the_public_interface_is_used(name: str) -> None:
    """`import lowmem_if as lm`, and commands."""
    code = "\n".join(cell.source for cell in committed(name).cells if cell.cell_type == "code")
    assert "import lowmem_if as lm" in code
    assert not re.search(r"lowmem_if\.|lm\._", code)


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_run_gives_what_is_committed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every cell runs; texts and pictures are those in the file, but for times and for the machine."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    fresh = execute.executed(ROOT / "notebooks" / f"{name}.ipynb", tmp_path / "work")
    for ours, theirs in zip(fresh.cells, committed(name).cells, strict=True):
        if ours.cell_type == "code":
            told, expected = told_by(ours), told_by(theirs)
            assert told[0] == expected[0], ours.source
            for picture, other in zip(told[1], expected[1], strict=True):
                assert_alike(picture, other)


def told_by(cell: Any) -> tuple[list[str], list[bytes]]:
    """The texts of a cell's outputs without what changes from run to run, and its pictures."""
    if OF_THE_MACHINE.search(cell.source):
        return sorted({output.output_type for output in cell.outputs}), []
    stream = "".join(output.get("text", "") for output in cell.outputs)  # it comes in any pieces
    texts, pictures = [stream], []
    for output in cell.outputs:
        data = output.get("data", {})
        page = data.get("text/html", "")
        pictures += [data["image/png"]] if "image/png" in data else PICTURES.findall(page)
        texts += [PICTURES.sub("", TIMES.sub("", page))] if page else []
    return texts, [base64.b64decode(picture) for picture in pictures]


def assert_alike(picture: bytes, other: bytes) -> None:
    """The same but for the last bits that another processor rounds differently."""
    ours, theirs = (
        numpy.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(float)
        for content in (picture, other)
    )
    assert ours.shape == theirs.shape
    assert abs(ours - theirs).mean() < 2
