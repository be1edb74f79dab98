"""What a LoRA file holds, told from its header: every spelling, and nothing that is not understood."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import (
    SPELLINGS,
    Matrices,
    bare,
    diffusers,
    kohya,
    old_attention,
    peft,
    processors,
    with_alphas,
    write,
)
from safetensors.torch import save_file

from lowmem_if.cascade.lora.lora_keys import read_pairs
from lowmem_if.errors import CheckpointError, LoraError

LAYER = "mid_block.attentions.0.to_out.0"
PAIR = {LAYER: Matrices(torch.ones(2, 6), torch.ones(8, 2), alpha=1.0)}
A, B = f"unet.{LAYER}.lora_A.weight", f"unet.{LAYER}.lora_B.weight"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_names_the_same_layer(tmp_path: Path, spelling: Any) -> None:
    """By its dots, or by kohya's underscores; shape, rank and size are of the weight it changes."""
    (pair,) = read_pairs(write(tmp_path / "a.safetensors", spelling(PAIR)))
    assert pair.layer == (LAYER.replace(".", "_") if spelling is kohya else LAYER)
    assert pair.underscored == (spelling is kohya)
    assert (pair.shape, pair.rank, pair.numbers, pair.factor) == ((8, 6), 2, 28, 1.0)
    assert (pair.alpha is not None) == (spelling in (kohya, with_alphas))


def test_the_spellings_are_those_of_the_libraries() -> None:
    """As diffusers and kohya's scripts write them."""
    keys = [next(iter(spelling(PAIR))) for spelling in (peft, bare, diffusers, processors)]
    assert keys == [
        "unet.mid_block.attentions.0.to_out.0.lora_A.weight",
        "mid_block.attentions.0.to_out.0.lora_A.weight",
        "unet.mid_block.attentions.0.to_out.0.lora.down.weight",
        "unet.mid_block.attentions.0.processor.to_out_lora.down.weight",
    ]
    assert next(iter(old_attention(PAIR))) == "unet.mid_block.attentions.0.to_out_lora.down.weight"
    assert [*kohya(PAIR)] == [
        "lora_unet_mid_block_attentions_0_to_out_0.lora_down.weight",
        "lora_unet_mid_block_attentions_0_to_out_0.lora_up.weight",
        "lora_unet_mid_block_attentions_0_to_out_0.alpha",
    ]


def test_convolutions_have_the_shape_of_their_kernel(tmp_path: Path) -> None:
    """A 3x3 one keeps its sides, a 1x1 one may be written as a linear layer and the other way round."""
    tensors = {
        "conv_in.lora_A.weight": torch.ones(2, 3, 3, 3),
        "conv_in.lora_B.weight": torch.ones(8, 2, 1, 1),
        "x.conv_shortcut.lora_A.weight": torch.ones(2, 4, 1, 1),
        "x.conv_shortcut.lora_B.weight": torch.ones(8, 2, 1, 1),
    }
    pairs = read_pairs(write(tmp_path / "a.safetensors", tensors))
    assert {pair.layer: pair.shape for pair in pairs} == {
        "conv_in": (8, 3, 3, 3),
        "x.conv_shortcut": (8, 4),
    }


ONE = torch.ones(8, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_encoder.layer.lora_A.weight": ONE}, "also changes a text encoder"),
        ({"text_encoder_2.layer.lora_A.weight": ONE}, "also changes a text encoder"),
        ({"lora_te_text_model_layers_0.lora_down.weight": ONE}, "also changes a text encoder"),
        ({"lora_te1_text_model_layers_0.lora_down.weight": ONE}, "also changes a text encoder"),
        (
            {f"unet.{LAYER}.lora_magnitude_vector": ONE},
            "does not belong to a LoRA with two matrices",
        ),
        ({f"unet.{LAYER}.lora_B.bias": ONE}, "does not belong to a LoRA with two matrices"),
        ({f"unet.{LAYER}.dora_scale": ONE}, "does not belong to a LoRA with two matrices"),
        ({"lora_unet_conv_in.hada_w1_a": ONE}, "does not belong to a LoRA with two matrices"),
        ({"lora_unet_conv_in.lokr_w1": ONE}, "does not belong to a LoRA with two matrices"),
        ({"lora_unet_conv_in.lora_mid.weight": ONE}, "does not belong to a LoRA with two matrices"),
        ({"conv_in.weight": ONE}, "does not belong to a LoRA with two matrices"),
        ({A: None}, "lora_B.weight' has no matching 'down'"),
        ({B: None}, "lora_A.weight' has no matching 'up'"),
        ({A: None, B: None, f"unet.{LAYER}.alpha": torch.ones(1)}, "alpha' has no matching 'down'"),
        ({A: None, B: None}, "contains no tensors"),
        ({f"{LAYER}.lora_A.weight": ONE}, "are for the same layer"),
        ({B: torch.ones(8, 3)}, "not two matrices of the same rank"),
        ({B: torch.ones(8)}, "not two matrices of the same rank"),
        ({B: torch.ones(8, 2, 3, 3)}, "not two matrices of the same rank"),
        ({A: torch.ones(0, 6), B: torch.ones(8, 0)}, "not two matrices of the same rank"),
        ({A: torch.ones(2, 6).char()}, "I8 2x6.* not two matrices"),
        ({f"unet.{LAYER}.alpha": torch.ones(2)}, "alpha' is not a number"),
    ],
)
def test_what_is_not_understood_is_refused(
    tmp_path: Path, changes: Mapping[str, torch.Tensor | None], words: str
) -> None:
    """Nothing in a file is passed over: one line names the first key and says what is wrong with it."""
    tensors = {name: t for name, t in {**peft(PAIR), **changes}.items() if t is not None}
    file = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(LoraError, match=words) as caught:
        read_pairs(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


PLAIN: dict[str, Any] = {"r": 2, "lora_alpha": 4}


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        (PLAIN, 2.0),
        (PLAIN | {"r": 8, "rank_pattern": {"to_out.0": 2}}, 2.0),
        (PLAIN | {"alpha_pattern": {"to_q": 1}}, 2.0),
        (PLAIN | {"alpha_pattern": {"to_out.0": 1}}, 0.5),
        (PLAIN | {"alpha_pattern": {f"^{LAYER}": 1, "to_out.0": 7}}, 0.5),
        (PLAIN | {"alpha_pattern": {"out.0": 1}}, 2.0),  # not the whole of a name
        (PLAIN | {"use_rslora": True}, 4 / 2**0.5),
        (PLAIN | {"init_lora_weights": "gaussian", "target_modules": ["to_q"]}, 2.0),
    ],
)
def test_peft_s_configuration_says_how_often_a_product_counts(
    tmp_path: Path, settings: dict[str, Any], factor: float
) -> None:
    """As peft does with the same configuration."""
    (pair,) = read_pairs(write(tmp_path / "a.safetensors", peft(PAIR), settings))
    assert pair.factor == factor


def test_the_configuration_may_have_no_prefix(tmp_path: Path) -> None:
    """As `UNet2DConditionModel.save_lora_adapter` writes it."""
    file = tmp_path / "a.safetensors"
    save_file(bare(PAIR), file, {"lora_adapter_metadata": json.dumps(PLAIN)})
    assert read_pairs(file)[0].factor == 2.0


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("{", "is not valid"),
        ("[1]", "is not valid"),
        ('{"unet.r": 2}', "is not valid"),
        ('{"unet.r": "two", "unet.lora_alpha": 1}', "is not valid"),
        ('{"unet.r": 2, "unet.lora_alpha": 1, "unet.alpha_pattern": {"(": 1}}', "is not valid"),
        ('{"unet.r": 4, "unet.lora_alpha": 4}', "has rank 2, but its lora_adapter_metadata says 4"),
        ('{"unet.r": 2, "unet.lora_alpha": 4, "unet.use_dora": true}', "is DoRA"),
        ('{"unet.r": 2, "unet.lora_alpha": 4, "unet.init_lora_weights": "pissa"}', "pissa"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_told(
    tmp_path: Path, said: str, words: str
) -> None:
    """Broken, of other ranks, or of a kind that is no sum of a weight and a product."""
    save_file(peft(PAIR), file := tmp_path / "a.safetensors", {"lora_adapter_metadata": said})
    with pytest.raises(LoraError, match=words) as caught:
        read_pairs(file)
    assert "\n" not in str(caught.value)


def test_alpha_is_said_once(tmp_path: Path) -> None:
    """By a tensor or by the metadata."""
    file = write(tmp_path / "a.safetensors", with_alphas(PAIR), PLAIN)
    with pytest.raises(LoraError, match="sets its factor twice"):
        read_pairs(file)


def test_metadata_that_is_no_table_of_texts_is_told(tmp_path: Path) -> None:
    """As safetensors demands it."""
    header = b'{"__metadata__": [1]}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="metadata is not a table of texts"):
        read_pairs(tmp_path / "a.safetensors")
