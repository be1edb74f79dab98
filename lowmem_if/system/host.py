"""What the system reports about processors and drivers, without torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def usable_cpus() -> int:
    """The CPU threads that this process may use; all where the system does not limit it."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def segments_expand(root: Path = Path("/")) -> bool:
    """Whether torch's expandable segments can be used: on plain Linux with NVIDIA's own driver.

    They need CUDA's virtual memory. Windows has none in torch, WSL2 and Jetson fail at the first
    allocation (pytorch issue 192330), and AMD's cards have no such driver.
    """
    if sys.platform != "linux":
        return False
    nvidia = any((root / sign).exists() for sign in ("dev/nvidiactl", "dev/nvidia0"))
    return nvidia and not inside_windows(root) and not _is_jetson(root)


def inside_windows(root: Path) -> bool:
    """Whether this Linux runs inside Windows (WSL), by its kernel's name."""
    return "microsoft" in _text(root / "proc/version")


def _is_jetson(root: Path) -> bool:
    """Whether this is an NVIDIA board whose GPU uses the RAM, by the device tree or the system."""
    names = _text(root / "proc/version") + _text(root / "proc/device-tree/compatible")
    return "tegra" in names or (root / "etc/nv_tegra_release").exists()


def _text(file: Path) -> str:
    """The content of a small file in lower case; empty if there is none."""
    try:
        return file.read_text(errors="replace").lower()
    except OSError:
        return ""
