"""What stays loaded: nothing that a step needs the room of; what is needed the last goes first."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import plan_of

from lowmem_if.cascade.catalog import (
    COMPONENTS,
    POSTPROCESS,
    STAGE_1,
    STAGE_2,
    TEXT_ENCODER,
    UPSCALER,
)
from lowmem_if.planning.estimates.memory import headroom
from lowmem_if.planning.eviction import CacheEntry, eviction_order, to_evict
from lowmem_if.planning.plan import Plan, Step

MB = 10**6


def kept(component: str, ram: int = MB, vram: int = 0, read: int = MB) -> CacheEntry:
    return CacheEntry(component, vram, ram, read)


def names(components: list[CacheEntry]) -> list[str]:
    return [one.component for one in components]


def with_room_for(plan: Plan, step: Step, more_bytes: int) -> Plan:
    """The plan on a machine that has so much more RAM than the step needs."""
    ram = step.estimate.ram_bytes + headroom(step.config.device)[1] + more_bytes
    return replace(plan, machine=replace(plan.machine, ram_bytes=ram))


@pytest.mark.parametrize(
    ("turn", "order"),
    [
        (TEXT_ENCODER, [POSTPROCESS, UPSCALER, STAGE_2, STAGE_1]),
        (STAGE_1, [TEXT_ENCODER, POSTPROCESS, UPSCALER, STAGE_2]),
        (STAGE_2, [TEXT_ENCODER, STAGE_1, POSTPROCESS, UPSCALER]),
        (UPSCALER, [TEXT_ENCODER, STAGE_2, STAGE_1, POSTPROCESS]),
        (POSTPROCESS, [TEXT_ENCODER, UPSCALER, STAGE_2, STAGE_1]),
    ],
)
def test_what_was_used_last_goes_first_behind_the_text_encoder(turn: str, order: list[str]) -> None:
    """Turns go round: the component before this one is the furthest; embeddings are on disk anyway."""
    others = [kept(component) for component in COMPONENTS if component != turn]
    assert names(eviction_order(others, turn, COMPONENTS)) == order


def test_what_a_run_does_without_goes_before_what_it_needs_the_cheapest_first() -> None:
    """A small picture needs neither stage 2 nor the upscaler; what is read quicker goes first."""
    components = plan_of("demo", size=64).request.components
    others = [kept(UPSCALER, read=3), kept(STAGE_2, read=2), kept(POSTPROCESS)]
    assert names(eviction_order(others, STAGE_1, components)) == [STAGE_2, UPSCALER, POSTPROCESS]


def test_nothing_goes_while_there_is_room_for_all() -> None:
    """To the byte: what stays, the step's peak and the headroom are the budget."""
    plan = plan_of("demo")
    step = plan.step(STAGE_2)
    others = [kept(STAGE_1, 5 * MB), kept(POSTPROCESS, 2 * MB)]
    assert to_evict(others, step, with_room_for(plan, step, 7 * MB)) == []
    assert names(to_evict(others, step, with_room_for(plan, step, 7 * MB - 1))) == [STAGE_1]
    assert names(to_evict(others, step, with_room_for(plan, step, 0))) == [STAGE_1, POSTPROCESS]


def test_only_what_is_in_the_memory_that_is_short_goes() -> None:
    """Short of RAM, what is on the card stays there."""
    plan = plan_of("demo")
    step = plan.step(STAGE_2)
    others = [kept(STAGE_1, ram=0, vram=9 * MB), kept(POSTPROCESS)]
    assert names(to_evict(others, step, with_room_for(plan, step, 0))) == [POSTPROCESS]


def test_a_step_that_is_too_large_by_itself_has_all_there_is() -> None:
    """Where nothing is left to let go of, the step is not refused here."""
    plan = plan_of("demo")
    step = plan.step(STAGE_2)
    assert names(to_evict([kept(POSTPROCESS)], step, with_room_for(plan, step, -MB))) == [
        POSTPROCESS
    ]


@given(
    sizes=st.lists(st.integers(0, 900 * MB), min_size=5, max_size=5),
    turn=st.sampled_from(COMPONENTS),
    room=st.integers(0, 3000 * MB),
)
def test_what_stays_never_exceeds_the_budget_and_nothing_goes_for_nothing(
    sizes: list[int], turn: str, room: int
) -> None:
    """Whatever the sizes: the rest fits, and would not with the one that went last."""
    plan = plan_of("demo")
    step = plan.step(turn)
    others = [
        kept(component, size) for component, size in zip(COMPONENTS, sizes, strict=True)
        if component != turn
    ]  # fmt: skip
    going = to_evict(others, step, with_room_for(plan, step, room))
    staying = sum(one.ram_bytes for one in others if one not in going)
    assert staying <= room
    assert not going or staying + going[-1].ram_bytes > room
