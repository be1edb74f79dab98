"""Compiled UNets: where they pay, what the plan says of them, and that a run can do without."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import CPU, plan_of, run_here
from safetensors.torch import load_file

from lowmem_if.cascade.catalog import STAGE_1, STAGE_2, UPSCALER
from lowmem_if.cascade.locate import locate
from lowmem_if.cascade.strategies import STREAM, parse_pins
from lowmem_if.engine.events import Event
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.estimates.compile_time import COMPILE_S, compile_seconds, speedup
from lowmem_if.planning.estimates.memory import COMPILER_RAM_BYTES
from lowmem_if.planning.estimates.workload import Workload
from lowmem_if.planning.fallback import RAM, VRAM, Findings, changed_pixels, cheaper
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.request.build import make_request
from lowmem_if.stages import compiling

GB = 10**9
T4 = replace(
    CPU, device="cuda:0", vram_bytes=15 * GB, vram_total_bytes=16 * GB, ram_bytes=12 * GB,
    compute_dtype="float16", capability=(7, 5),
)  # fmt: skip
LARGE = replace(T4, vram_bytes=40 * GB, vram_total_bytes=48 * GB, capability=(8, 6))


def plan(machine: Machine = T4, *pins: str, **values: Any) -> Plan:
    request = make_request(
        **{"prompts": "a fox", "cascade": "if-xl", "seed": 1, "compile": True} | values
    )
    return make_plan(machine, request, prefer="exact", pins=parse_pins(pins))


# --- plans ------------------------------------------------------------------------------------------


def test_what_is_not_asked_for_is_not_compiled() -> None:
    """However many pictures there are; and nothing is said of it."""
    asked = plan(images=64, compile=False)
    assert all(step.config.speedup == 1 for step in asked.steps)
    assert not any("compil" in step.reason for step in asked.steps)


def test_a_unet_is_compiled_where_its_steps_save_more_than_that_takes() -> None:
    """On a T4 stage 1 for sixteen pictures, but not for one; there stage 2 gains nothing at all."""
    one, many = plan(), plan(images=16)
    assert one.step(STAGE_1).config.speedup == 1
    assert "not compiled: compiling needs more time than it saves" in one.step(STAGE_1).reason
    assert many.step(STAGE_1).config.speedup == 1.4
    assert "compiled: steps are 1.4 times as fast" in many.step(STAGE_1).reason
    assert "compiled" in str(many.step(STAGE_1).config)
    assert "not compiled: no gain on this device" in many.step(STAGE_2).reason
    assert plan(LARGE, images=32).step(STAGE_2).config.speedup == 1.2
    uncompiled = plan(images=16, compile=False)
    for component in (STAGE_1, STAGE_2, UPSCALER):
        before, after = uncompiled.step(component), many.step(component)
        assert after.estimate.seconds <= before.estimate.seconds
        more = COMPILER_RAM_BYTES if after.config.speedup > 1 else 0
        assert after.estimate.ram_bytes == before.estimate.ram_bytes + more


def test_weights_that_come_and_go_are_not_compiled() -> None:
    """A pinned stream stays what it is, and says why."""
    step = plan(T4, "stage_1=stream", images=64).step(STAGE_1)
    assert (step.config.strategy, step.config.speedup) == (STREAM, 1)
    assert "not compiled: only resident weights can be" in step.reason


@pytest.mark.parametrize(
    ("kind", "capability"), [("cpu", (0, 0)), ("mps", (0, 0)), ("xpu", (0, 0)), ("cuda", (6, 0))]
)
def test_nothing_is_promised_where_nothing_is_known(kind: str, capability: tuple[int, int]) -> None:
    """On CPUs little was gained; of Apple and Intel nobody has published; Triton wants 7.0."""
    device = kind if kind in ("cpu", "mps") else f"{kind}:0"
    machine = replace(T4, device=device, capability=capability)
    assert {speedup(machine, stage) for stage in (STAGE_1, STAGE_2, UPSCALER)} == {1.0}


def test_every_shape_is_compiled_by_itself() -> None:
    """Nine pictures by fours leave one over: two shapes; another format is a third."""
    jobs = [Workload(0, 9), Workload(0, 4, area=1.5)]
    assert compile_seconds("cuda:0", jobs, 4) == 3 * COMPILE_S["cuda"]
    assert compile_seconds("cuda:0", jobs[:1], 1) == COMPILE_S["cuda"]


def test_after_memory_ran_out_nothing_is_compiled_any_more() -> None:
    """Short of RAM: the same without the compiler; of VRAM, less of it. Both change pixels."""
    made, location = plan(images=16), locate("if-xl")
    step = made.step(STAGE_1)
    for short_of in (RAM, VRAM):
        findings = Findings().ran_out(step, T4, short_of)
        lower = cheaper(made, location, STAGE_1, findings, short_of=short_of)
        assert lower is not None
        assert lower.config.speedup == 1
        assert changed_pixels(step.config, lower.config) == "it is no longer compiled"
        if short_of == RAM:
            assert lower.config == replace(step.config, speedup=1.0)
        else:
            assert lower.estimate.vram_bytes < step.estimate.vram_bytes


def test_a_plan_that_compiles_reads_back_equal() -> None:
    """The wish and what came of it are part of the record."""
    made = plan(images=16)
    assert Plan.from_json(made.to_json()) == made


# --- runs -------------------------------------------------------------------------------------------


def compiled(made: Plan) -> Plan:
    """As if compiling paid on a CPU."""
    steps = [
        step.with_config(speedup=1.5) if step.component in (STAGE_1, STAGE_2, UPSCALER) else step
        for step in made.steps
    ]
    return replace(made, steps=tuple(steps))


def tensors(folder: RunFolder) -> list[dict[str, torch.Tensor]]:
    return [load_file(file) for file in sorted(folder.path.glob("*/*.safetensors"))]


def same(one: RunFolder, other: RunFolder) -> bool:
    pairs = zip(tensors(one), tensors(other), strict=True)
    return all(torch.equal(a[key], b[key]) for a, b in pairs for key in a)


@pytest.mark.slow
def test_a_compiled_run_is_a_run(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a compiler that changes nothing every picture is the same, and every network leaves."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    calls = []
    real = compiling.compile_unet
    monkeypatch.setattr(
        "lowmem_if.stages.pipelines.compile_unet", lambda unet: calls.append(1) or real(unet)
    )
    made = plan_of(tiny, ("a red circle",))
    plain = run_here(made, tmp_path / "plain")
    assert not calls
    done = run_here(compiled(made), tmp_path / "compiled")
    assert len(calls) == 3
    assert same(plain, done)
    for stage in (STAGE_1, STAGE_2, UPSCALER):
        released = done.released(stage)
        assert released is not None
        assert not released.alive


def test_where_nothing_can_be_compiled_the_run_says_so_and_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing compiler costs speed, not the picture."""
    monkeypatch.setattr(compiling, "BACKEND", "no such backend")
    made = plan_of(tiny, ("a red circle",), size=64)
    events: list[Event] = []
    done = run_here(compiled(made), tmp_path / "run", events.append)
    assert same(run_here(made, tmp_path / "plain"), done)
    (notice,) = [event.text for event in events if event.kind == "notice"]
    assert notice.startswith("not compiled, since torch.compile does not work here: ")
    assert "no such backend" in notice
    assert notice in done.notices


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile wants a C++ compiler")
def test_whether_compiling_works_is_tried() -> None:
    """With torch's own compiler, for the CPU; a device that is not here is told."""
    assert compiling.why_not("cpu") == ""
    assert compiling.why_not("nonsense") != ""
