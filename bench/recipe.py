"""IF as the documentation of diffusers runs it where memory is short: load, run, del, gc, by stages.

    python -m bench.recipe JSON

Reads a `Drawing` as JSON; prints the seconds of each picture (clock and CPU), peak anonymous memory, and
a fingerprint of every picture. It differs from the documented calls only where those fail today (the
safety checker's missing attribute), and computes in float32, as ours do with networks this small.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, IFPipeline, IFSuperResolutionPipeline
from diffusers import StableDiffusionUpscalePipeline as UpscalePipeline
from diffusers.pipelines.deepfloyd_if import IFSafetyChecker
from transformers import T5EncoderModel

from bench.case import fingerprint
from lowmem_if.weights.memory_readings import Sampler

_OPTIONS = {"variant": "fp16", "torch_dtype": torch.float32}
_NO_CHECKER = {
    "safety_checker": None, "feature_extractor": None, "watermarker": None,
    "requires_safety_checker": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is to be drawn.

    Attributes:
        samplings: of each stage that is drawn: steps, guidance_scale, noise_level.
    """

    cascade: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    samplings: tuple[dict[str, Any], ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def draw(drawing: Drawing, prompt: str, seed: int) -> torch.Tensor:
    """One picture, (3, height, width), of the last stage that has a sampling."""
    root = Path(drawing.cascade)
    first, *larger = drawing.samplings
    embeds = _encode(root / "stage_1", prompt)
    picture = _stage_1(root / "stage_1", embeds, seed, first)
    if larger:
        picture = _stage_2(root / "stage_2", embeds, picture, seed, larger[0])
    del embeds
    if len(larger) > 1:
        picture = _upscale(root / "upscaler", prompt, picture, seed, larger[1])
    return picture[0]


def _encode(root: Path, prompt: str) -> dict[str, torch.Tensor]:
    encoder = T5EncoderModel.from_pretrained(
        root / "text_encoder", variant="fp16", dtype=torch.float32
    )
    pipe = DiffusionPipeline.from_pretrained(
        root, text_encoder=encoder, unet=None, **_NO_CHECKER, **_OPTIONS
    )
    prompt_embeds, negative_embeds = pipe.encode_prompt(prompt, clean_caption=True)
    del encoder, pipe
    gc.collect()
    return {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_embeds}


def _stage_1(root: Path, embeds: dict[str, Any], seed: int, sampling: dict[str, Any]) -> Any:
    # Checker and mark come with the pipeline and are for its last stage; tensors pass them by.
    pipe = IFPipeline.from_pretrained(root, text_encoder=None, **_OPTIONS)
    return _call(pipe, seed, sampling, **embeds)


def _stage_2(
    root: Path, embeds: dict[str, Any], picture: Any, seed: int, sampling: dict[str, Any]
) -> Any:
    pipe = IFSuperResolutionPipeline.from_pretrained(
        root, text_encoder=None, tokenizer=None, **_NO_CHECKER, **_OPTIONS
    )
    return _call(pipe, seed, sampling, image=picture, **embeds)


def _upscale(root: Path, prompt: str, picture: Any, seed: int, sampling: dict[str, Any]) -> Any:
    pipe = UpscalePipeline.from_pretrained(root, **_OPTIONS)
    pipe.safety_checker = None
    return _call(pipe, seed, sampling, image=picture, prompt=prompt)


def _call(pipe: Any, seed: int, sampling: dict[str, Any], **inputs: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    options = {name: value for name, value in sampling.items() if value is not None}
    generator = torch.Generator("cpu").manual_seed(seed)
    picture: torch.Tensor = pipe(generator=generator, output_type="pt", **options, **inputs).images
    del pipe
    gc.collect()
    return picture


def draw_all(drawing: Drawing) -> dict[str, Any]:
    """Every picture after the other, in this process."""
    IFSafetyChecker.all_tied_weights_keys = {}
    peak, seconds, cpu_seconds, prints = [0], [], [], []
    sampler = Sampler("cpu", lambda reading: peak.append(max(peak.pop(), reading.ram_anon)))
    sampler.start()
    for prompt, seed in zip(drawing.prompts, drawing.seeds, strict=True):
        began, used = time.monotonic(), time.process_time()
        picture = draw(drawing, prompt, seed)
        seconds.append(time.monotonic() - began)
        cpu_seconds.append(time.process_time() - used)
        prints.append(fingerprint([picture])["hash"])
    sampler.stop()
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "anon": peak[0],
        "pictures": prints,
    }


def main(arguments: Sequence[str]) -> None:
    """Draw what the first argument says; what libraries print goes to standard error."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    fields = json.loads(arguments[0])
    drawing = Drawing(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    results.write(json.dumps(draw_all(drawing)) + "\n")
    results.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
