"""Dry runs of the project's own stages: what no machine without an accelerator could show otherwise."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from lowmem_if.cascade.catalog import STAGE_1, STAGE_2, TEXT_ENCODER, UPSCALER
from lowmem_if.cascade.locate import DEMO_FOLDER, locate
from lowmem_if.cascade.strategies import (
    MODEL_OFFLOAD,
    RESIDENT,
    SEQUENTIAL_OFFLOAD,
    STRATEGIES,
    STREAM,
)
from lowmem_if.errors import SimulationError
from lowmem_if.planning.estimates.weight_bytes import in_place_bytes
from lowmem_if.simulate.fake_device import DEVICE, check_version, dry_run
from lowmem_if.simulate.simulated_step import DRAWING, LOADING, Simulated, simulate_step
from lowmem_if.simulate.write_memory_table import Case, step_of
from lowmem_if.weights.files.staging import STAGING_BYTES, Staging
from lowmem_if.weights.files.weight_copies import convert
from lowmem_if.weights.streaming.transports import DeviceTransport

ROOTS = {STAGE_1: "stage_1", STAGE_2: "stage_2", TEXT_ENCODER: "stage_1", UPSCALER: "upscaler"}


def simulate(component: str, strategy: str, storage: str = "float16") -> Simulated:
    step = step_of(component, Case(strategy, storage))
    return simulate_step(step, DEMO_FOLDER / ROOTS[component])


simulated_once = cache(simulate)
"""For tests that only look at a dry run, not for those that change what runs in it."""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("component", [TEXT_ENCODER, STAGE_1])
def test_every_strategy_runs_and_leaves_nothing_behind(component: str, strategy: str) -> None:
    """Hooks, transports and pipelines run on an accelerator, and all of it is given back."""
    simulated = simulated_once(component, strategy)
    assert simulated.left_allocated == 0
    assert simulated.peak("allocated", DRAWING) > 0
    assert sum(phase.flops for phase in simulated.phases) > 0


def test_offload_moves_weights_and_streaming_reads_them() -> None:
    """Resident ones cross the bus once, leaves at every step, streamed ones from the file."""
    resident, model, leaves, streamed = (
        simulated_once(STAGE_1, strategy) for strategy in STRATEGIES
    )
    second = {s: [p for p in run.phases if p.name == DRAWING][1] for s, run in (
        (RESIDENT, resident), (MODEL_OFFLOAD, model), (SEQUENTIAL_OFFLOAD, leaves), (STREAM, streamed),
    )}  # fmt: skip
    assert second[RESIDENT].to_device == second[MODEL_OFFLOAD].to_device == 0
    assert second[SEQUENTIAL_OFFLOAD].to_device > 0 == second[SEQUENTIAL_OFFLOAD].from_file
    assert second[STREAM].to_device == second[STREAM].from_file > 0
    assert leaves.peak("tensors") < resident.peak("tensors")
    assert model.peak("anonymous", LOADING) > streamed.peak("anonymous", LOADING)


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_quantised_unets_hold_whole_numbers_on_the_accelerator(storage: str) -> None:
    """Whole numbers, scales, and the numbers of one layer; no layer computes with another's."""
    exact, small = simulated_once(STAGE_1, RESIDENT), simulated_once(STAGE_1, RESIDENT, storage)
    assert small.left_allocated == 0
    part = locate("demo", components=(STAGE_1,)).cascade.parts[STAGE_1]
    planned = in_place_bytes(part, step_of(STAGE_1, Case(RESIDENT, storage)).config)
    weights = in_place_bytes(part, step_of(STAGE_1, Case(RESIDENT, "float16")).config)
    saved = exact.peak("allocated", DRAWING) - small.peak("allocated", DRAWING)
    assert saved == pytest.approx(weights - planned, rel=0.15)


def test_8_bit_streaming_moves_half_the_bytes_of_16(tiny: Path) -> None:
    """In every step, from the copy through the pinned buffers."""
    folder = tiny / "stage_1"
    convert(folder / "unet", dtype="int8")
    runs = {
        storage: simulate_step(step_of(STAGE_1, Case(STREAM, storage)), folder)
        for storage in ("float16", "int8")
    }
    moved = {
        storage: [phase.to_device for phase in run.phases if phase.name == DRAWING][1]
        for storage, run in runs.items()
    }
    assert runs["int8"].left_allocated == 0
    assert moved["int8"] == pytest.approx(moved["float16"] / 2, rel=0.05)


def test_two_buffers_are_pinned_and_never_a_network() -> None:
    """Pinned memory is what loading and streaming need on their way."""
    for strategy in (RESIDENT, STREAM):
        assert simulated_once(STAGE_1, strategy).peak("pinned") == 2 * STAGING_BYTES
    assert simulated_once(STAGE_1, SEQUENTIAL_OFFLOAD).peak("pinned") == 0


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes() -> None:
    """Nothing depends on threads or time."""
    assert simulate(STAGE_1, STREAM) == simulated_once(STAGE_1, STREAM)


def test_the_8_bit_encoder_names_what_it_assumes() -> None:
    """How many columns are left out of 8-bit products depends on numbers that are not there."""
    simulated = simulated_once(TEXT_ENCODER, RESIDENT, "int8")
    assert [line for line in simulated.assumed if "bitsandbytes" in line]
    assert simulated_once(TEXT_ENCODER, RESIDENT).assumed == ()


# --- the order of streams -----------------------------------------------------------------------


def test_a_transport_that_copies_over_weights_in_use_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Writing where the computing stream may still be reading is a race."""
    monkeypatch.setattr(DeviceTransport, "_wait_for_released", lambda _transport, _group: None)
    with pytest.raises(SimulationError, match="race"):
        simulate(STAGE_1, STREAM)


def test_a_buffer_that_is_filled_too_early_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """And filling a pinned buffer whose last content is still on its way."""

    def hasty(staging: Any) -> torch.Tensor:
        staging._turn = 1 - staging._turn
        buffer: torch.Tensor = staging._buffers[staging._turn]
        return buffer

    monkeypatch.setattr(Staging, "_next", hasty)
    with pytest.raises(SimulationError, match="race"):
        simulate(STAGE_1, STREAM)


def test_a_freed_block_that_is_copied_over_too_early_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """8-bit loading: the allocator hands on a block whose numbers are still being quantised."""
    assert simulated_once(TEXT_ENCODER, RESIDENT, "int8").phases
    monkeypatch.setattr(Staging, "follow_computing", lambda _staging: None)
    with pytest.raises(SimulationError, match=r"race: stream .* writes over what computing"):
        simulate(TEXT_ENCODER, RESIDENT, "int8")


def test_blocks_that_are_joined_and_split_keep_their_uses() -> None:
    """A tensor that gets a part of a freed one's block is as little safe."""
    with dry_run(kernel="fused") as trace:
        copying = trace.timeline.stream()
        large = torch.empty(4096, device=DEVICE)
        large.add_(1)
        del large
        part = torch.empty(512, device=DEVICE)
        with pytest.raises(SimulationError, match="race"), copying:
            part.add_(1)
        copying.wait_stream(torch.accelerator.current_stream(DEVICE))
        with copying:
            part.add_(1)
        del part
        # And the other way round: computing where a copy may still be on its way.
        with pytest.raises(SimulationError, match="race"):
            torch.empty(4096, device=DEVICE).add_(1)
        torch.accelerator.synchronize(DEVICE)
        torch.empty(4096, device=DEVICE).add_(1)


# --- what is patched, and what is unknown -------------------------------------------------------


def test_everything_is_as_before_when_a_dry_run_ends() -> None:
    """No substitute stays, also after an error; real tensors are real again."""

    def replaced() -> tuple[Any, ...]:
        return torch.cuda.is_available, torch.nn.Module._apply, torch.accelerator.current_stream

    before = replaced()
    with suppress(KeyError), dry_run(kernel="fused"):
        assert torch.cuda.is_available()
        assert torch.ones(2, device="cuda").device == torch.device(DEVICE)
        raise KeyError
    assert before == replaced()
    assert torch.ones(2).sum().item() == 2


@pytest.mark.parametrize("version", ["2.9.1", "2.99.0+cu130", "3.13.0"])
def test_an_untried_torch_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """The error names the versions that work, and the way to a plan with this one."""
    monkeypatch.setattr(torch, "__version__", version)
    with (
        pytest.raises(SimulationError, match=r"2\.10, .*2\.14.*without --simulate.*shipped table"),
        dry_run(kernel="math"),
    ):
        raise AssertionError("never reached")


@pytest.mark.parametrize("version", ["2.10.0a0+b4e4ee8", "2.11.0+cu128", "2.14.1"])
def test_every_build_of_a_tried_torch_is_accepted(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """The patch number, an alpha of a vendor and the local tag do not matter."""
    monkeypatch.setattr(torch, "__version__", version)
    check_version()


def test_a_dry_run_does_not_initialize_cuda() -> None:
    """A build with CUDA and without a driver, as on Colab's CPU machines, would raise an error."""
    before = torch.cuda.is_initialized()
    with dry_run(kernel="fused"):
        assert torch.zeros(2, device="cuda").is_cuda
    assert torch.cuda.is_initialized() == before


def test_an_unlisted_question_is_an_error() -> None:
    """Numbers that nobody knows are not made up silently; known ones are computed."""
    with dry_run(kernel="fused"):
        known = torch.arange(4, device=DEVICE)
        assert int((known * 2).sum()) == 12
        assert known[known > 1].tolist() == [2, 3]
        with pytest.raises(SimulationError, match="list of assumed values"):
            torch.randn(3, device=DEVICE).sum().item()


@pytest.mark.slow
def test_files_are_not_read(tmp_path: Path) -> None:
    """Only headers are: a folder whose tensors are holes of the file system is enough."""
    from lowmem_if.weights.synthetic.checkpoints import ZEROS, synthesize

    synthesize("if-m", tmp_path, fill=ZEROS, components=(STAGE_1,))
    step = step_of(STAGE_1, Case(RESIDENT, "float16"))
    simulated = simulate_step(step, tmp_path / "stage_1")
    weights = 2 * 371_605_830
    assert simulated.phases[0].from_file == weights
    assert weights < simulated.peak("tensors") < 1.2 * weights
