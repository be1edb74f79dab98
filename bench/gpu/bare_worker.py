"""Host and device memory of a worker that has loaded no component: what each first use adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bench.gpu.ballast import Ballast, holding
from bench.gpu.rows import Row, figure, first_line, row
from bench.gpu.setup import Setup
from lowmem_if.planning.estimates.memory import (
    ACCELERATOR_RAM_BYTES,
    PROCESS_RAM_BYTES,
    VRAM_WORKSPACE_BYTES,
)
from lowmem_if.system.process_memory import own_memory

_PREDICTED_RAM = {
    "libraries": PROCESS_RAM_BYTES,
    "attention": PROCESS_RAM_BYTES + ACCELERATOR_RAM_BYTES,
}
"""What the planner counts after all imports, and after all first uses of an accelerator."""


def rows(setup: Setup) -> Iterator[Row]:
    """One row per first use, in the order in which a worker meets them."""
    with holding(setup.device) as card:
        reader = _Reader(setup.device, card)
        yield reader.row("interpreter", lambda: None)
        for name, use in _uses(setup.device).items():
            yield reader.row(name, use)


class _Reader:
    """Reads memory after each use; what the card held before this process is not counted."""

    def __init__(self, device: str, card: Ballast) -> None:
        self._device, self._card = device, card
        self._before = card.used_bytes()
        self._context = 0

    def row(self, name: str, use: Callable[[], object]) -> Row:
        try:
            use()
        except Exception as error:  # noqa: BLE001  the other uses follow
            return row(name, ok=False, text=first_line(error))
        ram = own_memory()[0]
        on_card = self._device != "cpu"
        predicted = _PREDICTED_RAM.get(name)
        if name == "attention" and not on_card:
            predicted = None
        figures = [figure("anonymous RAM", ram, predicted)]
        constants = {f"{name}_ram_bytes": ram}
        if on_card:
            used = self._card.used_bytes() - self._before
            if name == "context":
                self._context = used
            beyond = used - self._context if self._context else 0
            workspace = VRAM_WORKSPACE_BYTES if name == "attention" else None
            figures += [figure("driver", used), figure("beyond the context", beyond, workspace)]
            constants[f"{name}_vram_bytes"] = used
        return row(name, *figures, constants={"process": constants})


def _uses(device: str) -> dict[str, Callable[[], object]]:
    """Name -> a first use; each is as small as it can be."""

    def libraries() -> None:
        from lowmem_if.engine.worker.command_loop import quiet_libraries

        quiet_libraries()

    def wake() -> None:
        from lowmem_if.weights.memory_readings import wake as wake_device

        wake_device(device)

    return {
        "torch": lambda: __import__("torch"),
        "libraries": libraries,
        "context": lambda: _torch().ones(1, device=device),
        "wake": wake,
        "convolution": lambda: _convolve(device),
        "bitsandbytes": lambda: _multiply_in_8_bits(device),
        "attention": lambda: _attend(device),
    }


def _torch() -> Any:
    import torch

    return torch


def _convolve(device: str) -> None:
    torch = _torch()
    dtype = torch.float16 if device != "cpu" else torch.float32
    with torch.no_grad():
        layer = torch.nn.Conv2d(64, 64, 3, padding=1, device=device, dtype=dtype)
        layer(torch.ones(2, 64, 64, 64, device=device, dtype=dtype)).cpu()


def _multiply_in_8_bits(device: str) -> None:
    from bitsandbytes.nn import Linear8bitLt

    torch = _torch()
    with torch.no_grad():
        layer = Linear8bitLt(256, 256, bias=False, has_fp16_weights=False).to(device)
        layer(torch.ones(1, 77, 256, device=device, dtype=torch.float16)).cpu()


def _attend(device: str) -> None:
    torch = _torch()
    attend = torch.nn.functional.scaled_dot_product_attention
    for dtype in (torch.float16, torch.float32):
        states = torch.ones(2, 8, 64, 64, device=device, dtype=dtype)
        attend(states, states, states).cpu()
