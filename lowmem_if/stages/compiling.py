"""A UNet compiled by `torch.compile`, whether that can work here, and letting go of it."""

from __future__ import annotations

from typing import Any

import torch

BACKEND = "inductor"


def why_not(device: str) -> str:
    """Why nothing can be compiled for a device, in a line; empty where it can.

    A small function is compiled and run: what is missing (a C++ compiler, Triton, support for the
    system) shows nowhere else before a network fails in the middle of its first step.
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
    """Have a UNet compiled at its first step, in place.

    For each shape of its own: a run that is continued draws what is left in the same shapes, and so with
    the same bits, whichever came before.
    """
    unet.compile(dynamic=False, backend=BACKEND)


def forget_compiled() -> None:
    """Drop all compiled code, which holds what it was compiled with."""
    torch.compiler.reset()
