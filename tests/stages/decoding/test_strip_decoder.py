"""A VAE that decodes in strips: the picture of diffusers' own decoder, from weights loaded once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from diffusers import AutoencoderKL

from lowmem_if.cascade.catalog import UPSCALER
from lowmem_if.cascade.locate import DEMO_FOLDER
from lowmem_if.errors import CheckpointError
from lowmem_if.stages.decoding import strip_decoder
from lowmem_if.stages.decoding.strip_decoder import decode_in_strips
from lowmem_if.weights.loading import load_diffusers_model, stream_diffusers_model
from lowmem_if.weights.synthetic.architectures import networks

ATTENDING = {
    "block_out_channels": [8, 16, 32], "norm_num_groups": 4, "layers_per_block": 1,
    "latent_channels": 4, "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}  # fmt: skip


def published() -> Any:
    """The x4 upscaler's VAE of its real size, with random weights."""
    vae = next(n for n in networks("if-xl")[UPSCALER] if n.folder.endswith("vae"))
    return AutoencoderKL(**vae.config)


def trained() -> Any:
    return load_diffusers_model(
        DEMO_FOLDER / "upscaler" / "vae", AutoencoderKL, dtype="float32", device="cpu"
    )


def small() -> Any:
    return AutoencoderKL(**ATTENDING)


@torch.no_grad()
def decoded(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    picture: torch.Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    return picture.float()


def latents_of(height: int, width: int, count: int = 1) -> torch.Tensor:
    return torch.randn(count, 4, height, width, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("make", "sides"),
    [
        (small, (17, 9)),
        (small, (1, 5)),
        (small, (64, 48)),
        (trained, (64, 64)),
        (published, (24, 32)),
    ],
)
def test_strips_give_the_picture_of_the_whole(
    make: Callable[[], Any], sides: tuple[int, int]
) -> None:
    """Within 1e-5, at every size, with and without attention, on trained weights as on random ones."""
    torch.manual_seed(0)
    vae, latents = make().eval(), latents_of(*sides)
    whole = decoded(vae, latents)
    decode_in_strips(vae)
    strips = decoded(vae, latents)
    assert strips.shape == whole.shape
    assert (strips - whole).abs().max() <= 1e-5


def test_in_16_bits_strips_are_no_further_from_float32() -> None:
    """Both round, at other places."""
    torch.manual_seed(0)
    vae, latents = small().eval(), latents_of(64, 64)
    exact = decoded(vae, latents)
    vae = vae.to(torch.bfloat16)
    whole = decoded(vae, latents)
    decode_in_strips(vae)
    strips = decoded(vae, latents)
    assert 0 < _distance(strips, exact) <= 1.05 * _distance(whole, exact)


def _distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return (left - right).square().mean().sqrt().item()


def test_pictures_of_a_batch_do_not_share_their_norms() -> None:
    """Each has its own mean and variance, with slicing and without."""
    torch.manual_seed(0)
    vae, latents = (
        small().eval(),
        latents_of(16, 16, count=2) * torch.tensor([1.0, 9.0]).view(2, 1, 1, 1),
    )
    whole = decoded(vae, latents)
    decode_in_strips(vae)
    assert (decoded(vae, latents) - whole).abs().max() <= 1e-5


def test_streamed_weights_are_loaded_once_per_layer(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once per strip; the bits are those of resident weights."""
    folder, latents = tiny / "upscaler" / "vae", latents_of(32, 32)
    resident = load_diffusers_model(folder, AutoencoderKL, dtype="float32", device="cpu")
    decode_in_strips(resident)
    expected = decoded(resident, latents)
    with stream_diffusers_model(folder, AutoencoderKL, dtype="float32", device="cpu") as streamed:
        loads: Counter[int] = Counter()
        put = streamed._put

        def counted(group: Any, weights: Any) -> None:
            loads[id(group)] += 1
            put(group, weights)

        monkeypatch.setattr(streamed, "_put", counted)
        decode_in_strips(streamed.module, hold=streamed.holding)
        assert torch.equal(decoded(streamed.module, latents), expected)
    assert len(loads) > 20
    assert set(loads.values()) == {1}


def test_offloaded_weights_are_moved_once_per_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate's hooks move a layer's weights at its forward; strips are many forwards."""
    torch.manual_seed(0)
    vae, latents = small().eval(), latents_of(32, 32)
    decode_in_strips(vae)
    expected = decoded(vae, latents)
    accelerate.cpu_offload(vae, execution_device=torch.device("cpu"))
    moves: Counter[int] = Counter()
    before = accelerate.hooks.AlignDevicesHook.pre_forward

    def counted(self: Any, module: Any, *args: Any, **more: Any) -> Any:
        moves[id(module)] += 1
        return before(self, module, *args, **more)

    monkeypatch.setattr(accelerate.hooks.AlignDevicesHook, "pre_forward", counted)
    assert torch.equal(decoded(vae, latents), expected)
    assert len(moves) > 20
    assert set(moves.values()) == {1}
    assert all(parameter.device.type == "meta" for parameter in vae.decoder.parameters())


def test_a_gradient_takes_the_whole_decoder() -> None:
    """It needs all activations anyway, and strips are changed in place."""
    torch.manual_seed(0)
    vae, latents = small().eval(), latents_of(8, 8).requires_grad_()
    decode_in_strips(vae)
    vae.decode(latents).sample.sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0


def test_an_unknown_decoder_is_refused() -> None:
    """Its layers would be left out without a word."""
    config = ATTENDING | {"up_block_types": ["AttnUpDecoderBlock2D"] * 3}
    with pytest.raises(CheckpointError, match="--prefer exact"):
        decode_in_strips(AutoencoderKL(**config))


def test_wide_pictures_have_strips_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of a strip are bounded, not its rows."""
    seen: list[int] = []
    rows = strip_decoder.strip_rows
    monkeypatch.setattr(
        strip_decoder, "strip_rows", lambda *sides: seen.append(rows(*sides)) or seen[-1]
    )
    vae = small().eval()
    decode_in_strips(vae)
    decoded(vae, latents_of(16, 8))
    assert seen == [2]
    assert rows([512, 512, 256], 256, 256) == 16
    assert rows([512, 512, 256], 1024, 1024) == 4
    assert rows([512, 512, 256], 64, 64) == 8
