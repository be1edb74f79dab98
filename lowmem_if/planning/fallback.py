"""Choose the next step after memory ran out or numbers overflowed: the planner chooses again.

Every candidate is evaluated again with the run's findings. It must need less of the memory that ran out
than the estimate of the step that failed. No candidate goes beyond the user's preference; without one,
looser levels may be used. Of the candidates nearly as fast as the fastest that fits, those of the
strictest level are preferred.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lowmem_if.cascade import catalog
from lowmem_if.cascade.locate import Location
from lowmem_if.cascade.strategies import EXACT, PREFERENCES, QUANTISED, parse_pin
from lowmem_if.hardware.dtypes import wider
from lowmem_if.hardware.machine import Machine, cpu_compute_dtype
from lowmem_if.planning.candidates import configs_for
from lowmem_if.planning.estimates.execution import WHOLE, Estimate, ExecutionConfig
from lowmem_if.planning.evaluate import Evaluation, evaluated
from lowmem_if.planning.plan import Plan
from lowmem_if.planning.step import Step, cuts

RAM, VRAM = "RAM", "VRAM"

SLOWER = 2.5
"""A candidate of a stricter level may take up to this multiple of the fastest one's time."""

_CLEARLY_LESS, _CLEARLY_LESS_AGAIN = 0.95, 0.7
"""A candidate that needs more than this share of the memory that ran out is tried last. The error of the
estimate is not known, and every attempt loads the component again."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What a run has observed about one component.

    Attributes:
        vram_bytes, ram_bytes: the smallest estimate of a step that ran out of this memory; None: it did
            not run out. With unified memory, `ram_bytes` counts both.
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
        """These findings and a new one: a step ran out of `RAM` or `VRAM`.

        Args:
            vram_available: bytes of VRAM that were free at that moment; 0: not known.
        """
        peaks, count = step.estimate, self.shortages + 1
        taken = _taken(machine, short_of, peaks.vram_bytes, peaks.ram_bytes)
        if short_of == VRAM:
            taken = min(taken, vram_available or taken)
            return replace(self, vram_bytes=min(taken, self.vram_bytes or taken), shortages=count)
        return replace(self, ram_bytes=min(taken, self.ram_bytes or taken), shortages=count)

    def overflowed(self, step: Step) -> Findings:
        """These findings and a new one: a step gave NaN or infinite numbers."""
        return replace(self, overflowing=self.overflowing | {step.config.compute_dtype})

    def allow(self, machine: Machine, estimate: Estimate, share: float = 1.0) -> bool:
        """Whether an estimate needs less than `share` of all memory that ran out."""
        limits = {VRAM: self.vram_bytes, RAM: self.ram_bytes}
        return all(
            _taken(machine, resource, estimate.vram_bytes, estimate.ram_bytes) < share * limit
            for resource, limit in limits.items()
            if limit is not None
        )


def cheaper(
    plan: Plan, location: Location, component: str, findings: Findings, *, short_of: str
) -> Step | None:
    """The step to continue with after memory ran out; None if no candidate needs less of it.

    Args:
        location: where the cascade is; a component whose files are on disk uses only these files.
        findings: the findings, including the latest shortage.
        short_of: the memory that ran out, `RAM` or `VRAM`, for the reason.
    """
    step = plan.step(component)
    chosen = _choose(plan, location, step, findings)
    reason = f"{short_of} ran out with {step.config} on {step.config.device}"
    return _replaced(step, chosen, reason) if chosen else None


def more_exact(plan: Plan, location: Location, component: str, findings: Findings) -> Step | None:
    """The step to continue with after numbers overflowed, in a wider type; None if none fits.

    Args:
        location: as for `cheaper`.
        findings: the findings, including the type that overflowed last.
    """
    step = plan.step(component)
    chosen = _choose(plan, location, step, findings)
    reason = f"{step.config.compute_dtype} gave NaN or infinite numbers"
    return _replaced(step, chosen, reason) if chosen else None


def changed_pixels(before: ExecutionConfig, after: ExecutionConfig) -> str:
    """Why another config draws other pixels; empty if it only keeps the weights elsewhere."""
    if after.speedup != before.speedup:
        return "it is now compiled" if after.speedup > 1 else "it is no longer compiled"
    if (after.decoding == WHOLE) != (before.decoding == WHOLE):
        return f"the VAE now decodes {'as a whole' if after.decoding == WHOLE else 'in strips'}"
    if after.tile != before.tile:
        return f"it now draws in tiles of {after.tile} pixels"
    if after.compute_dtype != before.compute_dtype:
        return f"it now computes in {after.compute_dtype}"
    if after.storage_dtype != before.storage_dtype:
        return f"its weights are now in {after.storage_dtype}"
    if after.batch != before.batch and not after.facts.encodes:
        return f"it now draws {after.batch} at a time"
    if after.device != before.device:
        return f"it now works on {after.device}"
    return f"its memory layout is now {after.layout}" if after.layout != before.layout else ""


def _choose(plan: Plan, location: Location, step: Step, findings: Findings) -> Evaluation | None:
    """The best candidate that the findings allow, preferably with headroom and clearly less memory.

    Looser levels than the plan's own count only where it has no candidate.
    """
    machine = plan.machine
    levels = _configs(plan, location, step, findings)
    configs = [config for config in levels if config != step.config]
    candidates = evaluated(machine, plan.request, location, configs)
    less = [c for c in candidates if findings.allow(machine, c.estimate)]
    fitting = [c for c in less if c.short is None]
    share = _CLEARLY_LESS if findings.shortages < 2 else _CLEARLY_LESS_AGAIN
    clearly = [c for c in fitting if findings.allow(machine, c.estimate, share)]
    for group in (clearly, fitting, [c for c in less if _just_fits(machine, c)]):
        used = PREFERENCES.index(plan.prefer)
        strict = [c for c in group if PREFERENCES.index(levels[c.config]) <= used]
        if group:
            return _best(strict or group, step, levels)
    return None


def _best(
    candidates: Sequence[Evaluation], step: Step, levels: Mapping[ExecutionConfig, str]
) -> Evaluation:
    """The candidate of the strictest level with the fewest tiles; much slower ones are left out.

    Under `exact` a candidate that draws other pixels is less strict than one that does not.
    """
    fastest = min(candidate.seconds for candidate in candidates)
    near = [candidate for candidate in candidates if candidate.seconds <= SLOWER * fastest]

    def rank(candidate: Evaluation) -> tuple[int, bool, float, float]:
        level = levels[candidate.config]
        changes = level == EXACT and bool(changed_pixels(step.config, candidate.config))
        return PREFERENCES.index(level), changes, cuts(candidate.config), candidate.seconds

    return min(near, key=rank)


def _configs(
    plan: Plan, location: Location, step: Step, findings: Findings
) -> dict[ExecutionConfig, str]:
    """All configs of the component in types that did not overflow, for the files on this disk.

    Returns:
        config -> the strictest level that allows it.
    """
    machine, component = plan.machine, step.component
    pin = parse_pin(component, plan.pins[component]) if component in plan.pins else None
    machines = [machine, *_in_wider_types(machine, findings)]
    if machine.kind != "cpu" and pin is None and not catalog.facts(component).postprocesses:
        dtype, _ = cpu_compute_dtype(frozenset())
        machines.append(replace(machine, device="cpu", vram_bytes=0, compute_dtype=dtype))
    levels: dict[ExecutionConfig, str] = {}
    for level in plan.levels:
        for one in machines:
            for config in configs_for(one, plan.request, location, component, level, pin):
                levels.setdefault(config, level)
    on_disk = location.folder(component, storage=step.config.storage_dtype) is not None
    return {
        config: level
        for config, level in levels.items()
        if not _overflows(config, findings)
        and not (on_disk and location.folder(component, storage=config.storage_dtype) is None)
    }


def _in_wider_types(machine: Machine, findings: Findings) -> Iterable[Machine]:
    """The machine with each compute dtype whose range is wider than that of a type that overflowed."""
    types = [dtype for overflowing in findings.overflowing for dtype in wider(machine, overflowing)]
    return [replace(machine, compute_dtype=dtype) for dtype in dict.fromkeys(types)]


def _overflows(config: ExecutionConfig, findings: Findings) -> bool:
    """Whether a config computes in a type that overflowed; bitsandbytes' 8 bits compute in float16."""
    quantised = config.facts.encodes and config.storage_dtype in QUANTISED and findings.overflowing
    return bool(quantised) or config.compute_dtype in findings.overflowing


def _just_fits(machine: Machine, candidate: Evaluation) -> bool:
    """Whether a candidate fits without any headroom."""
    estimate = candidate.estimate
    ram = _taken(machine, RAM, estimate.vram_bytes, estimate.ram_bytes)
    return ram <= machine.ram_bytes and estimate.vram_bytes <= machine.vram_bytes


def _taken(machine: Machine, resource: str, vram_bytes: int, ram_bytes: int) -> int:
    """Bytes needed of a resource; with unified memory, RAM counts both."""
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
