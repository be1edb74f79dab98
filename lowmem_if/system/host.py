"""What the system says of processors and drivers, without torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def usable_cpus() -> int:
    """Threads of the CPU that this process may use, where the system limits it; else all."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def segments_expand(root: Path = Path("/")) -> bool:
    """Whether torch's expandable segments can be used: plain Linux with NVIDIA's own driver.

    They need CUDA's virtual memory. Windows has none in torch, WSL2 and Jetson fail at the first
    allocation (pytorch issue 192330), and AMD's cards have no such driver.
    """
    if sys.platform != "linux":
        return False
    nvidia = any((root / sign).exists() for sign in ("dev/nvidiactl", "dev/nvidia0"))
    return nvidia and not inside_windows(root) and not _is_jetson(root)


def inside_windows(root: Path) -> bool:
    """Whether this Linux runs inside Windows (WSL), whose kernel says so."""
    return "microsoft" in _text(root / "proc/version")


def _is_jetson(root: Path) -> bool:
    """NVIDIA's boards whose GPU computes in the RAM: named in the device tree or by their system."""
    names = _text(root / "proc/version") + _text(root / "proc/device-tree/compatible")
    return "tegra" in names or (root / "etc/nv_tegra_release").exists()


def _text(file: Path) -> str:
    """A small file in lower case; empty where there is none."""
    try:
        return file.read_text(errors="replace").lower()
    except OSError:
        return ""
