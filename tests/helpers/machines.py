"""Machines of every kind and size, requests and pins: made by hand, and drawn by hypothesis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import POSTPROCESS, STAGE_1, STAGE_2, TEXT_ENCODER, UPSCALER
from lowmem_if.cascade.strategies import FLOATS, PREFERENCES, QUANTISED, RESIDENT, STRATEGIES, Pin
from lowmem_if.errors import DoesNotFit
from lowmem_if.hardware.machine import Machine, accelerator_compute_dtype, cpu_compute_dtype
from lowmem_if.planning.plan import Plan, Step, make_plan
from lowmem_if.request.build import make_request
from lowmem_if.request.request import Request

GB = 10**9

BASE = Machine(
    name="made up",
    device="cpu",
    device_name="made up",
    vram_bytes=0,
    vram_total_bytes=0,
    ram_bytes=64 * GB,
    ram_total_bytes=64 * GB,
    disk_free_bytes=1000 * GB,
    compute_dtype="float32",
    compute_dtype_reason="made up",
)


def cpu(ram: float, *features: str) -> Machine:
    dtype, reason = cpu_compute_dtype(frozenset(features))
    return replace(BASE, ram_bytes=int(ram * GB), compute_dtype=dtype, compute_dtype_reason=reason)


def card(
    vram: float, ram: float, kind: str = "cuda", capability: tuple[int, int] = (8, 6)
) -> Machine:
    dtype, reason = accelerator_compute_dtype(kind, capability)
    return replace(
        BASE,
        device=kind if kind == "mps" else f"{kind}:0",
        vram_bytes=int(vram * GB),
        vram_total_bytes=int(vram * GB),
        ram_bytes=int(ram * GB),
        compute_dtype=dtype,
        compute_dtype_reason=reason,
    )


def ask(cascade: str = "if-xl", **values: Any) -> Request:
    return make_request(**{"prompts": ("a",), "seed": (1,), "cascade": cascade} | values)


def step(plan: Plan, component: str) -> Step:
    return next(step for step in plan.steps if step.component == component)


def try_plan(machine: Machine, request: Request, **kwargs: Any) -> Plan | None:
    try:
        return make_plan(machine, request, **kwargs)
    except DoesNotFit:
        return None


def refusal(machine: Machine, request: Request, **kwargs: Any) -> DoesNotFit | None:
    try:
        make_plan(machine, request, **kwargs)
    except DoesNotFit as error:
        return error
    return None


def around(*sizes: int) -> st.SearchStrategy[float]:
    """One of the sizes in GB, or a little more: over ranges hypothesis prefers the tiny ones."""
    return st.builds(lambda size, more: size + more / 10, st.sampled_from(sizes), st.integers(0, 9))


vrams = around(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 40)
rams = around(0, 1, 2, 3, 4, 6, 8, 11, 13, 14, 16, 24, 32, 64)
apples = st.builds(card, vrams, rams, st.just("mps"))
cards = st.builds(
    card,
    vrams,
    rams,
    st.sampled_from(["cuda", "cuda", "xpu", "mps"]),
    st.sampled_from([(6, 1), (7, 5), (8, 6)]),
)
cpus = st.builds(cpu, rams) | st.builds(cpu, rams, st.just("avx512_bf16"))
machines = cards | cards | cpus
roomy = st.builds(card, around(8, 16, 40), around(32, 64), st.sampled_from(["cuda", "xpu"]))
"""Cards beside plenty of RAM, where most pins are possible."""
pinned_machines = machines | roomy | roomy | roomy
requests = st.builds(
    ask,
    st.sampled_from(sorted(catalog.PUBLISHED)),
    size=st.sampled_from(sorted(catalog.SIZES)),
    images=st.integers(1, 9),
)
preferences = st.sampled_from((None, *PREFERENCES))
float_pins = st.builds(Pin, st.sampled_from(STRATEGIES), st.none() | st.sampled_from(FLOATS))
pins = st.fixed_dictionaries(
    {},
    optional={
        TEXT_ENCODER: float_pins | st.builds(Pin, st.just(RESIDENT), st.sampled_from(QUANTISED)),
        STAGE_1: float_pins,
        STAGE_2: float_pins,
        UPSCALER: float_pins,
        POSTPROCESS: st.builds(
            Pin, st.just(RESIDENT), st.sampled_from([None, "float32", "float16"])
        ),
    },
)

thorough = settings(derandomize=True, database=None, deadline=None, max_examples=200)


@dataclass(frozen=True)
class Drawn:
    """A machine and a request that hypothesis drew, with the plan if there is one."""

    machine: Machine
    request: Request
    prefer: str | None
    plan: Plan | None


@cache
def drawn_plans() -> tuple[Drawn, ...]:
    """Plans that are made once, for all tests that only look at them."""
    found = []

    @settings(thorough, max_examples=400)
    @given(machines, requests, preferences)
    def draw(machine: Machine, request: Request, prefer: str | None) -> None:
        found.append(Drawn(machine, request, prefer, try_plan(machine, request, prefer=prefer)))

    draw()
    return tuple(found)


def drawn_steps() -> Iterator[tuple[Drawn, Step]]:
    """Every step of these plans."""
    for drawn in drawn_plans():
        for each in drawn.plan.steps if drawn.plan else ():
            yield drawn, each
