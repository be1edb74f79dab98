"""Number types: which one computes, which ones to try when one overflows, what is known against them."""

from __future__ import annotations

import re

from lowmem_if.cascade.parts import Part
from lowmem_if.hardware.machine import Machine

_WITHOUT_OVERFLOW = ("bfloat16", "float32")
"""Both hold numbers up to 3e38; float16 none above 65,504."""

_GTX_16 = re.compile(r"\bGTX 16\d\d")


SMALL_BYTES = 500_000_000
"""A component with smaller float32 weights than this runs in float32: exactness is cheap there."""


def compute_dtype(machine: Machine, part: Part) -> tuple[str, bool]:
    """The compute dtype of a component, and whether it is float32 because the component is small."""
    small = sum(4 * module.weights.parameters for module in part.modules) < SMALL_BYTES
    return ("float32" if small else machine.compute_dtype), small


def wider(machine: Machine, compute: str) -> tuple[str, ...]:
    """The number types of this machine with a larger range or more digits than `compute`."""
    if compute == "float16":
        return _WITHOUT_OVERFLOW if _has_bfloat16(machine) else ("float32",)
    return ("float32",) if compute == "bfloat16" else ()


def doubt(machine: Machine, compute: str) -> str:
    """What is known against a number type on this machine; empty if nothing is.

    Source: pytorch issue 58123; AUTOMATIC1111's web UI runs these cards with `--no-half`.
    """
    if compute == "float16" and _GTX_16.search(machine.device_name):
        return "GTX 16 cards are known for black pictures in float16"
    return ""


def likely_cause(machine: Machine, compute: str, weights: str) -> str:
    """Why a component that computes in this type may return NaN or infinite numbers.

    Args:
        weights: the folder of its weights.
    """
    if compute == "float16":
        return doubt(machine, compute) or "float16 holds no number above 65,504"
    return f"the weights in {weights} are probably broken"


def _has_bfloat16(machine: Machine) -> bool:
    """Whether this machine computes fast in bfloat16."""
    if machine.kind == "cpu":
        return machine.compute_dtype == "bfloat16"
    return machine.kind == "xpu" or (machine.kind == "cuda" and machine.capability >= (8, 0))
