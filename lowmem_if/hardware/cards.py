"""Which graphics cards the system shows: read from its files and `nvidia-smi`, without torch."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NVIDIA, AMD, INTEL, APPLE = "NVIDIA", "AMD", "Intel", "Apple"

_VENDORS = {"0x10de": NVIDIA, "0x1002": AMD, "0x8086": INTEL}
_LEAST_AMD_BYTES = 3 * 2**30
"""GPUs inside an AMD processor report less memory, unless the BIOS assigns them much."""

_NVIDIA_DEVICES = ("dev/nvidiactl", "dev/nvidia0")
_NVIDIA_DRIVER = "proc/driver/nvidia/version"
_WSL_DEVICE, _WSL_LIBRARIES = "dev/dxg", "usr/lib/wsl/lib"
_SYSTEM32 = Path("C:/Windows/System32")
_SMI_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card as the system reports it.

    Attributes:
        maker: `NVIDIA`, `AMD`, `Intel` or `Apple`.
        name: its name by the maker, or "an NVIDIA card" if the system does not report it.
        capability: CUDA compute capability (7, 5); (0, 0) elsewhere and where it is unknown.
        driver: version of NVIDIA's driver, "570.124.06"; empty elsewhere and where it is unknown.
        reachable: whether this process has a device file for it.
    """

    maker: str
    name: str
    capability: tuple[int, int] = (0, 0)
    driver: str = ""
    reachable: bool = True

    @property
    def kind(self) -> str:
        """torch's name for such devices: ROCm builds call AMD's cards `cuda`."""
        return {NVIDIA: "cuda", AMD: "cuda", INTEL: "xpu"}.get(self.maker, "mps")


def looks_present(root: Path = Path("/")) -> bool:
    """Whether there are signs of an accelerator that torch may be able to use; fast, without torch."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if sys.platform == "win32":
        return any((_SYSTEM32 / dll).exists() for dll in ("nvcuda.dll", "ze_loader.dll"))
    signs = (*_NVIDIA_DEVICES, _NVIDIA_DRIVER, _WSL_DEVICE, "dev/kfd")
    return any((root / sign).exists() for sign in signs) or any(_render_nodes(root))


def cards(root: Path = Path("/")) -> tuple[Card, ...]:
    """The cards that torch can use with the right build and driver.

    GPUs inside an Intel or AMD processor are left out, since few people mean to run on them. On Windows
    only NVIDIA's cards are detected.
    """
    if sys.platform == "darwin":
        return (Card(APPLE, "the Apple GPU"),) if platform.machine() == "arm64" else ()
    nvidia = _nvidia_cards(root)
    others = tuple(_rendering_cards(root))
    return nvidia + tuple(card for card in others if not (nvidia and card.maker == NVIDIA))


def _nvidia_cards(root: Path) -> tuple[Card, ...]:
    """NVIDIA's cards if its driver is loaded; one card without a name if names are not reported."""
    if sys.platform == "win32":
        present = reachable = (_SYSTEM32 / "nvcuda.dll").exists()
    else:
        wsl = (root / _WSL_LIBRARIES / "libcuda.so.1").exists()
        reachable = wsl or any((root / device).exists() for device in _NVIDIA_DEVICES)
        present = reachable or (root / _NVIDIA_DRIVER).exists()
    if not present:
        return ()
    if listed := _ask_nvidia_smi(root):
        return listed
    driver = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)\s", _read(root / _NVIDIA_DRIVER))
    models = [
        re.search(r"^Model:\s*(.+)$", _read(file), re.MULTILINE)
        for file in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    ]
    names = [model.group(1).strip() for model in models if model] or ["an NVIDIA card"]
    version = driver.group(1) if driver else ""
    return tuple(Card(NVIDIA, name, driver=version, reachable=reachable) for name in names)


def _ask_nvidia_smi(root: Path) -> tuple[Card, ...]:
    """Name, driver and compute capability of each card; none if the tool is missing or fails."""
    found = shutil.which("nvidia-smi") if root == Path("/") else None
    own = [root / "usr/bin/nvidia-smi", root / _WSL_LIBRARIES / "nvidia-smi"]
    tool = found or next((str(file) for file in own if file.is_file()), None)
    if tool is None:
        return ()
    try:
        answer = subprocess.run(
            [tool, "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_SMI_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    lines = (re.split(r",\s*", line.strip()) for line in answer.stdout.splitlines())
    return tuple(
        Card(NVIDIA, cells[0], _capability(cells[2]), cells[1])
        for cells in lines
        if len(cells) == 3
    )


def _rendering_cards(root: Path) -> Iterator[Card]:
    """Cards by their render nodes, which every Linux driver makes, even NVIDIA's and nouveau."""
    for node in _render_nodes(root):
        device = root / "sys/class/drm" / node.name / "device"
        maker = _VENDORS.get(_read(device / "vendor").strip())
        if maker == NVIDIA:
            yield Card(NVIDIA, "an NVIDIA card", reachable=False)
        elif maker == AMD and _number(_read(device / "mem_info_vram_total")) >= _LEAST_AMD_BYTES:
            yield Card(AMD, _read(device / "product_name").strip() or "an AMD card")
        elif maker == INTEL and _pci_bus(device) > 0:
            yield Card(INTEL, "an Intel card")


def _render_nodes(root: Path) -> list[Path]:
    return sorted((root / "dev/dri").glob("renderD*"))


def _pci_bus(device: Path) -> int:
    """`0000:03:00.0` is on bus 3; the GPU inside an Intel processor is on bus 0. 0 if not readable."""
    address = re.fullmatch(r"[0-9a-f]+:([0-9a-f]+):[0-9a-f]+\.\d", device.resolve().name)
    return int(address.group(1), 16) if address else 0


def _capability(text: str) -> tuple[int, int]:
    numbers = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(numbers.group(1)), int(numbers.group(2))) if numbers else (0, 0)


def _number(text: str) -> int:
    return int(text) if text.strip().isdecimal() else 0


def _read(file: Path) -> str:
    """A small file of the system; empty if it is not there or may not be read."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
