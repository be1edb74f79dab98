"""Pins: kept to the letter, or refused with one that can be kept."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from machines import (
    ask,
    card,
    cpu,
    pinned_machines,
    pins,
    preferences,
    requests,
    step,
    thorough,
    try_plan,
)

from lowmem_if.cascade.catalog import POSTPROCESS, STAGE_1, STAGE_2, TEXT_ENCODER, UPSCALER
from lowmem_if.cascade.strategies import (
    MODEL_OFFLOAD,
    RESIDENT,
    SEQUENTIAL_OFFLOAD,
    STREAM,
    Pin,
)
from lowmem_if.errors import (
    DeviceError,
    DoesNotFit,
    RequestError,
)
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.request.request import Request

pytestmark = pytest.mark.usefixtures("nothing_downloaded")


@pytest.mark.slow
@thorough
@given(pinned_machines, requests, preferences, pins)
def test_pins_are_kept_or_refused(
    machine: Machine, request: Request, prefer: str | None, pins: dict[str, Pin]
) -> None:
    """A pinned component has exactly the pinned strategy and type, or there is no plan at all."""
    try:
        plan = make_plan(machine, request, prefer=prefer, pins=pins)
    except (DoesNotFit, DeviceError, RequestError):
        return
    assert plan.pins == {component: str(pin) for component, pin in pins.items()}
    for each in plan.steps:
        if pin := pins.get(each.component):
            assert each.config.strategy == pin.strategy
            assert each.config.storage_dtype == (pin.storage or each.config.storage_dtype)
            on_the_cpu = each.component == POSTPROCESS or (
                machine.kind == "mps" and each.config.storage_dtype in ("int8", "nf4")
            )
            assert each.config.device == ("cpu" if on_the_cpu else machine.device)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.slow
@thorough
@given(pinned_machines, requests, preferences, pins)
def test_a_pin_changes_nothing_else(
    machine: Machine, request: Request, prefer: str | None, pins: dict[str, Pin]
) -> None:
    """Components that are not pinned are planned as without pins."""
    free = try_plan(machine, request, prefer=prefer)
    try:
        pinned = make_plan(machine, request, prefer=prefer, pins=pins)
    except (DoesNotFit, DeviceError, RequestError):
        return
    for before, after in zip(free.steps if free else (), pinned.steps, strict=False):
        if before.component not in pins:
            assert before == after


def test_a_pinned_float_is_also_computed_in() -> None:
    """Pinning float32 storage means float32 arithmetic; a quantised type computes in the machine's."""
    plan = make_plan(
        card(40, 40),
        ask(),
        pins={STAGE_1: Pin(RESIDENT, "float32"), TEXT_ENCODER: Pin(RESIDENT, "nf4")},
    )
    assert step(plan, STAGE_1).config.compute_dtype == "float32"
    assert step(plan, TEXT_ENCODER).config.compute_dtype == "float16"
    assert "pinned" in step(plan, STAGE_1).reason


@pytest.mark.parametrize(
    ("machine", "pins", "kind", "words"),
    [
        (
            cpu(64),
            {STAGE_1: Pin(SEQUENTIAL_OFFLOAD)},
            DeviceError,
            "stage_1=resident or stage_1=stream",
        ),
        (
            cpu(64),
            {UPSCALER: Pin(MODEL_OFFLOAD)},
            DeviceError,
            "upscaler=resident or upscaler=stream",
        ),
        (cpu(64), {STAGE_2: Pin(RESIDENT, "float16")}, DeviceError, "stage_2=resident:bfloat16"),
        (cpu(64), {STAGE_2: Pin(STREAM, "float16")}, DeviceError, "stage_2=stream:bfloat16"),
        (card(40, 64), {POSTPROCESS: Pin(STREAM)}, RequestError, "resident:float32"),
        (
            replace(card(40, 64), capability=(7, 0)),
            {TEXT_ENCODER: Pin(RESIDENT, "int8")},
            DeviceError,
            "resident:nf4",
        ),
        (card(40, 64), {POSTPROCESS: Pin(MODEL_OFFLOAD)}, RequestError, "resident:float32"),
        (card(40, 64), {POSTPROCESS: Pin(RESIDENT, "float16")}, RequestError, "resident:float32"),
    ],
)
def test_a_pin_that_the_device_cannot_keep_is_refused_with_one_that_it_can(
    machine: Machine, pins: dict[str, Pin], kind: type[Exception], words: str
) -> None:
    """Offloading and float16 on a CPU, 8 bits on an old card, a finish elsewhere: the error says so."""
    with pytest.raises(kind, match=words) as caught:
        make_plan(machine, ask(), pins=pins)
    assert "\n" not in str(caught.value)


def test_a_pin_without_room_is_not_overridden() -> None:
    """A pinned strategy that does not fit is a DoesNotFit, which says that it fits without the pin."""
    with pytest.raises(DoesNotFit) as caught:
        make_plan(card(7, 16), ask(size=64), pins={STAGE_1: Pin(RESIDENT)})
    assert caught.value.component == STAGE_1
    assert caught.value.nearest.startswith("Try it without the pins, or free ")


def test_a_pin_of_a_component_that_does_not_run_is_no_matter() -> None:
    """The same pins serve a small and a large picture."""
    plan = make_plan(card(16, 16), ask(size=64), pins={UPSCALER: Pin(MODEL_OFFLOAD)})
    assert plan.pins == {UPSCALER: "model_offload"}


def test_a_pinned_8bit_encoder_runs_on_the_cpu_beside_an_apple_gpu() -> None:
    """bitsandbytes' int8 is not for Apple GPUs, so the demo's pin is kept on the CPU."""
    pins = {TEXT_ENCODER: Pin(RESIDENT, "int8")}
    encoder = step(make_plan(card(10, 16, "mps"), ask("demo"), pins=pins), TEXT_ENCODER)
    assert (encoder.config.storage_dtype, encoder.config.device, encoder.config.compute_dtype) == (
        "int8",
        "cpu",
        "float32",
    )
