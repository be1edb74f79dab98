"""Predicted against measured, as the bench tells it of a run of the tiny cascade; scripts import."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

import bench
import training
from bench import predictions
from bench.predictions import Run

SCRIPTS = [
    f"{package.__name__}.{module.name}"
    for package in (bench, training)
    for module in pkgutil.iter_modules(package.__path__)
]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_can_be_imported(name: str) -> None:
    """A name that moved in the package, or among the scripts, shows here and not after an hour."""
    importlib.import_module(name)


@pytest.mark.slow
def test_a_run_becomes_rows_of_the_table(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predicted and measured bytes and seconds of each component, and the section keeps the others."""
    pins = ("text_encoder=stream", "stage_1=stream")
    monkeypatch.setattr(predictions, "OUT", tmp_path / "out")
    monkeypatch.setattr(predictions, "LINES", tmp_path / "out" / "lines.jsonl")
    monkeypatch.setattr(predictions, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(
        predictions, "RUNS", {"tiny": Run(str(tiny), 64, pins, ("text_encoder", "stage_1"))}
    )
    machine = predictions.probe("cpu")
    monkeypatch.setattr(predictions, "_machine", lambda: machine)
    (tmp_path / "RESULTS.md").write_text(
        "# old head\n\n<!-- begin if-m -->\nkept\n<!-- end if-m -->\n"
    )
    assert predictions.main(["--weights", str(tmp_path)]) == 0
    text = (tmp_path / "RESULTS.md").read_text()
    assert "kept" in text
    assert text.count("text encoder | stream float32, batch 2 | 1 |") == 1
    assert text.count("stage 1 | stream float32 | 1 |") == 1
    assert predictions.main(["--weights", str(tmp_path), "--predict"]) == 0
    assert (tmp_path / "RESULTS.md").read_text().count("stage 1 | stream float32 | 1 |") == 1
