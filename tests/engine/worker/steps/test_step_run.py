"""Free VRAM is read again before a component loads; what is too little by then is a shortage."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lowmem_if.engine.events import ignore
from lowmem_if.engine.worker import command_loop
from lowmem_if.engine.worker.model_cache import ModelCache
from lowmem_if.engine.worker.steps import step_run
from lowmem_if.engine.worker.steps.step_run import StepRun
from lowmem_if.engine.worker_answers import read_event
from lowmem_if.engine.worker_commands import Command
from lowmem_if.engine.worker_process import WorkerProcess
from lowmem_if.weights.memory_readings import VramTaken, free_vram

GB = 10**9


def test_free_is_what_the_driver_or_the_allocator_has_unused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks that torch holds and nobody uses can be had, too."""
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda _d: (3 * GB, 8 * GB))
    monkeypatch.setattr(torch.accelerator, "memory_reserved", lambda _d: 2 * GB)
    monkeypatch.setattr(torch.accelerator, "memory_allocated", lambda _d: GB)
    assert free_vram("cuda:0") == 4 * GB
    assert free_vram("cpu") is free_vram("mps") is None


def test_a_driver_that_does_not_tell_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some XPU drivers raise, others say nothing."""

    def silent(_device: str) -> tuple[int, int]:
        raise RuntimeError("not supported")

    monkeypatch.setattr(torch.accelerator, "get_memory_info", silent)
    assert free_vram("xpu:0") is None
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda _d: (0, 0))
    monkeypatch.setattr(torch.accelerator, "memory_reserved", lambda _d: 0)
    monkeypatch.setattr(torch.accelerator, "memory_allocated", lambda _d: 0)
    assert free_vram("xpu:0") is None


@pytest.fixture
def run() -> Any:
    """A step of stage 1 that needs 5 GB of VRAM."""
    run: Any = object.__new__(StepRun)
    run.step = SimpleNamespace(
        component="stage_1",
        config=SimpleNamespace(device="cuda:0"),
        estimate=SimpleNamespace(vram_bytes=5 * GB),
    )
    run.notices = []
    run.folder = SimpleNamespace(
        plan=SimpleNamespace(pins={}), note=lambda text: run.notices.append(text) or True
    )
    run.report = ignore
    return run


@pytest.mark.parametrize("free", [None, 5 * GB, 9 * GB])
def test_where_there_is_room_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, run: Any, free: int | None
) -> None:
    """To the byte: the plan has left some more free, and the worker's own context has taken that."""
    monkeypatch.setattr(step_run, "free_vram", lambda _device: free)
    run._check_vram()
    assert run.notices == []


def test_what_other_programs_have_taken_is_a_shortage(
    monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    """With a notice, before anything is loaded."""
    monkeypatch.setattr(step_run, "free_vram", lambda _device: 4 * GB)
    with pytest.raises(VramTaken) as caught:
        run._check_vram()
    assert caught.value.available_bytes == 4 * GB
    (notice,) = run.notices
    assert "stage 1: 4.0 GB of VRAM are free now and 5.0 GB are needed" in notice


def test_a_pinned_component_is_tried_all_the_same(
    monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    """The user has decided, and predictions are not exact."""
    monkeypatch.setattr(step_run, "free_vram", lambda _device: 4 * GB)
    run.folder.plan.pins = {"stage_1": "resident"}
    run._check_vram()


def test_the_scheduler_hears_how_much_is_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From the worker's answer on, so that the next step is chosen for what there is."""

    def fail(*_given: object) -> None:
        raise VramTaken(4 * GB, 5 * GB)

    monkeypatch.setattr(command_loop, "_handle", fail)
    answer = command_loop._answer(Command(str(tmp_path)), None, ModelCache(), ignore)
    assert (answer.kind, answer.total, answer.name) == ("out_of_memory", 4 * GB, "")
    shop = WorkerProcess()
    monkeypatch.setattr(shop, "_ensure_started", lambda _folder, _report: True)
    monkeypatch.setattr(shop, "_send", lambda *_given: (read_event(answer.to_line()), "stage_1"))
    step = SimpleNamespace(config=SimpleNamespace(device="cuda:0"))
    plan = SimpleNamespace(step=lambda _component: step)
    folder: Any = SimpleNamespace(path=tmp_path, plan=plan)
    short = shop.work(folder, 0, report=ignore, preview_every=0)
    assert short is not None
    assert (short.component, short.resource, short.available_bytes) == ("stage_1", "VRAM", 4 * GB)
