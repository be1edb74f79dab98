"""Vary, inpaint and upscale: the pixels of diffusers' own pipelines, streamed and resumed too."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    IFImg2ImgPipeline,
    IFImg2ImgSuperResolutionPipeline,
    IFInpaintingPipeline,
    IFInpaintingSuperResolutionPipeline,
    IFPipeline,
    IFSuperResolutionPipeline,
    StableDiffusionUpscalePipeline,
)
from diffusers.pipelines.deepfloyd_if import IFSafetyChecker, fast27_timesteps
from killing import work_until
from PIL import Image
from runs import CPU, plan_of, results, run_here
from safetensors.torch import load_file
from sample_pictures import half, noise

import lowmem_if as lm
from lowmem_if.cascade import catalog
from lowmem_if.cascade.locate import locate
from lowmem_if.cascade.modes import INPAINT, UPSCALE, VARY
from lowmem_if.engine.events import Event
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.planning.fallback import RAM, Findings, changed_pixels, cheaper
from lowmem_if.planning.plan import Plan, Step, make_plan
from lowmem_if.request.build import make_request
from lowmem_if.stages.stage import StageConfig
from lowmem_if.stages.stage_2 import Stage2
from lowmem_if.stages.upscaler import blended

PROMPT, NEGATIVE, SEED = "a red circle on white", "black", 3
STREAMING = [f"{name}=stream" for name in ("text_encoder", "stage_1", "stage_2", "upscaler")]


def load(cls: Any, folder: Path, *, whole: bool = False) -> Any:
    IFSafetyChecker.all_tied_weights_keys = {}  # or its weights cannot be loaded today
    options: dict[str, Any] = {"variant": "fp16", "torch_dtype": torch.float32}
    if not whole:
        options |= {
            "text_encoder": None, "tokenizer": None, "safety_checker": None,
            "feature_extractor": None, "watermarker": None, "requires_safety_checker": False,
        }  # fmt: skip
    return cls.from_pretrained(folder, **options)


@cache
def loaded(cls: Any, folder: Path) -> Any:
    """A pipeline that no test changes; a call of it leaves nothing that the next call sees."""
    return load(cls, folder)


def seeded(seed: int = SEED) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


@cache
def texts(tiny: Path, prompt: str = PROMPT) -> Mapping[str, torch.Tensor]:
    """Embeddings as the documentation makes them."""
    pipeline = load(IFPipeline, tiny / "stage_1", whole=True)
    prompt_embeds, negative = pipeline.encode_prompt(
        prompt, negative_prompt=NEGATIVE, clean_caption=True
    )
    return {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative}


@cache
def upscaler(tiny: Path) -> Any:
    pipeline = StableDiffusionUpscalePipeline.from_pretrained(
        tiny / "upscaler", variant="fp16", torch_dtype=torch.float32
    )
    pipeline.safety_checker, pipeline.watermarker = None, None
    return pipeline


def upscaled(tiny: Path, image: Any, prompt: str = PROMPT, steps: int = 2) -> torch.Tensor:
    return upscaler(tiny)(
        prompt=prompt, negative_prompt=NEGATIVE, image=image, noise_level=100,
        num_inference_steps=steps, generator=seeded(), output_type="pt",
    ).images[0]  # fmt: skip


def by_hand(
    tiny: Path, mode: str, image: Path, mask: Path | None, size: int = 1024, **stage_1: Any
) -> dict[str, Any]:
    """The mode as the documentation of diffusers calls it, a fresh seed each stage, up to `size`."""
    shared, original = texts(tiny), Image.open(image).convert("RGB")
    own = {"mask_image": Image.open(mask)} if mask else {}
    first_class, second_class, noise_level = {
        VARY: (IFImg2ImgPipeline, IFImg2ImgSuperResolutionPipeline, 250),
        INPAINT: (IFInpaintingPipeline, IFInpaintingSuperResolutionPipeline, 0),
    }[mode]
    first = loaded(first_class, tiny / "stage_1")
    second = loaded(second_class, tiny / "stage_2")
    stage_1 = stage_1 or {"num_inference_steps": 4}
    small = first(
        image=original, **own, **shared, **stage_1, generator=seeded(), output_type="pt"
    ).images
    middle = second(
        image=small, original_image=original, **own, **shared, num_inference_steps=4,
        noise_level=noise_level, generator=seeded(), output_type="pt",
    ).images  # fmt: skip
    drawn = {"stage_1": small[0], "stage_2": middle[0]}
    return drawn | ({"stage_3": upscaled(tiny, middle, steps=4)} if size == 1024 else {})


def tensor(folder: RunFolder | Path, stage: str, number: int = 0) -> torch.Tensor:
    path = folder.path if isinstance(folder, RunFolder) else folder
    return load_file(path / stage / f"{number:04}.safetensors")["tensor"]


def assert_same(folder: RunFolder, expected: dict[str, torch.Tensor]) -> None:
    for stage, picture in expected.items():
        assert torch.equal(tensor(folder, stage), picture), stage


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    return {"image": noise(tmp_path / "own.png"), "mask": half(tmp_path / "mask.png")}


def of_mode(mode: str, sources: dict[str, Path]) -> dict[str, Any]:
    """What a request of a mode begins with."""
    needed = {VARY: ("image",), INPAINT: ("image", "mask"), UPSCALE: ("image",)}[mode]
    return {"mode": mode, "negative_prompt": NEGATIVE} | {name: sources[name] for name in needed}


# --- the same pixels --------------------------------------------------------------------------------


@pytest.mark.parametrize("pins", [[], STREAMING], ids=["resident", "streamed"])
@pytest.mark.parametrize("mode", [VARY, INPAINT])
def test_a_mode_gives_the_plain_pipelines_pixels_at_every_stage(
    tiny: Path, tmp_path: Path, sources: dict[str, Path], mode: str, pins: list[str]
) -> None:
    """With strength, steps and noise level left to the defaults of diffusers, but for fewer steps."""
    plan = plan_of(tiny, PROMPT, seed=SEED, steps=4, pins=pins, **of_mode(mode, sources))
    folder = run_here(plan, tmp_path / "run")
    expected = by_hand(tiny, mode, sources["image"], sources.get("mask") if mode == INPAINT else None,
                       num_inference_steps=4)  # fmt: skip
    assert_same(folder, expected)


@pytest.mark.parametrize("mode", [VARY, INPAINT])
@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(120, 80, 256), (80, 120, 256), (61, 97, 1024), (1, 1, 256), (3, 1, 256)],
)
def test_a_picture_of_any_size_is_drawn_in_its_proportions(
    tiny: Path, tmp_path: Path, mode: str, width: int, height: int, size: int
) -> None:
    """Sizes are those that diffusers gives such a picture, and so are the pixels.

    The upscaler takes what stage 2 has drawn, whatever its shape, so one shape goes through it.
    """
    image = noise(tmp_path / "own.png", width, height)
    mask = half(tmp_path / "mask.png", width, height)
    own = of_mode(mode, {"image": image, "mask": mask})
    plan = plan_of(tiny, PROMPT, seed=SEED, steps=4, size=size, **own)
    folder = run_here(plan, tmp_path / "run")
    assert_same(folder, by_hand(tiny, mode, image, mask if mode == INPAINT else None, size))


@pytest.mark.parametrize("strength", [0.3, 1.0, (0.5, 0.9)])
def test_strength_and_named_timesteps_are_those_of_the_pipelines(
    tiny: Path, tmp_path: Path, sources: dict[str, Path], strength: Any
) -> None:
    """One strength serves both stages, two one each; a list of timesteps is cut by it too."""
    plan = plan_of(tiny, PROMPT, seed=SEED, steps=None, timesteps="fast27", size=256,
                   strength=strength, noise_level=77, **of_mode(VARY, sources))  # fmt: skip
    folder = run_here(plan, tmp_path / "run")
    first, second = strength if isinstance(strength, tuple) else (strength, strength)
    original, shared = Image.open(sources["image"]).convert("RGB"), texts(tiny)
    small = loaded(IFImg2ImgPipeline, tiny / "stage_1")(
        image=original, strength=first, timesteps=fast27_timesteps, **shared,
        generator=seeded(), output_type="pt",
    ).images  # fmt: skip
    middle = loaded(IFImg2ImgSuperResolutionPipeline, tiny / "stage_2")(
        image=small, original_image=original, strength=second, timesteps=fast27_timesteps,
        noise_level=77, **shared, generator=seeded(), output_type="pt",
    ).images  # fmt: skip
    assert_same(folder, {"stage_1": small[0], "stage_2": middle[0]})
    sampling = plan.step(catalog.STAGE_1).sampling
    assert sampling is not None
    assert sampling.count == int(27 * first)


@pytest.mark.parametrize("side", [64, 32, 10])
def test_a_small_picture_goes_through_stage_2_and_the_upscaler(
    tiny: Path, tmp_path: Path, side: int
) -> None:
    """Stage 2 gets the user's own picture as it is; T5 and stage 2 run, stage 1 does not."""
    image = noise(tmp_path / "own.png", side, side)
    plan = plan_of(tiny, PROMPT, seed=SEED, **of_mode(UPSCALE, {"image": image}))
    assert [step.component for step in plan.steps] == [
        catalog.TEXT_ENCODER, catalog.STAGE_2, catalog.UPSCALER, catalog.POSTPROCESS,
    ]  # fmt: skip
    folder = run_here(plan, tmp_path / "run")
    middle = loaded(IFSuperResolutionPipeline, tiny / "stage_2")(
        image=Image.open(image), **texts(tiny), num_inference_steps=2, noise_level=250,
        generator=seeded(), output_type="pt",
    ).images  # fmt: skip
    assert_same(folder, {"stage_2": middle[0], "stage_3": upscaled(tiny, middle)})


@pytest.mark.parametrize("pins", [[], ["upscaler=stream"]], ids=["resident", "streamed"])
@pytest.mark.parametrize(("width", "height"), [(80, 80), (100, 72), (68, 120)])
def test_a_larger_picture_goes_through_the_upscaler_alone(
    tiny: Path, tmp_path: Path, width: int, height: int, pins: list[str]
) -> None:
    """Whole where that fits, and then as the plain pipeline has it; no T5 is needed."""
    image = noise(tmp_path / "own.png", width, height)
    plan = plan_of(tiny, PROMPT, seed=SEED, pins=pins, **of_mode(UPSCALE, {"image": image}))
    assert [step.component for step in plan.steps] == [catalog.UPSCALER, catalog.POSTPROCESS]
    folder = run_here(plan, tmp_path / "run")
    assert_same(folder, {"stage_3": upscaled(tiny, Image.open(image))})
    assert Image.open(folder.images[0]).size == (4 * width, 4 * height)


@pytest.mark.parametrize(("width", "height"), [(81, 67), (3, 200), (300, 66)])
def test_sides_that_the_upscaler_cannot_have_are_filled_up_and_cropped(
    tiny: Path, tmp_path: Path, width: int, height: int
) -> None:
    """The result is four times the picture, to the pixel."""
    image = noise(tmp_path / "own.png", width, height)
    plan = plan_of(tiny, "", steps=1, **of_mode(UPSCALE, {"image": image}))
    folder = run_here(plan, tmp_path / "run")
    assert Image.open(folder.images[0]).size == (4 * width, 4 * height)


def test_tiles_are_the_pipelines_own_pictures_blended(tiny: Path, tmp_path: Path) -> None:
    """Each tile is what the pipeline makes of it alone; where only one covers, the picture is that."""
    image = noise(tmp_path / "own.png", 100, 80)
    plan = plan_of(tiny, PROMPT, seed=SEED, **of_mode(UPSCALE, {"image": image}))
    steps = tuple(
        step.with_config(tile=64) if step.component == catalog.UPSCALER else step
        for step in plan.steps
    )
    events: list[Event] = []
    folder = run_here(replace(plan, steps=steps), tmp_path / "run", events.append)
    whole = tensor(folder, "stage_3")
    assert whole.shape == (3, 320, 400)
    corner = upscaled(tiny, Image.open(image).crop((0, 0, 64, 64)))
    assert torch.equal(whole[:, : 4 * 16, : 4 * 36], corner[:, : 4 * 16, : 4 * 36])
    done = [e.done for e in events if (e.kind, e.component) == ("drawing", catalog.UPSCALER)]
    assert done == list(range(1, 2 * 4 + 1))


def test_tiles_of_the_truth_make_the_truth() -> None:
    """Blending weighs to one everywhere: tiles that agree leave no seam."""
    picture = torch.rand(3, 4 * 72, 4 * 132)
    made = blended(132, 72, 64, factor=4, draw=lambda _number, box: picture[
        :, 4 * box.upper : 4 * box.lower, 4 * box.left : 4 * box.right
    ])  # fmt: skip
    assert torch.allclose(made, picture, atol=1e-6)


def test_a_picture_that_does_not_fit_whole_is_cut_no_smaller_than_it_must(
    tiny: Path, tmp_path: Path
) -> None:
    """The largest tiles with room are planned, and the reason says so; short of RAM they get smaller."""
    image = noise(tmp_path / "own.png", 800, 600)
    request = make_request(
        (PROMPT,), cascade="if-m", seed=(1,), **of_mode(UPSCALE, {"image": image})
    )
    machine = replace(CPU, ram_bytes=24 * 10**9)
    large = make_plan(machine, request).step(catalog.UPSCALER)
    assert large.config.tile == 256
    assert "in tiles of 256 pixels" in large.reason
    small = make_plan(replace(machine, ram_bytes=3 * 10**9), request).step(catalog.UPSCALER)
    assert 0 < small.config.tile < 256
    assert small.estimate.ram_bytes < 3 * 10**9
    plan, location, findings = make_plan(machine, request), locate("if-m"), Findings()
    step: Step | None = large
    tiles = []
    while step is not None:
        tiles.append(step.config.tile)
        plan = replace(
            plan, steps=tuple(step if s.component == step.component else s for s in plan.steps)
        )
        findings = findings.ran_out(step, machine, RAM)
        step = cheaper(plan, location, catalog.UPSCALER, findings, short_of=RAM)
    assert tiles[:2] == [256, 256]  # weights from the file draw the same pixels
    assert tiles == sorted(tiles, reverse=True)
    assert tiles[-1] < 128
    assert "tiles of 128" in changed_pixels(large.config, replace(large.config, tile=128))


def test_a_finished_picture_does_not_tell_where_its_source_lay(
    tiny: Path, tmp_path: Path, sources: dict[str, Path]
) -> None:
    """Its metadata names the file, not the folders of whoever drew it."""
    folder = run_here(plan_of(tiny, PROMPT, size=64, steps=4, **of_mode(INPAINT, sources)),
                      tmp_path / "run")  # fmt: skip
    request = json.loads(Image.open(folder.images[0]).info["request"])
    assert [request[kind]["path"] for kind in ("image", "mask")] == ["own.png", "mask.png"]


def test_a_text_in_another_aspect_is_the_pipelines_width_and_height(
    tiny: Path, tmp_path: Path
) -> None:
    """`aspect="3:2"` draws 48 x 32 and 96 x 64 with a stage 1 made for 32."""
    plan = plan_of(tiny, PROMPT, seed=SEED, aspect="3:2", negative_prompt=NEGATIVE)
    folder = run_here(plan, tmp_path / "run")
    small = loaded(IFPipeline, tiny / "stage_1")(
        width=48, height=32, **texts(tiny), num_inference_steps=2, generator=seeded(),
        output_type="pt",
    ).images  # fmt: skip
    middle = loaded(IFSuperResolutionPipeline, tiny / "stage_2")(
        image=small, width=96, height=64, **texts(tiny), num_inference_steps=2, noise_level=250,
        generator=seeded(), output_type="pt",
    ).images  # fmt: skip
    large = upscaled(tiny, middle)
    assert_same(folder, {"stage_1": small[0], "stage_2": middle[0], "stage_3": large})
    assert large.shape == (3, 256, 384)


def test_pictures_drawn_together_share_mode_and_shape(
    tiny: Path, tmp_path: Path, sources: dict[str, Path]
) -> None:
    """A balanced run draws the images of a prompt in one batch, each from its own seed."""
    own = of_mode(VARY, sources)
    request = make_request(
        (PROMPT,), cascade=str(tiny), seed=(SEED,), images=2, size=64, steps=(4,), **own
    )
    plan = make_plan(CPU, request, prefer="balanced")
    assert plan.step(catalog.STAGE_1).config.batch == 2
    folder = run_here(plan, tmp_path / "run")
    alone = run_here(plan_of(tiny, PROMPT, seed=SEED, steps=4, size=64, **own), tmp_path / "alone")
    gap = (tensor(folder, "stage_1") - tensor(alone, "stage_1")).abs().max()
    assert gap < 1e-3
    assert not torch.equal(tensor(folder, "stage_1", 0), tensor(folder, "stage_1", 1))


@pytest.mark.parametrize("thresholding", [None, (0.6,), (0.6, 1.2)])
@pytest.mark.parametrize("scheduler", ["ddpm", "dpmsolver++"])
def test_the_scheduler_and_its_thresholding_are_those_of_diffusers(
    tiny: Path, tmp_path: Path, scheduler: str, thresholding: tuple[float, ...] | None
) -> None:
    """As one sets them by hand, `from_config` of the pipeline's own; the upscaler's is left alone."""
    size = 1024 if thresholding == (0.6, 1.2) else 256
    plan = plan_of(tiny, PROMPT, seed=SEED, steps=5, negative_prompt=NEGATIVE, size=size,
                   scheduler=scheduler, thresholding=thresholding)  # fmt: skip
    first, second = (
        load(IFPipeline, tiny / "stage_1"),
        load(IFSuperResolutionPipeline, tiny / "stage_2"),
    )
    names = ("dynamic_thresholding_ratio", "sample_max_value")
    own = dict(zip(names, thresholding or (), strict=False))
    for pipeline in (first, second):
        config = pipeline.scheduler.config
        if scheduler == "ddpm":
            pipeline.scheduler = DDPMScheduler.from_config(config, **own)
        else:
            pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
                config, lambda_min_clipped=-5.1, **own
            )
    shared = {**texts(tiny), "num_inference_steps": 5, "output_type": "pt"}
    small = first(**shared, generator=seeded()).images
    middle = second(image=small, **shared, noise_level=250, generator=seeded()).images
    expected = {"stage_1": small[0], "stage_2": middle[0]}
    if size == 1024:
        expected["stage_3"] = upscaled(tiny, middle, steps=5)
    assert_same(run_here(plan, tmp_path / "run"), expected)
    assert small.isfinite().all()


class StyledByHand:
    """DeepFloyd's mixing as two calls of the UNet, one for each text, in place of one."""

    def __init__(self, unet: Any, style: torch.Tensor) -> None:
        self._unet, self._style = unet, style

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)

    def __call__(self, sample: Any, t: Any, encoder_hidden_states: Any, **given: Any) -> Any:
        negative = encoder_hidden_states[:1]
        whole = torch.cat([negative, self._style])
        real = self._unet.add_embedding.forward
        self._unet.add_embedding.forward = lambda _texts: real(whole)
        try:
            prompt, own = (
                self._unet(sample, t, encoder_hidden_states=torch.cat([negative, text]), **given)[0]
                for text in (encoder_hidden_states[1:], self._style)
            )
        finally:
            self._unet.add_embedding.forward = real
        prompt[1, :3] = 0.85 * prompt[1, :3] + 0.15 * own[1, :3]
        return (prompt,)


@pytest.mark.parametrize("pins", [[], STREAMING], ids=["resident", "streamed"])
def test_a_style_is_mixed_in_as_deepfloyds_package_does_it(
    tiny: Path, tmp_path: Path, sources: dict[str, Path], pins: list[str]
) -> None:
    """A picture of three through the UNet is that of two calls with two; only sums are ordered anew."""
    style = "a green square"
    plan = plan_of(tiny, PROMPT, seed=SEED, steps=4, size=256, style_prompt=style, pins=pins,
                   **of_mode(VARY, sources))  # fmt: skip
    folder = run_here(plan, tmp_path / "run")
    original, shared = Image.open(sources["image"]).convert("RGB"), texts(tiny)
    first, second = (
        load(IFImg2ImgPipeline, tiny / "stage_1"),
        load(IFImg2ImgSuperResolutionPipeline, tiny / "stage_2"),
    )
    for pipeline in (first, second):
        pipeline.unet = StyledByHand(pipeline.unet, texts(tiny, style)["prompt_embeds"])
    small = first(
        image=original, **shared, num_inference_steps=4, generator=seeded(), output_type="pt"
    ).images
    middle = second(
        image=small, original_image=original, **shared, num_inference_steps=4,
        generator=seeded(), output_type="pt",
    ).images  # fmt: skip
    for stage, expected in (("stage_1", small[0]), ("stage_2", middle[0])):
        assert torch.allclose(tensor(folder, stage), expected, atol=2e-4), stage
    plain = run_here(plan_of(tiny, PROMPT, seed=SEED, steps=4, size=64, **of_mode(VARY, sources)),
                     tmp_path / "plain")  # fmt: skip
    assert not torch.allclose(tensor(folder, "stage_1"), tensor(plain, "stage_1"), atol=1e-2)


def test_a_style_alone_is_a_prompt(tiny: Path, tmp_path: Path, sources: dict[str, Path]) -> None:
    """Without a prompt both texts are the style's, and nothing is mixed."""
    own = of_mode(VARY, sources)
    alone = plan_of(tiny, "", style_prompt=PROMPT, seed=SEED, steps=4, size=64, **own)
    plain = plan_of(tiny, PROMPT, seed=SEED, steps=4, size=64, **own)
    ours, theirs = (
        tensor(run_here(plan, tmp_path / name), "stage_1")
        for name, plan in (("alone", alone), ("plain", plain))
    )
    assert torch.equal(ours, theirs)


# --- inpainting leaves what the mask leaves ---------------------------------------------------------


def test_what_the_mask_leaves_is_the_picture_in_stages_1_and_2(
    tiny: Path, tmp_path: Path, sources: dict[str, Path]
) -> None:
    """Outside the mask both stages give the picture as diffusers sizes it, inside they do not."""
    folder = run_here(plan_of(tiny, PROMPT, steps=4, **of_mode(INPAINT, sources)), tmp_path / "run")
    for stage, side in (("stage_1", 32), ("stage_2", 64)):
        image = Image.open(sources["image"]).resize((side, side), Image.Resampling.BICUBIC)
        own = torch.from_numpy(numpy.array(image, numpy.float32) / 127.5 - 1).permute(2, 0, 1)
        gap = (tensor(folder, stage) - own).abs().amax(0)
        assert gap[:, : side // 2 - 1].max() < 1e-5, stage
        assert gap[:, side // 2 + 1 :].mean() > 0.1, stage


# --- runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [VARY, INPAINT, UPSCALE])
def test_every_component_of_a_mode_leaves_with_its_memory(
    tiny: Path, tmp_path: Path, sources: dict[str, Path], mode: str
) -> None:
    """The proof of text-to-image holds: nothing alive, nothing left, no notice."""
    folder = run_here(plan_of(tiny, PROMPT, **of_mode(mode, sources), steps=4), tmp_path / "run")
    for step in folder.plan.steps:
        released = folder.released(step.component)
        assert released is not None
        assert released.alive == ()
        assert max(released.ram_left_bytes, 0) <= released.allowed_bytes
    assert folder.notices == ()


@pytest.mark.parametrize("mode", [INPAINT, UPSCALE])
@pytest.mark.worker
def test_a_killed_run_needs_nothing_but_its_folder(
    tiny: Path,
    tmp_path: Path,
    sources: dict[str, Path],
    mode: str,
) -> None:
    """SIGKILL at any event and the user's pictures gone or changed: the same bytes as unbroken."""
    plan = plan_of(tiny, PROMPT, images=2, size=1024 if mode == UPSCALE else 256, steps=4,
                   **of_mode(mode, sources))  # fmt: skip
    whole, count = tmp_path / "whole", 0
    RunFolder.for_plan(whole, plan)
    code, events = work_until(whole)
    assert code == 0
    cuts = list(range(2, len(events), max(1, len(events) // 4)))
    paths = [tmp_path / f"killed-{last}" for last in cuts]
    for path in paths:
        RunFolder.for_plan(path, plan)
    sources["image"].unlink()
    sources["mask"].write_bytes(b"something else")
    for path, last in zip(paths, cuts, strict=True):
        code, _ = work_until(path, last)
        assert code == -signal.SIGKILL
        code, _ = work_until(path)
        assert code == 0
        assert results(path) == results(whole)
        count += 1
    assert count >= 4


def test_a_mode_loads_each_network_once(
    tiny: Path, tmp_path: Path, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pipelines of one stage share its UNet: it is loaded once whatever the mode."""
    loaded = []
    real = Stage2.load

    def count(config: StageConfig) -> Stage2:
        loaded.append(config.step.component)
        return real(config)

    monkeypatch.setattr(Stage2, "load", count)
    run_here(plan_of(tiny, PROMPT, images=3, steps=4, **of_mode(VARY, sources)), tmp_path / "run")
    assert loaded == [catalog.STAGE_2]


def test_a_plan_with_pictures_is_the_same_when_read_back(
    tiny: Path, sources: dict[str, Path]
) -> None:
    """JSON in, JSON out; reading it needs the pictures no more."""
    plan = plan_of(tiny, PROMPT, **of_mode(INPAINT, sources), strength=0.5, steps=4)
    data = plan.to_json()
    for file in sources.values():
        file.unlink()
    assert Plan.from_json(data) == plan


def test_the_calls_of_the_package_are_the_modes(
    tiny: Path, tmp_path: Path, sources: dict[str, Path]
) -> None:
    """`vary`, `inpaint` and `upscale` take the options of `generate`."""
    options: dict[str, Any] = {"cascade": str(tiny), "steps": 4, "seed": 1, "device": "cpu"}
    image, mask = sources["image"], sources["mask"]
    runs = (
        lm.vary(image, PROMPT, strength=0.5, size=64, out=tmp_path / "a", **options),
        lm.inpaint(image, mask, PROMPT, size=64, out=tmp_path / "b", **options),
        lm.upscale(image, out=tmp_path / "c", **options),
    )
    requests = [RunFolder.open(run.folder).plan.request for run in runs]
    assert [request.images[0].mode for request in requests] == [VARY, INPAINT, UPSCALE]
    assert all(len(run.images) == 1 for run in runs)
