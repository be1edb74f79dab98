"""What the parts of the GPU check measure, on the CPU with the tiny cascade."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faults import inject

from bench.gpu import (
    bare_worker,
    decoding,
    ordering,
    provoke,
    rates,
    sessions,
    shortages,
    strategies,
    transfers,
)
from bench.gpu.rows import Row
from bench.gpu.setup import Setup
from lowmem_if.api.rehearse import Rehearsed
from lowmem_if.cascade.strategies import BALANCED
from lowmem_if.hardware.machine import probe
from lowmem_if.hardware.profiles import load_profile
from lowmem_if.hardware.speeds import assumed
from lowmem_if.planning.plan import make_plan
from lowmem_if.request.build import make_request


@pytest.fixture
def setup(tiny: Path, tmp_path: Path) -> Setup:
    """A quick setup that has the tiny cascade already."""
    weights = tmp_path / "out" / "weights"
    weights.mkdir(parents=True)
    (weights / "tiny").symlink_to(tiny)
    return Setup("cpu", True, tmp_path / "out")


def figures(row: Row) -> dict[str, Any]:
    return {each["what"]: each for each in row["figures"]}


def test_the_bare_workers_memory_grows_with_the_libraries(setup: Setup) -> None:
    """Each first use has a row, and the planner's own constant stands beside the libraries'."""
    rows = {row["name"]: row for row in bare_worker.rows(setup)}
    assert all(row["ok"] for row in rows.values()), rows
    ram = figures(rows["libraries"])["anonymous RAM"]
    assert ram["predicted"] == bare_worker.PROCESS_RAM_BYTES
    assert ram["measured"] > 100e6


def test_a_use_that_fails_is_a_row_and_the_others_follow(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without bitsandbytes attention is still measured."""

    def fail(_device: str) -> None:
        raise ModuleNotFoundError("No module named 'bitsandbytes'")

    monkeypatch.setattr(bare_worker, "_multiply_in_8_bits", fail)
    rows = {row["name"]: row for row in bare_worker.rows(setup)}
    assert rows["bitsandbytes"]["ok"] is False
    assert "ModuleNotFoundError" in rows["bitsandbytes"]["text"]
    assert rows["attention"]["ok"]


def test_streamed_and_resident_states_have_the_same_bits(setup: Setup) -> None:
    """With and without sums that float16 cannot hold; int8 codes are the library's."""
    small, large, codes = ordering.rows(setup)
    assert small["ok"]
    assert large["ok"]
    assert codes["ok"]


def test_other_bits_and_other_codes_are_failures(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row is not ok, and its figures count what differs."""
    one_pass = ordering.encode_in_one_pass
    monkeypatch.setattr(
        ordering, "encode_in_one_pass", lambda *given: (2 * each for each in one_pass(*given))
    )
    codes = ordering._codes
    calls: list[int] = []

    def changing(encoder: Any) -> Any:
        calls.append(1)
        found = codes(encoder)
        return {name: each + (len(calls) == 3) for name, each in found.items()}

    monkeypatch.setattr(ordering, "_codes", changing)
    small, _large, int8 = ordering.rows(setup)
    assert small["ok"] is False
    assert figures(small)["numbers that differ"]["measured"] > 0
    assert int8["ok"] is False
    assert figures(int8)["loads with other codes"]["measured"] == 1


@pytest.mark.worker
def test_a_round_compares_every_component(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """RAM and seconds beside the prediction, paces for the cost model; done rounds are left out."""
    rounds = (strategies.Round(15e9, "stream"), strategies.Round(6e9))
    monkeypatch.setattr(strategies, "QUICK_ROUNDS", rounds)
    have = Setup("cpu", True, setup.out, have=(rounds[1].name,))
    *components, last = strategies.rows(have)
    assert [row["name"].partition(": ")[2] for row in components] == [
        "text encoder", "stage 1", "stage 2", "upscaler", "postprocess",
    ]  # fmt: skip
    for row in components:
        assert figures(row)["RAM"]["measured"] > 100e6
        assert figures(row)["turn"]["predicted"] > 0
        assert figures(row)["turn"]["measured"] >= figures(row)["loading"]["measured"] > 0
    assert last["name"] == rounds[0].name
    assert {pace["component"] for pace in last["constants"]["paces"]} >= {"vae"}


def test_a_round_that_no_plan_fits_is_told(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no failure of the check: the planner refuses what does not fit."""
    monkeypatch.setattr(strategies, "QUICK_ROUNDS", (strategies.Round(15e9, "model_offload"),))
    (row,) = strategies.rows(setup)
    assert row["ok"] is None
    assert row["text"]


def test_every_round_has_a_plan_on_the_cards_that_it_imitates(setup: Setup) -> None:
    """What users would get, and each strategy by itself, with free Colab's RAM."""
    colab = load_profile("colab-free").machine
    for round_ in strategies.ROUNDS:
        machine = replace(colab, vram_bytes=int(round_.leave_bytes), ram_bytes=int(12e9))
        pins = round_.pins(machine, "if-xl")
        request = make_request(("a fox",), cascade="if-xl", seed=(1,), steps=(strategies.STEPS,))
        plan = make_plan(machine, request, prefer=BALANCED, pins=pins)
        kinds = [step.config.strategy for step in plan.steps if step.component in strategies.STAGES]
        assert not round_.strategy or {*kinds} == {round_.strategy}


def test_a_users_plan_is_rehearsed_as_it_is() -> None:
    """Files of zeros read from no disk would make streaming look better than it is."""
    machine = replace(load_profile("colab-free").machine, vram_bytes=15 * 10**9)
    pins = strategies.Round(15e9).pins(machine, "if-xl")
    request = make_request(("a fox",), cascade="if-xl", seed=(1,))
    plan = make_plan(machine, request, prefer=BALANCED)
    for component, pin in pins.items():
        step = plan.step(component)
        assert (pin.strategy, pin.storage) == (step.config.strategy, step.config.storage_dtype)
    assert pins["text_encoder"].storage == "int8"


def test_streaming_is_compared_with_what_is_resident(setup: Setup) -> None:
    """The same bits, and step times of both."""
    rows = list(transfers.rows(setup))
    assert [row["ok"] for row in rows] == [True, True]
    assert figures(rows[0])["a step, streamed"]["measured"] > 0


@pytest.mark.parametrize(
    ("both", "share"), [(3.0, 1.0), (5.0, 0.0), (4.0, 0.5), (9.0, 0.0), (2.0, 1.0)]
)
def test_what_is_hidden_is_a_share_of_the_shorter_activity(both: float, share: float) -> None:
    """Three seconds of computing, two of bringing."""
    assert transfers.hidden_share(3.0, 2.0, both) == share


def test_measured_constants_stand_beside_the_assumed_ones() -> None:
    """A row of all of them, and the constants as the cost model reads them."""
    machine = probe("cpu")
    row = rates.compared(machine, assumed("cpu"))
    assert figures(row)["bus_bytes"]["measured"] == figures(row)["bus_bytes"]["predicted"]
    assert row["constants"]["rates"]["bus_bytes"] == assumed("cpu").bus_bytes


@pytest.mark.slow
def test_a_shortage_on_purpose_is_recognised(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch's own words on a CPU, from a process of its own."""
    provoke.main("allocation", "cpu")
    assert '"shortage": true, "host": true' in capsys.readouterr().out
    row = shortages._provoked(setup, "allocation")
    assert row["ok"] is True
    assert "DefaultCPUAllocator" in row["text"]


@pytest.mark.slow
def test_words_that_nobody_knows_are_a_failure(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is a process that ends by itself without the words of bitsandbytes."""
    row = shortages._provoked(setup, "nothing of that name")
    assert row["ok"] is False
    assert "KeyError" in row["text"]
    monkeypatch.setattr(sys, "executable", "/bin/false")
    row = shortages._provoked(setup, "allocation")
    assert row["ok"] is False
    assert row["text"].startswith("ended with code 1")


@pytest.mark.worker
def test_a_run_short_of_memory_tells_how_it_went_on(
    setup: Setup, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its retries are the row's remark, with the step that did it in the end."""
    starts = tmp_path / "starts"
    starts.touch()
    inject(monkeypatch, "out_of_memory_unless_in_strips", starts)
    request = make_request(("a fox",), cascade=str(tiny), seed=(1,), steps=(2,))
    row = shortages._run(setup, shortages._Short("upscaler", request, "upscaler"))
    assert row["ok"] is True
    assert "RAM ran out" in row["text"]
    assert "in the end" in row["text"]


def test_decoding_is_timed_with_both_sets_of_kernels(setup: Setup) -> None:
    """Whole and in tiles; the switches are as before afterwards."""
    import torch

    before = torch.backends.cuda.flash_sdp_enabled()
    rows = list(decoding.rows(setup))
    assert [row["ok"] for row in rows] == [True] * 4
    assert torch.backends.cuda.flash_sdp_enabled() == before


@pytest.mark.worker
def test_a_session_is_released_with_proof(setup: Setup) -> None:
    """Two calls, what stays loaded, one proof per component."""
    rows = {row["name"]: row for row in sessions.rows(setup)}
    assert figures(rows["call 1"])["stays loaded"]["measured"] > 0
    assert rows["released: stage 1"]["ok"]
    assert rows["after the session"]["ok"]


# --- what is said only where there is a card


class _Card:
    """A card whose memory in use grows by a gigabyte with every reading."""

    def __init__(self) -> None:
        self._used = 0

    def used_bytes(self) -> int:
        self._used += 10**9
        return self._used


def test_on_a_card_memory_beyond_the_context_is_told() -> None:
    """What was in use before does not count; the context is subtracted once it is there."""
    card: Any = _Card()
    reader = bare_worker._Reader("cuda:0", card)
    context = figures(reader.row("context", lambda: None))
    assert context["driver"]["measured"] == 1e9
    assert context["beyond the context"]["measured"] == 0
    attention = reader.row("attention", lambda: None)
    beyond = figures(attention)["beyond the context"]
    assert (beyond["measured"], beyond["predicted"]) == (1e9, bare_worker.VRAM_WORKSPACE_BYTES)
    assert attention["constants"]["process"]["attention_vram_bytes"] == 2e9


def test_on_a_card_three_kinds_of_vram_are_compared() -> None:
    """Allocated, reserved, and what the driver counts without what was there before."""
    colab = load_profile("colab-free").machine
    plan = make_plan(colab, make_request(("a fox",), cascade="if-xl", seed=(1,)))
    step = plan.step("stage_1")
    measured = Rehearsed(step, 8 * 10**9, 10**9, 1.0, 0.5, None, 9.0, 9 * 10**9, 12 * 10**9)
    row = strategies._compared(strategies.Round(15e9), measured, 2 * 10**9)
    found = {name: each["measured"] for name, each in figures(row).items() if "VRAM" in name}
    assert found == {"VRAM, allocated": 8e9, "VRAM, reserved": 9e9, "VRAM, driver": 10e9}
    assert figures(row)["VRAM, allocated"]["predicted"] == step.estimate.vram_bytes


@pytest.mark.parametrize(
    ("kind", "answer", "ok"),
    [
        ("convolution", {"raised": "x", "shortage": True, "host": False}, True),
        ("convolution", {"raised": "x", "shortage": True, "host": True}, False),
        ("convolution", {"raised": "x", "shortage": False, "host": False}, False),
        ("pinned memory", {"raised": "x", "shortage": True, "host": False}, True),
        ("product", {"raised": "", "shortage": False, "host": False}, None),
    ],
)
def test_on_a_card_a_shortage_must_be_taken_for_vram(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, kind: str, answer: Row, ok: bool | None
) -> None:
    """Known words that mean RAM are wrong there; a library that had its memory proves nothing."""
    done = subprocess.CompletedProcess([], 0, stdout=json.dumps(answer) + "\n", stderr="")
    monkeypatch.setattr(shortages.subprocess, "run", lambda *_given, **_options: done)
    assert shortages._provoked(replace(setup, device="cuda:0"), kind)["ok"] is ok


def test_bitsandbytes_own_end_is_known(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the process with code 1 and a line of its own."""
    said = "Error out of memory at line 341 in file /src/csrc/ops.cu\n"
    done = subprocess.CompletedProcess([], 1, stdout="", stderr=said)
    monkeypatch.setattr(shortages.subprocess, "run", lambda *_given, **_options: done)
    row = shortages._provoked(replace(setup, device="cuda:0"), "bitsandbytes")
    assert row["ok"] is True
    assert said.strip() in row["text"]
