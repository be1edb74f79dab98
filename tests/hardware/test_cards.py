"""Cards that the system shows, read from made-up file trees."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lowmem_if.hardware.cards import AMD, INTEL, NVIDIA, Card, cards, looks_present

linux = pytest.mark.skipif(sys.platform != "linux", reason="device files are Linux's")
pytestmark = linux

PROPRIETARY = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 2023\n"
)
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build  (d@b)\n"
    "GCC version:  gcc version 12.3.0\n"
)


def put(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def render_node(root: Path, address: str, vendor: str, **files: str) -> Path:
    """A render node of a PCI device, as Linux lays it out."""
    device = root / "sys/devices/pci0000:00" / address
    put(device, {"vendor": f"{vendor}\n", **files})
    number = 128 + len(list((root / "dev/dri").glob("renderD*")))
    link = root / f"sys/class/drm/renderD{number}/device"
    link.parent.mkdir(parents=True)
    link.symlink_to(device)
    return put(root, {f"dev/dri/renderD{number}": ""})


def nvidia_smi(root: Path, script: str, where: str = "usr/bin") -> Path:
    put(root, {f"{where}/nvidia-smi": f"#!/bin/sh\n{script}\n"})
    (root / where / "nvidia-smi").chmod(0o755)
    return root


def test_a_machine_without_signs_has_no_cards(tmp_path: Path) -> None:
    """Nothing there is nothing to report."""
    assert not looks_present(tmp_path)
    assert cards(tmp_path) == ()


@pytest.mark.parametrize("where", ["usr/bin", "usr/lib/wsl/lib"])
def test_nvidia_smi_says_name_driver_and_capability(tmp_path: Path, where: str) -> None:
    """Each line of its answer is a card; WSL keeps the tool in a folder of its own."""
    put(tmp_path, {"dev/nvidiactl": ""})
    nvidia_smi(
        tmp_path, 'echo "Tesla P100, 535.1, 6.0"; echo "Tesla T4, 535.1, 7.5"; echo junk', where
    )
    assert cards(tmp_path) == (
        Card(NVIDIA, "Tesla P100", (6, 0), "535.1"),
        Card(NVIDIA, "Tesla T4", (7, 5), "535.1"),
    )


@pytest.mark.parametrize("capability", ["[N/A]", "", "7"])
def test_a_capability_that_is_none_is_unknown(tmp_path: Path, capability: str) -> None:
    """What the tool does not know is (0, 0)."""
    put(tmp_path, {"dev/nvidia0": ""})
    nvidia_smi(tmp_path, f'echo "Tesla T4, 535.1, {capability}"')
    assert cards(tmp_path) == (Card(NVIDIA, "Tesla T4", (0, 0), "535.1"),)


@pytest.mark.parametrize(("text", "driver"), [(PROPRIETARY, "535.104.05"), (OPEN, "570.124.06")])
@pytest.mark.parametrize("tool", ["none", "fails"])
def test_without_nvidia_smi_the_drivers_files_speak(
    tmp_path: Path, text: str, driver: str, tool: str
) -> None:
    """The kernel module tells its version and the cards' models, whichever of the two modules it is."""
    put(tmp_path, {"dev/nvidia0": "", "proc/driver/nvidia/version": text})
    if tool == "fails":
        nvidia_smi(tmp_path, 'echo "Driver/library version mismatch" >&2; exit 18')
    assert cards(tmp_path) == (Card(NVIDIA, "an NVIDIA card", driver=driver),)
    put(tmp_path, {"proc/driver/nvidia/gpus/0000:00:04.0/information": "Model: \t\t Tesla T4\n"})
    assert cards(tmp_path) == (Card(NVIDIA, "Tesla T4", driver=driver),)


def test_a_driver_without_device_files_is_out_of_reach(tmp_path: Path) -> None:
    """A container sees the host's driver in /proc, but has no card unless it was given one."""
    put(tmp_path, {"proc/driver/nvidia/version": OPEN})
    assert looks_present(tmp_path)
    (card,) = cards(tmp_path)
    assert (card.driver, card.reachable) == ("570.124.06", False)


def test_an_nvidia_card_under_nouveau_has_no_driver(tmp_path: Path) -> None:
    """Its render node shows the maker, and there is nothing of NVIDIA's driver."""
    render_node(tmp_path, "0000:01:00.0", "0x10de")
    assert cards(tmp_path) == (Card(NVIDIA, "an NVIDIA card", reachable=False),)


def test_nvidias_own_render_node_is_not_a_second_card(tmp_path: Path) -> None:
    """With the driver loaded the card is counted once."""
    put(tmp_path, {"dev/nvidia0": "", "proc/driver/nvidia/version": OPEN})
    render_node(tmp_path, "0000:01:00.0", "0x10de")
    assert len(cards(tmp_path)) == 1


def test_wsl_without_an_nvidia_driver_has_no_nvidia_card(tmp_path: Path) -> None:
    """/dev/dxg is there for every maker's card; NVIDIA's library comes with its driver."""
    put(tmp_path, {"dev/dxg": ""})
    assert cards(tmp_path) == ()
    put(tmp_path, {"usr/lib/wsl/lib/libcuda.so.1": ""})
    assert cards(tmp_path) == (Card(NVIDIA, "an NVIDIA card"),)


def test_graphics_inside_a_processor_are_no_cards(tmp_path: Path) -> None:
    """Intel's on bus 0, AMD's with little memory of their own, and a maker of something else."""
    render_node(tmp_path, "0000:00:02.0", "0x8086")
    render_node(tmp_path, "0000:06:00.0", "0x1002", mem_info_vram_total=f"{512 * 2**20}\n")
    render_node(tmp_path, "0000:07:00.0", "0x1002")
    render_node(tmp_path, "0000:08:00.0", "0x1af4")
    assert looks_present(tmp_path)
    assert cards(tmp_path) == ()


def test_cards_of_amd_and_intel_are_recognised(tmp_path: Path) -> None:
    """AMD's by the memory of their own and by name if they have one, Intel's by the bus."""
    big = f"{8 * 2**30}\n"
    render_node(tmp_path, "0000:03:00.0", "0x1002", mem_info_vram_total=big)
    render_node(tmp_path, "0000:04:00.0", "0x1002", mem_info_vram_total=big, product_name="MI210\n")
    render_node(tmp_path, "0000:05:00.0", "0x8086")
    assert cards(tmp_path) == (
        Card(AMD, "an AMD card"), Card(AMD, "MI210"), Card(INTEL, "an Intel card"),
    )  # fmt: skip
    assert [card.kind for card in cards(tmp_path)] == ["cuda", "cuda", "xpu"]
