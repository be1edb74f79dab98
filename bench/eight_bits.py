"""What 8-bit and 4-bit weights of the UNets cost in error and time, on the bundled cascade.

    python -m bench.eight_bits [--scenes 32] [--only stage_1]

Writes the section `eight_bits` of `bench/RESULTS.md`. Each row draws the same held-out scenes from the
same seeds as `bench.fast_rungs`, with the cascade's own steps. The error is that of one pass of the
network with trained weights, over the size of the float32 network's output.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from bench.__main__ import RESULTS
from bench.fast_rungs import Bench, Rung, judged, psnr, ssim
from bench.results import write_section
from lowmem_if.cascade.catalog import DEMO_DEFAULTS, STAGE_1, STAGE_2, UPSCALER
from lowmem_if.request.denoising.noise_scheduler import DDPM

STORAGES = ("float32", "int8", "int4")


def one_pass(bench: Bench) -> torch.Tensor:
    """The network's output for noise, halfway, with and without a prompt."""
    unet = bench.unet
    side = unet.config.sample_size
    chance = torch.Generator().manual_seed(0)
    picture = torch.randn(2, unet.config.in_channels, side, side, generator=chance)
    width = unet.config.encoder_hid_dim or unet.config.cross_attention_dim
    words = torch.randn(2, 77, width, generator=chance)
    labelled = bool(unet.config.class_embed_type or unet.config.num_class_embeds)
    level = torch.tensor([100, 100]) if labelled else None
    with torch.no_grad():
        output: torch.Tensor = unet(picture, 500, words, class_labels=level).sample
    return output


def measure(stage: str, scenes: int, report: Callable[[str], object]) -> str:
    """The table of one stage as Markdown."""
    rows, exact, passed, seconds, count = [], torch.empty(0), torch.empty(0), 1.0, 0
    for storage in STORAGES:
        bench = Bench(stage, scenes, pin=f"resident:{storage}")
        output = one_pass(bench)
        drawn, scores = judged(bench, Rung(DDPM, DEMO_DEFAULTS[stage].steps))
        count = len(bench.singles)
        bench.close()
        alike = error = ""
        if storage == STORAGES[0]:
            exact, passed, seconds = drawn.pictures, output, drawn.seconds
        else:
            alike = f"{psnr(drawn.pictures, exact):.1f} dB, {ssim(drawn.pictures, exact):.3f}"
            error = f"{(output - passed).norm() / passed.norm():.4f}"
        found = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
        share = f"{drawn.seconds / seconds:.2f}"
        rows.append(f"| {storage} | {error} | {share} | {found} | {alike} |")
        report(rows[-1])
    columns = "| weights | error of a pass | time | judge | to float32 |\n|---|---|---|---|---|\n"
    return f"### {stage}, {count} scenes\n\n{columns}" + "\n".join(rows) + "\n"


def main() -> None:
    """Measure all and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=32)
    parser.add_argument("--only", choices=(STAGE_1, STAGE_2, UPSCALER))
    chosen = parser.parse_args()
    stages = [chosen.only] if chosen.only else [STAGE_1, STAGE_2, UPSCALER]
    tables = [measure(stage, chosen.scenes, print) for stage in stages]
    if not chosen.only:
        title = "## UNets in 8 and 4 bits, on trained weights\n\n"
        write_section(RESULTS, "eight_bits", title + "\n".join(tables))


if __name__ == "__main__":
    main()
