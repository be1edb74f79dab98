"""Write the trained cascade in the IF repositories' own layout, as half-precision safetensors.

    python -m training.export --folder build/demo OUT

OUT is replaced as a whole: the new cascade is written beside it first.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import diffusers
import torch
from torch import nn

from lowmem_if.cascade.catalog import KNOWN_WORDS
from training import architectures, trimmings
from training.clip_tokenizer import write_clip_tokenizer
from training.scenes import known_words
from training.train_vae import load_vae
from training.words import load_text_encoder, load_tokenizer

SHARD = "600KB"
DIFFUSERS, TRANSFORMERS = "diffusers", "transformers"


def export(run: Path, out: Path) -> None:
    """Write the three stages of the run's smoothed weights into `out`."""
    half = out.with_name(out.name + ".half")
    shutil.rmtree(half, ignore_errors=True)
    _stage_1(run, half / "stage_1")
    _stage_2(run, half / "stage_2")
    _upscaler(run, half / "upscaler")
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    half.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _stage_1(run: Path, root: Path) -> None:
    tokenizer = load_tokenizer(run)
    encoder = load_text_encoder(run, tokenizer)
    shutil.copytree(run / "tokenizer", root / "tokenizer")
    words = json.dumps(known_words(), indent=2)
    (root / "tokenizer" / KNOWN_WORDS).write_text(words + "\n")
    _save(encoder, root / "text_encoder", max_shard_size=SHARD)
    _save(_smooth(architectures.stage_1_unet(), run / "stage_1.pt"), root / "unet")
    architectures.picture_scheduler().save_pretrained(root / "scheduler")
    _save(trimmings.safety_checker(), root / "safety_checker")
    trimmings.image_processor().save_pretrained(root / "feature_extractor")
    trimmings.watermarker().save_pretrained(root / "watermarker")
    _index(
        root,
        "IFPipeline",
        feature_extractor=[TRANSFORMERS, "CLIPImageProcessor"],
        safety_checker=["deepfloyd_if", "IFSafetyChecker"],
        scheduler=[DIFFUSERS, "DDPMScheduler"],
        text_encoder=[TRANSFORMERS, "T5EncoderModel"],
        tokenizer=[TRANSFORMERS, "T5Tokenizer"],
        unet=[DIFFUSERS, "UNet2DConditionModel"],
        watermarker=["deepfloyd_if", "IFWatermarker"],
        requires_safety_checker=True,
    )


def _stage_2(run: Path, root: Path) -> None:
    _save(_smooth(architectures.stage_2_unet(), run / "stage_2.pt"), root / "unet")
    architectures.picture_scheduler(largest=1.0).save_pretrained(root / "scheduler")
    architectures.image_noising_scheduler().save_pretrained(root / "image_noising_scheduler")
    _index(
        root,
        "IFSuperResolutionPipeline",
        scheduler=[DIFFUSERS, "DDPMScheduler"],
        image_noising_scheduler=[DIFFUSERS, "DDPMScheduler"],
        unet=[DIFFUSERS, "UNet2DConditionModel"],
    )


def _upscaler(run: Path, root: Path) -> None:
    _save(_smooth(architectures.upscaler_unet(), run / "upscaler.pt"), root / "unet")
    _save(load_vae(run), root / "vae")
    _save(architectures.upscaler_text_encoder(), root / "text_encoder")
    write_clip_tokenizer(root / "tokenizer")
    architectures.latent_scheduler().save_pretrained(root / "scheduler")
    architectures.low_res_scheduler().save_pretrained(root / "low_res_scheduler")
    _index(
        root,
        "StableDiffusionUpscalePipeline",
        low_res_scheduler=[DIFFUSERS, "DDPMScheduler"],
        scheduler=[DIFFUSERS, "DDIMScheduler"],
        text_encoder=[TRANSFORMERS, "CLIPTextModel"],
        tokenizer=[TRANSFORMERS, "CLIPTokenizer"],
        unet=[DIFFUSERS, "UNet2DConditionModel"],
        vae=[DIFFUSERS, "AutoencoderKL"],
        max_noise_level=350,
    )


def _smooth(network: nn.Module, checkpoint: Path) -> nn.Module:
    network.load_state_dict(torch.load(checkpoint, weights_only=True)["smooth"])
    return network


def _save(network: nn.Module, folder: Path, **how: str) -> None:
    network.half().save_pretrained(folder, variant="fp16", **how)


def _index(root: Path, pipeline: str, **parts: object) -> None:
    index = {"_class_name": pipeline, "_diffusers_version": diffusers.__version__, **parts}
    (root / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def main() -> None:
    """Export and say how large it came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="checkpoints")
    parser.add_argument("out", type=Path)
    chosen = parser.parse_args()
    export(chosen.folder, chosen.out)
    size = sum(path.stat().st_size for path in chosen.out.rglob("*") if path.is_file())
    print(f"{chosen.out}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
