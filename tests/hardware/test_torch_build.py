"""What is said of a card that a build of torch cannot use: facts in, one sentence out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lowmem_if.hardware.cards import AMD, APPLE, INTEL, NVIDIA, Card
from lowmem_if.hardware.torch_build import TorchDevice, TorchFacts, has_kernels, why_unused

CU126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")

CPU = TorchFacts("2.13.0+cpu")
BLIND = TorchFacts("2.14.1+cu130", cuda="13.0")
SEEING = replace(BLIND, kind="cuda", arches=CU130)

T4 = Card(NVIDIA, "Tesla T4", (7, 5), "580.65.06")
P100 = Card(NVIDIA, "Tesla P100-PCIE-16GB", (6, 0), "580.65.06")


def command(index: str, packages: str = "torch") -> str:
    where = f"https://download.pytorch.org/whl/{index}"
    return f"`pip install --force-reinstall {packages} --index-url {where}`"


# --- kernels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "arches", "runs"),
    [
        ((7, 5), CU130, True),
        ((8, 6), ("sm_80",), True),
        ((8, 9), CU130, True),
        ((8, 0), ("sm_86",), False),
        ((9, 0), ("sm_80", "sm_86"), False),
        ((12, 1), CU130, True),
        ((10, 3), ("sm_100a", "sm_120"), False),
        ((10, 0), ("sm_100a",), True),
        ((10, 3), ("sm_100f",), True),
        ((12, 0), (*CU126, "compute_90"), True),
        ((7, 0), ("compute_75",), False),
        ((12, 0), CU126, False),
        ((6, 0), CU130, False),
        ((6, 1), CU130, False),
        ((7, 0), CU130, False),
        ((6, 1), CU126, True),
        ((7, 0), CU126, True),
        ((6, 0), (), True),
        ((6, 0), ("something",), False),
    ],
)
def test_binary_code_runs_on_its_major_version_and_ptx_on_all_later(
    capability: tuple[int, int], arches: tuple[str, ...], runs: bool
) -> None:
    """As CUDA has it; a build that does not list anything is given the benefit of the doubt."""
    assert has_kernels(TorchDevice("Card", capability), arches) is runs


def test_amds_architectures_are_compared_by_name() -> None:
    """What follows a colon are features, which a build need not list."""
    card = TorchDevice("MI210", (9, 0), "gfx90a:sramecc+:xnack-")
    assert has_kernels(card, ("gfx906", "gfx90a"))
    assert not has_kernels(card, ("gfx906", "gfx1100"))


# --- NVIDIA -------------------------------------------------------------------------------------


def test_a_card_with_kernels_and_memory_is_usable() -> None:
    """Nothing is said."""
    assert why_unused(T4, SEEING) == ""
    assert why_unused(replace(T4, capability=(8, 9)), SEEING) == ""


@pytest.mark.parametrize(
    ("capability", "driver", "index"),
    [
        ((8, 6), "580.65.06", "cu130"),
        ((8, 6), "581.29", "cu130"),
        ((12, 0), "590.1", "cu130"),
        ((8, 6), "570.124.06", "cu126"),
        ((9, 0), "535.104.05", "cu126"),
        ((6, 1), "580.65.06", "cu126"),
        ((5, 2), "580.65.06", "cu126"),
        ((7, 0), "580.65.06", "cu126"),
        ((8, 6), "", "cu130"),
    ],
)
def test_beside_a_cpu_build_the_command_names_a_build_for_card_and_driver(
    capability: tuple[int, int], driver: str, index: str
) -> None:
    """Cards before Turing and drivers before 580 get CUDA 12.6, all others CUDA 13."""
    words = why_unused(Card(NVIDIA, "Card", capability, driver), CPU)
    assert words == (
        f"Card cannot be used: torch 2.13.0+cpu is built without CUDA; run {command(index)}"
    )


@pytest.mark.parametrize(
    ("driver", "index"),
    [("", "cu126"), ("570.1", "cu126"), ("580.1", "cu126"), ("595.2", "cu130")],
)
def test_a_card_that_nobody_names_gets_the_likeliest_build_and_a_place_to_check(
    driver: str, index: str
) -> None:
    """Without a capability the driver decides: from 590 on it runs no card older than Turing."""
    words = why_unused(Card(NVIDIA, "an NVIDIA card", driver=driver), CPU)
    assert f"run {command(index)}, or check https://pytorch.org/get-started" in words


def test_other_processors_are_told_to_check() -> None:
    """The builds for Arm have kernels for other cards."""
    words = why_unused(T4, replace(CPU, platform="Linux aarch64"))
    assert words.endswith("or check https://pytorch.org/get-started/locally/")


def test_torchvision_and_torchaudio_are_installed_along() -> None:
    """They are of torch's own build, and break beside another one."""
    facts = replace(CPU, packages=("torchvision", "torchaudio"))
    assert command("cu130", "torch torchvision torchaudio") in why_unused(T4, facts)


@pytest.mark.parametrize(
    "build", [BLIND, replace(BLIND, version="2.14.1", cuda="13.2")], ids=["cu130", "cu132"]
)
def test_a_driver_that_is_too_old_is_named_with_the_one_that_is_needed(build: TorchFacts) -> None:
    """Colab's image: driver 570 beside a build for CUDA 13."""
    words = why_unused(replace(T4, driver="570.86.15"), build)
    assert words == (
        f"Tesla T4 cannot be used: torch {build.version} is built for CUDA {build.cuda}, which needs "
        f"driver 580 or newer, and driver 570.86.15 is installed; run {command('cu126')}"
    )


def test_blackwell_under_an_old_driver_needs_the_driver() -> None:
    """No current build for CUDA 12 has kernels for it, so there is nothing else to install."""
    card = Card(NVIDIA, "RTX 5090", (12, 0), "570.86.15")
    words = why_unused(card, BLIND)
    assert words.endswith("; update the driver to 580 or newer (https://www.nvidia.com/drivers)")
    assert why_unused(card, CPU).endswith(f"drivers), then run {command('cu130')}")


def test_a_driver_before_cuda_12_is_updated_first() -> None:
    """Driver 470 runs no build of today."""
    words = why_unused(replace(P100, driver="470.1"), CPU)
    where = "https://www.nvidia.com/drivers"
    assert words.endswith(
        f"update the driver to 525 or newer ({where}), then run {command('cu126')}"
    )


@pytest.mark.parametrize(
    ("name", "capability", "dotted"),
    [("Tesla P100-PCIE-16GB", (6, 0), "6.0"), ("NVIDIA GeForce GTX 1080", (6, 1), "6.1"),
     ("Tesla V100-SXM2-16GB", (7, 0), "7.0")],
)  # fmt: skip
def test_a_card_without_kernels_is_told_which_build_has_them(
    name: str, capability: tuple[int, int], dotted: str
) -> None:
    """Pascal and Volta beside a build for CUDA 13."""
    words = why_unused(Card(NVIDIA, name, capability, "580.65.06"), SEEING)
    assert words == (
        f"{name} cannot be used: torch 2.14.1+cu130 has no kernels for its compute capability {dotted}, "
        f"only for {', '.join(CU130)}; run {command('cu126')}"
    )


def test_a_command_that_would_change_nothing_is_not_given() -> None:
    """Where the build for CUDA 12.6 itself has lost the kernels, older ones are pointed to."""
    facts = replace(SEEING, version="2.15.0+cu126", cuda="12.6")
    words = why_unused(P100, facts)
    assert "pip install" not in words
    assert "previous-versions" in words


def test_kepler_has_no_build_any_more() -> None:
    """There is nothing to install, and that is said."""
    words = why_unused(Card(NVIDIA, "Tesla K80", (3, 7), "470.1"), CPU)
    assert "no build of torch has kernels for compute capability 3.7" in words
    assert "pip install" not in words


def test_blackwell_beside_a_build_for_cuda_12_6_gets_cuda_13() -> None:
    """The other direction: too new for the build."""
    facts = replace(SEEING, version="2.13.0+cu126", cuda="12.6", arches=CU126)
    words = why_unused(Card(NVIDIA, "RTX 5090", (12, 0), "580.65.06"), facts)
    assert words.endswith(f"run {command('cu130')}")


def test_a_container_without_the_card_is_told_the_option() -> None:
    """The host's driver is visible, its device files are not."""
    words = why_unused(Card(NVIDIA, "an NVIDIA card", driver="580.1", reachable=False), BLIND)
    assert "--gpus all" in words


def test_a_card_without_its_driver_is_told_where_to_get_it() -> None:
    """nouveau drives the screen, and no computation."""
    words = why_unused(Card(NVIDIA, "an NVIDIA card", reachable=False), CPU)
    assert "driver is not loaded; install it (https://www.nvidia.com/drivers)" in words


def test_what_torch_says_itself_is_passed_on() -> None:
    """Build and driver fit, and still there is no card."""
    words = why_unused(T4, replace(BLIND, complaint="CUDA_VISIBLE_DEVICES is ''"))
    assert "does not see it (CUDA_VISIBLE_DEVICES is '')" in words
    assert "`nvidia-smi`" in words
    assert "does not see it; check" in why_unused(T4, BLIND)
    assert "does not see it; check" in why_unused(replace(T4, driver=""), BLIND)


def test_a_card_that_cannot_be_opened_is_told_with_torchs_words() -> None:
    """Kernels are there, but the memory cannot be read."""
    words = why_unused(T4, replace(SEEING, complaint="CUDA error: out of memory"))
    assert "cannot open it (CUDA error: out of memory)" in words


# --- others -------------------------------------------------------------------------------------


def test_an_nvidia_card_beside_a_rocm_build_gets_a_cuda_build() -> None:
    """torch calls both kinds `cuda`; the build decides whose they are."""
    facts = TorchFacts("2.13.0+rocm7.2", hip="7.2", kind="cuda")
    assert f"is built without CUDA; run {command('cu130')}" in why_unused(T4, facts)


def test_an_amd_card_beside_a_cuda_build_gets_a_rocm_build() -> None:
    """With a place to check, for ROCm's versions are many."""
    words = why_unused(Card(AMD, "an AMD card"), BLIND)
    assert words == (
        "an AMD card cannot be used: torch 2.14.1+cu130 is built without ROCm; "
        f"run {command('rocm7.2')}, or check https://pytorch.org/get-started/locally/"
    )


def test_an_amd_card_that_a_rocm_build_does_not_see_is_a_matter_of_groups() -> None:
    """Only members of two groups may open /dev/kfd."""
    facts = TorchFacts("2.13.0+rocm7.2", hip="7.2")
    assert "groups render and video" in why_unused(Card(AMD, "an AMD card"), facts)


def test_an_amd_card_without_kernels_is_told_its_architecture() -> None:
    """gfx1031 beside a build for gfx1030; a card that the build knows is usable."""
    facts = TorchFacts(
        "2.13.0+rocm7.2", hip="7.2", kind="cuda", arches=("gfx1030",),
        devices=(TorchDevice("RX 6700", (10, 3), "gfx1031"), TorchDevice("RX 6800", arch="gfx1030")),
    )  # fmt: skip
    assert "no kernels for its architecture gfx1031" in why_unused(Card(AMD, "RX 6700"), facts)
    assert why_unused(Card(AMD, "RX 6800"), facts) == ""
    taken = replace(facts, complaint="HIP error")
    assert "cannot open it (HIP error)" in why_unused(Card(AMD, "RX 6800"), taken)


def test_an_intel_card_is_told_the_build_or_the_driver() -> None:
    """Without XPU in the build the index, with it the driver."""
    card = Card(INTEL, "an Intel card")
    assert f"is built without XPU; run {command('xpu')}" in why_unused(card, CPU)
    built = TorchFacts("2.13.0+xpu", xpu="20250302")
    assert "install Intel's driver" in why_unused(card, built)
    assert why_unused(card, replace(built, kind="xpu")) == ""
    assert "cannot open it (no)" in why_unused(card, replace(built, kind="xpu", complaint="no"))


def test_the_apple_gpu_is_told_macos() -> None:
    """Every build for macOS has Metal; an old system has not."""
    card = Card(APPLE, "the Apple GPU")
    assert "update macOS" in why_unused(card, TorchFacts("2.13.0", platform="Darwin arm64"))
    assert why_unused(card, TorchFacts("2.13.0", kind="mps")) == ""
