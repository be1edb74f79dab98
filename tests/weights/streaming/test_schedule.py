"""What is loaded next and what is evicted for it, without threads and weights."""

from __future__ import annotations

import random

import pytest

from lowmem_if.weights.streaming.offload_groups import OffloadGroup
from lowmem_if.weights.streaming.schedule import Schedule


class Slots:
    """Memory for a number of groups of one size; more of them by force."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.held: list[OffloadGroup] = []

    def reserve(self, group: OffloadGroup, *, force: bool = False) -> bool:
        if len(self.held) >= self.count and not force:
            return False
        assert group not in self.held
        self.held.append(group)
        return True

    def release(self, group: OffloadGroup) -> None:
        self.held.remove(group)


GROUPS = tuple(OffloadGroup((), ()) for _ in range(6))
A, B, C, D, E, F = GROUPS


def load_ahead(schedule: Schedule) -> list[OffloadGroup]:
    """Load all there is memory for; what was loaded, in order."""
    loaded = []
    while (group := schedule.wanted() or schedule.upcoming()) is not None:
        schedule.loaded(group)
        loaded.append(group)
    return loaded


def compute(schedule: Schedule, group: OffloadGroup) -> list[OffloadGroup]:
    """One forward; what was loaded before and during it."""
    schedule.reach(group)
    schedule.request(group)
    loaded = load_ahead(schedule)
    schedule.request(None)
    assert schedule.is_loaded(group)
    schedule.enter(group)
    loaded += load_ahead(schedule)
    if schedule.leave(group):
        schedule.release(group)
    return loaded


def test_before_the_first_forward_the_first_groups_are_loaded() -> None:
    """In the order of registration, as many as there is memory for."""
    assert load_ahead(Schedule(GROUPS, Slots(2))) == [A, B]


def test_a_pass_loads_every_group_once_and_the_next_pass_begins_at_the_first() -> None:
    """That the first group follows the last one is known from the second pass on."""
    schedule = Schedule(GROUPS, Slots(2))
    first = [group for forward in GROUPS for group in compute(schedule, forward)]
    assert first == list(GROUPS)
    second = [group for forward in GROUPS for group in compute(schedule, forward)]
    assert second[: len(GROUPS)] == list(GROUPS)
    assert second[len(GROUPS) :] == [A]


def test_another_order_is_learnt_from_one_pass() -> None:
    """What the first pass loads in vain, the following ones do not."""
    order = (B, A, D, C, F, E)
    schedule = Schedule(GROUPS, Slots(2))
    for forward in order:
        compute(schedule, forward)
    for forward in order:
        compute(schedule, forward)
    third = [group for forward in order for group in compute(schedule, forward)]
    assert sorted(map(GROUPS.index, third)) == list(range(len(GROUPS)))


def test_the_group_that_is_waited_for_evicts_all_that_is_idle() -> None:
    """What was prefetched in vain makes room for it."""
    memory = Slots(2)
    schedule = Schedule(GROUPS, memory)
    load_ahead(schedule)
    assert compute(schedule, E)[0] is E
    assert A not in memory.held


def test_a_group_in_use_is_never_evicted() -> None:
    """Not even for the group that is waited for, which gets memory beyond the window then."""
    memory = Slots(1)
    schedule = Schedule(GROUPS, memory)
    schedule.reach(A)
    schedule.request(A)
    load_ahead(schedule)
    schedule.enter(A)
    assert compute(schedule, B) == [B]
    assert memory.held == [A]
    assert schedule.leave(A)


def test_a_group_that_two_forwards_use_is_released_after_the_last() -> None:
    """The inner one leaves first; the second one that reaches it finds it in use."""
    schedule = Schedule(GROUPS, Slots(2))
    load_ahead(schedule)
    assert schedule.reach(A)
    schedule.enter(A)
    assert not schedule.reach(A)
    schedule.enter(A)
    assert not schedule.leave(A)
    assert schedule.leave(A)
    assert not schedule.leave(A)  # as after a forward whose loading has failed


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_forwards_is_served_within_the_window(seed: int) -> None:
    """Every forward finds its group loaded, and the window holds no more groups than it can."""
    chance = random.Random(seed)
    memory = Slots(chance.randint(1, 4))
    schedule = Schedule(GROUPS, memory)
    for _ in range(200):
        compute(schedule, chance.choice(GROUPS))
        assert len(memory.held) <= memory.count
        assert set(memory.held) == {group for group in GROUPS if schedule.is_loaded(group)}


def test_nothing_is_loaded_after_the_last_pass() -> None:
    """Where it is known to be the last; another pass that comes all the same is loaded as before."""
    schedule = Schedule((A, B, C), Slots(2))
    for _ in range(2):
        for group in (A, B, C):
            compute(schedule, group)
    assert schedule.is_loaded(A)  # of the third pass
    schedule.reach(A)
    schedule.end_with(C)
    loaded = [group for step in (A, B, C) for group in compute(schedule, step)]
    assert A not in loaded
    assert not any(schedule.is_loaded(group) for group in (A, B, C))
    assert [group for step in (A, B, C) for group in compute(schedule, step)][:3] == [A, B, C]
