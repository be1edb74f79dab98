"""What is left of a budget for another stage in the same process."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from machines import GB, card, cpu

from lowmem_if.engine.opened import open_stages
from lowmem_if.engine.opened.open_stages import left_of
from lowmem_if.planning.estimates.execution import Estimate
from lowmem_if.planning.estimates.memory import PROCESS_RAM_BYTES
from lowmem_if.weights.memory_readings import MemoryReading

HELD = MemoryReading(ram_anon=3 * GB, ram_file=GB, vram_allocated=2 * GB, vram_reserved=3 * GB)


class Nothing:
    """What a weak reference can refer to."""


@pytest.fixture
def promised() -> Iterator[None]:
    """A stage is open that may still take 2 GB of VRAM and 1 GB of RAM."""
    reference: Any = weakref.ref(Nothing())
    open_stages._OPEN[-1] = open_stages._Promise("stage 1", reference, 2 * GB, GB)
    yield
    del open_stages._OPEN[-1]


def left(machine: Any, *, budget: bool) -> tuple[int, int]:
    found = left_of(machine, HELD, ram_is_budget=budget, vram_is_budget=budget)
    return found.vram_bytes, found.ram_bytes - PROCESS_RAM_BYTES


def test_a_measured_machine_lacks_what_is_held_already() -> None:
    """Nothing is subtracted twice; an empty process, which plans count, is paid for."""
    assert left(card(10, 8), budget=False) == (10 * GB, 8 * GB)
    assert left(cpu(8), budget=False) == (0, 8 * GB)


def test_a_users_budget_is_for_the_process_as_a_whole() -> None:
    """What it holds now counts against it, with what torch's allocator keeps."""
    assert left(card(10, 8), budget=True) == (7 * GB, 5 * GB)


@pytest.mark.usefixtures("promised")
def test_open_stages_keep_their_peaks() -> None:
    """Measured or given: the next stage plans without what was promised, and never below zero."""
    assert left(card(10, 8), budget=False) == (8 * GB, 7 * GB)
    assert left(card(10, 8), budget=True) == (5 * GB, 4 * GB)
    assert left_of(card(1, 1), HELD, ram_is_budget=True, vram_is_budget=True).vram_bytes == 0


def test_what_loading_took_is_not_promised_again() -> None:
    """The weights are held by then; activations are to come."""
    estimate = Estimate(6 * GB, PROCESS_RAM_BYTES + GB, 0)
    grown = MemoryReading(ram_anon=GB // 4, ram_file=0, vram_allocated=5 * GB)
    assert open_stages._outstanding(estimate, grown) == (GB, GB * 3 // 4)
    shrunk = MemoryReading(ram_anon=-GB, ram_file=0)
    assert open_stages._outstanding(estimate, shrunk) == (6 * GB, GB)
