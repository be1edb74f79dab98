"""The GPU check without a GPU: parts in processes of their own, their results, and the report."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from pydantic import TypeAdapter

import bench.gpu.__main__ as command
from bench.gpu import ballast, report
from bench.gpu.card_tests import parsed
from bench.gpu.constants import collected
from bench.gpu.parts import PARTS
from bench.gpu.rows import COUNT, RATE, SECONDS, figure, row
from bench.gpu.runner import DONE, FAILED, TIMED_OUT, read_result, run_part
from bench.gpu.setup import ROOT, Setup
from lowmem_if.hardware.machine import probe
from lowmem_if.hardware.profiles import FOLDER, load_profile
from lowmem_if.hardware.speeds import ACCELERATOR, Speeds, Throughput, assumed

MADE_UP: Any = SimpleNamespace(name="made_up", title="Made up", limit_s=30, module="gpu_parts")


@pytest.fixture(autouse=True)
def _parts_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests/helpers'}")


def setup_for(tmp_path: Path, kind: str) -> Setup:
    return Setup("cpu", True, tmp_path / kind)


@pytest.mark.parametrize(
    ("kind", "why"),
    [("crashes", "ended by SIGSEGV"), ("raises", "ValueError: a fault made for a test")],
)
def test_a_part_that_dies_keeps_its_rows_and_says_why(tmp_path: Path, kind: str, why: str) -> None:
    """What was measured before is on disk, and the reason is in the result."""
    setup = setup_for(tmp_path, kind)
    result = run_part(setup, MADE_UP, 30)
    assert (result["status"], result["why"]) == (FAILED, why)
    assert [each["name"] for each in result["rows"]] == ["first"]
    assert read_result(setup, MADE_UP) == result


def ends(process: int) -> bool:
    """Whether a killed process ends; on a busy machine that takes a moment."""
    for _ in range(100):
        if not psutil.pid_exists(process) or psutil.Process(process).status() == "zombie":
            return True
        time.sleep(0.1)
    return False


def test_a_part_that_hangs_is_killed_with_all_that_it_started_and_goes_on_later(
    tmp_path: Path,
) -> None:
    """A second run gets the names of the rows that are there, and keeps them."""
    setup = setup_for(tmp_path, "hangs")
    result = run_part(setup, MADE_UP, 4)
    assert (result["status"], result["why"]) == (TIMED_OUT, "killed after 4 s")
    helper = int((setup.out / "helper").read_text())
    assert ends(helper)
    result = run_part(setup, MADE_UP, 30)
    assert result["status"] == DONE
    assert [each["text"] for each in result["rows"]] == ["first", ""]


@pytest.fixture
def made_up_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PARTS", (MADE_UP,))
    monkeypatch.setattr(report, "PARTS", (MADE_UP,))
    monkeypatch.setattr(command, "_slug", lambda _machine: "finds")


@pytest.mark.usefixtures("made_up_parts")
def test_the_command_writes_a_report_and_skips_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failed row makes the exit code; only --again measures what is done."""
    given = ["--device", "cpu", "--quick", "--out", str(tmp_path), "--docs", str(tmp_path / "docs")]
    assert command.main(given) == 1
    assert "done in" in capsys.readouterr().out
    text = (tmp_path / "docs" / "finds.md").read_text()
    assert "- Made up: last: see the figures" in text
    assert "| first | size | 1.00 GB | 2.00 GB | 2.00 |" in text
    assert json.loads((tmp_path / "docs" / "finds.json").read_text())["versions"]["torch"]
    assert command.main(given) == 1
    assert "made_up: done before" in capsys.readouterr().out
    assert command.main([*given, "--again"]) == 1
    assert "done in" in capsys.readouterr().out


@pytest.mark.usefixtures("made_up_parts")
def test_a_part_is_not_begun_without_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named, so that the same command does it later."""
    assert command.main(["--device", "cpu", "--minutes", "0.1", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "made_up: no time left" in shown
    assert "not run: made_up" in shown


def test_without_a_card_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and how to try the code."""
    assert command.main(["--device", "xpu"]) == 1
    assert "--device cpu --quick" in capsys.readouterr().err


def test_every_part_has_its_module() -> None:
    """`rows` of each part is found where the runner looks for it."""
    for part in PARTS:
        assert (ROOT / f"{part.module.replace('.', '/')}.py").is_file(), part
    assert len({part.name for part in PARTS}) == len(PARTS)


# --- the report and the constants


def result(*rows: dict[str, Any], part: str = "rates", **more: Any) -> dict[str, Any]:
    usual = {"status": DONE, "why": "", "seconds": 3.0, "date": "2026-11-28", "quick": False}
    return {"part": part, "rows": list(rows)} | usual | more


ABOUT = {"card": "Made-up T4, 15.8 GB", "machine": "a CPU", "versions": {"torch": "2.11"}}


def test_the_report_shows_predicted_beside_measured() -> None:
    """Units, ratios, remarks, failures, and parts that have not run."""
    rows = [
        row(
            "stage 1 | resident",
            figure("VRAM", 3e9, 2e9),
            figure("turn", 90.0, 60.0, SECONDS),
            figure("bus", 12.9e9, None, RATE),
            text="under a\nballast",
        ),
        row("bits", figure("numbers that differ", 7, 0, COUNT), ok=False),
    ]
    crashed = result(part="decoding", status=FAILED, why="ended by SIGSEGV")
    text = report.report(ABOUT, [result(*rows), crashed], {})
    assert "| stage 1 \\| resident: under a ballast | VRAM | 2.00 GB | 3.00 GB | 1.50 |" in text
    assert "|  | turn | 60.0 s | 90.0 s | 1.50 |" in text
    assert "|  | bus |  | 12.90 GB/s |  |" in text
    assert "| **FAILED** bits | numbers that differ | 0 | 7 |  |" in text
    assert "- Constants of the cost model: bits: see the figures" in text
    assert "- Decoding 1024 pixels in float32: failed, ended by SIGSEGV" in text
    assert text.count("Not run.") == len(PARTS) - 2


def test_the_constants_fit_the_cost_model_and_a_profile(tmp_path: Path) -> None:
    """Paces of rehearsals replace those of a calibration; the TOML in the report is a profile's."""
    rates = replace(assumed("cuda", (7, 5)), bus_bytes=11e9, origin="measured here")
    dumped = TypeAdapter(Speeds).dump_python(rates, mode="json")
    pace = {"place": ACCELERATOR, "dtype": "float16", "component": "stage_1"}
    paces = [pace | {"flops_per_s": value} for value in (9e12, 7e12, 8e12)]
    found = collected(
        [
            result(row("rehearsed", constants={"paces": paces})),
            result(row("constants", constants={"rates": dumped})),
            result(row("torch", constants={"process": {"torch_ram_bytes": 1}})),
            result(row("libraries", constants={"process": {"libraries_ram_bytes": 2}})),
        ]
    )
    assert found["process"] == {"torch_ram_bytes": 1, "libraries_ram_bytes": 2}
    read = TypeAdapter(Speeds).validate_python(json.loads(json.dumps(found["rates"])))
    assert read.paces[0] == Throughput(ACCELERATOR, "float16", "stage_1", 8e12)
    assert read.bus_bytes == 11e9
    text = report.report(ABOUT, [], found)
    table = text.partition("```toml\n")[2].partition("```")[0]
    shipped = (FOLDER / "colab-free.toml").read_text().partition("[rates]")[0]
    (tmp_path / "own.toml").write_text(shipped + table)
    speeds = load_profile(tmp_path / "own.toml").machine.speeds
    assert speeds.bus_bytes == 11e9
    assert speeds.flops_per_s(ACCELERATOR, "stage_2", "float16") == 8.4e12


def test_pytests_output_becomes_rows() -> None:
    """Passed, failed and skipped tests; the summary's words replace those of a failed row."""
    lines = [
        "collected 3 items\n",
        "tests/whole_runs/test_cuda.py::test_a[pins0] PASSED [ 33%]\n",
        "tests/whole_runs/test_cuda.py::test_b FAILED [ 66%]\n",
        "tests/whole_runs/test_cuda.py::test_c SKIPPED (no card) [100%]\n",
        "FAILED tests/whole_runs/test_cuda.py::test_b - AssertionError: stage_1\n",
    ]
    found = [(each["name"], each["ok"], each["text"]) for each in parsed(lines)]
    assert found == [
        ("test_a[pins0]", True, ""),
        ("test_b", False, "failed"),
        ("test_c", None, "skipped"),
        ("test_b", False, "AssertionError: stage_1"),
    ]


def test_a_ballast_takes_what_is_too_much_and_answers() -> None:
    """Nothing where the card is smaller than that; each line asks for what is in use."""
    assert ballast.bytes_to_take(80, 15) == 65
    assert ballast.bytes_to_take(14, 15) == 0
    answers = io.StringIO()
    ballast.serve(["\n", "\n"], answers, lambda: (3, 10))
    assert answers.getvalue() == '{"used": 7}\n' * 2
    with ballast.holding("cpu", 15) as nothing:
        assert (nothing.taken_bytes, nothing.used_bytes()) == (0, 0)


def test_a_ballast_that_cannot_start_is_an_error() -> None:
    """Its device does not exist: the part fails, instead of measuring without a ballast."""
    if probe().kind == "cuda":
        pytest.skip("there is a card")
    with pytest.raises(RuntimeError, match="ballast has ended"), ballast.holding("cuda:0", 15):
        pass
