"""The child process that imports torch: it prints a line of JSON about it and about a device."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
from dataclasses import asdict, replace
from typing import Any

from lowmem_if.hardware.torch_build import TorchAnswer, TorchDevice, TorchFacts, has_kernels


def read(device: str) -> TorchAnswer:
    """Import torch, and read its facts and those of a device."""
    import torch

    kind, devices, complaint = _accelerator(torch)
    facts = TorchFacts(
        version=str(torch.__version__),
        cuda=getattr(torch.version, "cuda", None),
        hip=getattr(torch.version, "hip", None),
        xpu=getattr(torch.version, "xpu", None),
        kind=kind,
        arches=tuple(torch.cuda.get_arch_list()) if kind == "cuda" else (),
        devices=devices,
        platform=f"{platform.system()} {platform.machine()}",
        packages=tuple(
            name for name in ("torchvision", "torchaudio") if importlib.util.find_spec(name)
        ),
        complaint=complaint,
    )
    number = _choose(device, facts)
    if number is None:
        return TorchAnswer(facts)
    try:
        return TorchAnswer(facts, number, *_memory(torch, kind, number))
    except RuntimeError as error:
        return TorchAnswer(replace(facts, complaint=_first_line(error)))


def _accelerator(torch: Any) -> tuple[str, tuple[TorchDevice, ...], str]:
    """(The kind of accelerator that torch sees, its devices, torch's message if it sees none)."""
    try:
        if torch.accelerator.is_available():
            kind = str(torch.accelerator.current_accelerator().type)
            return kind, _devices(torch, kind), ""
        if torch.version.cuda or torch.version.hip:
            torch.cuda.init()
    except RuntimeError as error:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        return (
            "",
            (),
            _first_line(error) if hidden is None else f"CUDA_VISIBLE_DEVICES is {hidden!r}",
        )
    return "", (), ""


def _devices(torch: Any, kind: str) -> tuple[TorchDevice, ...]:
    if kind == "mps":
        return (TorchDevice(f"Apple {platform.machine()}"),)
    devices = []
    for number in range(torch.accelerator.device_count()):
        if kind == "cuda":
            seen = torch.cuda.get_device_properties(number)
            arch = str(seen.gcnArchName) if torch.version.hip else ""
            devices.append(TorchDevice(seen.name, (seen.major, seen.minor), arch))
        elif kind == "xpu":
            devices.append(TorchDevice(torch.xpu.get_device_properties(number).name))
        else:
            devices.append(TorchDevice(kind))
    return tuple(devices)


def _choose(device: str, facts: TorchFacts) -> int | None:
    """The number of the device; for `auto` the first one with kernels."""
    kind, _, index = device.partition(":")
    if kind not in ("auto", facts.kind):
        return None
    numbers = [int(index)] if index else range(len(facts.devices))
    return next(
        (
            number
            for number in numbers
            if number < len(facts.devices) and has_kernels(facts.devices[number], facts.arches)
        ),
        None,
    )


def _memory(torch: Any, kind: str, number: int) -> tuple[int, int]:
    """(Free, total) bytes; this creates a context on the card."""
    if kind == "mps":
        total = int(torch.mps.recommended_max_memory())
        return max(0, total - int(torch.mps.driver_allocated_memory())), total
    free, total = torch.accelerator.get_memory_info(number)
    return int(free), int(total)


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _main() -> int:
    """Print the line that `accelerator.read_accelerator` reads."""
    sys.stdout.write(json.dumps(asdict(read(sys.argv[1]))) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(_main())
