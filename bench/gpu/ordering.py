"""Two orders that only a real card can break: streamed float16 states, and int8 codes while loading."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, T5Config, T5EncoderModel

from bench.gpu.rows import COUNT, Row, figure, row
from bench.gpu.setup import Setup, tiny_cascade
from lowmem_if.cascade.module_files import weight_variant
from lowmem_if.stages.text_encoder import encode_in_one_pass
from lowmem_if.weights.loading import load_text_encoder, stream_text_encoder

REPETITIONS, QUICK_REPETITIONS = 200, 3
LARGEST = torch.finfo(torch.float16).max
FACTORS = (1.0, 3e4)
"""Of `wo`: with the second one hidden states exceed what float16 can hold."""
_TEXTS, _TOKENS = 4, 77


def rows(setup: Setup) -> Iterator[Row]:
    """Bits of a streamed encoder against a resident one, then of int8 codes against the library's."""
    for factor in FACTORS:
        yield _streamed(setup, factor)
    yield _int8(setup)


@torch.no_grad()
def _streamed(setup: Setup, factor: float) -> Row:
    root = _encoder(setup, factor)
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 500, (_TEXTS, _TOKENS), generator=chance).to(setup.device)
    masks = torch.ones_like(ids)
    largest: list[float] = []
    encoder = load_text_encoder(root, storage="float16", compute="float16", device=setup.device)
    for block in encoder.encoder.block:
        block.register_forward_hook(
            lambda _block, _inputs, outputs: largest.append(float(outputs[0].abs().max()))
        )
    each = zip(ids.split(1), masks.split(1), strict=True)
    resident = torch.cat([encoder(one, attention_mask=mask)[0].cpu() for one, mask in each])
    with stream_text_encoder(root, dtype="float16", device=setup.device) as streamed:
        outputs = encode_in_one_pass(streamed, ids, masks, _TEXTS)
        in_one_pass = torch.cat([output.cpu() for output in outputs])
    differing = int((resident != in_one_pass).sum())
    infinite = int((~in_one_pass.isfinite()).sum())
    return row(
        f"float16 states up to {max(largest):.0f}",
        figure("numbers that differ", differing, 0, COUNT),
        figure("not finite", infinite, 0, COUNT),
        ok=not differing and not infinite and (max(largest) > LARGEST) == (factor > 1),
    )


def _encoder(setup: Setup, factor: float) -> Path:
    """A folder with a T5 encoder of 0.2 GB (`quick`: of some KB), `wo` multiplied by a factor."""
    root = setup.out / "weights" / f"t5-{'quick' if setup.quick else 'small'}-{factor:g}"
    if (root / "text_encoder" / "config.json").is_file():
        return root
    torch.manual_seed(0)
    wide = not setup.quick
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=32128 if wide else 512, d_model=1024 if wide else 64, d_kv=64 if wide else 16,
            d_ff=2816 if wide else 128, num_layers=6 if wide else 2, num_heads=16 if wide else 4,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip
    for name, weight in encoder.named_parameters():
        if ".wo." in name:
            weight.data.mul_(factor)
    encoder.half().save_pretrained(root / "text_encoder", variant="fp16")
    return root


@torch.no_grad()
def _int8(setup: Setup) -> Row:
    """Load an encoder in 8 bits again and again: freed blocks are reused while kernels read them."""
    root = tiny_cascade(setup) / "stage_1"
    folder = root / "text_encoder"
    library = T5EncoderModel.from_pretrained(
        folder,
        variant=weight_variant(folder).name,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        device_map={"": setup.device},
    )
    expected = _codes(library)
    repetitions = QUICK_REPETITIONS if setup.quick else REPETITIONS
    wrong = sum(not _same(expected, _codes(_load_int8(root, setup))) for _ in range(repetitions))
    return row(
        f"int8 codes of {repetitions} loads",
        figure("loads with other codes", wrong, 0, COUNT),
        ok=not wrong and bool(expected),
    )


def _load_int8(root: Path, setup: Setup) -> Any:
    compute = "float16" if setup.on_card else "float32"
    return load_text_encoder(root, storage="int8", compute=compute, device=setup.device)


def _codes(encoder: Any) -> dict[str, torch.Tensor]:
    """The int8 codes of every quantised layer, on the CPU."""
    weights = encoder.state_dict()
    return {name: each.cpu() for name, each in weights.items() if each.dtype == torch.int8}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
