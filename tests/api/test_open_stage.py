"""A stage in the user's own hands: diffusers' own pipeline, with diffusers' own bits."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hub_stand_in import HubStandIn
from lora_files import peft, random_lora, write
from own_loops import embeddings, guided_loop, loaded_by_diffusers
from PIL import Image
from sample_pictures import half, noise

import lowmem_if as lm
from lowmem_if.cascade.locate import DEMO_FOLDER
from lowmem_if.weights.memory_readings import Sampler, release_memory

PINS = ("resident", "stream")
CASCADES = ("tiny", "demo")


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    yield
    lm.close_stages()


@pytest.fixture(params=CASCADES)
def cascade(request: pytest.FixtureRequest, tiny: Path) -> Path:
    return tiny if request.param == "tiny" else DEMO_FOLDER


def opened(cascade: Path | str, stage: Any, **options: Any) -> Any:
    """On the CPU in float32, without a progress bar."""
    given = {"device": "cpu", "dtype": "float32", "prefer": "exact"} | options
    pipeline: Any = lm.open_stage(cascade, stage, **given)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_a_loop_by_hand_has_the_bits_of_diffusers(cascade: Path, stage: int) -> None:
    """Resident and streamed, with and without `no_grad`; the class is diffusers' own."""
    kind = (diffusers.IFPipeline, diffusers.IFSuperResolutionPipeline)[stage - 1]
    with torch.no_grad():
        expected = guided_loop(loaded_by_diffusers(cascade, stage, kind), 2)
    for pin in PINS:
        with opened(cascade, stage, pin=pin) as pipeline:
            assert isinstance(pipeline, kind)
            assert type(pipeline).__name__ == kind.__name__
            assert pipeline.text_encoder is None
            assert (pipeline.device, pipeline.dtype) == (torch.device("cpu"), torch.float32)
            with torch.no_grad():
                assert torch.equal(guided_loop(pipeline, 2), expected)
            forgetful = guided_loop(pipeline, 2)
            assert torch.equal(forgetful, expected)
            assert not forgetful.requires_grad


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_a_quantised_stage_draws_and_refuses_gradients(tiny: Path, storage: str) -> None:
    """A layer's numbers are gone when a backward pass would need them; the error names a way out."""
    with opened(tiny, 1, pin=f"resident:{storage}", dtype=None) as pipeline:
        assert guided_loop(pipeline, 1).isfinite().all()
        side = pipeline.unet.config.sample_size
        picture = torch.randn(1, 3, side, side, requires_grad=True)
        words = torch.zeros(1, 77, pipeline.unet.config.encoder_hid_dim)
        with pytest.raises(lm.RequestError, match=r"no gradient can be computed.*pin='resident'"):
            pipeline.unet(picture, 10, words)


@pytest.mark.worker
def test_texts_are_encoded_in_a_process_of_its_own(tiny: Path) -> None:
    """So a script that gives prompts runs unchanged, with the embeddings that `embed` gives."""
    expected = lm.embed(["a red circle", "a cross"], cascade=tiny, dtype="float32", device="cpu")
    with opened(tiny, 1) as pipeline:
        positive, negative = pipeline.encode_prompt("a red circle")
        assert torch.equal(positive, expected["a red circle"])
        assert torch.equal(negative, expected[""])
        several, _ = pipeline.encode_prompt(["a cross", "a red circle"], num_images_per_prompt=2)
        assert torch.equal(several, torch.cat([expected["a cross"]] * 2 + [positive] * 2))
        alone, none = pipeline.encode_prompt("a cross", do_classifier_free_guidance=False)
        assert torch.equal(alone, expected["a cross"])
        assert none is None
        call = {"num_inference_steps": 2, "output_type": "pt"}
        by_text = pipeline("a cross", generator=torch.manual_seed(1), **call).images
        by_embeds = pipeline(
            prompt_embeds=alone,
            negative_prompt_embeds=negative,
            generator=torch.manual_seed(1),
            **call,
        ).images
        assert torch.equal(by_text, by_embeds)


def test_texts_are_looked_up_in_a_file_of_embeddings(tiny: Path, tmp_path: Path) -> None:
    """T5 is not needed, not even on the disk; a text that the file lacks is an error in one line."""
    shutil.copytree(tiny, tmp_path / "cascade")
    shutil.rmtree(tmp_path / "cascade" / "stage_1" / "text_encoder")

    with opened(tiny, 1) as pipeline:
        width = pipeline.unet.config.encoder_hid_dim
    file = tmp_path / "prompts.pth"
    known = {text: torch.randn(1, 77, width) for text in ("a red circle", "")}
    torch.save(known, file)
    with opened(tmp_path / "cascade", 1, embeds=file) as pipeline:
        positive, negative = pipeline.encode_prompt("a red circle")
        assert torch.equal(positive, known["a red circle"])
        assert torch.equal(negative, known[""])
        with pytest.raises(lm.EmbeddingsError, match="has no embedding of the prompt 'a cross'"):
            pipeline.encode_prompt("a cross")
    with pytest.raises(lm.EmbeddingsError, match=r"missing\.pth"):
        opened(tiny, 1, embeds=tmp_path / "missing.pth")


@pytest.mark.worker
def test_a_text_without_an_encoder_is_one_line(tiny: Path, tmp_path: Path) -> None:
    """The stage's weights are here, T5's are not."""
    shutil.copytree(tiny, tmp_path / "cascade")
    shutil.rmtree(tmp_path / "cascade" / "stage_1" / "text_encoder")
    with opened(tmp_path / "cascade", 1) as pipeline:
        with pytest.raises(lm.RequestError, match="Give prompt_embeds and negative_prompt_embeds"):
            pipeline.encode_prompt("a red circle")
        with pytest.raises(lm.RequestError, match="needs a prompt"):
            pipeline.encode_prompt(None)


def test_a_part_of_ones_own_is_opened(tiny: Path, tmp_path: Path) -> None:
    """A fine-tuned UNet in a folder of its own; the scheduler is the cascade's."""
    mine = tmp_path / "mine"
    shutil.copytree(tiny / "stage_1" / "unet", mine / "unet")
    with opened(tiny, 1) as pipeline:
        expected = guided_loop(pipeline)
    with opened(tiny, 1, parts={"stage_1": mine}) as pipeline:
        assert torch.equal(guided_loop(pipeline), expected)


CALLS: list[tuple[int, str, Any]] = [
    (1, "text", diffusers.IFPipeline),
    (1, "img2img", diffusers.IFImg2ImgPipeline),
    (1, "inpaint", diffusers.IFInpaintingPipeline),
    (2, "text", diffusers.IFSuperResolutionPipeline),
    (2, "vary", diffusers.IFImg2ImgSuperResolutionPipeline),
    (2, "inpaint", diffusers.IFInpaintingSuperResolutionPipeline),
    (3, "text", diffusers.StableDiffusionUpscalePipeline),
]


def called(pipeline: Any, stage: int, mode: str, folder: Path, output_type: str) -> Any:
    """The output of a call, with the arguments of diffusers' documentation."""
    image = Image.open(noise(folder / "image.png"))
    small = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    given: dict[str, Any] = {"num_inference_steps": 3, "generator": torch.manual_seed(7)}
    given |= {"prompt": "a red circle", "image": small} if stage == 3 else embeddings(pipeline)
    if mode != "text":
        given["image" if stage == 1 else "original_image"] = image
        given["strength"] = 0.8
    if mode == "inpaint":
        given["mask_image"] = Image.open(half(folder / "mask.png"))
    if stage == 2:
        given["image"] = small
    return pipeline(**given, output_type=output_type).images


@pytest.mark.parametrize(
    ("stage", "mode", "kind"), CALLS, ids=[f"{stage} {mode}" for stage, mode, _ in CALLS]
)
def test_calls_of_the_pipeline_have_the_bits_of_diffusers(
    tiny: Path, tmp_path: Path, stage: int, mode: str, kind: Any
) -> None:
    """Every stage in every mode, as tensors and as pictures with the watermark."""
    theirs = loaded_by_diffusers(tiny, stage, kind)
    expected = called(theirs, stage, mode, tmp_path, "pt")
    picture = called(theirs, stage, mode, tmp_path, "pil")[0]
    for pin in PINS:
        with opened(tiny, stage, mode=mode, pin=pin) as pipeline:
            assert isinstance(pipeline, kind)
            assert torch.equal(called(pipeline, stage, mode, tmp_path, "pt"), expected)
            ours = called(pipeline, stage, mode, tmp_path, "pil")[0]
            assert ours.tobytes() == picture.tobytes()


def test_another_pipeline_can_share_the_parts(tiny: Path, tmp_path: Path) -> None:
    """`IFImg2ImgPipeline(**pipe.components)`, as diffusers documents it."""
    kind = diffusers.IFImg2ImgPipeline
    expected = called(loaded_by_diffusers(tiny, 1, kind), 1, "img2img", tmp_path, "pt")
    with opened(tiny, 1) as pipeline:
        other = kind(**pipeline.components, requires_safety_checker=False)
        assert torch.equal(called(other, 1, "img2img", tmp_path, "pt"), expected)


def test_a_lora_is_merged(tiny: Path, tmp_path: Path) -> None:
    """Streamed and resident agree, and differ from the stage without it."""
    file = tmp_path / "style.safetensors"
    write(file, peft(random_lora(tiny, "stage_1")))
    with opened(tiny, 1) as plain:
        without = guided_loop(plain)
    found = []
    for pin in PINS:
        with opened(tiny, 1, pin=pin, lora=f"{file}:0.5") as pipeline:
            found.append(guided_loop(pipeline))
    assert torch.equal(*found)
    assert not torch.equal(found[0], without)


# --- memory -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_streamed_loop_of_50_steps_needs_the_memory_of_its_first(tiny: Path) -> None:
    """The peak stays within the budget, also after an exception in a layer, and is released."""
    guided_loop(loaded_by_diffusers(tiny, 1, diffusers.IFPipeline))  # the libraries' own first use
    before = release_memory().ram_anon
    budget = before + 340_000_000
    peaks: list[int] = []
    with opened(tiny, 1, pin="stream", ram=str(budget)) as pipeline:
        guided_loop(pipeline, 1)
        first = release_memory().ram_anon
        sampler = Sampler("cpu", lambda reading: peaks.append(reading.ram_anon), 0.005)
        sampler.start()
        expected = guided_loop(pipeline, 50)
        calls = iter(range(60))
        hook = pipeline.unet.mid_block.resnets[0].conv2.register_forward_hook(
            lambda *_: 1 / 0 if next(calls) == 25 else None
        )
        with pytest.raises(ZeroDivisionError):
            guided_loop(pipeline, 50)
        hook.remove()
        assert torch.equal(guided_loop(pipeline, 50), expected)
        sampler.stop()
        assert release_memory().ram_anon - first < 8_000_000
    assert max(peaks) < budget
    assert pipeline.released.complete
    assert not pipeline.released.alive
    assert "streaming" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("pin", PINS)
def test_leaving_releases_everything_even_if_a_variable_holds_the_unet(
    tiny: Path, pin: str
) -> None:
    """The weights are gone whoever refers to the network, and its use is refused in words."""
    with opened(tiny, 1, pin=pin) as pipeline:
        unet = pipeline.unet
        guided_loop(pipeline, 1)
    assert pipeline.released.alive == ("UNet2DConditionModel",)
    assert all(tensor.is_meta for tensor in (*unet.parameters(), *unet.buffers()))
    uses: list[Any] = [
        lambda: pipeline.unet,
        lambda: pipeline.scheduler,
        lambda: pipeline(**embeddings_of_width(64)),
        lambda: unet(torch.zeros(1, 3, 32, 32), 1, torch.zeros(1, 77, 64)),
        lambda: unet.half(),
        lambda: pipeline.to("cpu"),
        pipeline.__enter__,
    ]
    for use in uses:
        with pytest.raises(lm.SessionError, match="stage 1 of cascade is closed"):
            use()
    pipeline.close()  # a second time is no error


def embeddings_of_width(width: int) -> dict[str, torch.Tensor]:
    return {"prompt_embeds": torch.zeros(1, 77, width)}


def test_an_exception_of_the_user_releases_the_stage(tiny: Path) -> None:
    """It comes out as it is, and the stage is closed."""

    def fail(step: int) -> None:
        if step == 1:
            raise KeyboardInterrupt

    def use() -> None:
        with opened(tiny, 1, pin="stream") as pipeline:
            kept.append(pipeline)
            guided_loop(pipeline, after_step=fail)

    kept: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        use()
    assert kept[0].released is not None
    assert "streaming" not in {thread.name for thread in threading.enumerate()}


def test_a_stage_that_is_forgotten_is_closed(tiny: Path) -> None:
    """A notebook's cell that runs twice replaces the variable: the old stage leaves nothing."""
    pipeline = opened(tiny, 1, pin="stream")
    pipeline = opened(tiny, 1, pin="stream")
    gc.collect()
    threads = [thread for thread in threading.enumerate() if thread.name == "streaming"]
    assert len(threads) == 1
    assert pipeline.plan.others == ("stage 1 of cascade",)
    assert opened(tiny, 2).plan.others == ("stage 1 of cascade",)


def test_several_stages_are_open_where_the_budget_allows() -> None:
    """The second plans with what the first leaves; the error says what to close, and closing helps."""
    ram = str(release_memory().ram_anon + 900_000_000)
    with opened("demo", "upscaler", ram=ram) as upscaler:
        with pytest.raises(
            lm.DoesNotFit, match=r"Close upscaler of demo .*close_stages\(\).* Free"
        ):
            opened("demo", 2, ram=ram)
        assert upscaler.released is None
    with opened("demo", 2, ram=ram) as second, opened("demo", 1, ram=ram) as first:
        assert first.plan.others == ("stage 2 of demo",)
        assert first.plan.machine.ram_bytes < second.plan.machine.ram_bytes
    lm.close_stages()
    assert opened("demo", 3, ram=ram).plan.others == ()


# --- the pipeline's own ways of moving, and of encoding text -------------------------------------------


def test_where_a_script_moves_the_pipeline_nothing_happens(tiny: Path) -> None:
    """`to` the same place returns it; another place is an error; offloading says that it is planned."""
    with opened(tiny, 1, pin="stream") as pipeline:
        assert pipeline.to("cpu") is pipeline
        assert pipeline.to(torch.float32) is pipeline
        assert pipeline.to("cpu", torch.float32).to(device="cpu") is pipeline
        for place in ("cuda", torch.bfloat16):
            with pytest.raises(lm.DeviceError, match="open it with another `device` or `dtype`"):
                pipeline.to(place)
        for method in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
            with pytest.warns(
                UserWarning, match="does nothing here: stage 1 of cascade is planned"
            ):
                getattr(pipeline, method)()
        assert pipeline.unet.to("cpu") is pipeline.unet
        with pytest.raises(lm.RequestError, match="cannot be moved or cast"):
            pipeline.unet.half()
        with pytest.raises(lm.RequestError, match="has no state to save"):
            pipeline.unet.state_dict()


def test_without_guidance_no_negative_embedding_is_needed(tiny: Path) -> None:
    """Nothing is encoded."""
    with opened(tiny, 1) as pipeline:
        given = embeddings(pipeline)
        unguided = pipeline(
            prompt_embeds=given["prompt_embeds"], guidance_scale=1.0, num_inference_steps=1
        )
        assert unguided.images[0].size == (32, 32)


def test_the_plan_is_a_text(tiny: Path) -> None:
    """What was chosen, why, and what is left; the same in a notebook's cell."""
    with opened(tiny, 1, pin="stream") as pipeline:
        text = str(pipeline.plan)
        assert repr(pipeline.plan) == text
        assert "stage 1 of cascade on cpu" in text
        assert "stream float32" in text
        assert "why: pinned" in text
        assert "predicted peak: 4" in text


def test_an_unknown_option_is_refused(tiny: Path) -> None:
    """With the nearest name."""
    with pytest.raises(lm.RequestError, match=r"open_stage has no option 'pins'.*'pin'"):
        lm.open_stage(tiny, 1, pins={})  # type: ignore[call-arg]


# --- weights that are not here -------------------------------------------------------------------------

DOWNLOADING = """
import json, sys
import lowmem_if as lm
with lm.open_stage("if-m", 1, device="cpu") as stage:
    answer = [type(stage.unet).__name__, stage.plan.name, stage.tokenizer is None]
with lm.open_stage("if-m", 1, device="cpu", report=lambda *_: sys.exit("downloaded again")):
    pass
print(json.dumps(answer))
"""


@pytest.mark.worker
def test_missing_weights_are_downloaded_for_this_stage_alone(tiny: Path, tmp_path: Path) -> None:
    """The UNet and its scheduler, and neither T5 nor the safety checker; a second time nothing."""
    repository = "DeepFloyd/IF-I-M-v1.0"
    shutil.copytree(tiny / "stage_1", tmp_path / "tree" / repository)
    with HubStandIn(tmp_path / "tree") as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*", "PYTHONPATH": str(Path(lm.__file__).parents[1]),
        }  # fmt: skip
        run = subprocess.run(
            [sys.executable, "-c", DOWNLOADING], env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert json.loads(run.stdout) == ["UNet2DConditionModel", "stage 1 of if-m", True]
        folders = {
            file.removeprefix(f"{repository}/").partition("/")[0] for file in hub.downloads()
        }
        assert folders == {"model_index.json", "unet", "scheduler"}
    assert "downloading stage 1 of if-m" in run.stderr
