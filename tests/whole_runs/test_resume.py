"""A killed run goes on to the very same bytes and does nothing twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from forked_workers import run_python, start_python
from killing import work_until
from runs import plan_of, results, run_here

from lowmem_if.api.run import resume
from lowmem_if.engine.events import Event
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.errors import RunFolderError
from lowmem_if.planning.plan import Plan

COMMAND_LINE = Path(__file__).parents[1] / "helpers" / "command_line.py"

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills processes")


@pytest.fixture(scope="module")
def plan(tiny: Path) -> Plan:
    return plan_of(tiny, ("a red circle", "a blue star"), seed=(3, 4))


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the unbroken run's folder at each of its events."""
    return tmp_path_factory.mktemp("copies")


@pytest.fixture(scope="module")
def unbroken(plan: Plan, tmp_path_factory: pytest.TempPathFactory, copies: Path) -> Any:
    """An unbroken run's events and results."""
    path = tmp_path_factory.mktemp("unbroken") / "run"
    RunFolder.for_plan(path, plan)
    code, events = work_until(path, copies=copies)
    assert code == 0
    return events, results(path)


@pytest.mark.worker
def test_a_run_killed_at_any_event_ends_as_if_it_had_not_been(
    plan: Plan, unbroken: Any, copies: Path, tmp_path: Path
) -> None:
    """SIGKILL at events, step boundaries and middles: same bytes, no finished step done again.

    Each third run is really killed; the others begin with what the unbroken run had on the disk then.
    """
    events, expected = unbroken
    boundaries = [n for n, (kind, _) in enumerate(events, 1) if kind in ("started", "finished")]
    middles = [n for n, (kind, _) in enumerate(events, 1) if kind in ("drawing", "saved")]
    assert len(boundaries) == 10
    for number, last in enumerate(sorted({*boundaries, *middles[::5]})):
        path = tmp_path / f"killed-{last}"
        if number % 3 == 0:
            RunFolder.for_plan(path, plan)
            code, before = work_until(path, last)
            assert code == -signal.SIGKILL, last
        else:
            shutil.copytree(copies / str(last), path)
            before = events[:last]
        done = {component for kind, component in before if kind == "finished"}
        saved_before = before.count(("saved", "stage_1"))
        code, after = work_until(path)
        assert code == 0, last
        assert results(path) == expected, last
        assert not any(component in done for kind, component in after if kind != "skipped"), last
        if "stage_1" not in done:
            assert saved_before + after.count(("saved", "stage_1")) == 2, last
        shutil.rmtree(path)


@pytest.mark.worker
def test_a_run_killed_again_and_again_still_arrives(
    plan: Plan, unbroken: Any, tmp_path: Path
) -> None:
    """A worker that dies after every eighth event makes progress each time."""
    path = tmp_path / "run"
    RunFolder.for_plan(path, plan)
    for _ in range(40):
        code, _events = work_until(path, last=8)
        if code == 0:
            break
    assert results(path) == unbroken[1]


def test_half_written_files_of_a_killed_writer_are_removed(tiny: Path, tmp_path: Path) -> None:
    """What a killed process left half written is gone after the next run."""
    plan = plan_of(tiny, size=64)
    path = RunFolder.for_plan(tmp_path / "run", plan).path
    (path / "stage_1").mkdir()
    left = path / "stage_1" / ".0000.png.abcd.partial"
    left.write_bytes(b"half")
    run_here(plan, path)
    assert not left.exists()


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is complete."""
    return run_here(plan_of(tiny, seed=5), tmp_path_factory.mktemp("finished") / "run").path


@pytest.mark.parametrize("damage", ["truncate", "garble", "delete"])
@pytest.mark.parametrize("victim", ["embeds", "stage_1", "stage_2", "stage_3"])
def test_damaged_results_are_made_again_when_they_are_needed(
    finished: Path, tmp_path: Path, victim: str, damage: str
) -> None:
    """A lost picture is drawn again from damaged or missing tensors of finished steps, the same."""
    expected = results(finished)
    folder = RunFolder.open(Path(shutil.copytree(finished, tmp_path / "run")))
    (folder.path / "0000.png").unlink()
    for stage in ("stage_3", "stage_2", "stage_1", "embeds"):
        for file in (folder.path / stage).glob("*.safetensors"):
            {
                "truncate": lambda file=file: file.write_bytes(file.read_bytes()[:-7]),
                "garble": lambda file=file: file.write_bytes(b"\xff" * 64),
                "delete": file.unlink,
            }[damage]()
        if stage == victim:
            break
    run_here(folder.plan, folder.path)
    assert results(folder.path) == expected


def test_a_finished_run_is_read_back_without_a_worker(tiny: Path, tmp_path: Path) -> None:
    """Continuing a complete run starts no process and returns its pictures."""
    folder = run_here(plan_of(tiny, size=64), tmp_path / "run")
    events: list[Event] = []
    result = resume(folder.path, report=events.append)
    assert [image.name for image in result.images] == ["0000.png"]
    assert not events


@pytest.mark.worker
def test_the_command_line_killed_in_the_middle_is_resumed(tiny: Path, tmp_path: Path) -> None:
    """SIGKILL to `lowmem-if generate` ends its worker too, and `resume` ends with the same picture."""
    command = [sys.executable, str(COMMAND_LINE)]
    path = tmp_path / "run"
    request = ["a red circle", "--cascade", str(tiny), "--seed", "1", "--steps", "25,2,2"]
    killed = start_python(
        [*command, "generate", *request, "--out", str(path)], stderr=subprocess.DEVNULL
    )
    wait_for(lambda: "stage_1" in (path / "memory.jsonl").read_text(), path / "memory.jsonl")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    wait_for(lambda: can_lock(path), path)
    done = run_python([*command, "resume", str(path)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(path / "0000.png")
    whole = run_here(plan_of(tiny, steps=(25, 2, 2), prefer=None), tmp_path / "whole")
    name = "stage_3/0000.safetensors"
    assert (path / name).read_bytes() == (whole.path / name).read_bytes()


def test_weights_that_changed_since_are_refused(tiny: Path, tmp_path: Path) -> None:
    """A run whose weights were replaced half way says so instead of mixing two cascades."""
    cascade = tmp_path / "cascade"
    shutil.copytree(tiny, cascade)
    plan = plan_of(cascade, size=64)
    folder = run_here(plan, tmp_path / "run")
    weights = cascade / "stage_1" / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (folder.path / "0000.png").unlink()
    (folder.path / "stage_1" / "0000.safetensors").unlink()
    with pytest.raises(RunFolderError, match="files of stage_1 have changed"):
        run_here(plan, folder.path)


def wait_for(condition: Any, file: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if file.exists() and condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for {file}")


def can_lock(path: Path) -> bool:
    try:
        with RunFolder.open(path).locked():
            return True
    except RunFolderError:
        return False
