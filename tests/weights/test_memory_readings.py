"""After every component nothing of it is alive, and its memory is back."""

from __future__ import annotations

import json
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from runs import CPU, plan_of, run_here
from transformers import T5Config, T5EncoderModel

from lowmem_if.api.run import run
from lowmem_if.cascade.catalog import COMPONENTS, POSTPROCESS, STAGE_1, TEXT_ENCODER
from lowmem_if.engine.events import ignore
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.worker.model_cache import left_behind
from lowmem_if.engine.worker.recorder import Recorder
from lowmem_if.planning.plan import make_plan
from lowmem_if.request.build import make_request
from lowmem_if.weights.memory_readings import MemoryReading, Watch, prove_release, use_once, wake

MB = 10**6


@pytest.fixture(scope="module")
def heavy(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny cascade with a text encoder and a stage 1 that are large enough to be missed."""
    root = tmp_path_factory.mktemp("heavy") / "stage_1"
    root.mkdir()
    for entry in (tiny / "stage_1").iterdir():
        if entry.name not in ("text_encoder", "unet"):
            (root / entry.name).symlink_to(entry)
    config = T5Config.from_pretrained(tiny / "stage_1" / "text_encoder")
    config.update({"d_ff": 4096, "d_model": 1024, "num_layers": 3, "d_kv": 64, "num_heads": 16})
    save(T5EncoderModel(config), root / "text_encoder")
    unet = UNet2DConditionModel.load_config(tiny / "stage_1" / "unet")
    unet |= {"block_out_channels": [256, 768], "encoder_hid_dim": 1024, "attention_head_dim": 64}
    save(UNet2DConditionModel.from_config(unet), root / "unet")
    return root.parent


def save(model: torch.nn.Module, folder: Path) -> None:
    model.half().save_pretrained(folder, variant="fp16")


@pytest.mark.parametrize(
    "pins",
    [
        ("text_encoder=resident:float32", "stage_1=resident:float32"),
        ("text_encoder=resident:int8", "stage_1=resident:bfloat16"),
    ],
)
@pytest.mark.worker
def test_components_that_worked_are_gone_with_their_memory(
    heavy: Path, tmp_path: Path, pins: tuple[str, ...]
) -> None:
    """In the worker: nothing is alive, memory is back within 5 % or 64 MB, and it had been there."""
    folder = RunFolder.open(run(plan_of(heavy, pins=pins, size=64), tmp_path / "run").folder)
    first: dict[str, Any] = {}
    peak: dict[str, int] = {}
    for line in folder.memory_file.read_text().splitlines():
        sample = json.loads(line)
        first.setdefault(sample["step"], sample["ram_anon"])
        peak[sample["step"]] = max(peak.get(sample["step"], 0), sample["ram_anon"])
    for component, follower in ((TEXT_ENCODER, STAGE_1), (STAGE_1, POSTPROCESS)):
        released = folder.released(component)
        assert released is not None
        assert released.alive == ()
        assert released.ram_left_bytes <= released.allowed_bytes
        assert first[follower] - first[component] < 64 * MB
        assert peak[component] - first[component] > 70 * MB
    assert folder.notices == ()


def test_a_module_that_something_holds_is_named() -> None:
    """A leak is reported by the class of the module that is still alive, and by its bytes."""
    held = torch.nn.Sequential(torch.nn.Linear(2, 2))
    watch = Watch([held])
    proof = prove_release(watch, MemoryReading(0, 0), MemoryReading(80 * MB, 0), weight_bytes=0)
    assert proof.alive == ("Sequential",)
    assert proof.ram_left_bytes == 80 * MB
    assert not proof.complete


def test_memory_left_behind_within_the_tolerance_is_accepted() -> None:
    """5 % of a large component may stay, and 64 MB of a small one, not more."""
    gone = Watch([])
    small = prove_release(gone, MemoryReading(0, 0), MemoryReading(64 * MB, 0), weight_bytes=1 * MB)
    large = prove_release(
        gone, MemoryReading(0, 0), MemoryReading(430 * MB, 0), weight_bytes=8_609 * MB
    )
    too_much = prove_release(
        gone, MemoryReading(0, 0), MemoryReading(431 * MB, 0), weight_bytes=8_609 * MB
    )
    assert small.complete
    assert large.complete
    assert not too_much.complete


def test_what_the_allocator_still_holds_is_left_behind_too() -> None:
    """Tensors may be gone and their memory is not: then it is named."""
    workspace = 32 * MB
    before = MemoryReading(0, 0, vram_allocated=workspace, vram_reserved=workspace)
    held = MemoryReading(0, 0, vram_allocated=workspace, vram_reserved=workspace + 90 * MB)
    proof = prove_release(Watch([]), before, held, weight_bytes=0)
    assert (proof.vram_left_bytes, proof.reserved_left_bytes) == (0, 90 * MB)
    assert not proof.complete
    assert "90 MB of VRAM" in left_behind("stage_1", proof)


def test_free_blocks_in_the_segments_of_others_are_nobodys_fault() -> None:
    """Where something else is loaded, torch may have to hold memory that is free."""
    before = MemoryReading(0, 0, vram_allocated=500 * MB, vram_reserved=520 * MB)
    after = MemoryReading(0, 0, vram_allocated=500 * MB, vram_reserved=700 * MB)
    assert prove_release(Watch([]), before, after, weight_bytes=0).complete


def test_what_the_driver_counts_is_recorded_and_not_judged() -> None:
    """Contexts and workspaces are in it, and all that other programs take."""
    before, after = MemoryReading(0, 0, vram_used=300 * MB), MemoryReading(0, 0, vram_used=900 * MB)
    proof = prove_release(Watch([]), before, after, weight_bytes=0)
    assert proof.driver_left_bytes == 600 * MB
    assert proof.complete
    assert prove_release(Watch([]), after, before, weight_bytes=0).driver_left_bytes == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_waking_a_device_uses_what_networks_use(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of kernel, in the type of the network to come and in float32."""
    with torch.profiler.profile() as seen:
        use_once("cpu", dtype)
    names = {event.name for event in seen.events()}
    kinds = ("conv2d", "group_norm", "layer_norm", "linear", "scaled_dot_product_attention", "bmm")
    assert {f"aten::{kind}" for kind in kinds} <= names
    used: list[Any] = []
    monkeypatch.setattr(
        "lowmem_if.weights.memory_readings.use_once", lambda *given: used.append(given)
    )
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda _device: None)
    wake("cuda:0", str(dtype).removeprefix("torch."))
    assert used == [("cuda:0", each) for each in dict.fromkeys((torch.float32, dtype))]


def test_every_step_of_a_run_records_its_proof(tiny: Path, tmp_path: Path) -> None:
    """A whole run leaves for each component the proof that it is gone, and says nothing of leaks."""
    folder = run_here(plan_of(tiny), tmp_path / "run")
    for component in COMPONENTS:
        released = folder.released(component)
        assert released is not None
        assert released.alive == ()
        assert max(released.ram_left_bytes, 0) <= released.allowed_bytes
    assert folder.notices == ()


def test_memory_is_sampled_at_ten_hertz_or_better(tiny: Path, tmp_path: Path) -> None:
    """Samples name their step and are, in the median, less than a tenth of a second apart."""
    folder = run_here(plan_of(tiny, steps=10), tmp_path / "run")
    samples = [json.loads(line) for line in folder.memory_file.read_text().splitlines()]
    assert {sample["step"] for sample in samples} == set(COMPONENTS)
    times = [sample["t"] for sample in samples if sample["step"] == "stage_2"]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert statistics.median(gaps) < 0.1
    assert all(sample["ram_anon"] > 10 * MB for sample in samples)
    keys = {"t", "step", "ram_anon", "ram_file", "vram_allocated", "vram_reserved", "vram_used"}
    assert set(samples[0]) == keys


def test_a_steps_first_sample_is_taken_before_its_work(tiny: Path, tmp_path: Path) -> None:
    """What a step starts from is known even if it allocates before the sampler's first beat."""
    step, file = plan_of(tiny, size=64).steps[0], tmp_path / "memory.jsonl"
    with Recorder(step, file, ignore).recording():
        held = torch.ones(100 * MB // 4)
        time.sleep(0.1)
    samples = [json.loads(line)["ram_anon"] for line in file.read_text().splitlines()]
    assert samples[-1] - samples[0] > 0.9 * held.nbytes


@pytest.mark.parametrize(("counts_reserve", "peak"), [(False, 5), (True, 8)])
def test_vram_is_measured_as_it_was_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts_reserve: bool, peak: int
) -> None:
    """Where the plan counts what torch's allocator holds, so does what is shown beside it."""
    plan = make_plan(CPU, make_request(("x",), cascade="if-m", size=64))
    step = plan.steps[0].with_config(device="cuda:0")
    reading = MemoryReading(0, 0, vram_allocated=1, vram_reserved=2)
    monkeypatch.setattr("lowmem_if.engine.worker.recorder.read_memory", lambda _device: reading)
    monkeypatch.setattr("lowmem_if.weights.memory_readings.read_memory", lambda _device: reading)
    for name, value in (("allocated", 5), ("reserved", 8)):
        monkeypatch.setattr(torch.accelerator, f"max_memory_{name}", lambda _d, v=value: v)
    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", lambda _device: None)
    recorder = Recorder(step, tmp_path / "memory.jsonl", ignore, counts_reserve=counts_reserve)
    with recorder.recording():
        pass
    assert recorder.measured().vram_bytes == peak


def test_measured_peaks_are_those_of_the_samples(tiny: Path, tmp_path: Path) -> None:
    """A step's measured RAM is the highest of its samples."""
    folder = RunFolder.open(run_here(plan_of(tiny, size=64), tmp_path / "run").path)
    samples = [json.loads(line) for line in folder.memory_file.read_text().splitlines()]
    peak = max(sample["ram_anon"] for sample in samples if sample["step"] == STAGE_1)
    measured = folder.measured(STAGE_1)
    assert measured is not None
    assert measured.ram_bytes == peak
