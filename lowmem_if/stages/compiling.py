"""Compile a UNet with `torch.compile`, check whether that works here, and release compiled code."""

from __future__ import annotations

from typing import Any

import torch

BACKEND = "inductor"


def why_not(device: str) -> str:
    """Why nothing can be compiled for a device, in a line; empty if it can.

    A small function is compiled and run. A missing C++ compiler, Triton or support for the system would
    otherwise show only when a network fails in the middle of its first step.
    """
    try:
        torch.compile(lambda numbers: numbers + 1, backend=BACKEND)(torch.ones(8, device=device))
    except (RuntimeError, OSError, ImportError) as error:  # a compiler, a linker or a driver
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return next(iter(lines), type(error).__name__)[:200]
    finally:
        torch.compiler.reset()
    return ""


def compile_unet(unet: Any) -> None:
    """Let a UNet be compiled at its first step, in place.

    It is compiled for each shape separately: a resumed run draws the rest in the same shapes, and so
    with the same bits, whichever shape was first.
    """
    unet.compile(dynamic=False, backend=BACKEND)


def forget_compiled() -> None:
    """Drop all compiled code, which refers to the networks that it was compiled for."""
    torch.compiler.reset()
