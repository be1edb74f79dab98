"""Float16, which every small card computes in: streamed, resident and plain diffusers, to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from half import in_float16, scale_weights
from plain_diffusers import by_hand
from runs import plan_of, run_here
from safetensors.torch import load_file

from lowmem_if.stages.text_encoder import encode_in_one_pass
from lowmem_if.weights.loading import load_text_encoder, stream_text_encoder
from lowmem_if.weights.small_parts import load_tokenizer

COMPONENTS = ("text_encoder", "stage_1", "stage_2", "upscaler")
PROMPTS = ("a red circle", "a blue star on white")
LARGEST = torch.finfo(torch.float16).max


def encoded(root: Path) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(resident, streamed) embeddings of two prompts in float16, and the largest hidden state."""
    tokens = load_tokenizer(root / "tokenizer")(
        list(PROMPTS), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    ids, masks = tokens.input_ids, tokens.attention_mask
    largest = []
    with torch.no_grad():
        encoder = load_text_encoder(root, storage="float16", compute="float16", device="cpu")
        for block in encoder.encoder.block:
            block.register_forward_hook(
                lambda _block, _inputs, outputs: largest.append(float(outputs[0].abs().max()))
            )
        each = zip(ids.split(1), masks.split(1), strict=True)
        resident = torch.cat([encoder(one, attention_mask=mask)[0] for one, mask in each])
        with stream_text_encoder(root, dtype="float16", device="cpu") as streamed:
            one_pass = torch.cat(list(encode_in_one_pass(streamed, ids, masks, 2)))
    return resident, one_pass, max(largest)


@pytest.mark.parametrize("factor", [1.0, 3e4])
def test_a_streamed_encoder_keeps_what_float16_cannot_hold(
    tiny: Path, tmp_path: Path, factor: float
) -> None:
    """transformers keeps `wo` in float32, so hidden states may pass 65,504; the bits stay the same."""
    root = tmp_path / "stage_1"
    shutil.copytree(tiny / "stage_1", root)
    scale_weights(root / "text_encoder", ".wo.", factor)
    resident, streamed, largest = encoded(root)
    assert (largest > LARGEST) == (factor > 1)
    assert resident.dtype == streamed.dtype == torch.float16
    assert resident.isfinite().all()
    assert torch.equal(resident, streamed)


@pytest.fixture
def noise_of_later_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below 2.12 torch draws other numbers in 16 bits; here it rounds, as later versions do."""
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12):
        return
    draw = torch.randn

    def rounded(*shape: Any, dtype: torch.dtype | None = None, **options: Any) -> torch.Tensor:
        if dtype != torch.float16:
            return draw(*shape, dtype=dtype, **options)
        return draw(*shape, dtype=torch.float32, **options).to(dtype)

    monkeypatch.setattr(torch, "randn", rounded)


@pytest.mark.parametrize("strategy", ["resident", "stream"])
def test_a_cascade_in_float16_draws_what_plain_diffusers_draws(
    tiny: Path, tmp_path: Path, strategy: str, noise_of_later_torch: None
) -> None:
    """Every component in float16, in memory or from its files: the bits of the plain pipelines."""
    pins = [f"{component}={strategy}" for component in COMPONENTS]
    plan = in_float16(plan_of(tiny, PROMPTS[0], negative_prompt="green", pins=pins))
    folder = run_here(plan, tmp_path / "run")
    expected = by_hand(tiny, PROMPTS[0], 1, negative="green", dtype=torch.float16)
    for stage in ("stage_1", "stage_2", "stage_3"):
        ours = load_file(folder.path / stage / "0000.safetensors")["tensor"]
        assert ours.isfinite().all()
        assert torch.equal(ours, expected[stage]), stage
