"""Evaluate a config: its bytes, its seconds, and the machine's resource that is too small for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from lowmem_if.cascade.locate import Location
from lowmem_if.cascade.parts import Part
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.estimates.execution import Estimate, ExecutionConfig
from lowmem_if.planning.estimates.memory import headroom, predict
from lowmem_if.planning.estimates.runtime import predict_seconds
from lowmem_if.planning.estimates.workload import Workload, workloads_of
from lowmem_if.request.request import Request

SPILL_BYTES = 400_000_000
"""VRAM to leave free in addition if the driver uses RAM instead of failing (ComfyUI leaves 600 MB free
on Windows for this reason)."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A config with its estimate, and whether it fits the machine.

    Attributes:
        short: the largest shortage, as (resource, needed bytes, available bytes); None if it fits.
    """

    config: ExecutionConfig
    estimate: Estimate
    short: tuple[str, int, int] | None

    @property
    def seconds(self) -> float:
        return self.estimate.seconds


def evaluated(
    machine: Machine, request: Request, location: Location, configs: Iterable[ExecutionConfig]
) -> Iterator[Evaluation]:
    """Each config of one component, evaluated for all its workloads in the request."""
    workloads: tuple[Workload, ...] = ()
    for config in configs:
        workloads = workloads or workloads_of(request, location.cascade, config.component)
        yield evaluate(machine, location.cascade.parts[config.component], config, workloads)


def evaluate(
    machine: Machine, part: Part, config: ExecutionConfig, workloads: Sequence[Workload]
) -> Evaluation:
    """Evaluate a config of a component for all its workloads."""
    memory = predict_memory(machine, part, config)
    left = machine.ram_bytes - memory.ram_bytes
    left -= memory.vram_bytes if machine.unified else 0
    seconds = predict_seconds(
        part, config, workloads, machine.speeds, left, unified=machine.unified
    )
    return Evaluation(config, replace(memory, seconds=seconds), shortage(machine, config, memory))


def predict_memory(machine: Machine, part: Part, config: ExecutionConfig) -> Estimate:
    """The bytes of a config on a machine, without its seconds."""
    return predict(part, config, reserve=machine.counts_reserve)


def shortage(
    machine: Machine, config: ExecutionConfig, estimate: Estimate
) -> tuple[str, int, int] | None:
    """The largest shortage, as (resource, needed, available) with headroom; None if it fits."""
    vram_spare, ram_spare = headroom(config.device)
    vram_spare += SPILL_BYTES if machine.spills_vram else 0
    needs = [("RAM", estimate.ram_bytes + ram_spare, machine.ram_bytes)]
    if config.device != "cpu":
        needs.insert(0, ("VRAM", estimate.vram_bytes + vram_spare, machine.vram_bytes))
    if machine.unified and estimate.vram_bytes:
        both = estimate.vram_bytes + estimate.ram_bytes + ram_spare
        needs.append(("unified memory", both, machine.ram_bytes))
    return max(
        (need for need in needs if need[1] > need[2]), key=lambda n: n[1] - n[2], default=None
    )


def deficit(candidate: Evaluation) -> int:
    """Bytes that are missing for a candidate that does not fit."""
    assert candidate.short is not None
    return candidate.short[1] - candidate.short[2]
