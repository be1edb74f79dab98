"""The same code on an NVIDIA accelerator: pixels, placement, release."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import IFPipeline
from runs import run_here
from safetensors.torch import load_file

from lowmem_if.api.run import run
from lowmem_if.cascade.strategies import parse_pins
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.hardware.machine import probe
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.request.build import make_request
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.staging import Staging
from lowmem_if.weights.files.tensor_reader import Reader

pytestmark = pytest.mark.cuda


def plan_here(cascade: Path, *pins: str, size: int = 1024) -> Plan:
    request = make_request(
        ("a red circle",), cascade=str(cascade), seed=(1,), steps=(2,), size=size
    )
    return make_plan(probe("cuda"), request, pins=parse_pins(pins))


def test_the_probe_sees_the_accelerator() -> None:
    """Free and total VRAM are sane, and the number type has a reason."""
    machine = probe()
    assert machine.kind == "cuda"
    assert 0 < machine.vram_bytes <= machine.vram_total_bytes
    assert machine.compute_dtype_reason


def test_stage_1_draws_the_plain_pipelines_pixels(tiny: Path, tmp_path: Path) -> None:
    """Resident on the accelerator is bit-identical to diffusers there, with CPU generators."""
    folder = run_here(plan_here(tiny, size=64), tmp_path / "run")
    pipeline = IFPipeline.from_pretrained(
        tiny / "stage_1", variant="fp16", torch_dtype=torch.float32, safety_checker=None
    ).to("cuda")
    expected = pipeline(
        "a red circle", num_inference_steps=2, output_type="pt",
        generator=torch.Generator("cpu").manual_seed(1),
    ).images[0].cpu()  # fmt: skip
    ours = load_file(folder.path / "stage_1" / "0000.safetensors")["tensor"]
    assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    "pins",
    [
        ("text_encoder=sequential_offload", "stage_1=sequential_offload"),
        ("stage_1=model_offload", "stage_2=model_offload", "upscaler=model_offload"),
        ("stage_2=sequential_offload", "upscaler=sequential_offload"),
        ("text_encoder=stream", "stage_1=stream", "stage_2=stream", "upscaler=stream"),
    ],
)
def test_offload_changes_no_pixel(tiny: Path, tmp_path: Path, pins: tuple[str, ...]) -> None:
    """Whatever moves, the pictures are those of the resident run."""
    resident = run_here(plan_here(tiny), tmp_path / "resident")
    offloaded = run_here(plan_here(tiny, *pins), tmp_path / "offloaded")
    for stage in ("stage_1", "stage_2", "stage_3"):
        files = [f.path / stage / "0000.safetensors" for f in (resident, offloaded)]
        ours, theirs = (load_file(file)["tensor"] for file in files)
        assert torch.equal(ours, theirs), stage


@pytest.mark.parametrize("storage", ["int8", "nf4", "float16"])
@pytest.mark.worker
def test_every_text_storage_runs_and_leaves(tiny: Path, tmp_path: Path, storage: str) -> None:
    """The quantised encoders run on the accelerator, and every component gives its VRAM back."""
    plan = plan_here(tiny, f"text_encoder=resident:{storage}")
    folder = RunFolder.open(run(plan, tmp_path / "run").folder)
    for step in folder.plan.steps:
        released = folder.released(step.component)
        assert released is not None
        assert released.alive == ()
        assert released.vram_left_bytes <= released.allowed_bytes
    assert folder.notices == ()


def test_float16_streams_to_the_accelerator_with_the_resident_bits(
    tiny: Path, tmp_path: Path
) -> None:
    """What small cards plan: every component in float16, from its files and in memory."""
    components = ("text_encoder", "stage_1", "stage_2", "upscaler")
    runs = [
        run_here(
            plan_here(tiny, *(f"{name}={strategy}:float16" for name in components)),
            tmp_path / strategy,
        )
        for strategy in ("resident", "stream")
    ]
    for stage in ("stage_1", "stage_2", "stage_3"):
        ours, theirs = (load_file(r.path / stage / "0000.safetensors")["tensor"] for r in runs)
        assert torch.equal(ours, theirs), stage
        assert ours.isfinite().all()


def test_loading_and_computing_alternate_in_the_same_blocks(tiny: Path) -> None:
    """Each tensor gets the block of the one before, which a kernel still reads; 200 times."""
    with Checkpoint.of_folder(tiny / "stage_1/text_encoder") as checkpoint:
        name = max(checkpoint, key=lambda key: checkpoint.stored(key).size_bytes)
        stored, expected = checkpoint.stored(name), checkpoint[name]
        staging = Staging(Reader(checkpoint), "cuda:0")
        copies = []
        for _ in range(200):
            fresh = torch.empty(expected.shape, dtype=stored.dtype, device="cuda:0")
            staging.read(stored, fresh)
            copies.append(fresh * 1)
            del fresh
        assert all(torch.equal(copy.cpu(), expected) for copy in copies)
