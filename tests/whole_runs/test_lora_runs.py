"""Runs with LoRAs: the pixels of plain diffusers with the same weights, resumed, told and remembered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import IFPipeline, IFSuperResolutionPipeline, UNet2DConditionModel
from lora_files import (
    LoraOf,
    is_attention,
    merged_by_hand,
    old_attention,
    peft,
    random_lora,
    write,
)
from PIL import Image
from runs import kinds, plan_of, run_here
from safetensors.torch import load_file

from lowmem_if.cascade.locate import locate
from lowmem_if.cascade.lora.adapter import loras
from lowmem_if.cascade.strategies import STREAM
from lowmem_if.cli.main import main
from lowmem_if.engine.enlargement import continued
from lowmem_if.engine.events import Event
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.worker.executor import work
from lowmem_if.engine.worker.steps.step_run import weights_fingerprint
from lowmem_if.errors import LoraError, RunFolderError
from lowmem_if.weights.loading import load_diffusers_model

PROMPT = "a red circle"
NO_OTHERS: dict[str, Any] = {
    "text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None,
    "watermarker": None, "requires_safety_checker": False, "variant": "fp16",
    "torch_dtype": torch.float32,
}  # fmt: skip


@pytest.fixture(scope="module")
def first(tiny: Path) -> LoraOf:
    return random_lora(tiny, "stage_1")


@pytest.fixture(scope="module")
def second(tiny: Path) -> LoraOf:
    return random_lora(tiny, "stage_2", seed=1, alpha=2.0)


def written(folder: Path, name: str, lora: LoraOf, alpha: float | None = None) -> Path:
    settings = None if alpha is None else {"r": 4, "lora_alpha": alpha}
    return write(folder / name, peft(lora), settings)


def stage(folder: RunFolder, number: int, image: int = 0) -> torch.Tensor:
    file = folder.path / f"stage_{number}" / f"{image:04}.safetensors"
    return load_file(file)["tensor"]


def test_pixels_are_those_of_plain_diffusers_with_weights_merged_by_hand(
    tiny: Path, tmp_path: Path, first: LoraOf, second: LoraOf
) -> None:
    """Bit for bit in both stages, from a command line's texts; and far from those without."""
    given = [
        f"{written(tmp_path, 'a.safetensors', first)}:0.6",
        f"stage_2={written(tmp_path, 'b.safetensors', second, alpha=2.0)}:-0.4",
    ]
    folder = run_here(plan_of(tiny, PROMPT, size=256, lora=given), tmp_path / "run")
    small, large = by_hand(
        tiny,
        folder,
        merged_by_hand(tiny, "stage_1", [(first, 0.6)]),
        merged_by_hand(tiny, "stage_2", [(second, -0.4)]),
    )
    assert torch.equal(stage(folder, 1), small)
    assert torch.equal(stage(folder, 2), large)
    plain = run_here(plan_of(tiny, PROMPT, size=256), tmp_path / "plain")
    assert (stage(plain, 1) - small).abs().mean() > 0.05
    assert (stage(plain, 2) - large).abs().mean() > 0.05
    assert files(plain, "embeds") == files(folder, "embeds")


def by_hand(
    cascade: Path, folder: RunFolder, first: Any, second: Any = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What diffusers' pipelines draw with these UNets and the run's own embeddings."""
    embeds, negative = (load_file(folder.embedding_file(text))["tensor"] for text in (PROMPT, ""))
    shared: dict[str, Any] = {
        "prompt_embeds": embeds, "negative_prompt_embeds": negative, "num_inference_steps": 2,
        "output_type": "pt",
    }  # fmt: skip
    pipeline = first
    if isinstance(first, UNet2DConditionModel):
        pipeline = IFPipeline.from_pretrained(cascade / "stage_1", unet=first, **NO_OTHERS)
    seeded = torch.Generator("cpu").manual_seed
    small = pipeline(**shared, generator=seeded(1)).images
    if second is None:
        return small[0], None
    kind = IFSuperResolutionPipeline
    enlarging = kind.from_pretrained(cascade / "stage_2", unet=second, **NO_OTHERS)
    large = enlarging(image=small, **shared, noise_level=250, generator=seeded(1)).images
    return small[0], large[0]


def files(folder: RunFolder, kind: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder.path / kind).iterdir()}


@pytest.mark.parametrize("spelling", [peft, old_attention])
def test_pixels_are_close_to_those_of_diffusers_own_loader(
    tiny: Path, tmp_path: Path, spelling: Any
) -> None:
    """`load_lora_weights`, fused and not: weights to the last bits of float32, pictures to 1e-4."""
    pytest.importorskip("peft", reason="diffusers' own loader needs peft")
    # diffusers translates only these four of the older names.
    ends = ("to_q", "to_k", "to_v", "to_out.0") if spelling is old_attention else ("",)
    lora = random_lora(
        tiny, "stage_1", wanted=lambda layer: is_attention(layer) and layer.endswith(ends)
    )
    file = write(tmp_path / "a.safetensors", spelling(lora))
    folder = run_here(plan_of(tiny, PROMPT, size=64, lora=f"{file}:0.6"), tmp_path / "run")
    theirs = IFPipeline.from_pretrained(tiny / "stage_1", **NO_OTHERS)
    theirs.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="a")
    theirs.set_adapters(["a"], [0.6])
    loose, _ = by_hand(tiny, folder, theirs)
    theirs.fuse_lora(adapter_names=["a"])
    theirs.unload_lora_weights()
    fused, _ = by_hand(tiny, folder, theirs)
    plain = run_here(plan_of(tiny, PROMPT, size=64), tmp_path / "plain")
    assert (stage(plain, 1) - stage(folder, 1)).abs().mean() > 0.05
    for picture in (loose, fused):
        torch.testing.assert_close(stage(folder, 1), picture, rtol=0, atol=1e-4)
    ours = load_diffusers_model(
        tiny / "stage_1" / "unet",
        UNet2DConditionModel,
        dtype="float32",
        device="cpu",
        lora=loras(f"{file}:0.6"),
    )
    weights = theirs.unet.state_dict()
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-5, atol=1e-6)


def test_peft_s_configuration_means_what_it_means_to_diffusers(tiny: Path, tmp_path: Path) -> None:
    """Written by diffusers itself: ranks and alphas by pattern, convolutions among the layers."""
    peft_library = pytest.importorskip("peft", reason="diffusers' own loader needs peft")
    unet = UNet2DConditionModel.from_pretrained(
        tiny / "stage_1" / "unet", variant="fp16", torch_dtype=torch.float32
    )
    unet.add_adapter(
        peft_library.LoraConfig(
            r=4,
            lora_alpha=6,
            rank_pattern={"to_q": 2},
            alpha_pattern={"to_q": 3, "mid_block.resnets.0.conv1": 1},
            target_modules=["to_q", "to_out.0", "add_k_proj", "conv1", "conv_shortcut"],
            init_lora_weights="gaussian",
        )
    )
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=chance) * 0.3)
    unet.save_lora_adapter(tmp_path, weight_name="a.safetensors")
    unet.fuse_lora(lora_scale=0.5)
    unet.unload_lora()
    ours = load_diffusers_model(
        tiny / "stage_1" / "unet",
        UNet2DConditionModel,
        dtype="float32",
        device="cpu",
        lora=loras("a.safetensors:0.5"),
    )
    theirs = unet.state_dict()
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prompts", [PROMPT, (PROMPT, "a blue star")])
def test_a_streamed_run_draws_what_a_resident_one_does(
    tiny: Path, tmp_path: Path, first: LoraOf, second: LoraOf, prompts: Any
) -> None:
    """Both stages from their files, merged at every step."""
    given = [written(tmp_path, "a.safetensors", first), written(tmp_path, "b.safetensors", second)]
    pins = ("stage_1=stream", "stage_2=stream")
    resident = run_here(plan_of(tiny, prompts, size=256, lora=given), tmp_path / "resident")
    plan = plan_of(tiny, prompts, size=256, lora=given, pins=pins)
    assert plan.step("stage_1").config.strategy == plan.step("stage_2").config.strategy == STREAM
    streamed = run_here(plan, tmp_path / "streamed")
    for number in (1, 2):
        for image in range(len(resident.plan.request.images)):
            assert torch.equal(stage(streamed, number, image), stage(resident, number, image))


def test_a_scale_of_0_is_no_lora(tiny: Path, tmp_path: Path, first: LoraOf) -> None:
    """Bit for bit."""
    given = f"{written(tmp_path, 'a.safetensors', first)}:0"
    folder = run_here(plan_of(tiny, PROMPT, size=64, lora=given), tmp_path / "run")
    plain = run_here(plan_of(tiny, PROMPT, size=64), tmp_path / "plain")
    assert torch.equal(stage(folder, 1), stage(plain, 1))


# --- run folders -----------------------------------------------------------------------------------


class Killed(BaseException):
    """As if the process had ended there."""


def begun(plan: Any, path: Path, last: str) -> None:
    """A run that ends when a component has finished."""

    def report(event: Event) -> None:
        if (event.kind, event.component) == ("finished", last):
            raise Killed

    with pytest.raises(Killed):
        run_here(plan, path, report)


def test_a_run_whose_lora_has_changed_says_so(
    tiny: Path, tmp_path: Path, first: LoraOf, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before and after its stage has begun; with the old file back it goes on to the same pixels."""
    file = written(tmp_path, "a.safetensors", first)
    content = file.read_bytes()
    plan = plan_of(tiny, (PROMPT, "a blue star"), seed=(1, 2), size=64, lora=file)
    whole = run_here(plan, tmp_path / "whole")
    begun(plan, tmp_path / "run", "text_encoder")
    written(tmp_path, "a.safetensors", random_lora(tiny, "stage_1", seed=9))
    with pytest.raises(RunFolderError, match=r"a.safetensors has changed since .* was begun"):
        work(RunFolder.open(tmp_path / "run"), print)
    assert main(["resume", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "the LoRA" in error.splitlines()[-1]
    file.unlink()
    with pytest.raises(LoraError, match="no longer exists: put it back"):
        work(RunFolder.open(tmp_path / "run"), print)
    file.write_bytes(content)
    work(RunFolder.open(tmp_path / "run"), print)
    ended = RunFolder.open(tmp_path / "run")
    assert ended.complete
    for image in range(2):
        assert torch.equal(stage(ended, 1, image), stage(whole, 1, image))
        name = f"{image:04}.png"
        assert (ended.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_a_lora_is_needed_until_its_stage_has_drawn(
    tiny: Path, tmp_path: Path, first: LoraOf
) -> None:
    """A run that only has to finish its pictures goes on without the file."""
    file = written(tmp_path, "a.safetensors", first)
    plan = plan_of(tiny, PROMPT, size=64, lora=file)
    begun(plan, tmp_path / "run", "stage_1")
    file.unlink()
    events: list[Event] = []
    work(RunFolder.open(tmp_path / "run"), events.append)
    assert RunFolder.open(tmp_path / "run").complete
    assert kinds(events, "skipped") == ["text_encoder", "stage_1"]


def test_another_lora_or_scale_is_another_request(
    tiny: Path, tmp_path: Path, first: LoraOf
) -> None:
    """A begun folder is not continued with it."""
    file = written(tmp_path, "a.safetensors", first)
    run_here(plan_of(tiny, PROMPT, size=64, lora=file), tmp_path / "run")
    RunFolder.for_plan(tmp_path / "run", plan_of(tiny, PROMPT, size=64, lora=file))
    for other in (f"{file}:0.5", ()):
        with pytest.raises(RunFolderError, match="begun for another request"):
            RunFolder.for_plan(tmp_path / "run", plan_of(tiny, PROMPT, size=64, lora=other))


def test_content_and_scale_count_as_weights(tiny: Path, tmp_path: Path, first: LoraOf) -> None:
    """Of the stage alone; the name of the file does not, nor does the text encoder's identity change."""
    file = written(tmp_path, "a.safetensors", first)
    copy = written(tmp_path, "copy.safetensors", first)
    other = written(tmp_path, "b.safetensors", random_lora(tiny, "stage_1", seed=5))
    location = locate(str(tiny))

    def identities(lora: Any) -> dict[str, str]:
        plan = plan_of(tiny, PROMPT, size=256, lora=lora)
        return {step.component: weights_fingerprint(location, step) for step in plan.steps}

    plain, merged = identities(()), identities(file)
    assert {name for name in plain if plain[name] != merged[name]} == {"stage_1"}
    assert identities(copy) == merged
    others = [identities(lora)["stage_1"] for lora in (f"{file}:0.5", other, [file, other])]
    others += [identities([other, file])["stage_1"], merged["stage_1"], plain["stage_1"]]
    assert len(set(others)) == len(others)


def test_a_picture_names_its_lora_but_not_where_it_lay(
    tiny: Path, tmp_path: Path, first: LoraOf
) -> None:
    """File name, scale, stage and content are in the PNG's metadata, no folder is."""
    file = written(tmp_path / "private", "mine.safetensors", first)
    folder = run_here(plan_of(tiny, PROMPT, size=64, lora=f"{file}:0.5"), tmp_path / "run")
    said = Image.open(folder.images[0]).text  # type: ignore[attr-defined]
    (lora,) = json.loads(said["request"])["lora"]
    assert (lora["path"], lora["scale"], lora["stage"]) == ("mine.safetensors", 0.5, "stage_1")
    assert lora["digest"] == loras(file)[0].digest
    assert "private" not in "".join(said.values())
    steps = {step["component"]: step["lora"] for step in json.loads(said["plan"])}
    assert steps["stage_1"] == [lora]


def test_chosen_pictures_go_on_with_the_loras_of_their_run(
    tiny: Path, tmp_path: Path, first: LoraOf
) -> None:
    """`continue` ends with the pixels of a run that went all the way, and asks nothing anew."""
    shared = random_lora(tiny, "stage_1", wanted=lambda layer: layer == "encoder_hid_proj")
    file = written(tmp_path, "a.safetensors", shared)
    small = run_here(plan_of(tiny, PROMPT, size=64, lora=file), tmp_path / "small")
    from runs import CPU

    taken = continued(small, [0], 256, CPU, tmp_path / "large")
    assert [step.component for step in taken.plan.steps if step.lora] == ["stage_1"]
    work(taken, print)
    at_once = plan_of(tiny, PROMPT, size=256, lora=f"stage_1={file}")
    whole = run_here(at_once, tmp_path / "whole")
    ended = RunFolder.open(tmp_path / "large")
    assert torch.equal(stage(ended, 2), stage(whole, 2))


@pytest.mark.worker
def test_a_batch_has_its_loras_for_all_lines(
    tiny: Path, tmp_path: Path, first: LoraOf, capsys: pytest.CaptureFixture[str]
) -> None:
    """In Python as well; each picture is the one drawn alone."""
    import lowmem_if as lm

    file = written(tmp_path, "a.safetensors", first)
    options: dict[str, Any] = {"cascade": str(tiny), "size": 64, "steps": 2, "lora": f"{file}:0.5"}
    result = lm.batch([PROMPT, "a blue star"], seed=1, out="batch", **options)
    alone = run_here(plan_of(tiny, PROMPT, size=64, lora=f"{file}:0.5"), tmp_path / "alone")
    ours = RunFolder.open(result.run.folder)
    assert ours.plan.request.lora == alone.plan.request.lora
    assert len(result.run.images) == 2
