"""The picture of a run's memory: what of the samples is drawn, and what is said where it cannot be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from runs import plan_of

from lowmem_if.cli.main import main
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.errors import MissingPackage, RunFolderError
from lowmem_if.report.memory_chart import Band, Sample, bands, read_samples, write_chart

pytest.importorskip("matplotlib")


def line(t: float, step: str, ram: int = 10**9, vram: int = 0) -> str:
    return json.dumps({"t": t, "step": step, "ram_anon": ram, "vram_allocated": vram})


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> RunFolder:
    """A run folder with samples of two components, a pause, and a line that a kill cut short."""
    folder = RunFolder.for_plan(tmp_path / "run", plan_of(tiny, size=64))
    lines = [line(100 + t / 10, "text_encoder", 10**9 + t * 10**7) for t in range(50)]
    lines += [line(5000 + t / 10, "stage_1", 2 * 10**9) for t in range(100)]
    (folder.path / "memory.jsonl").write_text("\n".join([*lines, '{"t": 5']), encoding="utf-8")
    return folder


def test_samples_are_read_without_pauses_and_broken_lines(run: RunFolder) -> None:
    """An hour between two samples, while nothing ran, becomes a few seconds."""
    samples = read_samples(run.path / "memory.jsonl")
    assert len(samples) == 150
    assert samples[0] == Sample(0.0, "text_encoder", 10**9, 0)
    assert samples[-1].seconds == pytest.approx(4.9 + 5 + 9.9)


def test_bands_follow_the_components_as_they_ran() -> None:
    """A component that was continued after another has a second band."""
    steps = ["a", "a", "b", "a"]
    samples = [Sample(float(n), step, 1, 0) for n, step in enumerate(steps)]
    assert bands(samples) == [Band("a", 0, 1), Band("b", 1, 2), Band("a", 2, 3)]


@pytest.mark.parametrize("content", ["", "\n{}\n", "no json"])
def test_a_run_without_samples_says_so(tmp_path: Path, content: str) -> None:
    """Nothing to draw is a known error, not an empty picture."""
    (tmp_path / "memory.jsonl").write_text(content)
    with pytest.raises(RunFolderError, match="no memory samples"):
        read_samples(tmp_path / "memory.jsonl")
    with pytest.raises(RunFolderError, match="no memory samples"):
        read_samples(tmp_path / "absent.jsonl")


def test_show_plot_writes_a_picture_beside_the_run(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """`show RUN --plot` writes RUN/memory.png, says where, and prints the table as ever."""
    assert main(["show", str(run.path), "--plot"]) == 0
    shown = capsys.readouterr()
    assert "memory.png" in shown.err
    assert "stage 1" in shown.out
    with Image.open(run.path / "memory.png") as picture:
        assert picture.size[0] > 1000
        colours = picture.convert("RGB").getcolors(2**24)
    assert colours is not None
    assert len(colours) > 50


def test_more_than_ram_gets_a_second_panel(run: RunFolder, tmp_path: Path) -> None:
    """Where an accelerator was used its memory has a panel of its own."""
    write_chart(run, tmp_path / "one.png")
    lines = [line(float(t), "stage_1", 10**9, 5 * 10**9) for t in range(20)]
    (run.path / "memory.jsonl").write_text("\n".join(lines))
    write_chart(run, tmp_path / "two.png")
    heights = []
    for name in ("one.png", "two.png"):
        with Image.open(tmp_path / name) as picture:
            heights.append(picture.size[1])
    assert heights[1] == 2 * heights[0]


def test_without_matplotlib_the_install_command_is_told(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One line, with what to type."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackage, match=r"pip install 'lowmem-if\[plot\]'"):
        write_chart(run, tmp_path / "memory.png")
    assert main(["show", str(run.path), "--plot"]) == 1


def test_a_picture_that_cannot_be_written_is_told(run: RunFolder, tmp_path: Path) -> None:
    """A folder that is not there is named with the reason."""
    with pytest.raises(RunFolderError, match="cannot be written"):
        write_chart(run, tmp_path / "absent" / "memory.png")
