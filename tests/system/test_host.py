"""What the system says of processors and drivers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from other_systems import On, linux

from lowmem_if.engine.worker.environment import worker_environment
from lowmem_if.system import host

NVIDIA = "dev/nvidiactl"


@pytest.mark.parametrize(
    ("platform", "version", "signs", "expected"),
    [
        ("linux", "Linux version 6.8.0", (NVIDIA,), True),
        ("linux", "Linux version 6.8.0", ("dev/nvidia0",), True),
        ("linux", "Linux version 6.8.0", (), False),
        ("linux", "Linux version 6.8.0", ("dev/kfd",), False),  # AMD
        ("linux", "5.15.167.4-microsoft-standard-WSL2", ("dev/dxg", NVIDIA), False),
        ("linux", "Linux version 5.15.148-tegra", (NVIDIA,), False),
        ("linux", "Linux version 6.8.0", (NVIDIA, "etc/nv_tegra_release"), False),
        ("win32", "", (NVIDIA,), False),
        ("darwin", "", (NVIDIA,), False),
    ],
)
def test_segments_expand_on_plain_linux_with_nvidia_alone(
    on: On, tmp_path: Path, platform: str, version: str, signs: tuple[str, ...], expected: bool
) -> None:
    """Elsewhere torch's first allocation fails, or warns, with them."""
    on(platform, host)
    root = linux(tmp_path, version=version, signs=signs)
    assert host.segments_expand(root) is expected
    environment = worker_environment({}, root=root)
    assert environment.get("PYTORCH_ALLOC_CONF") == (
        "expandable_segments:True" if expected else None
    )


def test_a_jetson_is_known_by_its_device_tree(tmp_path: Path) -> None:
    """In a container neither the kernel's name nor the release file need be there."""
    root = linux(tmp_path, signs=(NVIDIA, "proc/device-tree/compatible"))
    (root / "proc/device-tree/compatible").write_bytes(b"nvidia,p3737-0000\0nvidia,tegra234\0")
    assert not host.segments_expand(root)


def test_processors_are_counted_everywhere(on: On) -> None:
    """Where the system limits a process, those that it may use."""
    assert host.usable_cpus() == len(os.sched_getaffinity(0))
    on("win32", host)
    assert host.usable_cpus() == os.cpu_count()
