"""UNets with 8-bit and 4-bit weights: what they compute, what they hold, and what they read."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from lora_files import peft, random_lora, write
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_networks import COMPONENTS

from lowmem_if.cascade.lora.adapter import loras
from lowmem_if.cascade.quantised_layers import is_quantised
from lowmem_if.errors import CheckpointError
from lowmem_if.weights.files.row_quantization import (
    dequantise_rows,
    empty_rows,
    inputs_last,
    quantise_rows,
)
from lowmem_if.weights.files.weight_copies import convert, copy_bytes, find_converted
from lowmem_if.weights.loading import load_diffusers_model, stream_diffusers_model
from lowmem_if.weights.memory_readings import read_memory
from lowmem_if.weights.streaming.streamer import Streamed

UNETS = ["stage_1/unet", "stage_2/unet", "upscaler/unet"]
ALL = 1 << 62


def quantised(folder: Path, storage: str, **options: Any) -> Streamed:
    settings = {"dtype": "float32", "device": "cpu", "resident_bytes": ALL, **options}
    return stream_diffusers_model(folder, UNet2DConditionModel, storage=storage, **settings)


def rounded(folder: Path, storage: str, **options: Any) -> torch.nn.Module:
    """The network in its usual form, with every matrix quantised and made numbers again."""
    settings = {"dtype": "float32", "device": "cpu", **options}
    exact = load_diffusers_model(folder, UNet2DConditionModel, **{**settings, "dtype": "float32"})
    unet: torch.nn.Module = load_diffusers_model(folder, UNet2DConditionModel, **settings)
    for name, weight in exact.named_parameters():
        if is_quantised(name, weight.shape):
            rows = inputs_last(weight.detach()).reshape(weight.shape[0], -1).contiguous()
            kept = empty_rows(len(rows), rows.shape[1], storage, "cpu")
            quantise_rows(rows, *kept, storage)
            dequantise_rows(*kept, inputs_last(unet.get_parameter(name).detach()), storage)
    return unet


@pytest.mark.parametrize("component", UNETS)
@pytest.mark.parametrize("storage", ["int8", "int4"])
@pytest.mark.parametrize(
    ("dtype", "channels_last"), [("float32", False), ("float32", True), ("bfloat16", True)]
)
@torch.no_grad()
def test_it_computes_with_the_numbers_that_the_codes_stand_for(
    tiny: Path, component: str, storage: str, dtype: str, *, channels_last: bool
) -> None:
    """Bit by bit, in every pass."""
    folder, call = tiny / component, COMPONENTS[component][1]
    options = {"dtype": dtype, "channels_last": channels_last}
    expected = rounded(folder, storage, **options)
    with quantised(folder, storage, **options) as streamed:
        for number in range(2):
            assert torch.equal(call(streamed.module, number), call(expected, number))


@pytest.mark.parametrize("component", UNETS)
@torch.no_grad()
def test_8_bits_are_close_to_the_exact_network(tiny: Path, component: str) -> None:
    """Within 5 % of the output's size on random weights, whose rows have no large numbers."""
    folder, call = tiny / component, COMPONENTS[component][1]
    exact = load_diffusers_model(folder, UNet2DConditionModel, dtype="float32", device="cpu")
    with quantised(folder, "int8") as streamed:
        difference = call(streamed.module, 0) - call(exact, 0)
    assert 0 < difference.norm() < 0.05 * call(exact, 0).norm()


@pytest.mark.parametrize("component", UNETS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@torch.no_grad()
def test_a_stream_from_the_copy_has_the_bits_of_what_is_kept(
    tiny: Path, component: str, share: float
) -> None:
    """However much of it is kept; the copy's numbers are the ones that loading makes."""
    folder, call = tiny / component, COMPONENTS[component][1]
    with quantised(folder, "int8") as kept:
        expected = [call(kept.module, number) for number in range(3)]
    whole = copy_bytes(convert(folder, dtype="int8"))
    with quantised(folder, "int8", resident_bytes=int(share * whole)) as streamed:
        assert [path.parent for path in streamed._checkpoint.paths[:1]] == (
            [find_converted(folder, dtype="int8")] if share < 1 else []
        )
        for number, wanted in enumerate(expected):
            assert torch.equal(call(streamed.module, number), wanted)


@pytest.mark.parametrize("component", UNETS)
def test_a_copy_is_about_half_as_long_and_holds_everything(tiny: Path, component: str) -> None:
    """Every tensor of the source, matrices as 8-bit numbers with scales, others as they are."""
    (source,) = (tiny / component).glob("*.safetensors")
    copy = convert(tiny / component, dtype="int8")
    (file,) = copy.glob("*.safetensors")
    assert copy_bytes(copy) < 0.65 * source.stat().st_size
    given = load_file(source)
    with safe_open(file, "pt") as stored:
        names = set(stored.keys())
        for name, tensor in given.items():
            if is_quantised(name, tensor.shape):
                codes, scales = (stored.get_tensor(name + end) for end in (":int8", ":scales"))
                numbers = codes.float() * scales.view(-1, *[1] * (codes.dim() - 1))
                assert torch.allclose(inputs_last(tensor.float()), numbers, atol=0.005)
                names -= {name + ":int8", name + ":scales"}
            else:
                assert torch.equal(stored.get_tensor(name), tensor)
                names.remove(name)
    assert not names


def test_copies_of_both_types_live_side_by_side(tiny: Path) -> None:
    """Neither takes the place of the other."""
    folder = tiny / "stage_1/unet"
    eight, sixteen = convert(folder, dtype="int8"), convert(folder)
    assert eight != sixteen
    assert convert(folder, dtype="int8") == find_converted(folder, dtype="int8") == eight
    assert find_converted(folder) == sixteen


def test_codes_without_scales_are_told(tiny: Path, tmp_path: Path) -> None:
    """A damaged copy is an error with a way out, never wrong numbers."""
    from safetensors.torch import save_file

    copy = convert(tiny / "stage_2/unet", dtype="int8")
    broken = tmp_path / "unet"
    shutil.copytree(copy, broken)
    (file,) = broken.glob("*.safetensors")
    tensors = load_file(file)
    del tensors[min(name for name in tensors if name.endswith(":scales"))]
    save_file(tensors, file)
    shutil.copy(tiny / "stage_2/unet/config.json", broken)
    with pytest.raises(CheckpointError, match=r"has no scales; .*--convert"):
        stream_diffusers_model(broken, UNet2DConditionModel, dtype="float32", device="cpu")


def test_a_stream_without_a_copy_is_told(tiny: Path, tmp_path: Path) -> None:
    """At once, and nothing stays open."""
    folder = tmp_path / "unet"
    shutil.copytree(tiny / "stage_1/unet", folder)
    with pytest.raises(CheckpointError, match="these are no int8 weights to stream"):
        quantised(folder, "int8", resident_bytes=0)
    assert str(folder) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("storage", ["int8", "int4"])
@torch.no_grad()
def test_loras_are_merged_before_weights_are_quantised(
    tiny: Path, tmp_path: Path, storage: str
) -> None:
    """The output is that of the merged network, quantised."""
    folder, call = tiny / "stage_1/unet", COMPONENTS["stage_1/unet"][1]
    lora = write(tmp_path / "a.safetensors", peft(random_lora(tiny, "stage_1")))
    given = loras(f"{lora}:0.8")
    convert(folder, dtype="int8")  # not used: sums are made from the numbers in the files
    merged = rounded(folder, storage, lora=given)
    with quantised(folder, storage, lora=given) as streamed:
        assert torch.allclose(call(streamed.module, 0), call(merged, 0), atol=1e-5)
        assert not torch.allclose(call(merged, 0), call(rounded(folder, storage), 0), atol=1e-2)


def test_what_is_kept_closes_its_files_and_holds_no_numbers(tiny: Path, tmp_path: Path) -> None:
    """No handle or mapping remains; between passes matrices are one NaN each."""
    folder, call = tmp_path / "unet", COMPONENTS["stage_1/unet"][1]
    shutil.copytree(tiny / "stage_1/unet", folder)
    with quantised(folder, "int8") as streamed:
        shutil.rmtree(folder)  # nothing of it is needed any more
        with torch.no_grad():
            call(streamed.module, 0)
        assert str(folder) not in Path("/proc/self/maps").read_text()
        handles = [str(link.resolve()) for link in Path("/proc/self/fd").iterdir()]
        assert not [handle for handle in handles if str(folder) in handle]
        for name, weight in streamed.module.named_parameters():
            assert weight.isnan().all() == is_quantised(name, weight.shape), name
        assert not streamed.weights_remain
    assert all(weight.is_meta for weight in streamed.module.parameters())


def test_8_bits_take_less_memory_than_the_file(tmp_path: Path) -> None:
    """The whole numbers, and of the largest layer its float32 numbers and what oneDNN makes of them."""
    config = {
        "sample_size": 8, "in_channels": 3, "out_channels": 6, "block_out_channels": (512, 512),
        "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2,
        "mid_block_type": None, "cross_attention_dim": 8,
    }  # fmt: skip
    folder = tmp_path / "unet"
    large = UNet2DConditionModel.from_config(config).half()
    numbers = sum(weight.numel() for weight in large.parameters())
    largest = max(weight.numel() for weight in large.parameters())
    large.save_pretrained(folder, variant="fp16")
    del large
    gc.collect()
    before = read_memory().ram_anon
    with quantised(folder, "int8") as streamed, torch.no_grad():
        streamed.module(torch.randn(1, 3, 8, 8), 1, torch.randn(1, 2, 8))
        held = read_memory().ram_anon - before
    assert numbers < held < numbers + 3 * 4 * largest + 15e6 < 2 * numbers
