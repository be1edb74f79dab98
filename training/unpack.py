"""Turn an exported cascade back into checkpoints, so that its parts can be trained further.

    python -m training.unpack lowmem_if/demo --folder build/demo
    python -m training.train_stage_1 --folder build/demo --steps 4800

The optimisers' state is not in an export and begins anew. Steps are counted from zero, of stage 1 from
the end of its first phase, which is over.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import T5EncoderModel

from training.train_stage_1 import SMALL_STEPS

PARTS = {
    "text": (T5EncoderModel, "stage_1/text_encoder"),
    "stage_1": (UNet2DConditionModel, "stage_1/unet"),
    "stage_2": (UNet2DConditionModel, "stage_2/unet"),
    "vae": (AutoencoderKL, "upscaler/vae"),
    "upscaler": (UNet2DConditionModel, "upscaler/unet"),
}


def unpack(cascade: Path, folder: Path) -> None:
    """Write `NAME.pt` for each part of `cascade` that `folder` has none of, and the vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer").exists():
        shutil.copytree(cascade / "stage_1" / "tokenizer", folder / "tokenizer")
    for part, (cls, place) in PARTS.items():
        if not (folder / f"{part}.pt").exists():
            network = cls.from_pretrained(cascade / place, variant="fp16").float()
            torch.save(_checkpoint(part, network), folder / f"{part}.pt")


def _checkpoint(part: str, network: nn.Module) -> dict[str, object]:
    """What `loop.Training.save` writes, less the optimisers; of the text, the encoder alone."""
    prefix = "encoder." if part == "text" else ""
    step = SMALL_STEPS if part == "stage_1" else 0
    weights = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    return {"network": weights, "smooth": weights, "step": step, "seconds": 0.0, "figures": {}}


def main() -> None:
    """Unpack what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cascade", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="checkpoints")
    chosen = parser.parse_args()
    unpack(chosen.cascade, chosen.folder)


if __name__ == "__main__":
    main()
