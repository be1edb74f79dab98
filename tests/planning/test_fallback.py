"""After a failure: the next step takes less of the right memory, and is the quickest that does."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from machines import (
    GB,
    ask,
    card,
    cpu,
    machines,
    pins,
    preferences,
    requests,
    thorough,
)

from lowmem_if.cascade.catalog import (
    COMPONENTS,
    POSTPROCESS,
    STAGE_1,
    STAGE_2,
    TEXT_ENCODER,
    UPSCALER,
)
from lowmem_if.cascade.locate import Location, locate
from lowmem_if.cascade.strategies import (
    BALANCED,
    FLOATS,
    MODEL_OFFLOAD,
    RESIDENT,
    SEQUENTIAL_OFFLOAD,
    STREAM,
    Pin,
)
from lowmem_if.errors import DeviceError, DoesNotFit, RequestError
from lowmem_if.hardware.dtypes import wider
from lowmem_if.hardware.machine import Machine
from lowmem_if.hardware.profiles import load_profile, profile_names
from lowmem_if.planning.estimates.execution import WHOLE, Estimate
from lowmem_if.planning.estimates.workload import workloads_of
from lowmem_if.planning.evaluate import evaluate
from lowmem_if.planning.fallback import (
    RAM,
    SLOWER,
    VRAM,
    Findings,
    _configs,
    changed_pixels,
    cheaper,
    more_exact,
)
from lowmem_if.planning.plan import Plan, Step, make_plan
from lowmem_if.request.request import Request

pytestmark = pytest.mark.usefixtures("nothing_downloaded")


def located(plan: Plan) -> Location:
    return locate(plan.request.cascade, components=plan.request.components)


def out_of(plan: Plan, component: str, short_of: str) -> tuple[Findings, Step | None]:
    """What a first shortage leaves, and the step after it."""
    step = plan.step(component)
    findings = Findings().ran_out(step, plan.machine, short_of)
    return findings, cheaper(plan, located(plan), component, findings, short_of=short_of)


def rungs(plan: Plan, component: str, short_of: str) -> list[Step]:
    """A step and all that follow it while memory runs out again and again; on a CPU that is RAM."""
    location, findings = located(plan), Findings()
    steps = [plan.step(component)]
    while True:
        short = RAM if steps[-1].config.device == "cpu" else short_of
        findings = findings.ran_out(steps[-1], plan.machine, short)
        lower = cheaper(plan, location, component, findings, short_of=short)
        if lower is None:
            return steps
        steps.append(lower)
        assert len(steps) < 40, "the ladder has no end"
        plan = replace(
            plan, steps=tuple(lower if s.component == component else s for s in plan.steps)
        )


def taken(machine: Machine, short_of: str, peaks: Estimate) -> int:
    """What a step takes of a memory; RAM holds both where memory is unified."""
    if short_of == VRAM:
        return peaks.vram_bytes
    return peaks.ram_bytes + (peaks.vram_bytes if machine.unified else 0)


@cache
def profile_plans(size: int = 1024) -> list[Plan]:
    """A plan for every profile."""
    return [make_plan(load_profile(name).machine, ask(size=size)) for name in profile_names()]


# --- every profile ------------------------------------------------------------------------------


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("short_of", [VRAM, RAM])
def test_on_every_profile_the_next_step_takes_less_and_is_quick(
    short_of: str, component: str
) -> None:
    """Never more than 2.5 times as slow as the quickest that fits and takes less of what ran out."""
    for plan in profile_plans():
        machine, step = plan.machine, plan.step(component)
        if short_of == VRAM and step.config.device == "cpu":
            continue
        findings, lower = out_of(plan, component, short_of)
        before = taken(machine, short_of, step.estimate)
        settings = _configs(plan, located(plan), step, findings)
        part = located(plan).cascade.parts[component]
        jobs = workloads_of(plan.request, located(plan).cascade, component)
        fitting = [
            candidate
            for candidate in (evaluate(machine, part, setting, jobs) for setting in settings)
            if candidate.short is None and taken(machine, short_of, candidate.estimate) < before
        ]
        where = (machine.name, component, short_of)
        if not fitting:
            assert lower is None or short_of == VRAM, where
            continue
        assert lower is not None, where
        assert taken(machine, short_of, lower.estimate) < before, where
        quickest = min(candidate.seconds for candidate in fitting)
        assert lower.estimate.seconds <= SLOWER * quickest, where


def test_short_of_vram_every_component_of_every_profile_has_an_answer() -> None:
    """On a card there is always something that takes less of its memory, at last the CPU."""
    for plan in profile_plans():
        for step in plan.steps:
            if step.config.device != "cpu":
                _, lower = out_of(plan, step.component, VRAM)
                assert lower is not None, (plan.machine.name, step.component)


def test_on_free_colab_stage_1_streams_to_the_card() -> None:
    """Not sequential offload (221 s, 9.7 GB of 12.7 GB of RAM), nor the CPU (3.5 hours)."""
    plan = make_plan(load_profile("colab-free").machine, ask())
    steps = rungs(plan, STAGE_1, VRAM)
    assert (steps[0].config.strategy, steps[1].config.strategy) == (RESIDENT, STREAM)
    assert steps[1].estimate.seconds < 1.2 * steps[0].estimate.seconds
    on_card = [step for step in steps if step.config.device != "cpu"]
    assert STREAM in [step.config.strategy for step in on_card[2:]]
    assert all(
        step.estimate.ram_bytes < 2 * GB for step in on_card if step.config.strategy == STREAM
    )
    assert len(on_card) <= 8
    assert steps[len(on_card) :] == [step for step in steps if step.config.device == "cpu"]


@pytest.mark.parametrize("component", [STAGE_1, STAGE_2])
def test_short_of_ram_offloaded_weights_go_to_the_card_or_stay_in_the_file(component: str) -> None:
    """A GPU machine that is short of RAM keeps weights where there is room."""
    plan = make_plan(card(16, 16), ask(), pins={component: Pin(SEQUENTIAL_OFFLOAD)})
    plan = replace(plan, pins={})
    lower = out_of(plan, component, RAM)[1]
    assert lower is not None
    assert (lower.config.strategy, lower.config.device) == (RESIDENT, "cuda:0")
    small = replace(plan, machine=replace(plan.machine, vram_bytes=2 * GB))
    lower = out_of(small, component, RAM)[1]
    assert lower is not None
    assert (lower.config.strategy, lower.config.device) == (STREAM, "cuda:0")


# --- any machine --------------------------------------------------------------------------------


@pytest.mark.slow
@thorough
@given(machines, requests, preferences, pins)
def test_every_ladder_ends_and_every_step_takes_less(
    machine: Machine, request: Request, prefer: str | None, pins: dict[str, Pin]
) -> None:
    """Whatever ran out, less of it is taken from then on; what ran out before is not forgotten."""
    try:
        plan = make_plan(machine, request, prefer=prefer, pins=pins)
    except (DoesNotFit, DeviceError, RequestError):
        return
    for first in plan.steps:
        for short_of in (VRAM, RAM):
            steps = rungs(plan, first.component, short_of)
            assert len({step.config for step in steps}) == len(steps)
            for upper, lower in pairwise(steps):
                short = RAM if upper.config.device == "cpu" else short_of
                before, after = (taken(machine, short, s.estimate) for s in (upper, lower))
                assert after < before
                assert lower.estimate.vram_bytes <= machine.vram_bytes
                assert lower.estimate.ram_bytes <= machine.ram_bytes
                assert (lower.component, lower.samplings) == (first.component, first.samplings)
                assert (
                    lower.reason == f"{short} ran out with {upper.config} on {upper.config.device}"
                )
                assert lower.instead_of == str(upper.config)
                if lower.config.device == "cpu":
                    assert "float16" not in (lower.config.storage_dtype, lower.config.compute_dtype)
            if first.component in plan.pins and first.component != POSTPROCESS:
                assert {step.config.strategy for step in steps} == {first.config.strategy}


def test_what_ran_out_once_is_not_tried_again_after_the_other_memory_ran_out() -> None:
    """Short of RAM, then of VRAM: the step that had too little RAM does not come back."""
    plan = make_plan(card(16, 16), ask(), pins={STAGE_1: Pin(SEQUENTIAL_OFFLOAD)})
    plan = replace(plan, pins={})
    findings, lower = out_of(plan, STAGE_1, RAM)
    assert lower is not None
    limit = findings.ram_bytes
    while lower is not None:
        assert limit is not None
        assert lower.estimate.ram_bytes < limit
        plan = replace(
            plan, steps=tuple(lower if s.component == STAGE_1 else s for s in plan.steps)
        )
        findings = findings.ran_out(lower, plan.machine, VRAM)
        lower = cheaper(plan, located(plan), STAGE_1, findings, short_of=VRAM)


def test_from_the_second_shortage_on_steps_grow_larger() -> None:
    """Each try loads the component again: where the prediction was wrong, small steps take too long."""
    peaks = [
        step.estimate.vram_bytes
        for step in rungs(make_plan(card(16, 16), ask()), STAGE_1, VRAM)
        if step.config.device != "cpu"
    ]
    assert peaks[1] < 0.95 * peaks[0]
    assert all(lower < 0.7 * upper for upper, lower in pairwise(peaks[1:-2]))


def test_the_strictest_level_is_kept_as_long_as_that_is_not_much_slower() -> None:
    """An exact upscaler moves its modules, another decodes in strips; a balanced one draws fewer."""
    steps = rungs(make_plan(card(80, 80), ask(), prefer="exact"), UPSCALER, VRAM)
    assert [(step.config.strategy, step.config.decoding) for step in steps[:2]] == [
        (RESIDENT, WHOLE), (MODEL_OFFLOAD, WHOLE),
    ]  # fmt: skip
    assert changed_pixels(steps[0].config, steps[1].config) == ""
    steps = rungs(make_plan(card(80, 80), ask()), UPSCALER, VRAM)
    assert any(step.config.decoding != WHOLE for step in steps if step.config.device != "cpu")
    balanced = make_plan(card(80, 80), ask(images=4), prefer=BALANCED)
    lower = out_of(balanced, UPSCALER, VRAM)[1]
    assert lower is not None
    assert lower.config.batch < balanced.step(UPSCALER).config.batch


@pytest.mark.parametrize("prefer", ["exact", "faithful"])
def test_a_users_own_preference_is_kept_when_memory_runs_out(prefer: str) -> None:
    """No quantised weights, and under `exact` no strips and no batch: the CPU is taken before that."""
    plan = make_plan(card(80, 80), ask(images=4), prefer=prefer)
    for component in (STAGE_1, UPSCALER):
        steps = rungs(plan, component, VRAM)
        # Short of RAM, too, a `faithful` upscaler returns to the card with strips.
        assert any(step.config.device == "cpu" for step in steps)
        if prefer == "exact" or component == STAGE_1:
            assert steps[-1].config.device == "cpu"
        if prefer == "exact":
            assert {step.config.decoding for step in steps} == {WHOLE}
            assert {step.config.batch for step in steps} == {1}


@pytest.mark.parametrize(
    "machine", [card(16, 16), card(16, 16, "xpu"), card(40, 64, "mps"), cpu(32)]
)
def test_a_pin_keeps_its_strategy(machine: Machine) -> None:
    """Less may stay in place, batches and tiles may be smaller; weights live as the user said."""
    for strategy in (RESIDENT, STREAM):
        plan = make_plan(machine, ask(), pins={STAGE_1: Pin(strategy), UPSCALER: Pin(strategy)})
        for component in (STAGE_1, UPSCALER):
            steps = rungs(plan, component, VRAM)
            assert {(s.config.strategy, s.config.device) for s in steps} == {
                (strategy, machine.device)
            }
            # On a CPU the upscaler decodes in strips from the beginning.
            decodes = component == UPSCALER and machine.kind != "cpu"
            assert (len(steps) > 1) == (strategy == STREAM or decodes)


def test_only_files_that_are_here_are_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the published 8-bit encoder on the disk alone, streaming 16-bit files is no way out."""
    plan = make_plan(card(16, 16), ask())
    assert plan.step(TEXT_ENCODER).config.storage_dtype == "int8"
    findings, lower = out_of(plan, TEXT_ENCODER, VRAM)
    assert lower is not None
    assert lower.config.strategy == STREAM
    location = located(plan)
    monkeypatch.setattr(
        Location, "folder", lambda _self, _name, storage="float16": storage == "int8" or None
    )
    lower = cheaper(plan, location, TEXT_ENCODER, findings, short_of=VRAM)
    assert lower is not None
    assert (lower.config.storage_dtype, lower.config.device) == ("int8", "cpu")


# --- numbers that are not finite ----------------------------------------------------------------


def overflowed(plan: Plan, component: str) -> Step | None:
    """The step after a component gave numbers that are not finite."""
    findings = Findings().overflowed(plan.step(component))
    return more_exact(plan, located(plan), component, findings)


def test_on_every_profile_float16_is_answered_by_a_type_that_fits() -> None:
    """bfloat16 where the device has it, else float32; within the memory that there is."""
    answered = 0
    for plan in profile_plans():
        machine = plan.machine
        for step in plan.steps:
            if step.config.compute_dtype != "float16":
                continue
            other = overflowed(plan, step.component)
            where = (machine.name, step.component)
            assert other is not None, where
            answered += 1
            assert other.config.storage_dtype in FLOATS, where
            assert other.config.compute_dtype in ("float32", *wider(machine, "float16")), where
            assert other.estimate.vram_bytes <= machine.vram_bytes, where
            assert other.estimate.ram_bytes <= machine.ram_bytes, where
            assert other.reason == "float16 gave NaN or infinite numbers", where
            assert "computes in" in changed_pixels(step.config, other.config), where
    assert answered > 20


@pytest.mark.parametrize(
    ("machine", "types"),
    [
        (replace(card(16, 16), capability=(7, 5)), ("float32",)),
        (replace(card(16, 16), capability=(8, 6)), ("bfloat16", "float32")),
        (card(16, 16, "xpu"), ("bfloat16", "float32")),
        (card(16, 16, "mps"), ("float32",)),
        (cpu(16), ("float32",)),
        (cpu(16, "avx512_bf16"), ("bfloat16", "float32")),
    ],
)
def test_bfloat16_is_tried_where_the_device_has_it(
    machine: Machine, types: tuple[str, ...]
) -> None:
    """Before Ampere, on Apple and on older CPUs only float32 is left, and after that nothing."""
    assert wider(machine, "float16") == types
    assert wider(machine, "bfloat16") == ("float32",)
    assert wider(machine, "float32") == ()


def test_a_type_that_overflowed_does_not_come_back_when_memory_runs_out() -> None:
    """In float32 memory runs out again and again; all that follows is float32, too."""
    plan = make_plan(replace(card(16, 16), capability=(7, 5)), ask())
    findings, steps = Findings().overflowed(plan.step(STAGE_1)), []
    step = more_exact(plan, located(plan), STAGE_1, findings)
    while step is not None:
        steps.append(step)
        assert (step.config.compute_dtype, step.config.storage_dtype) == ("float32", "float32")
        plan = replace(plan, steps=tuple(step if s.component == STAGE_1 else s for s in plan.steps))
        short_of = RAM if step.config.device == "cpu" else VRAM
        findings = findings.ran_out(step, plan.machine, short_of)
        step = cheaper(plan, located(plan), STAGE_1, findings, short_of=short_of)
    assert len(steps) > 3


def test_8_bit_layers_are_no_answer_to_numbers_that_overflow() -> None:
    """bitsandbytes multiplies in float16, whatever is said of the rest."""
    plan = make_plan(card(16, 16), ask())
    assert plan.step(TEXT_ENCODER).config.storage_dtype == "int8"
    other = overflowed(plan, TEXT_ENCODER)
    assert other is not None
    assert (other.config.storage_dtype, other.config.compute_dtype) == ("float32", "float32")


def test_a_pinned_number_type_is_kept() -> None:
    """`--pin stage_1=resident:float16` leaves nothing to try; without the type it does."""
    machine = replace(card(40, 64), capability=(8, 6))
    for pin, fits in ((Pin(RESIDENT, "float16"), False), (Pin(RESIDENT), True)):
        plan = make_plan(machine, ask(), pins={STAGE_1: pin})
        other = overflowed(plan, STAGE_1)
        assert (other is not None) == fits
        if other is not None:
            assert (other.config.strategy, other.config.compute_dtype) == (RESIDENT, "bfloat16")


def test_a_plan_for_a_gtx_16_card_tells_of_its_black_pictures() -> None:
    """What the profile knows is in the reasons of all that computes in float16."""
    plan = make_plan(load_profile("gtx-1660-6gb").machine, ask())
    halves = [step for step in plan.steps if step.config.compute_dtype == "float16"]
    assert halves
    assert all("black pictures in float16" in step.reason for step in halves)
    other = make_plan(load_profile("rtx-2060-6gb").machine, ask())
    assert not any("black pictures" in step.reason for step in other.steps)


def test_a_step_names_what_it_replaces() -> None:
    """The step after a shortage says which setting was too much."""
    lower = rungs(make_plan(card(24, 32), ask()), STAGE_1, VRAM)[1]
    assert lower.instead_of == "resident float16"
    assert lower.reason == "VRAM ran out with resident float16 on cuda:0"


@pytest.mark.parametrize("free", [2 * GB, 4 * GB, 6 * GB])
def test_after_others_took_vram_the_next_step_fits_what_is_free(free: int) -> None:
    """Not only below the step that was planned, which the plan's own budget would allow."""
    plan = make_plan(load_profile("rtx-3060-12gb").machine, ask(size=1024))
    step = plan.step(STAGE_1)
    assert step.estimate.vram_bytes > 7 * GB
    findings = Findings().ran_out(step, plan.machine, VRAM, free)
    lower = cheaper(plan, located(plan), STAGE_1, findings, short_of=VRAM)
    assert lower is not None
    assert lower.config.device != "cpu"
    assert lower.estimate.vram_bytes < free
