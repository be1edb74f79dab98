"""Whether a request fits a machine, asked many times in the search for one that does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from lowmem_if.cascade.locate import Location, locate
from lowmem_if.cascade.lora.lora_fit import assign_stages
from lowmem_if.cascade.strategies import Pin, levels_of
from lowmem_if.errors import CascadeError, CheckpointError, DeviceError
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.candidates import configs_for
from lowmem_if.planning.estimates.execution import Estimate, ExecutionConfig
from lowmem_if.planning.evaluate import predict_memory, shortage
from lowmem_if.request.request import Request

_Needs = list[list[tuple[ExecutionConfig, Estimate]]]
"""For every component the configs that there are, each with the memory that it needs."""


class Fitting:
    """Answers for machines that differ only in their device and in the sizes of their memories.

    Where the cascades are and what their configs need does not depend on those sizes, and is found out
    once.
    """

    def __init__(self) -> None:
        self._needs: dict[tuple[object, ...], _Needs] = {}

    def __call__(
        self, machine: Machine, request: Request, prefer: str | None, pins: Mapping[str, Pin]
    ) -> bool:
        """Whether a plan exists; a cascade that cannot be found or loaded does not fit."""
        loosest = levels_of(prefer)[-1]  # a level allows whatever the stricter ones do
        key = (machine.device, request, loosest, tuple(pins.items()))
        if key not in self._needs:
            try:
                self._needs[key] = _needs(machine, request, loosest, pins)
            except (DeviceError, CascadeError, CheckpointError):
                return False
        return all(
            any(shortage(machine, config, memory) is None for config, memory in configs)
            for configs in self._needs[key]
        )


def located(
    request: Request, components: Collection[str] | None = None
) -> tuple[Request, Location]:
    """Where the cascade is, and the request with each LoRA assigned to the stages it fits.

    Args:
        components: those that are examined; None: all that the request needs.
    """
    wanted = tuple(components or request.components)
    location = locate(request.weights, components=wanted)
    lora = assign_stages(request.lora, location, wanted)
    return replace(request, lora=lora), location


def _needs(machine: Machine, request: Request, prefer: str, pins: Mapping[str, Pin]) -> _Needs:
    request, location = located(request)
    return [
        [
            (config, predict_memory(machine, location.cascade.parts[name], config))
            for config in configs_for(machine, request, location, name, prefer, pins.get(name))
        ]
        for name in request.components
    ]
