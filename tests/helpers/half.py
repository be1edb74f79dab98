"""Float16 on a CPU: no plan takes it there, so tests put it into the steps of a plan of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file

from lowmem_if.cascade.catalog import POSTPROCESS
from lowmem_if.planning.plan import Plan


def in_float16(plan: Plan, *, only: str = "") -> Plan:
    """The plan with all its steps, or only one component's, in float16; the finish stays as it is."""
    steps = (
        step.with_config(storage_dtype="float16", compute_dtype="float16")
        if step.component != POSTPROCESS and only in ("", step.component)
        else step
        for step in plan.steps
    )
    return replace(plan, steps=tuple(steps))


def scale_weights(folder: Path, name: str, factor: float) -> None:
    """Multiply every weight whose name contains `name` in the files of a folder."""
    for file in folder.glob("*.safetensors"):
        weights = load_file(file)
        scaled = {
            key: (weight.float() * factor).to(weight.dtype) if name in key else weight
            for key, weight in weights.items()
        }
        save_file(scaled, file, metadata={"format": "pt"})
