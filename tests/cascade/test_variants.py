"""Which files of a folder are loaded, by their names as they stand in the Hub repositories."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_if.cascade.variants import Variant, choose_variant, find_variants

TEXT_ENCODER = (
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.8bit.safetensors",
    "model.fp16-00001-of-00002.safetensors",
    "model.fp16-00002-of-00002.safetensors",
    "model.safetensors.index.fp16.json",
    "model.safetensors.index.json",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model-00002-of-00002.bin",
    "pytorch_model.8bit.bin",
    "pytorch_model.bin.index.fp16.json",
    "pytorch_model.bin.index.json",
    "pytorch_model.fp16-00001-of-00002.bin",
    "pytorch_model.fp16-00002-of-00002.bin",
)
"""`text_encoder/` of DeepFloyd/IF-I-XL-v1.0."""

UNET = (
    "config.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.bin",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors",
)

FP16 = Variant(
    "fp16",
    ("model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"),
    "model.safetensors.index.fp16.json",
)
PLAIN = Variant(
    None,
    ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    "model.safetensors.index.json",
)
EIGHT_BIT = Variant("8bit", ("model.8bit.safetensors",), None)


def test_the_text_encoder_of_the_hub_holds_three_sets() -> None:
    """The 8-bit file, the fp16 shards and the plain shards are told apart, each with its own index."""
    assert find_variants(TEXT_ENCODER) == {"8bit": EIGHT_BIT, "fp16": FP16, None: PLAIN}


def test_the_fp16_shards_are_the_usual_choice() -> None:
    """Unless 8 bits are asked for, the smallest 16-bit set is loaded."""
    assert choose_variant(TEXT_ENCODER) == FP16


def test_the_8bit_file_is_taken_when_8_bits_are_asked_for() -> None:
    """The published 8-bit file saves quantising, and downloading twice as much."""
    assert choose_variant(TEXT_ENCODER, eight_bit=True) == EIGHT_BIT


def test_without_an_8bit_file_the_fp16_shards_serve_8_bits_too() -> None:
    """Where nothing 8-bit is published, the fp16 shards are there to be quantised."""
    names = [name for name in TEXT_ENCODER if "8bit" not in name]
    assert choose_variant(names, eight_bit=True) == FP16


def test_an_8bit_file_alone_is_not_taken_for_16_bits() -> None:
    """8-bit weights cannot stand in for 16-bit ones."""
    names = ["config.json", "model.8bit.safetensors"]
    assert choose_variant(names) is None
    assert choose_variant(names, eight_bit=True) == EIGHT_BIT


def test_a_unets_fp16_file_is_taken_before_the_plain_one() -> None:
    """Of the single files the fp16 one is loaded, and a `.bin` never."""
    chosen = choose_variant(UNET)
    assert chosen == Variant("fp16", ("diffusion_pytorch_model.fp16.safetensors",), None)
    assert set(find_variants(UNET)) == {"fp16", None}


def test_fp16_then_bf16_then_the_plain_files() -> None:
    """16-bit sets come before the plain ones, which are usually float32."""
    names = ["model.safetensors", "model.bf16.safetensors", "model.fp16.safetensors"]
    order = []
    while names:
        chosen = choose_variant(names)
        assert chosen is not None
        order.append(chosen.name)
        names.remove(*chosen.files)
    assert order == ["fp16", "bf16", None]


def test_other_variants_are_not_taken_by_accident() -> None:
    """An EMA or inpainting variant is found, and never chosen."""
    names = ["diffusion_pytorch_model.non_ema.safetensors"]
    assert set(find_variants(names)) == {"non_ema"}
    assert choose_variant(names) is None
    assert choose_variant(names, eight_bit=True) is None


def test_the_watermarker_has_a_plain_file_only() -> None:
    """A folder without a 16-bit variant gives its plain file."""
    names = ["config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"]
    assert choose_variant(names) == Variant(None, ("diffusion_pytorch_model.safetensors",), None)


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "pytorch_model.safetensors",
        "pytorch_model.8bit.bin",
        "x4-upscaler-ema.safetensors",
        "x4-upscaler-ema.ckpt",
        "tf_model.h5",
        "flax_model.msgpack",
        "model.onnx",
        "model.safetensors.index.json",
        "model.fp16.safetensors.incomplete",
        "model.safetensors.tmp",
        ".model.safetensors",
        "model_safetensors",
        "my_model.safetensors",
        "model.fp16.bin",
        "model.FP16.safetensors",
        "model-1-of-2.safetensors",
        "model.fp16-00001-of-00002.bin",
        "models.safetensors",
        "diffusion_pytorch_model.fp16.safetensors.lock",
        "config.json",
        "config.yml",
        "spiece.model",
        "",
    ],
)
def test_a_name_that_only_looks_like_weights_is_passed_over(name: str) -> None:
    """The original format, `.bin` twins, indexes and unfinished downloads are no weights to load."""
    assert find_variants([name]) == {}
    assert choose_variant([name]) is None
    assert choose_variant([name], eight_bit=True) is None


@pytest.mark.parametrize("gone", FP16.files)
def test_a_missing_shard_is_named(gone: str) -> None:
    """What the numbering promises and is not there is listed; the set stays the chosen one."""
    chosen = choose_variant([name for name in TEXT_ENCODER if name != gone])
    assert chosen is not None
    assert chosen.name == "fp16"
    assert chosen.missing == (gone,)
    assert chosen.files == FP16.files


def test_shards_come_in_their_order() -> None:
    """However the folder lists them, shards are in numbered order, ten after nine."""
    names = [f"model.fp16-{k:05}-of-00012.safetensors" for k in range(1, 13)]
    chosen = choose_variant(reversed(names))
    assert chosen is not None
    assert chosen.files == tuple(names)
    assert chosen.missing == ()


def test_shards_without_an_index_are_a_set_without_an_index() -> None:
    """The index of another variant is not taken for this one's."""
    names = [*FP16.files, "model.safetensors.index.json"]
    chosen = choose_variant(names)
    assert chosen is not None
    assert chosen.index is None


def test_a_single_file_beats_shards_of_the_same_variant() -> None:
    """diffusers and transformers load the single file first, and so it is all there is to load."""
    chosen = choose_variant([*FP16.files, FP16.index or "", "model.fp16.safetensors"])
    assert chosen == Variant("fp16", ("model.fp16.safetensors",), None)


def test_all_files_are_the_weights_and_their_index() -> None:
    """What has to be downloaded of a set is its files and, for shards, the index."""
    assert FP16.all_files == (*FP16.files, "model.safetensors.index.fp16.json")
    assert EIGHT_BIT.all_files == ("model.8bit.safetensors",)


def test_an_empty_folder_has_no_set() -> None:
    """No names, no variants."""
    assert find_variants([]) == {}
    assert choose_variant([]) is None


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(st.permutations(TEXT_ENCODER), st.booleans())
def test_the_order_of_the_names_does_not_matter(names: list[str], eight_bit: bool) -> None:
    """Folders and the Hub list files in any order: the choice is the same."""
    assert choose_variant(names, eight_bit=eight_bit) == (EIGHT_BIT if eight_bit else FP16)


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(st.sets(st.sampled_from(TEXT_ENCODER + UNET)))
def test_whatever_is_there_the_choice_is_one_complete_set_or_says_what_is_missing(
    names: set[str],
) -> None:
    """Of any part of a repository, files are there or listed as missing, and of one variant only."""
    for variant in find_variants(names).values():
        assert set(variant.files) - set(variant.missing) <= names
        assert not set(variant.missing) & names
        assert all(file.endswith(".safetensors") for file in variant.files)
        tag = f".{variant.name}" if variant.name else None
        assert all((tag in file) if tag else ".fp16" not in file for file in variant.files)
