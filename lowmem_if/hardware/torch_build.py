"""Whether a build of torch can use a card, and if not, why, and the command that changes it.

Which builds have kernels for which cards: pytorch RELEASE.md for 2.9 to 2.14. CUDA 12.6 builds have
them for compute capability 5.0 to 9.0 and run with driver 525 or newer. CUDA 13 builds have them for 7.5
and later and need driver 580. There are no CUDA 12.8 builds from torch 2.12 on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lowmem_if.hardware.cards import AMD, INTEL, NVIDIA, Card

_LEAST_DRIVER = {"11": 450, "12": 525, "13": 580}
"""CUDA version -> the oldest driver branch that runs it (CUDA's minor version compatibility)."""
_LEAST_CAPABILITY, _LEAST_CUDA_13_CAPABILITY, _BLACKWELL = (5, 0), (7, 5), (10, 0)
_FIRST_DRIVER_WITHOUT_PASCAL = 590
_CUDA_12_INDEX, _CUDA_13_INDEX, _ROCM_INDEX, _XPU_INDEX = "cu126", "cu130", "rocm7.2", "xpu"
_OVERVIEW = "https://pytorch.org/get-started/locally/"
_OLDER = "https://pytorch.org/get-started/previous-versions/"
_DRIVERS = "https://www.nvidia.com/drivers"
_GPUS_OPTION = "start the container with `--gpus all`"


@dataclass(frozen=True, slots=True)
class TorchDevice:
    """A device that torch sees.

    Attributes:
        capability: CUDA compute capability; (0, 0) for other devices.
        arch: AMD's name of the architecture, `gfx1100`; empty for other devices.
    """

    name: str
    capability: tuple[int, int] = (0, 0)
    arch: str = ""


@dataclass(frozen=True, slots=True)
class TorchFacts:
    """What an installed torch reports about itself.

    Attributes:
        version: `2.13.0+cpu`.
        cuda, hip, xpu: the versions that it is built for; None: built without.
        kind: the kind of accelerator that it sees, `cuda`, `xpu` or `mps`; empty if it sees none.
        arches: what it has kernels for, `sm_80`, `compute_120`, `gfx1100`; empty if it does not report
            it.
        devices: all of that kind.
        platform: `Linux x86_64`.
        packages: the installed ones of `torchvision` and `torchaudio`, which must fit torch's build.
        complaint: its message why it sees no accelerator, or cannot open one.
    """

    version: str
    cuda: str | None = None
    hip: str | None = None
    xpu: str | None = None
    kind: str = ""
    arches: tuple[str, ...] = ()
    devices: tuple[TorchDevice, ...] = ()
    platform: str = "Linux x86_64"
    packages: tuple[str, ...] = ()
    complaint: str = ""


@dataclass(frozen=True, slots=True)
class TorchAnswer:
    """What the child process prints: torch's facts, and the memory of the chosen device.

    Attributes:
        number: the number of that device; None if torch sees none, has no kernels for any, or cannot
            open it.
    """

    facts: TorchFacts
    number: int | None = None
    free_bytes: int = 0
    total_bytes: int = 0


def has_kernels(device: TorchDevice, arches: tuple[str, ...]) -> bool:
    """Whether a build with these architectures has code for the device, binary or as PTX.

    True if the build does not list any.
    """
    if not arches:
        return True
    if device.arch:
        return device.arch.split(":")[0] in {arch.split(":")[0] for arch in arches}
    return any(_runs(arch, device.capability) for arch in arches)


def why_unused(card: Card, facts: TorchFacts) -> str:
    """Why torch cannot use a card, and what to do, in one sentence; empty if it can."""
    judge = {NVIDIA: _nvidia, AMD: _amd, INTEL: _intel}.get(card.maker, _apple)
    words = judge(card, facts)
    return f"{card.name} cannot be used: {words}" if words else ""


def _runs(arch: str, capability: tuple[int, int]) -> bool:
    """Binary code runs on the same major and no lower minor version, PTX on all later versions.

    Code for `sm_90a` runs on 9.0 alone.
    """
    parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
    if not parts:
        return False
    built = (int(parts.group(2)), int(parts.group(3)))
    if parts.group(4) == "a":
        return capability == built
    if parts.group(1) == "compute":
        return capability >= built
    return capability[0] == built[0] and capability >= built


def _nvidia(card: Card, facts: TorchFacts) -> str:
    torch = f"torch {facts.version}"
    if facts.kind == "cuda" and facts.cuda:
        return _seen(card, facts)
    if not card.reachable:
        if card.driver:
            return f"this process cannot open it; {_GPUS_OPTION}"
        return f"NVIDIA's driver is not loaded; install it ({_DRIVERS})"
    if facts.cuda is None:
        return f"{torch} is built without CUDA; {_install_cuda(card, facts)}"
    least = _LEAST_DRIVER.get(facts.cuda.partition(".")[0], 0)
    if 0 < _major(card.driver) < least:
        return (
            f"{torch} is built for CUDA {facts.cuda}, which needs driver {least} or newer, and driver "
            f"{card.driver} is installed; {_install_cuda(card, facts)}"
        )
    why = f" ({facts.complaint})" if facts.complaint else ""
    return f"{torch} does not see it{why}; check with `nvidia-smi` that the driver works"


def _seen(card: Card, facts: TorchFacts) -> str:
    """Why a card that CUDA lists cannot be used: no kernels for it, or it cannot be opened."""
    if not has_kernels(TorchDevice(card.name, card.capability), facts.arches):
        return (
            f"torch {facts.version} has no kernels for its compute capability {_dotted(card)}, only "
            f"for {', '.join(facts.arches)}; {_install_cuda(card, facts)}"
        )
    if facts.complaint:
        return f"torch cannot open it ({facts.complaint}); check with `nvidia-smi` who uses it"
    return ""


def _amd(card: Card, facts: TorchFacts) -> str:
    torch = f"torch {facts.version}"
    if facts.hip is None:
        command = _pip(facts, _ROCM_INDEX)
        return f"{torch} is built without ROCm; run `{command}`, or check {_OVERVIEW}"
    if not facts.kind:
        return (
            f"{torch} does not see it; check with `rocminfo` that this user may open /dev/kfd "
            "(groups render and video)"
        )
    of_it = next((device for device in facts.devices if device.name == card.name), None)
    if of_it and not has_kernels(of_it, facts.arches):
        return (
            f"{torch} has no kernels for its architecture {of_it.arch}, only for "
            f"{', '.join(facts.arches)}; check {_OVERVIEW}"
        )
    if facts.complaint:
        return f"torch cannot open it ({facts.complaint}); check with `rocm-smi` who uses it"
    return ""


def _intel(_card: Card, facts: TorchFacts) -> str:
    torch = f"torch {facts.version}"
    if facts.xpu is None:
        command = _pip(facts, _XPU_INDEX)
        return f"{torch} is built without XPU; run `{command}`, or check {_OVERVIEW}"
    if facts.kind != "xpu":
        return f"{torch} does not see it; install Intel's driver (https://dgpu-docs.intel.com)"
    if facts.complaint:
        return f"torch cannot open it ({facts.complaint}); check with `xpu-smi` who uses it"
    return ""


def _apple(_card: Card, facts: TorchFacts) -> str:
    if facts.kind == "mps":
        return ""
    return (
        f"torch {facts.version} does not see it; update macOS, or run "
        "`pip install --force-reinstall torch`"
    )


def _install_cuda(card: Card, facts: TorchFacts) -> str:
    """What to install so that torch can use this card: a build, or a driver first."""
    driver = _major(card.driver)
    if (0, 0) < card.capability < _LEAST_CAPABILITY:
        return f"no build of torch has kernels for compute capability {_dotted(card)} any more"
    index = _cuda_index(card)
    newer = _LEAST_DRIVER["13" if index == _CUDA_13_INDEX else "12"]
    if 0 < driver < newer:
        update = f"update the driver to {newer} or newer ({_DRIVERS})"
        same = (facts.cuda or "").partition(".")[0] == index[2:4]
        return update if same else f"{update}, then run `{_pip(facts, index)}`"
    if index == f"cu{(facts.cuda or '').replace('.', '')}":
        return f"look for a build that has them: {_OLDER}"
    unsure = card.capability == (0, 0) or not facts.platform.endswith(("x86_64", "AMD64"))
    check = f", or check {_OVERVIEW}" if unsure else ""
    return f"run `{_pip(facts, index)}`{check}"


def _cuda_index(card: Card) -> str:
    """The index of the builds that have kernels for the card and run with its driver, if known."""
    driver = _major(card.driver)
    if card.capability == (0, 0):
        return _CUDA_13_INDEX if driver >= _FIRST_DRIVER_WITHOUT_PASCAL else _CUDA_12_INDEX
    if card.capability >= _BLACKWELL:
        return _CUDA_13_INDEX
    old = card.capability < _LEAST_CUDA_13_CAPABILITY or 0 < driver < _LEAST_DRIVER["13"]
    return _CUDA_12_INDEX if old else _CUDA_13_INDEX


def _pip(facts: TorchFacts, index: str) -> str:
    """The command; it includes torchvision and torchaudio, which must be of the same build."""
    packages = " ".join(("torch", *facts.packages))
    where = f"https://download.pytorch.org/whl/{index}"
    return f"pip install --force-reinstall {packages} --index-url {where}"


def _major(version: str) -> int:
    """570 of "570.124.06"; 0 if there is none."""
    first = version.partition(".")[0]
    return int(first) if first.isdecimal() else 0


def _dotted(card: Card) -> str:
    return ".".join(map(str, card.capability))
