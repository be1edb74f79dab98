"""Workers that die: what memory killed goes on more cheaply, everything else ends the run, once."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import FAULTY, inject
from runs import CPU, kinds, plan_of, run_here
from safetensors.torch import load_file

from lowmem_if.api.run import run
from lowmem_if.engine import worker_process
from lowmem_if.engine.events import Event
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.session import Session
from lowmem_if.engine.worker import environment
from lowmem_if.engine.worker.environment import worker_environment
from lowmem_if.engine.worker_answers import CommandFailed
from lowmem_if.engine.worker_commands import Command, CommandChannel
from lowmem_if.engine.worker_process import WorkerCrashed
from lowmem_if.errors import DeviceError, LowmemError, OutOfMemory, RunFolderError, WorkerDied
from lowmem_if.planning.fallback import changed_pixels
from lowmem_if.planning.plan import make_plan
from lowmem_if.request.build import make_request
from lowmem_if.system.paths import quoted


@pytest.mark.worker
def test_out_of_memory_in_the_upscaler_goes_on_in_strips(
    tiny: Path, tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends with a picture, one retry, named in the log; earlier stages are not done again."""
    inject(monkeypatch, "out_of_memory_unless_in_strips", starts)
    events: list[Event] = []
    result = run(plan_of(tiny, prefer=None), tmp_path / "run", report=events.append)
    folder = RunFolder.open(result.folder)
    assert len(result.images) == 1
    assert starts.read_text() == "xx"
    assert kinds(events, "retry") == ["upscaler"]
    assert kinds(events, "finished").count("stage_1") == 1
    assert folder.log == ("upscaler: RAM ran out with resident float32 on cpu",)
    (notice,) = folder.notices
    assert "strips, so pixels differ" in notice
    assert folder.plan.step("upscaler").config.decoding == "strips"


@pytest.mark.worker
def test_a_users_own_preference_is_kept_after_out_of_memory(
    tiny: Path, tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under `exact` nothing decodes in strips; the error names the preference."""
    inject(monkeypatch, "out_of_memory_unless_in_strips", starts)
    with pytest.raises(OutOfMemory, match=r"upscaler .*--prefer exact allows nothing cheaper"):
        run(plan_of(tiny), tmp_path / "run")
    plan = RunFolder.open(tmp_path / "run").plan
    assert {step.config.decoding for step in plan.steps} == {"whole"}


@pytest.mark.worker
def test_a_smaller_batch_is_tried_before_anything_is_given_up(
    tiny: Path, tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two, then one at a time clearly take less; that is tried twice, and the error says what to do."""
    inject(monkeypatch, "out_of_memory_always", starts)
    request = make_request(tuple("abcd"), cascade=str(tiny), seed=(1,), steps=(2,), size=64)
    plan = make_plan(CPU, request, prefer="balanced")
    with pytest.raises(OutOfMemory, match=r"ran out in stage 1 .*nothing cheaper.*resume"):
        run(plan, tmp_path / "run")
    assert starts.read_text() == "xxxx"
    folder = RunFolder.open(tmp_path / "run")
    assert len(folder.log) == 3
    assert folder.plan.step("stage_1").config.batch == 1


@pytest.mark.worker
def test_a_pinned_component_is_not_moved_when_memory_runs_out(
    tiny: Path, tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pin is kept even then: the run ends and says that the pin allows nothing cheaper."""
    inject(monkeypatch, "killed_in_stage_1", starts)
    plan = plan_of(tiny, size=64, pins=["stage_1=resident:float32"])
    with pytest.raises(OutOfMemory, match="your pin allows nothing cheaper"):
        run(plan, tmp_path / "run")


def test_a_file_system_without_locks_is_no_reason_not_to_run(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network and cloud drives that know no locks can hold a run folder."""
    import fcntl

    def unsupported(*_args: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with RunFolder.for_plan(tmp_path / "run", plan_of(tiny)).locked():
        pass


@pytest.mark.worker
def test_a_worker_that_the_system_kills_is_a_known_event(
    tiny: Path, tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL counts as memory; the cheapest step is tried twice, and then the run can be resumed."""
    inject(monkeypatch, "killed_in_stage_1", starts)
    plan = plan_of(tiny, size=64)
    with pytest.raises(
        OutOfMemory, match=r"the system killed the worker.*exact allows nothing cheaper"
    ):
        run(plan, tmp_path / "run")
    assert starts.read_text() == "xx"
    monkeypatch.undo()
    os.chdir(tmp_path)
    assert len(run_here(plan, tmp_path / "run").images) == 1


@pytest.mark.worker
def test_the_cheapest_step_is_tried_again_once(
    tiny: Path, tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAM belongs to all processes: what was killed at first may find room a moment later."""
    inject(monkeypatch, "killed_in_stage_1_at_first", starts)
    plan, events = plan_of(tiny, size=64), list[Event]()
    result = run(plan, tmp_path / "run", report=events.append)
    assert starts.read_text() == "xx"
    (retry,) = [event for event in events if event.kind == "retry"]
    assert "nothing takes less of it; trying the same" in retry.text
    folder = RunFolder.open(result.folder)
    assert folder.plan == plan
    assert folder.log == ("stage_1: RAM ran out and nothing takes less of it",)
    assert folder.notices == ()


@pytest.mark.worker
def test_a_worker_that_is_killed_while_it_starts_is_started_again_once(
    tiny: Path, tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing the libraries takes RAM, too."""
    inject(monkeypatch, "killed_at_the_first_start", starts)
    assert len(run(plan_of(tiny, size=64), tmp_path / "run").images) == 1
    assert starts.read_text() == "xx"
    inject(monkeypatch, "killed_at_every_start", starts)
    with pytest.raises(WorkerDied, match="killed while it started"):
        run(plan_of(tiny, size=64), tmp_path / "other")
    assert starts.read_text() == "xxxx"


@pytest.mark.worker
def test_a_worker_that_bitsandbytes_ends_is_a_shortage(
    tiny: Path, tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It prints a line and calls exit(1) from C++; the step is tried again, and no bug is told."""
    inject(monkeypatch, "bitsandbytes_exits_at_first", starts)
    assert len(run(plan_of(tiny, size=64), tmp_path / "run").images) == 1
    assert starts.read_text() == "xx"


@pytest.mark.worker
def test_a_file_lost_under_a_mapping_is_told_and_not_retried(
    tiny: Path, tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGBUS takes the worker, not us: we say what it means and how to go on."""
    inject(monkeypatch, "touches_a_lost_page", starts)
    with pytest.raises(
        WorkerDied, match=r"SIGBUS in stage_1 \(a weight file became shorter.*resume"
    ):
        run(plan_of(tiny, size=64), tmp_path / "run")
    assert starts.read_text() == "x"


@pytest.mark.worker
def test_a_bug_is_never_retried(
    tiny: Path, tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that is not about memory starts no second worker and brings its traceback."""
    inject(monkeypatch, "bug", starts)
    with pytest.raises(WorkerCrashed, match="a fault made for a test"):
        run(plan_of(tiny, size=64), tmp_path / "run")
    assert starts.read_text() == "x"


@pytest.mark.worker
def test_a_known_error_of_the_worker_is_the_callers_own(
    tiny: Path, tmp_path: Path, starts: Path
) -> None:
    """What the worker could tell in words arrives as the same exception here."""
    folder = RunFolder.for_plan(tmp_path / "run", plan_of(tiny, size=64))
    folder.prepare()
    folder.keep_weights("text_encoder", "another fingerprint")
    with pytest.raises(RunFolderError, match="files of text_encoder have changed"):
        run(folder.plan, folder.path)


def test_two_runs_in_one_folder_are_refused(tiny: Path, tmp_path: Path) -> None:
    """The second run says that the folder is in use, and leaves it alone."""
    plan = plan_of(tiny, size=64)
    folder = RunFolder.for_plan(tmp_path / "run", plan)
    with folder.locked(), pytest.raises(RunFolderError, match="in use by another run"):
        run(plan, folder.path)


@pytest.mark.parametrize("when", ["in a step", "while the worker starts"])
@pytest.mark.worker(start="python")
def test_ctrl_c_ends_with_130_and_takes_the_worker_along(
    tiny: Path, tmp_path: Path, starts: Path, when: str
) -> None:
    """An interrupt in the middle of a step ends both processes; the folder can be continued."""
    path = tmp_path / "run"
    code = (
        "import sys; from lowmem_if.engine import worker_process;"
        "from lowmem_if.cli.main import main;"
        f"worker_process.WORKER = ({str(FAULTY)!r}, 'waits', {str(starts)!r});"
        "sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["generate", "x", "--cascade", str(tiny), "--size", "64", "--out", str(path)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    if when == "in a step":
        wait_until(lambda: (path / "memory.jsonl").exists() and "stage_1" in sampled(path))
    else:
        wait_until(lambda: (path / "worker.log").exists())
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the worker too
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"continue with `lowmem-if resume {quoted(path)}`" in told
    assert "Traceback" not in told
    with RunFolder.open(path).locked():
        pass  # which the worker would still hold


@pytest.mark.worker(start="python")
def test_a_worker_leaves_with_its_parent(tiny: Path, tmp_path: Path) -> None:
    """A worker whose standard input closes ends at once, and holds its folder until then."""
    folder = RunFolder.for_plan(tmp_path / "run", plan_of(tiny, steps=500))
    line = CommandChannel()
    worker = subprocess.Popen(
        [sys.executable, *worker_process.WORKER],
        stdin=line.far_end, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(line.far_end)
    with folder.locked() as lock:
        line.send(Command(str(folder.path)), lock)
        wait_until(lambda: folder.memory_file.exists() and "stage_1" in sampled(folder.path))
    with pytest.raises(RunFolderError, match="in use"), folder.locked():
        pass
    if sys.platform == "linux":
        assert Path(f"/proc/{worker.pid}/fd/0").samefile(os.devnull), "orders are read elsewhere"
    line.close()
    assert worker.wait(timeout=30) == 1
    with folder.locked():
        pass


@pytest.mark.worker(start="python")
def test_the_worker_draws_the_pixels_of_this_process(tiny: Path, tmp_path: Path) -> None:
    """Running in a process of its own changes no bit."""
    plan = plan_of(tiny)
    theirs = run(plan, tmp_path / "worker").folder
    ours = run_here(plan, tmp_path / "here").path
    for stage in ("stage_1", "stage_2", "stage_3"):
        name = f"{stage}/0000.safetensors"
        assert torch.equal(load_file(theirs / name)["tensor"], load_file(ours / name)["tensor"])


def test_the_worker_never_asks_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline mode is set for the worker even if the user's environment says otherwise."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert worker_environment(os.environ)["HF_HUB_OFFLINE"] == "1"


def test_every_error_of_the_tree_survives_the_pipe() -> None:
    """An error's text arrives unchanged whatever its class wants in its constructor."""
    for cls in LowmemError.__subclasses__():
        error = CommandFailed(cls.__name__, "what").to_error()
        assert type(error) is cls
        assert str(error) == "what"


def sampled(path: Path) -> str:
    return (path / "memory.jsonl").read_text()


def wait_until(condition: object, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"decoding": "strips"}, "in strips"),
        ({"compute_dtype": "bfloat16"}, "computes in bfloat16"),
        ({"batch": 1}, "1 at a time"),
        ({"device": "cuda:0"}, "works on cuda:0"),
        ({"strategy": "sequential_offload"}, ""),
    ],
)
def test_a_cheaper_step_that_moves_pixels_says_so(
    tiny: Path, change: dict[str, Any], told: str
) -> None:
    """Moving weights elsewhere changes no pixel and needs no words; everything else does."""
    config = replace(plan_of(tiny).step("upscaler").config, batch=2)
    assert told in changed_pixels(config, replace(config, **change))
    assert bool(told) == bool(changed_pixels(config, replace(config, **change)))


@pytest.mark.worker
def test_without_expandable_segments_the_worker_is_started_once_more(
    tiny: Path, tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the driver refuses them the run goes on without, under the same plan, and says so."""
    inject(monkeypatch, "segments_fail", starts)
    monkeypatch.setattr(environment, "segments_expand", lambda _root: True)
    plan, events = plan_of(tiny, size=64), list[Event]()
    with Session(keep_loaded=False, report=events.append) as session:
        results = [session.run(plan, tmp_path / name) for name in "ab"]
    assert starts.read_text() == "xx"  # the second run goes on with the second worker
    assert [len(result.images) for result in results] == [1, 1]
    (notice,) = results[0].notices
    assert "expandable segments (CUDA driver error: unknown error): they are not used" in notice
    assert kinds(events, "notice") == ["text_encoder"]
    assert kinds(events, "retry") == []
    assert RunFolder.open(results[0].folder).plan == plan
    assert results[1].notices == ()


@pytest.mark.worker
def test_the_users_own_expandable_segments_are_the_users_to_take_out(
    tiny: Path, tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the user has set is not overridden: the run ends and names the variable."""
    inject(monkeypatch, "segments_fail", starts)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    with pytest.raises(DeviceError, match="take them out of PYTORCH_ALLOC_CONF"):
        run(plan_of(tiny, size=64), tmp_path / "run")
    assert starts.read_text() == "x"
