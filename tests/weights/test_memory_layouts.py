"""Channels last in memory: other rounding at most, and streamed the same bits as resident."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_networks import COMPONENTS

from lowmem_if.stages.pipelines import _with_channels_last
from lowmem_if.weights.files.weight_copies import (
    _write_record,
    convert,
    converted_folder,
    find_converted,
)
from lowmem_if.weights.loading import load_diffusers_model, stream_diffusers_model
from lowmem_if.weights.streaming.transports import CastTransport, MappedTransport

UNETS = ("stage_1/unet", "stage_2/unet", "upscaler/unet")
PASSES = 2


def load(folder: Path, dtype: str, *, channels_last: bool = True) -> Any:
    return load_diffusers_model(
        folder, UNet2DConditionModel, dtype=dtype, device="cpu", channels_last=channels_last
    )


def outputs(component: str, network: Any) -> list[torch.Tensor]:
    call = COMPONENTS[component][1]
    with torch.no_grad():
        return [call(network, number).float() for number in range(PASSES)]


@pytest.mark.parametrize("component", UNETS)
def test_in_float32_the_layout_changes_at_most_the_rounding(tiny: Path, component: str) -> None:
    """At most 1e-4 of the range of values, and every convolution's weight has its channels last."""
    folder = tiny / component
    network = load(folder, "float32")
    weights = [weight for weight in network.parameters() if weight.dim() == 4]
    assert len(weights) > 10
    for weight in weights:
        assert weight.is_contiguous(memory_format=torch.channels_last)
    plain = load(folder, "float32", channels_last=False)
    for name, weight in plain.state_dict().items():
        assert torch.equal(network.state_dict()[name], weight), name
    for ours, theirs in zip(outputs(component, network), outputs(component, plain), strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * (theirs.max() - theirs.min())


@pytest.mark.parametrize("component", UNETS)
def test_in_16_bits_the_layout_is_no_further_from_float32(tiny: Path, component: str) -> None:
    """The errors of both are noise of the same size; one in twenty is what two such noises differ by."""
    folder = tiny / component
    best = outputs(component, load(folder, "float32", channels_last=False))
    errors = []
    for channels_last in (True, False):
        found = outputs(component, load(folder, "bfloat16", channels_last=channels_last))
        pairs = zip(found, best, strict=True)
        errors.append(torch.stack([(ours - right).square().mean() for ours, right in pairs]))
    assert 0 < errors[0].sum().sqrt() <= 1.05 * errors[1].sum().sqrt()


@pytest.mark.parametrize("component", UNETS)
@pytest.mark.parametrize("share", [0, 0.4])
def test_streamed_equals_resident_bit_for_bit_in_this_layout(
    tiny: Path, component: str, share: float
) -> None:
    """From files that are cast, and from a copy whose weights already have their channels last."""
    folder = tiny / component
    expected = outputs(component, load(folder, "bfloat16"))
    budget = int(share * sum(file.stat().st_size for file in folder.glob("*.safetensors")))
    for transport in (CastTransport, MappedTransport):
        if transport is MappedTransport:
            convert(folder)
        with stream_diffusers_model(
            folder, UNet2DConditionModel, dtype="bfloat16", device="cpu",
            resident_bytes=budget, channels_last=True,
        ) as streamed:  # fmt: skip
            assert type(streamed._transport) is transport
            for ours, theirs in zip(outputs(component, streamed.module), expected, strict=True):
                assert torch.equal(ours, theirs)


def test_a_copy_is_used_in_the_order_of_its_file(tiny: Path) -> None:
    """Streaming reorders nothing: what computes is a view of the mapped file, channels last."""
    folder, seen = tiny / "stage_1/unet", []
    copy = convert(folder)
    with stream_diffusers_model(
        folder, UNet2DConditionModel, dtype="bfloat16", device="cpu", channels_last=True
    ) as streamed:
        layer = streamed.module.down_blocks[0].resnets[0].conv1
        layer.register_forward_hook(lambda module, *_: seen.append(module.weight), prepend=True)
        assert {path.parent for path in streamed._checkpoint.paths} == {copy}
        COMPONENTS["stage_1/unet"][1](streamed.module, 0)
        assert seen[0].is_contiguous(memory_format=torch.channels_last)
        assert not seen[0].is_contiguous()


@pytest.mark.parametrize("channels_last", [False, True])
def test_contiguous_copies_of_version_0_2_are_still_read(
    tiny: Path, *, channels_last: bool
) -> None:
    """They are mapped as they are; with channels last torch reorders each weight, to the same bits."""
    component = "stage_1/unet"
    folder = tiny / component
    copy = converted_folder(folder, contiguous=True)
    copy.mkdir(parents=True)
    (source,) = folder.glob("*.safetensors")
    name = "diffusion_pytorch_model.bf16.safetensors"
    numbers = {key: tensor.to(torch.bfloat16) for key, tensor in load_file(source).items()}
    save_file(numbers, copy / name)
    _write_record(copy, folder, "bfloat16", (name,))
    with stream_diffusers_model(
        folder, UNet2DConditionModel, dtype="bfloat16", device="cpu", channels_last=channels_last
    ) as streamed:
        assert {path.parent for path in streamed._checkpoint.paths} == {copy}
        streamed.module.conv_in.register_forward_pre_hook(
            _with_channels_last if channels_last else _same
        )
        expected = outputs(component, load(folder, "bfloat16", channels_last=channels_last))
        for ours, theirs in zip(outputs(component, streamed.module), expected, strict=True):
            assert torch.equal(ours, theirs)


def _same(_module: object, args: object) -> object:
    return args


def test_exact_runs_use_no_copy_of_another_layout(tiny: Path) -> None:
    """They read the files themselves; a contiguous copy, as version 0.2 wrote it, has another name."""
    folder = tiny / "stage_1/unet"
    convert(folder)
    assert find_converted(folder) is not None
    assert find_converted(folder, contiguous=True) is None
    assert converted_folder(folder) != converted_folder(folder, contiguous=True)
    with stream_diffusers_model(
        folder, UNet2DConditionModel, dtype="bfloat16", device="cpu"
    ) as streamed:
        assert {path.parent for path in streamed._checkpoint.paths} == {folder}
