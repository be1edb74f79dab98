"""Plans for Apple GPUs, where VRAM is RAM and bitsandbytes has no kernels."""

from __future__ import annotations

from dataclasses import replace

import pytest
from machines import (
    GB,
    ask,
    card,
    drawn_steps,
    step,
)

from lowmem_if.cascade.catalog import STAGE_1, TEXT_ENCODER
from lowmem_if.cascade.strategies import (
    PREFERENCES,
    QUANTISED,
    RESIDENT,
    STREAM,
    Pin,
)
from lowmem_if.errors import (
    DoesNotFit,
)
from lowmem_if.planning.estimates.memory import headroom
from lowmem_if.planning.plan import make_plan

pytestmark = pytest.mark.usefixtures("nothing_downloaded")


@pytest.mark.parametrize("prefer", PREFERENCES)
def test_apple_has_no_8bit_kernels(prefer: str) -> None:
    """On Apple the encoder streams in float16, or on the CPU: 8 bits only work there."""
    for machine, device, strategy, storage in (
        (card(40, 64, "mps"), "mps", STREAM, "float16"),
        (card(10, 12, "mps"), "mps", STREAM, "float16"),
        (card(1.5, 12, "mps"), "cpu", STREAM, "float32"),
    ):
        encoder = step(make_plan(machine, ask("if-m", size=64), prefer=prefer), TEXT_ENCODER)
        assert (encoder.config.device, encoder.config.strategy, encoder.config.storage_dtype) == (
            device, strategy, storage,
        )  # fmt: skip


def test_apple_never_offloads_and_never_quantises_on_the_gpu() -> None:
    """Where VRAM is RAM weights can only stay or stream, and bitsandbytes has no kernels there."""
    on_apple = [each for drawn, each in drawn_steps() if drawn.machine.kind == "mps"]
    assert len(on_apple) > 50
    for each in on_apple:
        assert each.config.strategy in (RESIDENT, STREAM)
        assert each.config.device == "cpu" or each.config.storage_dtype not in QUANTISED


def test_on_apple_one_budget_holds_both() -> None:
    """A share of the accelerator that would fit alone does not fit beside the process's own RAM."""
    machine = card(10, 12, "mps")
    resident = {STAGE_1: Pin(RESIDENT)}
    stage = step(make_plan(machine, ask(size=64)), STAGE_1)  # no whole decoder fits there
    assert (stage.config.device, stage.config.strategy) == ("mps", RESIDENT)
    both = stage.estimate.vram_bytes + stage.estimate.ram_bytes + headroom("mps")[1]
    with pytest.raises(DoesNotFit) as caught:
        make_plan(replace(machine, ram_bytes=both - 1), ask(size=64), pins=resident)
    assert (caught.value.component, caught.value.needed_bytes) == (STAGE_1, both)
    assert caught.value.available_bytes == both - 1
    for ram, strategy in ((both, RESIDENT), (both - 1, STREAM)):
        plan = make_plan(replace(machine, ram_bytes=ram), ask(size=64))
        assert step(plan, STAGE_1).config.strategy == strategy


LIKE_CARDS = {"mps": 6.4, "cuda": 6}
"""GB with which an Apple GPU and a card keep as much of I-XL: attention takes 0.4 GB more there."""


def test_on_apple_what_the_accelerator_takes_keeps_no_file_cached() -> None:
    """Of one budget, weights on the accelerator leave less for the pages of the file that streams."""
    pins = {STAGE_1: Pin(STREAM)}
    seconds = []
    for kind, vram in LIKE_CARDS.items():
        stage = step(make_plan(card(vram, 9, kind), ask(size=64), pins=pins), STAGE_1)
        assert stage.estimate.vram_bytes > 5 * GB
        seconds.append(stage.estimate.seconds)
    unified, apart = seconds
    assert unified is not None
    assert apart is not None
    assert unified > 2 * apart


def test_on_apple_what_is_on_the_gpu_leaves_less_for_the_files_cache() -> None:
    """Streams to an Apple GPU travel longer than to a card, and less stays: VRAM and RAM are one."""
    apple, nvidia = (
        step(make_plan(card(vram, 8, kind), ask(size=64)), STAGE_1)
        for kind, vram in LIKE_CARDS.items()
    )
    assert apple.config.strategy == nvidia.config.strategy == STREAM
    assert apple.config.resident_bytes <= nvidia.config.resident_bytes
    assert apple.estimate.seconds > nvidia.estimate.seconds
