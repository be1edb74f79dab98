"""What was chosen for an opened stage, and why, as a text for people."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.plan import Step
from lowmem_if.units import format_bytes


@dataclass(frozen=True, slots=True, repr=False)
class StagePlan:
    """The plan of one opened stage; `str` and `repr` describe it in a few lines.

    Attributes:
        name: the stage and its cascade.
        step: strategy, number types, device, predicted peaks, and the reason.
        machine: the machine as it was planned for: less what this process holds, and what is promised to
            other open stages.
        others: the stages that were open already.
    """

    name: str
    step: Step
    machine: Machine
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        step, machine = self.step, self.machine
        lines = [
            f"{self.name} on {step.config.device} ({machine.device_name}): {step.config}",
            f"why: {step.reason}",
            f"instead of: {step.instead_of}" if step.instead_of else "",
            f"predicted peak: {self._peaks()}",
            f"left for it: {self._left()}",
            f"open already: {', '.join(self.others)}" if self.others else "",
            f"number type: {machine.compute_dtype_reason}" if self._has_machines_type else "",
            *(f"note: {card}" for card in machine.unused),
        ]
        wrapped = (textwrap.wrap(line, 100, subsequent_indent="    ") for line in lines if line)
        return "\n".join(row for rows in wrapped for row in rows)

    __repr__ = __str__

    @property
    def _has_machines_type(self) -> bool:
        """Whether the number type is the machine's best; small networks and pins have another reason."""
        own = self.step.config.compute_dtype == self.machine.compute_dtype
        return own and not {"small, so float32", "pinned"} & set(self.step.reason.split("; "))

    def _peaks(self) -> str:
        estimate = self.step.estimate
        ram = f"{format_bytes(estimate.ram_bytes)} of RAM"
        return f"{format_bytes(estimate.vram_bytes)} of VRAM, {ram}" if estimate.vram_bytes else ram

    def _left(self) -> str:
        machine = self.machine
        ram = f"{format_bytes(max(0, machine.ram_bytes))} of RAM"
        if machine.kind == "cpu":
            return ram
        return f"{format_bytes(max(0, machine.vram_bytes))} of VRAM, {ram}"
