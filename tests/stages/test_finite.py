"""NaN and infinity: they end a step with words, are kept nowhere, and a wider number type is tried."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from half import in_float16, scale_weights
from runs import kinds, plan_of, run_here
from safetensors.torch import load_file, save_file

from lowmem_if.api.run import run
from lowmem_if.engine.events import Event
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.errors import NotFinite, RunFolderError
from lowmem_if.planning.plan import Plan
from lowmem_if.weights.files.tensor_file import load_tensor, tensor_bytes

BROKEN = {
    "text_encoder": ("stage_1/text_encoder", "encoder.block.0.layer.1.DenseReluDense.wo.weight"),
    "stage_1": ("stage_1/unet", "conv_in.weight"),
    "stage_2": ("stage_2/unet", "conv_out.bias"),
    "upscaler": ("upscaler/vae", "decoder.conv_out.bias"),
}
"""Component -> a file of it with one infinite number; the last two end in clamps that would hide it."""


@pytest.fixture
def cascade(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny cascade to break."""
    return Path(shutil.copytree(tiny, tmp_path / "cascade"))


def put_infinity(folder: Path, name: str) -> None:
    """Make one number of a weight infinite."""
    for file in folder.glob("*.safetensors"):
        weights = load_file(file)
        if name in weights:
            weights[name].view(-1)[0] = torch.inf
            save_file(weights, file, metadata={"format": "pt"})
            return
    raise AssertionError(f"{folder} has no {name}")


@pytest.mark.parametrize("component", list(BROKEN))
@pytest.mark.parametrize("strategy", ["resident", "stream"])
def test_an_infinite_weight_never_ends_as_complete(
    cascade: Path, tmp_path: Path, component: str, strategy: str
) -> None:
    """In float32 nothing wider is left: the error names component, step, cause and folder."""
    folder, name = BROKEN[component]
    put_infinity(cascade / folder, name)
    guided = {} if component == "text_encoder" else {"guidance_scale": 1.0}
    plan = plan_of(cascade, pins=[f"{component}={strategy}"], **guided)
    with pytest.raises(NotFinite) as caught:
        run_here(plan, tmp_path / "run")
    told = str(caught.value)
    assert told.startswith(component.replace("_", " "))
    assert "NaN or infinite numbers, computed in float32 on cpu" in told
    assert f"the weights in {(cascade / folder).parent} are probably broken" in told
    made = RunFolder.open(tmp_path / "run")
    assert not made.complete
    assert not made.is_done(component)
    assert made.images == ()
    kept = [*made.path.rglob("*.safetensors"), *(tmp_path / "cache").rglob("*.safetensors")]
    tensors = [load_tensor(file) for file in kept]
    assert all(tensor is not None and tensor.isfinite().all() for tensor in tensors)
    if component == "text_encoder":
        assert kept == []


@pytest.mark.worker
def test_a_run_with_broken_weights_ends_with_the_workers_words(
    cascade: Path, tmp_path: Path
) -> None:
    """The first denoising step ends it, through the worker, and says what to do."""
    put_infinity(cascade / "stage_1/unet", "conv_in.weight")
    match = r"stage 1: the prediction of denoising step 1 .* broken: fetch or copy them again"
    with pytest.raises(NotFinite, match=match):
        run(plan_of(cascade, size=64), tmp_path / "run")


def overflowing(cascade: Path, component: str) -> Plan:
    """A plan with one component in float16, whose numbers are too large for that type only."""
    if component == "text_encoder":
        scale_weights(cascade / "stage_1/text_encoder", ".wi_", 6e3)
    else:
        scale_weights(cascade / "stage_1/unet", "conv_in.weight", 3e5)
    return in_float16(plan_of(cascade, size=64), only=component)


@pytest.mark.parametrize("component", ["text_encoder", "stage_1"])
@pytest.mark.worker
def test_what_overflows_in_float16_goes_on_in_float32(
    cascade: Path, tmp_path: Path, component: str
) -> None:
    """The same component, told as a notice; nothing else is done again, and the pictures are finite."""
    plan, events = overflowing(cascade, component), list[Event]()
    result = run(plan, tmp_path / "run", report=events.append)
    folder = RunFolder.open(result.folder)
    assert len(result.images) == 1
    assert kinds(events, "retry") == [component]
    assert folder.plan.step(component).config.compute_dtype == "float32"
    assert folder.log == (f"{component}: float16 gave NaN or infinite numbers",)
    first, second = folder.notices
    assert "float16 holds no number above 65,504" in first
    assert "it now computes in float32, so pixels differ" in second
    pictures = load_file(folder.path / "stage_1" / "0000.safetensors")["tensor"]
    assert pictures.isfinite().all()
    others = replace(plan, steps=tuple(s for s in plan.steps if s.component != component))
    assert all(folder.plan.step(step.component) == step for step in others.steps)


@pytest.mark.worker
def test_broken_weights_in_float16_are_told_after_float32_has_failed_too(
    cascade: Path, tmp_path: Path
) -> None:
    """One retry, then the error names the folder."""
    put_infinity(cascade / "stage_1/unet", "conv_in.weight")
    plan, events = in_float16(plan_of(cascade, size=64), only="stage_1"), list[Event]()
    with pytest.raises(NotFinite, match=r"computed in float32 .*stage_1 are probably broken"):
        run(plan, tmp_path / "run", report=events.append)
    assert kinds(events, "retry") == ["stage_1"]


def test_a_result_of_an_earlier_release_that_is_not_finite_is_not_drawn_on(
    tiny: Path, tmp_path: Path
) -> None:
    """Its file is named; when it is gone, resuming makes it again."""
    plan = plan_of(tiny, size=256)
    folder = run_here(plan, tmp_path / "run")
    (file,) = (folder.path / "stage_1").glob("*.safetensors")
    for later in (folder.path / "stage_2").glob("*.safetensors"):
        later.unlink()
    folder.images[0].unlink()
    file.write_bytes(tensor_bytes(torch.full((3, 32, 32), torch.nan)))
    with pytest.raises(RunFolderError, match=f"{file.name} holds NaN .*delete it"):
        run_here(plan, folder.path)
    file.unlink()
    assert len(run_here(plan, folder.path).images) == 1
