"""What the accelerator is and how much of its memory is free, read through torch.

Importing torch takes seconds, and `plan` must start at once: so hardware is looked for first
(`looks_present`), and torch is asked in a process of its own unless this one has it already.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from lowmem_if.errors import DeviceError

_TOLD = "device: "
"""Before the words of a DeviceError, among whatever else a process of its own writes."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One accelerator as torch sees it.

    Attributes:
        device: `cuda:0`, `xpu:0` or `mps`.
        name: the maker's name of it.
        total_bytes: its memory.
        free_bytes: free by the driver, plus what torch holds cached and unused.
        capability: CUDA compute capability (7, 5); (0, 0) elsewhere.
    """

    device: str
    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int] = (0, 0)


def looks_present(root: Path = Path("/")) -> bool:
    """Whether there are signs of an accelerator that torch might drive; cheap, no torch."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if sys.platform == "win32":
        system = Path("C:/Windows/System32")
        return any((system / dll).exists() for dll in ("nvcuda.dll", "ze_loader.dll"))
    signs = ("dev/nvidiactl", "dev/nvidia0", "dev/dxg", "dev/kfd", "proc/driver/nvidia/version")
    if any((root / sign).exists() for sign in signs):
        return True
    dri = root / "dev/dri"
    return dri.is_dir() and any(dri.glob("renderD*"))


def read_accelerator(device: str = "auto") -> Accelerator | None:
    """The accelerator that `device` names ("auto": the first); None if torch sees none.

    Raises:
        DeviceError: `device` names one that torch does not see.
    """
    if "torch" in sys.modules:
        return _ask_torch(device)
    answer = subprocess.run(
        [sys.executable, "-m", "lowmem_if.planning.accelerator", device],
        capture_output=True,
        text=True,
        check=False,
    )
    last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
    if answer.returncode == DeviceError.exit_code and last.startswith(_TOLD):
        raise DeviceError(last.removeprefix(_TOLD))
    if answer.returncode != 0:
        raise DeviceError(f"torch cannot be asked about the accelerator ({last}); use --device cpu")
    found = json.loads(answer.stdout.strip().splitlines()[-1])
    return Accelerator(**{**found, "capability": tuple(found["capability"])}) if found else None


def _ask_torch(device: str) -> Accelerator | None:
    import torch

    kind, _, index = device.partition(":")
    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if current is None or kind not in ("auto", current.type):
        if kind == "auto":
            return None
        here = f"torch {torch.__version__} sees " + (current.type if current else "no accelerator")
        raise DeviceError(f"there is no {kind} device here ({here}); use --device cpu or auto")
    number = int(index or 0)
    if number >= torch.accelerator.device_count():
        raise DeviceError(
            f"there is no {device} here, only {torch.accelerator.device_count()} device(s); "
            f"use --device {current.type}:0"
        )
    if current.type == "mps":
        total = torch.mps.recommended_max_memory()
        free = total - torch.mps.driver_allocated_memory()
        return Accelerator("mps", "Apple " + platform.machine(), total, max(0, free))
    free, total = torch.accelerator.get_memory_info(number)
    cached = torch.accelerator.memory_reserved(number) - torch.accelerator.memory_allocated(number)
    name, capability = f"{current.type}:{number}", (0, 0)
    if current.type == "cuda":
        properties = torch.cuda.get_device_properties(number)
        return Accelerator(
            name, properties.name, total, free + cached, (properties.major, properties.minor)
        )
    if current.type == "xpu":
        return Accelerator(
            name, torch.xpu.get_device_properties(number).name, total, free + cached, capability
        )
    return Accelerator(name, current.type, total, free + cached, capability)


def _main() -> int:
    """Print the answer as one line of JSON; the other half of `read_accelerator`."""
    import torch  # noqa: F401  makes read_accelerator ask in this process

    try:
        found = read_accelerator(sys.argv[1])
    except DeviceError as error:
        sys.stderr.write(f"{_TOLD}{error}\n")
        return DeviceError.exit_code
    sys.stdout.write(json.dumps(asdict(found) if found else None) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(_main())
