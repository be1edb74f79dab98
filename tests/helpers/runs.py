"""Runs for tests: a plan in a folder, worked on in this very process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lowmem_if.cascade.strategies import EXACT, parse_pins
from lowmem_if.engine.events import Event, Report, ignore
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.request.build import make_request
from lowmem_if.request.request import Request

CPU = Machine(
    name="test",
    device="cpu",
    device_name="CPU",
    vram_bytes=0,
    vram_total_bytes=0,
    ram_bytes=8 * 10**9,
    ram_total_bytes=16 * 10**9,
    disk_free_bytes=10**12,
    compute_dtype="float32",
    compute_dtype_reason="exact",
)


def plan_of(
    cascade: Path | str,
    prompts: Any = "a red circle",
    *,
    pins: Any = (),
    prefer: Any = EXACT,
    **request: Any,
) -> Plan:
    """A plan for two steps a stage on a CPU of the tests' own."""
    options: dict[str, Any] = {"seed": 1, "steps": 2, "cascade": str(cascade)} | request
    return make_plan(CPU, make_request(prompts, **options), prefer=prefer, pins=parse_pins(pins))


def with_prompt(request: Request, prompt: str) -> Request:
    """The request with another prompt for all its images."""
    return replace(request, images=tuple(replace(s, prompt=prompt) for s in request.images))


def run_here(plan: Plan, path: Path, report: Report = ignore, *, cache: Any = None) -> RunFolder:
    """The plan, done in this process, for speed; the folder as it is then on disk."""
    from lowmem_if.engine.worker.executor import work

    work(RunFolder.for_plan(path, plan), report, cache=cache)
    return RunFolder.open(path)


def kinds(events: list[Event], kind: str) -> list[str]:
    """The components of the events of one kind, in order."""
    return [event.component for event in events if event.kind == kind]


def results(path: Path) -> dict[str, bytes]:
    """Everything a run leaves that must not depend on how often it was killed."""
    files = [*path.glob("*.png"), *path.glob("*/*.png"), *path.glob("*/*.safetensors")]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}
