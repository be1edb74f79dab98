"""The decoder in strips on fake tensors: its memory is what the formula says, at every size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lowmem_if.cascade.catalog import PUBLISHED, UPSCALER
from lowmem_if.cascade.strategies import RESIDENT
from lowmem_if.planning.estimates.activations import activation_bytes
from lowmem_if.planning.estimates.execution import RAM_STRIPS, STRIPS, ExecutionConfig
from lowmem_if.planning.estimates.memory_table import FUSED, look_up
from lowmem_if.planning.estimates.strip_memory import bus_bytes, ram_bytes
from lowmem_if.simulate.fake_device import DEVICE, dry_run
from lowmem_if.simulate.memory_tracker import ANONYMOUS
from lowmem_if.simulate.networks import known_networks, prepared, resident, traced

NETWORK = next(known for known in known_networks() if known.name == "if-xl/upscaler/vae")
VAE = next(m for m in PUBLISHED["if-xl"].parts[UPSCALER].modules if m.is_vae)


@pytest.mark.slow
@pytest.mark.parametrize("decoding", [STRIPS, RAM_STRIPS])
@pytest.mark.parametrize("side", [64, 128, 256])
def test_the_formula_agrees_with_dry_runs(side: int, decoding: str) -> None:
    """On an accelerator, in RAM and over the bus; there at most half of the whole decoder."""
    area = (side / 256) ** 2
    config = ExecutionConfig(
        UPSCALER, RESIDENT, "float32", "float32", 1, "cuda:0", decoding=decoding, area=area
    )
    with dry_run(kernel=FUSED) as trace:
        module = resident(NETWORK.network, torch.float32, DEVICE)
        run = prepared(NETWORK, module, batch=1, decoding=decoding, side=side)
        before = trace.tracker.usage(ANONYMOUS).now
        simulated = traced(trace, DEVICE, run)
        in_ram = trace.tracker.usage(ANONYMOUS).most - before
        moved = sum(trace.moved.values())
    predicted = activation_bytes(VAE, config)
    assert 0.95 <= predicted / simulated.activation_bytes <= 1.10
    assert in_ram == pytest.approx(ram_bytes(VAE, config), rel=0.05, abs=4096)
    assert moved == pytest.approx(bus_bytes(VAE, config), rel=0.05, abs=4096)
    whole = look_up(VAE, item_bytes=4)
    assert whole is not None
    assert simulated.activation_bytes <= 0.5 * area * whole.activation_bytes
    assert area != 1 or simulated.flops == pytest.approx(whole.flops, rel=1e-3)


def test_strips_take_a_third_of_the_whole() -> None:
    """The plan's own figures for 1024 pixels."""
    whole = ExecutionConfig(UPSCALER, RESIDENT, "float32", "float32", 1, "cuda:0")
    strips = replace(whole, decoding=STRIPS)
    assert activation_bytes(VAE, strips) < 0.36 * activation_bytes(VAE, whole)
