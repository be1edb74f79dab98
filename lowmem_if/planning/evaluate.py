"""A setting with what it takes: bytes, seconds, and what of a machine there is too little of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowmem_if.cascade.catalog import Part
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.memory import ExecutionConfig, MemoryEstimate, headroom, predict
from lowmem_if.planning.runtime import predict_seconds
from lowmem_if.planning.workload import Workload

SPILL_BYTES = 400_000_000
"""More VRAM to leave free where the driver would lend RAM instead of failing (ComfyUI keeps 600 MB free
on Windows for it)."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A setting with its peaks in bytes and its seconds."""

    setting: ExecutionConfig
    footprint: MemoryEstimate
    short: tuple[str, int, int] | None
    """(resource, needed, available) where there is no room; None where there is."""
    seconds: float


def evaluate(
    machine: Machine, part: Part, setting: ExecutionConfig, jobs: Sequence[Workload]
) -> Evaluation:
    """What a component would take under a setting for all that it has to do."""
    footprint = predict(part, setting, reserve=machine.counts_reserve)
    left = machine.ram_bytes - footprint.ram_bytes
    left -= footprint.vram_bytes if machine.unified else 0
    seconds = predict_seconds(part, setting, jobs, machine.speeds, left, unified=machine.unified)
    return Evaluation(setting, footprint, shortage(machine, setting, footprint), seconds)


def shortage(
    machine: Machine, setting: ExecutionConfig, footprint: MemoryEstimate
) -> tuple[str, int, int] | None:
    """(resource, needed, available) of what is missing most, headroom included; None: there is room."""
    vram_spare, ram_spare = headroom(setting.device)
    vram_spare += SPILL_BYTES if machine.spills_vram else 0
    needs = [("RAM", footprint.ram_bytes + ram_spare, machine.ram_bytes)]
    if setting.device != "cpu":
        needs.insert(0, ("VRAM", footprint.vram_bytes + vram_spare, machine.vram_bytes))
    if machine.unified and footprint.vram_bytes:
        both = footprint.vram_bytes + footprint.ram_bytes + ram_spare
        needs.append(("unified memory", both, machine.ram_bytes))
    return max(
        (need for need in needs if need[1] > need[2]), key=lambda n: n[1] - n[2], default=None
    )


def deficit(candidate: Evaluation) -> int:
    """Bytes that a candidate without room lacks."""
    assert candidate.short is not None
    return candidate.short[1] - candidate.short[2]
