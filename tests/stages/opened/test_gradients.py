"""Gradients through a network to its inputs: right where they are computed, refused elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_networks import resident

from lowmem_if.errors import RequestError, SessionError
from lowmem_if.stages.opened.gradients import Guard, guard
from lowmem_if.weights.loading import stream_diffusers_model

WORDS = torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(1))


def picture() -> torch.Tensor:
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()


def predicted(unet: Any, noisy: torch.Tensor, words: torch.Tensor = WORDS) -> torch.Tensor:
    noise: torch.Tensor = unet(noisy, 500, encoder_hidden_states=words, return_dict=False)[0]
    return noise


@pytest.fixture(scope="module")
def in_float32(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The UNet's folder with float32 files, which a CPU computes with as they are mapped."""
    folder = tmp_path_factory.mktemp("float32") / "stage_1" / "unet"
    folder.mkdir(parents=True)
    (file,) = (tiny / "stage_1/unet").glob("*.safetensors")
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((tiny / "stage_1/unet/config.json").read_bytes())
    return folder


@contextmanager
def network(folder: Path, way: str) -> Iterator[Any]:
    """The UNet of a folder in float32, resident or streaming."""
    if way == "resident":
        yield resident(folder, "float32")
        return
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu"}
    with stream_diffusers_model(folder, UNet2DConditionModel, **options) as streamed:
        yield streamed.module


@pytest.mark.parametrize("way", ["resident", "mapped"])
def test_gradients_of_the_inputs_have_the_bits_of_autograd(in_float32: Path, way: str) -> None:
    """Of the picture and of the embeddings, of a sum over two calls, and again; none of weights."""
    plain = resident(in_float32, "float32")
    theirs, words = picture(), WORDS.clone().requires_grad_()
    output = predicted(plain, theirs, words)
    expected = torch.autograd.grad(output.square().sum(), (theirs, words))
    with network(in_float32, way) as unet:
        guard(unet)
        ours, own = picture(), WORDS.clone().requires_grad_()
        result = predicted(unet, ours, own)
        assert torch.equal(result, output)
        loss = result.square().sum()
        loss.backward(retain_graph=True)
        assert torch.equal(ours.grad, expected[0])
        assert torch.equal(own.grad, expected[1])
        loss.backward()
        assert torch.equal(ours.grad, 2 * expected[0])
        assert all(weight.grad is None for weight in unet.parameters())
        structured = unet(picture(), 500, encoder_hidden_states=WORDS)
        assert type(structured).__name__ == "UNet2DConditionOutput"
        assert structured.sample.requires_grad


def test_gradients_pass_through_a_chain_of_steps(in_float32: Path) -> None:
    """Two passes of weights that stream, one after the other, as a guidance loop has them."""

    def chain(unet: Any, noisy: torch.Tensor) -> torch.Tensor:
        middle = noisy - 0.1 * predicted(unet, noisy)[:, :3]
        return (middle - 0.1 * predicted(unet, middle)[:, :3]).square().sum()

    theirs, ours = picture(), picture()
    (expected,) = torch.autograd.grad(chain(resident(in_float32, "float32"), theirs), theirs)
    with network(in_float32, "mapped") as unet:
        guard(unet)
        chain(unet, ours).backward()
    assert torch.equal(ours.grad, expected)


def test_weights_remain_where_the_file_is_mapped(tiny: Path, in_float32: Path) -> None:
    """Cast weights are overwritten: unguarded, autograd would fail with a message about versions."""
    for folder, way, remain in (
        (in_float32, "mapped", True),
        (tiny / "stage_1/unet", "cast", False),
    ):
        with network(folder, way) as unet:
            assert unet.weights_remain is remain
    with (
        network(tiny / "stage_1/unet", "cast") as unet,
        pytest.raises(RuntimeError, match="modified by an inplace operation"),
    ):
        predicted(unet, picture()).sum().backward()


def test_a_refusal_names_the_reason_and_leaves_other_calls(tiny: Path) -> None:
    """Only an input that requires a gradient is refused; its graph is never begun."""
    unet = resident(tiny / "stage_1/unet", "float32")
    with torch.no_grad():
        expected = predicted(unet, picture())
    guard(unet, "not here, because of that")
    with pytest.raises(RequestError, match="not here, because of that"):
        predicted(unet, picture())
    with torch.no_grad():
        assert torch.equal(predicted(unet, picture()), expected)
    free = predicted(unet, picture().detach())
    assert torch.equal(free, expected)
    assert not free.requires_grad


def test_a_closed_network_refuses_calls_and_backward_passes(tiny: Path) -> None:
    """A result from before may still exist; its gradient would need weights that are released."""
    unet = resident(tiny / "stage_1/unet", "float32")
    made: Guard = guard(unet)
    loss = predicted(unet, picture()).sum()
    made.close("it is closed")
    with pytest.raises(SessionError, match="it is closed"):
        loss.backward()
    for use in (lambda: predicted(unet, picture()), unet.float, unet.state_dict):
        with pytest.raises(SessionError, match="it is closed"):
            use()


def test_a_vae_is_guarded_at_all_its_entrances(tiny: Path) -> None:
    """Decoding has gradients; encoding returns a distribution, through which none is passed on."""
    vae = resident(tiny / "upscaler/vae", "float32")
    assert isinstance(vae, AutoencoderKL)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    theirs, ours = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    (expected,) = torch.autograd.grad(vae.decode(theirs).sample.sum(), theirs)
    guard(vae)
    vae.decode(ours).sample.sum().backward()
    assert torch.equal(ours.grad, expected)
    pixels = torch.zeros(1, 3, 16, 16)
    assert not vae.encode(pixels).latent_dist.mean.requires_grad
    with pytest.raises(RequestError, match=r"call it under torch.no_grad\(\)"):
        vae.encode(pixels.requires_grad_())


def test_a_network_keeps_its_class_name_and_moves_as_before(tiny: Path) -> None:
    """Code that asks for the class, casts or saves sees no difference."""
    unet = resident(tiny / "stage_1/unet", "float32")
    guard(unet)
    assert isinstance(unet, UNet2DConditionModel)
    assert type(unet).__name__ == "UNet2DConditionModel"
    assert unet.to(torch.bfloat16).dtype == torch.bfloat16
    assert len(unet.state_dict()) == len(list(unet.parameters()))


@pytest.mark.parametrize("way", ["mapped", "cast"])
def test_requires_grad_of_the_user_outlives_streaming(
    tiny: Path, in_float32: Path, way: str
) -> None:
    """`unet.requires_grad_(False)` chooses other kernels, as in diffusers: the bits follow."""
    folder = in_float32 if way == "mapped" else tiny / "stage_1/unet"
    with torch.no_grad():
        expected = predicted(resident(folder, "float32").requires_grad_(False), picture())
        with network(folder, way) as unet:
            unet.requires_grad_(False)
            for _ in range(2):
                assert torch.equal(predicted(unet, picture()), expected)
            assert not any(weight.requires_grad for weight in unet.parameters())
