"""The side-by-side measurements: all ways give the same bits, and whatever happens is a row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.__main__ as command
from bench import results, ways
from bench.case import measure
from bench.cases import SUBJECTS, THEIRS, UNET_WAYS, WAYS, Case, chosen, missing_components, unknown

WRITING = {"group-offload-disk", "disk-offload", "convert"}


@pytest.fixture
def case(tiny: Path, tmp_path: Path) -> Case:
    (tmp_path / "scratch").mkdir()
    return Case("if-m", "stage_1", "resident", tiny, tmp_path / "scratch", steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["stage_1", "text_encoder", "text_encoder-int8"])
def test_all_ways_compute_the_same_bits(case: Case, subject: str) -> None:
    """Those that run on this machine; the one that never runs on a CPU says so."""
    hashes = {}
    for way in SUBJECTS[subject].ways:
        own = case.scratch / way
        own.mkdir()
        record = measure(replace(case, subject=subject, way=way, scratch=own))
        if way == "model-offload":  # it would compute on an accelerator, were there one
            told = record.get("failed", {}).get("text", "")
            assert torch.accelerator.is_available() or "requires accelerator" in told
            continue
        assert "failed" not in record, (way, record)
        assert record["load"]["rss"] > record["load"]["anon"] > 0
        if way != "device-map-disk":  # diffusers writes copies for it, transformers does not
            assert (record["written_bytes"] > 0) == (way in WRITING), way
        if "output" in record:
            assert len(record["steps"]["seconds"]) == case.steps
            hashes[way] = record["output"]["hash"]
    rounded = {hashes.pop(way) for way in UNET_WAYS if way in hashes}
    assert hashes["resident"] == hashes["from_pretrained"] not in rounded
    assert len({*hashes.values()}) == 1, hashes


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(command, "OUT", tmp_path / "out")
    monkeypatch.setattr(command, "RESULTS", tmp_path / "RESULTS.md")
    return tmp_path / "out"


@pytest.mark.worker
def test_a_row_is_measured_in_a_child_and_written(tiny: Path, out: Path, tmp_path: Path) -> None:
    """With the machine's and the libraries' names; nothing else is left behind."""
    only = ["--only", "stage_1/resident", "--threads", "1"]
    assert command.main(["--quick", "--cascade-folder", str(tiny), *only]) == 0
    (line,) = map(json.loads, (out / "if-m.jsonl").read_text().splitlines())
    assert line["threads"] == 1
    assert line["load"]["anon"] > 50e6
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| ours, resident |" in text
    assert "### I-M, the stage 1 UNet" in text
    assert "torch 2" in text
    assert str(tmp_path) not in text
    assert sorted(path.name for path in out.iterdir()) == ["errors.log", "if-m.jsonl"]


@pytest.mark.worker
def test_rows_stay_beside_new_ones_only_if_nothing_else_changed(
    tiny: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another number of steps or other weights begin a new table; no line is ever lost."""
    figures = {k: v for k, v in good("", 1, 1, 1).items() if k not in line("")}
    monkeypatch.setattr(command, "run", lambda *_: figures)
    other = shutil.copytree(tiny, tmp_path / "other")

    def rows(way: str, *options: str, folder: Path = tiny) -> list[str]:
        given = ["--quick", "--cascade-folder", str(folder), *options]
        assert command.main([*given, "--only", f"stage_1/{way}"]) == 0
        names = {name: way for way, name in WAYS.items()}
        cells = [row.split(" | ")[0][2:] for row in (tmp_path / "RESULTS.md").open()]
        return [names[cell] for cell in cells if cell in names]

    assert rows("limit") == ["limit"]
    assert rows("resident", "--repeat", "2") == ["limit", "resident"]
    assert rows("limit") == ["limit", "resident"]
    assert rows("resident", "--steps", "7") == ["resident"]
    assert rows("resident", folder=other) == ["resident"]
    assert rows("convert", "--missing") == ["limit", "resident", "convert"]
    assert rows("convert", "--missing") == ["limit", "resident", "convert"]
    assert len((out / "if-m.jsonl").read_text().splitlines()) == 7


@pytest.mark.worker
def test_networks_may_differ_in_their_number_of_steps(
    tiny: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of one network are compared; those of another stay, and so do rows that take no steps."""
    figures = {k: v for k, v in good("", 1, 1, 1).items() if k not in line("")}
    still = {k: v for k, v in figures.items() if k not in ("steps", "output")}

    def measure(*names: str, figures: Any) -> int:
        monkeypatch.setattr(command, "run", lambda *_: figures)
        given = ["--quick", "--cascade-folder", str(tiny)]
        command.main([*given, "--only", *names])
        cells = [row.split(" | ")[0][2:] for row in (tmp_path / "RESULTS.md").open()]
        return sum(cell in WAYS.values() for cell in cells)

    assert measure("stage_1/limit", "--steps", "5", figures=still) == 1
    assert measure("upscaler-text/resident", "--steps", "9", figures=figures) == 2
    assert measure("stage_1/resident", figures=figures) == 3


@pytest.mark.parametrize(
    ("child", "told"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "ran out of memory: the system",
        ),
        ("raise SystemExit(3)", "failed: exit status 3"),
        ("import time; time.sleep(60)", "failed: not done after 0.7 s"),
    ],
)
@pytest.mark.worker
def test_a_child_that_dies_is_a_row_and_the_others_follow(
    tiny: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: str, told: str
) -> None:
    """Only a row of ours that fails is a failure of the command."""
    monkeypatch.setattr(command, "CHILD", ("-c", child))
    arguments = ["--quick", "--cascade-folder", str(tiny), "--timeout", "0.7"]
    assert command.main([*arguments, "--only", "stage_1/disk-offload"]) == 0
    assert command.main([*arguments, "--only", "stage_1/resident"]) == 1
    rows = [row for row in (tmp_path / "RESULTS.md").read_text().splitlines() if told in row]
    assert len(rows) == 2
    assert not (out / "scratch").exists()


def test_memory_that_runs_out_is_told_apart(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no folder of this machine is named."""

    @contextmanager
    def short(case: Case) -> Iterator[None]:
        raise MemoryError(f"nothing left for {case.folder}/stage_1\nmore")
        yield

    monkeypatch.setitem(ways.BY_NAME, "resident", ways.Way(short))
    assert measure(case)["failed"] == {"kind": "memory", "text": "nothing left for stage_1"}


def line(way: str, **figures: Any) -> results.Line:
    return {
        "subject": "stage_1", "way": way, "repeat": 0, "time": "2026-11-24T10:00:00+00:00",
        "machine": {"cpu": "A CPU", "cores": 2, "ram_bytes": 8 * 10**9, "kernel": "6.1"},
        "versions": {"torch": "2.13.0"}, "load_average": 0.5, "device": "cpu", "dtype": "bfloat16",
        "cold": False, "steps_asked": 3, "threads": 2,
    } | figures  # fmt: skip


def good(way: str, load: float, anon: float, step: float, digest: str = "a") -> results.Line:
    memory = {"anon": int(anon * 1e9), "rss": int(2 * anon * 1e9)}
    return line(
        way,
        file_bytes=10**9, weight_bytes=10**9, start={"anon": 3 * 10**8}, written_bytes=0,
        load=memory | {"seconds": load}, steps=memory | {"seconds": [9.0, step, step]},
        output={"hash": digest, "sum": 1.5, "finite": True},
    )  # fmt: skip


def test_the_table_compares_with_from_pretrained() -> None:
    """Ratios, bits, medians of rounds; what does not run is a row."""
    rows = [
        line("model-offload", failed={"kind": "error", "text": "no | accelerator"}),
        good("from_pretrained", 10, 4, 2),
        good("resident", 3, 2, 2) | {"repeat": 1},
        good("resident", 5, 2.5, 2),
        good("resident", 4, 2, 2),
        good("streamed-0", 1, 1, 3, digest="b"),
        good("group-offload", 1, 1, 3),
        line("group-offload", failed={"kind": "memory", "text": "killed"}),
    ]
    text = results.section("if-m", rows)
    table = {row.split(" | ")[0]: row.split(" | ")[1:] for row in text.splitlines() if "|" in row}
    assert table["| ours, resident"][:2] == ["4.0 (3.0 to 5.0)", "2.50 / 2.50"]
    assert table["| ours, resident"][-1] == "0.40, 0.50, 1.00 |"
    assert table["| ours, resident"][3:6] == ["2.0 (2.0 to 2.0) (9.0)", "", "same bits"]
    assert table["| ours, streamed, none of it resident"][5].startswith("**differs**")
    assert "does not run here: no \\| accelerator" in text
    assert "2 rounds" in text
    assert "to RAM (failed in 1 of 2 rounds) |" in text


def test_other_cascades_sections_stay(tmp_path: Path) -> None:
    """A quick run does not lose what hours have measured."""
    file = tmp_path / "RESULTS.md"
    results.update(file, "if-xl", [good("from_pretrained", 10, 4, 2)])
    results.update(file, "if-m", [good("resident", 3, 2, 2)])
    results.update(file, "if-m", [good("limit", 3, 2, 2)])
    text = file.read_text()
    assert text.index("## if-xl") < text.index("## if-m")
    assert text.count("## if-m") == 1
    assert "as the docs do it" in text
    assert "ours, resident" not in text


def test_rows_are_chosen_by_network_or_way(tiny: Path, tmp_path: Path) -> None:
    """A name picks all of its rows; a wrong one is told."""
    assert {*chosen(["limit"], quick=True)} == {("stage_1", "limit"), ("upscaler-text", "limit")}
    assert [*chosen(["stage_2/resident"], quick=True)] == [("stage_2", "resident")]
    assert [way for _, way in chosen(["upscaler"], quick=False)] == [*WAYS]
    of_an_encoder = [way for _, way in chosen(["upscaler-text"], quick=False)]
    assert of_an_encoder == [way for way in WAYS if way not in UNET_WAYS]
    assert unknown(["stage_1/resident", "stage_9", "text_encoder-int8/convert"]) == [
        "stage_9",
        "text_encoder-int8/convert",
    ]
    assert missing_components(tiny, ["stage_1", "upscaler"]) == []
    assert missing_components(tmp_path, ["stage_1", "upscaler-text"]) == ["stage_1", "upscaler"]
    assert {*THEIRS} < WAYS.keys() == ways.BY_NAME.keys()
