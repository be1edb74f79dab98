"""What to try after memory ran out, or after numbers overflowed: the planner's choice, made again.

Every candidate is evaluated again, under what the run has found out: it must take less of the memory
that ran out than the step that failed was predicted to take. The quickest of those that fit is taken, or
one nearly as quick that draws the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lowmem_if.cascade import catalog
from lowmem_if.cascade.locate import Location
from lowmem_if.cascade.strategies import EXACT, QUANTISED, Pin, parse_pin
from lowmem_if.hardware.dtypes import wider
from lowmem_if.hardware.machine import Machine, cpu_compute_dtype
from lowmem_if.planning.candidates import configs_for
from lowmem_if.planning.estimates.execution import Estimate, ExecutionConfig
from lowmem_if.planning.evaluate import Evaluation, evaluated
from lowmem_if.planning.plan import Plan, Step, cuts

RAM, VRAM = "RAM", "VRAM"

SLOWER = 2.5
"""A candidate that draws the same pixels may take so many times as long as the quickest one."""

_CLEARLY, _CLEARLY_AGAIN = 0.95, 0.7
"""A candidate that takes more than this share of what ran out is only tried if no other is left: how far
a prediction was wrong is not known, and every try loads the component again."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What a run has found out about one component.

    Attributes:
        vram_bytes, ram_bytes: the least that a step was predicted to take which then ran out of it; on a
            machine with unified memory `ram_bytes` counts both. None: it did not run out.
        overflowing: number types that gave NaN or infinite numbers.
        shortages: how often memory ran out.
    """

    vram_bytes: int | None = None
    ram_bytes: int | None = None
    overflowing: frozenset[str] = frozenset()
    shortages: int = 0

    def ran_out(
        self, step: Step, machine: Machine, short_of: str, vram_available: int = 0
    ) -> Findings:
        """These findings, and that a step ran out of `RAM` or `VRAM`.

        Args:
            vram_available: bytes of VRAM that were seen to be free then; 0: not known.
        """
        peaks, count = step.estimate, self.shortages + 1
        taken = _taken(machine, short_of, peaks.vram_bytes, peaks.ram_bytes)
        if short_of == VRAM:
            taken = min(taken, vram_available or taken)
            return replace(self, vram_bytes=min(taken, self.vram_bytes or taken), shortages=count)
        return replace(self, ram_bytes=min(taken, self.ram_bytes or taken), shortages=count)

    def overflowed(self, step: Step) -> Findings:
        """These findings, and that a step gave numbers that are not finite."""
        return replace(self, overflowing=self.overflowing | {step.config.compute_dtype})

    def allow(self, machine: Machine, estimate: Estimate, share: float = 1.0) -> bool:
        """Whether a estimate takes less than `share` of whatever ran out."""
        limits = {VRAM: self.vram_bytes, RAM: self.ram_bytes}
        return all(
            _taken(machine, resource, estimate.vram_bytes, estimate.ram_bytes) < share * limit
            for resource, limit in limits.items()
            if limit is not None
        )


def cheaper(
    plan: Plan, location: Location, component: str, findings: Findings, *, short_of: str
) -> Step | None:
    """The step to go on with after memory ran out; None if no candidate takes less of it.

    Args:
        location: where the cascade is; of files that are on the disk others are not fetched.
        findings: with what ran out just now.
        short_of: that, `RAM` or `VRAM`, for the reason.
    """
    step = plan.step(component)
    chosen = _choose(plan, location, step, findings)
    reason = f"{short_of} ran out with {step.config} on {step.config.device}"
    return _replaced(step, chosen, reason) if chosen else None


def more_exact(plan: Plan, location: Location, component: str, findings: Findings) -> Step | None:
    """The step to go on with after numbers overflowed, in a wider type; None if none fits.

    Args:
        location: as for `cheaper`.
        findings: with the type that overflowed just now.
    """
    step = plan.step(component)
    chosen = _choose(plan, location, step, findings)
    reason = f"{step.config.compute_dtype} gave NaN or infinite numbers"
    return _replaced(step, chosen, reason) if chosen else None


def changed_pixels(before: ExecutionConfig, after: ExecutionConfig) -> str:
    """Why another config draws other pixels; empty if only the place of the weights changed."""
    if after.speedup != before.speedup:
        return "it is now compiled" if after.speedup > 1 else "it is no longer compiled"
    if after.vae_tiling and not before.vae_tiling:
        return "the VAE now works in tiles"
    if after.tile != before.tile:
        return f"it now draws in tiles of {after.tile} pixels"
    if after.compute_dtype != before.compute_dtype:
        return f"it now computes in {after.compute_dtype}"
    if after.storage_dtype != before.storage_dtype:
        return f"its weights are now in {after.storage_dtype}"
    if after.batch != before.batch and after.component != catalog.TEXT_ENCODER:
        return f"it now draws {after.batch} at a time"
    return f"it now works on {after.device}" if after.device != before.device else ""


def _choose(plan: Plan, location: Location, step: Step, findings: Findings) -> Evaluation | None:
    """The best candidate that the findings allow; with headroom and clearly less, if there is one."""
    machine = plan.machine
    configs = (c for c in _configs(plan, location, step, findings) if c != step.config)
    candidates = evaluated(machine, plan.request, location, configs)
    less = [c for c in candidates if findings.allow(machine, c.estimate)]
    fitting = [c for c in less if c.short is None]
    share = _CLEARLY if findings.shortages < 2 else _CLEARLY_AGAIN
    clearly = [c for c in fitting if findings.allow(machine, c.estimate, share)]
    for group in (clearly, fitting, [c for c in less if _just_fits(machine, c)]):
        if group:
            return _best(group, step, keep_pixels=plan.prefer == EXACT)
    return None


def _best(candidates: Sequence[Evaluation], step: Step, *, keep_pixels: bool) -> Evaluation:
    """Of those that are nearly as quick as the quickest, the one that changes and cuts the least."""
    quickest = min(candidate.seconds for candidate in candidates)
    near = [candidate for candidate in candidates if candidate.seconds <= SLOWER * quickest]

    def rank(candidate: Evaluation) -> tuple[bool, float, float]:
        changes = keep_pixels and bool(changed_pixels(step.config, candidate.config))
        return changes, cuts(candidate.config), candidate.seconds

    return min(near, key=rank)


def _configs(
    plan: Plan, location: Location, step: Step, findings: Findings
) -> list[ExecutionConfig]:
    """All that the component could run under, in types that did not overflow, from files at hand."""
    machine, component = plan.machine, step.component
    pin = parse_pin(component, plan.pins[component]) if component in plan.pins else None
    machines = [machine, *_in_wider_types(machine, findings)]
    if machine.kind != "cpu" and pin is None and component != catalog.POSTPROCESS:
        dtype, _ = cpu_compute_dtype(frozenset())
        machines.append(replace(machine, device="cpu", vram_bytes=0, compute_dtype=dtype))
    configs = [
        config for one in machines for config in _possible(plan, one, location, component, pin)
    ]
    configs = [s for s in dict.fromkeys(configs) if not _overflows(s, findings)]
    if location.folder(component, storage=step.config.storage_dtype) is None:
        return configs
    return [s for s in configs if location.folder(component, storage=s.storage_dtype) is not None]


def _possible(
    plan: Plan, machine: Machine, location: Location, component: str, pin: Pin | None
) -> list[ExecutionConfig]:
    """What the planner lists, and a VAE in tiles even where the user prefers exact pixels."""
    configs = configs_for(machine, plan.request, location, component, plan.prefer, pin)
    if component != catalog.UPSCALER:
        return configs
    return [*configs, *(replace(config, vae_tiling=True) for config in configs)]


def _in_wider_types(machine: Machine, findings: Findings) -> Iterable[Machine]:
    """The machine as if it computed in each type that holds more than those that overflowed."""
    types = [dtype for overflowing in findings.overflowing for dtype in wider(machine, overflowing)]
    return [replace(machine, compute_dtype=dtype) for dtype in dict.fromkeys(types)]


def _overflows(config: ExecutionConfig, findings: Findings) -> bool:
    """Whether a config computes in a type that overflowed: 8-bit layers do so in float16, always."""
    quantised = bool(findings.overflowing) and config.storage_dtype in QUANTISED
    return quantised or config.compute_dtype in findings.overflowing


def _just_fits(machine: Machine, candidate: Evaluation) -> bool:
    """Whether a candidate fits if nothing is left free."""
    estimate = candidate.estimate
    ram = _taken(machine, RAM, estimate.vram_bytes, estimate.ram_bytes)
    return ram <= machine.ram_bytes and estimate.vram_bytes <= machine.vram_bytes


def _taken(machine: Machine, resource: str, vram_bytes: int, ram_bytes: int) -> int:
    """Bytes taken of a resource; where the accelerator computes in RAM, that counts both."""
    if resource == VRAM:
        return vram_bytes
    return ram_bytes + (vram_bytes if machine.unified else 0)


def _replaced(step: Step, chosen: Evaluation, reason: str) -> Step:
    return replace(
        step,
        config=chosen.config,
        estimate=chosen.estimate,
        reason=reason,
        instead_of=str(step.config),
    )
