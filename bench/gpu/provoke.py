"""A process that runs out of memory on purpose: `python -m bench.gpu.provoke KIND DEVICE`.

It prints what torch raised as one JSON line. Libraries that end the process themselves print nothing.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from bench.gpu.rows import first_line
from lowmem_if.weights.out_of_memory import is_of_host, is_shortage

_LEAST = 2**20


def _fill(device: str) -> list[torch.Tensor]:
    """Take all memory of a card, down to a megabyte."""
    torch.ones(1, device=device)
    pieces, size = [], 2**34
    while size >= _LEAST:
        try:
            pieces.append(torch.empty(size, dtype=torch.uint8, device=device))
        except RuntimeError:
            size //= 2
    return pieces


def _allocate(device: str) -> None:
    torch.empty(10**15, dtype=torch.uint8, device=device)


def _pin(_device: str) -> None:
    torch.empty(10**13, dtype=torch.uint8, pin_memory=True)


def _multiply(device: str) -> None:
    numbers = torch.ones(256, 256, device=device, dtype=torch.float16)
    product = torch.empty_like(numbers)
    pieces = _fill(device)
    torch.matmul(numbers, numbers, out=product)  # cuBLAS makes its handle and workspace now
    torch.accelerator.synchronize(device)
    del pieces


def _convolve(device: str) -> None:
    layer = torch.nn.Conv2d(64, 64, 3, padding=1, device=device, dtype=torch.float16)
    numbers = torch.ones(1, 64, 64, 64, device=device, dtype=torch.float16)
    pieces = _fill(device)
    layer(numbers)
    torch.accelerator.synchronize(device)
    del pieces


def _quantise(device: str) -> None:
    from bitsandbytes.functional import int8_vectorwise_quant

    numbers = torch.ones(4096, 4096, device=device, dtype=torch.float16)
    pieces = _fill(device)
    int8_vectorwise_quant(numbers)
    torch.accelerator.synchronize(device)
    del pieces


KINDS: dict[str, Any] = {
    "allocation": _allocate,
    "product": _multiply,
    "convolution": _convolve,
    "bitsandbytes": _quantise,
    "pinned memory": _pin,
}
ON_CPU = ("allocation",)


def main(kind: str, device: str) -> None:
    """Run out of memory, and say in which words."""
    found = {"raised": "", "shortage": False, "host": False}
    try:
        with torch.no_grad():
            KINDS[kind](device)
    except Exception as error:  # noqa: BLE001  what comes out is the result
        found = {
            "raised": first_line(error), "shortage": is_shortage(error), "host": is_of_host(error)
        }  # fmt: skip
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
