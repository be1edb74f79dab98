"""What a type checker knows of the public functions: their results, their options, and wrong ones.

Nothing here is run. `mypy` checks it, and reports an expected error that does not occur.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import assert_type

import numpy
import torch
from PIL import Image

import lowmem_if as lm


def right_calls(plan: lm.Plan, mine: lm.Lora) -> None:
    """Every kind of value that an option takes."""
    assert_type(lm.generate("a red circle"), lm.RunResult)
    lm.generate(["a", "b"], seed=range(1, 5), steps=(50, 30, 40), guidance_scale=7, aspect="3:2")
    lm.generate("a", cascade=Path("folder"), lora=["a.safetensors:0.8", mine], out="runs/a")
    lm.generate("a", profile="colab-free", pins={"stage_1": lm.Pin("resident")}, prefer="balanced")
    assert_type(lm.vary("a.png", "b", strength=0.8), lm.RunResult)
    assert_type(lm.inpaint("a.png", "mask.png", "b", strength=(0.8, 0.7)), lm.RunResult)
    assert_type(lm.upscale(Path("a.png"), size=256), lm.RunResult)
    assert_type(lm.batch(["a", {"prompt": "b", "seed": 7}], size=64), lm.BatchResult)
    embeddings = lm.embed(["a", "b"], "prompts.pth", dtype="float32", ram="8GB")
    assert_type(embeddings["a"].shape, torch.Size)
    assert_type(lm.load_embeddings("prompts.pth"), dict[str, torch.Tensor])
    lm.generate("a", embeds=Path("prompts.pth"))
    assert_type(lm.enlarge("runs/a", [3, 7], size=1024, other_versions=True), lm.RunResult)
    assert_type(lm.run(plan, "runs/a", preview_every=10), lm.RunResult)
    assert_type(lm.resume("runs/a", report=lm.NotebookProgress()), lm.RunResult)
    assert_type(lm.fetch("if-xl", vram="6GB"), lm.Fetched)
    with lm.open_stage("demo", 1, dtype="float32", pin=lm.Pin("stream"), batch=2) as stage:
        stage.unet(1, 2, encoder_hidden_states=3)
        stage(prompt_embeds=1, output_type="pt")
        stage.close()
    lm.open_stage(Path("folder"), "upscaler", ram="4GB", mode="text")
    lm.generate("a", cascade="I-L+II-L", parts={"stage_1": Path("mine"), "stage_2": "me/my-if@v2"})
    lm.fetch("if-l", parts={"stage_1": "me/my-if"})


def pictures_as_objects(image: Image.Image, array: numpy.ndarray, tensor: torch.Tensor) -> None:
    """Everything that an image or a mask may be."""
    lm.vary(image, "b")
    lm.vary(array, "b")
    lm.vary(tensor, "b")
    lm.upscale(b"content")
    lm.upscale(io.BytesIO(b"content"))
    with Path("a.png").open("rb") as file:
        lm.inpaint(file, array > 0, "b", invert_mask=True, mask_alpha=False)
    lm.generate("a", mode="inpaint", image=tensor, mask=array, mask_alpha=True)
    lm.make_request("a", mode="vary", image=image)
    with lm.Session() as session:
        session.inpaint(image, tensor, "b", invert_mask=True)


def wrong_calls(plan: lm.Plan) -> None:
    """Options that do not exist or are of another type."""
    lm.generate("a", stepz=3)  # type: ignore[call-arg]
    lm.generate("a", size="64")  # type: ignore[arg-type]
    lm.generate(3)  # type: ignore[arg-type]
    lm.vary("a.png", mode="text")  # type: ignore[call-arg]
    lm.inpaint("a.png", "b")  # type: ignore[call-arg]
    lm.upscale("a.png", mask="b.png")  # type: ignore[call-arg]
    lm.upscale([[0, 1]])  # type: ignore[arg-type]
    lm.vary(3)  # type: ignore[arg-type]
    lm.vary("a.png", "b", invert_mask=True)  # type: ignore[call-arg]
    lm.inpaint("a.png", "b.png", "c", invert_mask="yes")  # type: ignore[arg-type]
    lm.batch(["a"], pins=["stage_1=stream"])  # type: ignore[arg-type]
    lm.embed("a", size=64)  # type: ignore[call-arg]
    lm.embed("a", out=3)  # type: ignore[arg-type]
    lm.enlarge("runs/a", [1], prefer="exact")  # type: ignore[call-arg]
    lm.run(plan, "runs/a", other_versions=True)  # type: ignore[call-arg]
    lm.resume("runs/a", size=64)  # type: ignore[call-arg]
    lm.fetch("if-xl", seed=1)  # type: ignore[call-arg]
    lm.open_stage("demo", 1, pins={"stage_1": "stream"})  # type: ignore[call-arg]
    lm.open_stage("demo", 1, batch="2")  # type: ignore[arg-type]
    lm.generate("a", parts=["stage_1=mine"])  # type: ignore[arg-type]
