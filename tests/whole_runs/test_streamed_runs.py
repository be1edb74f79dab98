"""Whole runs with streaming components: planned, pinned, exact, one pass over T5."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from runs import CPU, plan_of, run_here
from safetensors.torch import load_file

from lowmem_if.cascade import catalog
from lowmem_if.cascade.locate import locate
from lowmem_if.cascade.strategies import STREAM, parse_pins
from lowmem_if.engine.events import Event
from lowmem_if.errors import CheckpointError, RequestError
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.estimates.memory import predict
from lowmem_if.planning.estimates.weight_bytes import in_place_bytes, resident_choices
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.request.build import make_request
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.stored import Stored
from lowmem_if.weights.files.weight_copies import convert

STREAMING = [f"{name}=stream" for name in ("text_encoder", "stage_1", "stage_2", "upscaler")]
LAPTOP = replace(CPU, ram_bytes=3 * 10**9, compute_dtype="bfloat16")
CARD = replace(
    CPU, device="cuda:0", vram_bytes=6 * 10**9, vram_total_bytes=8 * 10**9,
    compute_dtype="float16", capability=(8, 6),
)  # fmt: skip


def xl(machine: Machine, *pins: str, size: int = 1024, **options: Any) -> Plan:
    request = make_request("a red circle", cascade="if-xl", size=size, seed=1)
    return make_plan(machine, request, pins=parse_pins(pins), **options)


# --- runs -------------------------------------------------------------------------------------------


def test_a_streamed_run_gives_the_resident_runs_pixels(tiny: Path, tmp_path: Path) -> None:
    """Every component streams; embeddings, tensors and pictures are those of a resident run."""
    prompts = ("a red circle", "a blue star on white", "a red circle")
    plain = run_here(plan_of(tiny, prompts, negative_prompt="green"), tmp_path / "plain")
    (tmp_path / "cache").rename(tmp_path / "cache-of-before")  # or its embeddings would be taken
    plan = plan_of(tiny, prompts, negative_prompt="green", pins=STREAMING)
    streamed = run_here(plan, tmp_path / "streamed")
    assert [step.config.strategy for step in plan.steps[:4]] == [STREAM] * 4
    files = [file.relative_to(plain.path) for file in sorted(plain.path.rglob("*.safetensors"))]
    assert len(files) > 9
    for file in files:
        left, right = load_file(plain.path / file), load_file(streamed.path / file)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), file


def test_quantised_unets_draw_alike_kept_and_streamed(tiny: Path, tmp_path: Path) -> None:
    """The same bits from 8-bit numbers made while loading and from those of the copy."""
    unets = ("stage_1", "stage_2", "upscaler")
    plans = {
        way: plan_of(tiny, ("a red circle",), pins=[f"{stage}={way}:int8" for stage in unets])
        for way in ("resident", "stream")
    }
    exact = run_here(plan_of(tiny, ("a red circle",)), tmp_path / "exact")
    kept = run_here(plans["resident"], tmp_path / "kept")
    with pytest.raises(CheckpointError, match="no int8 weights to stream"):
        run_here(plans["stream"], tmp_path / "streamed")
    for stage in unets:
        convert(tiny / stage / "unet", dtype="int8")
    streamed = run_here(plans["stream"], tmp_path / "streamed")
    for name in ("stage_1/0000.safetensors", "stage_2/0000.safetensors"):
        files = [load_file(run.path / name) for run in (kept, streamed, exact)]
        pictures = [next(iter(file.values())) for file in files]
        assert torch.equal(pictures[0], pictures[1])
        assert 0 < (pictures[0] - pictures[2]).abs().mean() < 0.2
    ends = [Image.open(run.images[0]).tobytes() for run in (kept, streamed, exact)]
    assert ends[0] == ends[1] != ends[2]


@pytest.mark.parametrize("prompts", [1, 5])
def test_streaming_t5_reads_its_file_once_whatever_the_number_of_prompts(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: int
) -> None:
    """Each byte of every tensor is read exactly once for all prompts and the negative one."""
    read: Counter[Stored] = Counter()
    real = Checkpoint.read_into

    def count(self: Checkpoint, target: memoryview, stored: Stored, start: int = 0) -> None:
        if "text_encoder" in str(self.paths[0]):
            read[stored] += len(target)
        real(self, target, stored, start)

    monkeypatch.setattr(Checkpoint, "read_into", count)
    texts = tuple(f"a red circle and {number} stars" for number in range(prompts))
    plan = plan_of(tiny, texts, negative_prompt="blue", size=64, pins=["text_encoder=stream"])
    run_here(plan, tmp_path / "run")
    assert read
    assert {stored: stored.size_bytes for stored in read} == read
    with Checkpoint.of_folder(tiny / "stage_1" / "text_encoder") as checkpoint:
        assert len(read) == len(checkpoint)


def test_progress_of_streaming_t5_counts_blocks(tiny: Path, tmp_path: Path) -> None:
    """Prompts come out together, so what is told meanwhile are blocks."""
    events: list[Event] = []
    plan = plan_of(tiny, size=64, pins=["text_encoder=stream"])
    run_here(plan, tmp_path / "run", events.append)
    told = [e for e in events if e.kind == "drawing" and e.component == catalog.TEXT_ENCODER]
    assert [event.done for event in told] == list(range(1, told[0].total + 1))


def test_more_prompts_than_wait_together_take_several_passes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embeddings stay the same bits, and the progress counts the blocks of all passes."""
    texts = tuple(f"a red circle and {number} stars" for number in range(5))
    plan = plan_of(tiny, texts, size=64, pins=["text_encoder=stream"])
    once = run_here(plan, tmp_path / "once")
    (tmp_path / "cache").rename(tmp_path / "cache-of-before")
    monkeypatch.setattr("lowmem_if.planning.estimates.activations.TEXTS_A_PASS", 2)
    plan = plan_of(tiny, texts, size=64, pins=["text_encoder=stream"])
    events: list[Event] = []
    thrice = run_here(plan, tmp_path / "thrice", events.append)
    for text in texts:
        left, right = once.embedding_file(text), thrice.embedding_file(text)
        assert left.read_bytes() == right.read_bytes()
    told = [e for e in events if e.kind == "drawing" and e.component == catalog.TEXT_ENCODER]
    assert [event.done for event in told] == list(range(1, told[0].total + 1))
    with Checkpoint.of_folder(tiny / "stage_1" / "text_encoder") as checkpoint:
        blocks = {name.split(".")[2] for name in checkpoint if name.startswith("encoder.block.")}
    assert told[0].total == 3 * len(blocks)


# --- plans ------------------------------------------------------------------------------------------


def test_a_laptop_without_room_streams(tiny: Path) -> None:
    """IF-XL on 3 GB of RAM and no accelerator: the large networks stream, within the budget."""
    plan = xl(LAPTOP, prefer="balanced")
    by_name = {step.component: step for step in plan.steps}
    assert by_name["text_encoder"].config.strategy == STREAM
    assert by_name["stage_1"].config.strategy == STREAM
    assert all(step.estimate.ram_bytes <= LAPTOP.ram_bytes for step in plan.steps)
    stage_1 = by_name["stage_1"]
    assert stage_1.estimate.seconds > by_name["text_encoder"].estimate.seconds > 10
    assert "from the file" in stage_1.reason
    assert Plan.from_json(plan.to_json()) == plan


def test_more_memory_keeps_more_in_place() -> None:
    """The resident part grows with the budget, and the predicted time falls, until all is resident."""
    steps = [
        xl(replace(LAPTOP, ram_bytes=int(gigabytes * 10**9)), size=64).step("stage_1")
        for gigabytes in (2.5, 4, 6, 8, 12)
    ]
    resident = [step.config.resident_bytes for step in steps[:-1]]
    assert resident == sorted(resident)
    assert resident[0] == 0 < resident[-1]
    seconds = [step.estimate.seconds for step in steps[:-1]]
    assert seconds == sorted(seconds, reverse=True)
    assert steps[-1].config.strategy == "resident"


def test_a_pin_streams_where_everything_would_fit(tiny: Path) -> None:
    """`--pin stage_1=stream --ram 3GB`: pinned, within the budget, with bytes and seconds."""
    step = xl(replace(CPU, ram_bytes=3 * 10**9, compute_dtype="bfloat16"), "stage_1=stream",
              "text_encoder=stream", size=64).step("stage_1")  # fmt: skip
    assert step.config.strategy == STREAM
    assert step.reason.startswith("pinned")
    assert 0 < step.estimate.ram_bytes <= 3 * 10**9
    assert step.estimate.seconds > 0


@pytest.mark.parametrize("pin", ["text_encoder=stream:int8", "text_encoder=stream:nf4"])
def test_quantised_weights_do_not_stream(tiny: Path, pin: str) -> None:
    """bitsandbytes' weights stay where they are; the pin is refused in words."""
    with pytest.raises(RequestError):
        plan_of(tiny, pins=[pin])


def test_a_card_with_little_ram_streams_to_it() -> None:
    """Where neither VRAM nor RAM holds a network, it streams from the file to the card."""
    step = xl(replace(CARD, ram_bytes=4 * 10**9), "text_encoder=stream", size=64)
    first = step.step("stage_1")
    assert (first.config.strategy, first.config.device) == (STREAM, "cuda:0")
    assert first.estimate.vram_bytes <= CARD.vram_bytes
    assert first.estimate.ram_bytes <= 4 * 10**9
    assert first.config.resident_bytes > 0


@pytest.mark.parametrize("component", ["text_encoder", "stage_1", "stage_2", "upscaler"])
def test_what_streams_takes_more_the_more_stays(component: str) -> None:
    """Predicted memory grows with the resident part and never passes that of the resident component."""
    part = locate("if-xl").cascade.parts[component]
    step = xl(LAPTOP, f"{component}=stream", prefer="balanced").step(component)
    setting = step.config
    choices = resident_choices(part, setting)
    peaks = [predict(part, replace(setting, resident_bytes=b)).ram_bytes for b in choices]
    assert peaks == sorted(peaks, reverse=True)
    resident = replace(setting, strategy="resident", resident_bytes=0)
    assert peaks[0] <= predict(part, resident).ram_bytes
    assert in_place_bytes(part, setting) < in_place_bytes(part, resident)
