"""Which accelerator torch can use: a stand-in for torch in the child, made-up file trees around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from runs import plan_of

import lowmem_if as lm
from lowmem_if.cli.main import main
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.errors import DeviceError
from lowmem_if.hardware import accelerator, cards, profiles
from lowmem_if.hardware.accelerator import Accelerator, read_accelerator
from lowmem_if.hardware.machine import Machine, probe
from lowmem_if.hardware.torch_build import TorchAnswer, TorchFacts

GB = 10**9

TORCH = """
import sys, types
__version__ = {version!r}
CARDS = {cards!r}
version = types.SimpleNamespace(cuda={cuda!r}, hip={hip!r}, xpu=None)
class accelerator:
    is_available = staticmethod(lambda: {kind!r} != "")
    current_accelerator = staticmethod(lambda: types.SimpleNamespace(type={kind!r}))
    device_count = staticmethod(lambda: len(CARDS))
    def get_memory_info(n):
        if {broken!r}:
            raise RuntimeError("CUDA error: out of memory\\nsecond line")
        return 5_000_000_000 + n, 8_000_000_000
def no_driver():
    raise RuntimeError("The NVIDIA driver on your system is too old\\nsecond line")
class cuda:
    init = staticmethod(no_driver)
    get_arch_list = staticmethod(lambda: {arches!r})
    get_device_properties = staticmethod(lambda n: types.SimpleNamespace(
        name=CARDS[n][0], major=CARDS[n][1], minor=CARDS[n][2], gcnArchName=CARDS[n][-1]))
class xpu:
    get_device_properties = staticmethod(lambda n: types.SimpleNamespace(name=CARDS[n][0]))
class mps:
    recommended_max_memory = staticmethod(lambda: 11_000_000_000)
    driver_allocated_memory = staticmethod(lambda: 1_000_000_000)
{last}
"""
CUDA_13 = {"version": "2.14.1+cu130", "cuda": "13.0", "arches": ["sm_75", "sm_80", "sm_120"]}
T4, P100 = ("Tesla T4", 7, 5), ("Tesla P100", 6, 0)
TO_CUDA_12 = (
    "`pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126`"
)

Install = Callable[..., None]


@pytest.fixture
def torch_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """Let the child import a stand-in for torch."""

    def install(**facts: object) -> None:
        without: dict[str, object] = {
            "version": "2.13.0+cpu", "cuda": None, "hip": None, "kind": "", "cards": [],
            "arches": [], "broken": False, "last": "",
        }  # fmt: skip
        (tmp_path / "path").mkdir(exist_ok=True)
        (tmp_path / "path/torch.py").write_text(TORCH.format(**without | facts))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"), prepend=os.pathsep)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return install


def nvidia(root: Path, line: str) -> Path:
    """A system with NVIDIA's driver, whose `nvidia-smi` prints this."""
    tool = root / "usr/bin/nvidia-smi"
    for folder in (tool.parent, root / "dev"):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "dev/nvidia0").touch()
    tool.write_text(f'#!/bin/sh\necho "{line}"\n')
    tool.chmod(0o755)
    return root


# --- the accelerator ----------------------------------------------------------------------------


def test_name_memory_and_number_are_torchs(torch_is: Install, tmp_path: Path) -> None:
    """The second of two cards, with what the driver says is free of it."""
    torch_is(**CUDA_13, kind="cuda", cards=[T4, T4])
    found = Accelerator("cuda:1", "Tesla T4", 8 * GB, 5 * GB + 1, (7, 5), 2)
    assert read_accelerator("cuda:1", tmp_path) == (found, ())


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_auto_and_the_bare_kind_take_the_first(
    torch_is: Install, tmp_path: Path, device: str
) -> None:
    """Both mean number 0 where torch can use it."""
    torch_is(**CUDA_13, kind="cuda", cards=[T4, T4])
    found = Accelerator("cuda:0", "Tesla T4", 8 * GB, 5 * GB, (7, 5), 2)
    assert read_accelerator(device, tmp_path) == (found, ())


def test_an_xpu_is_taken(torch_is: Install, tmp_path: Path) -> None:
    """Intel's have no compute capability."""
    torch_is(version="2.13.0+xpu", kind="xpu", cards=[("Arc",)])
    found = Accelerator("xpu:0", "Arc", 8 * GB, 5 * GB)
    assert read_accelerator("auto", tmp_path) == (found, ())


def test_on_apple_the_recommended_share_counts(torch_is: Install, tmp_path: Path) -> None:
    """Metal's recommended working set less what is allocated is what may be used."""
    torch_is(kind="mps", cards=[("M1",)])
    found, unused = read_accelerator("mps", tmp_path)
    assert found is not None
    assert (found.device, found.total_bytes, found.free_bytes) == ("mps", 11 * GB, 10 * GB)
    assert unused == ()


def test_the_asking_process_never_imports_torch(torch_is: Install, tmp_path: Path) -> None:
    """A CUDA context that CUDA makes to say what is free would stay in a notebook's process."""
    torch_is(**CUDA_13, kind="cuda", cards=[T4])
    code = (
        "import sys; from lowmem_if.hardware.accelerator import read_accelerator as r;"
        "found, _ = r('cuda'); assert found.name == 'Tesla T4'; assert 'torch' not in sys.modules;"
        "import torch; torch.accelerator.get_memory_info = None; found, _ = r('cuda')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_chatter_of_torch_does_not_hide_the_answer(torch_is: Install, tmp_path: Path) -> None:
    """Lines that a library prints before the answer are skipped, on either stream."""
    torch_is(
        **CUDA_13, kind="cuda", cards=[T4],
        last='print("hello from a plugin"); sys.stderr.write("UserWarning: old\\n")',
    )  # fmt: skip
    found, _ = read_accelerator("cuda", tmp_path)
    assert found is not None
    assert found.name == "Tesla T4"


# --- nothing there, or something else -----------------------------------------------------------


def test_torch_without_an_accelerator_is_no_error_for_auto(
    torch_is: Install, tmp_path: Path
) -> None:
    """`auto` on a CPU build of torch finds nothing, and without a card there is nothing to say."""
    torch_is()
    assert read_accelerator("auto", tmp_path) == (None, ())


@pytest.mark.parametrize(("kind", "here"), [("", "no accelerator"), ("xpu", "xpu")])
def test_a_kind_that_is_not_here_is_refused(
    torch_is: Install, tmp_path: Path, kind: str, here: str
) -> None:
    """The error says which kind is missing, what torch sees instead, and what to use."""
    torch_is(kind=kind, cards=[("Arc",)])
    with pytest.raises(DeviceError, match=f"^there is no cuda device here.*{here}.*--device cpu"):
        read_accelerator("cuda", tmp_path)


def test_a_number_beyond_the_last_device_is_refused(torch_is: Install, tmp_path: Path) -> None:
    """`cuda:2` with two cards names how many there are and one that is there."""
    torch_is(**CUDA_13, kind="cuda", cards=[T4, T4])
    with pytest.raises(DeviceError, match=r"^there is no cuda:2 here, only 2 .*--device cuda:0"):
        read_accelerator("cuda:2", tmp_path)


def test_a_torch_that_cannot_be_imported_is_reported_in_one_line(
    torch_is: Install, tmp_path: Path
) -> None:
    """A broken torch is a DeviceError that quotes its last line and offers the CPU."""
    torch_is(last="raise OSError('libcudart.so.13 not found')")
    with pytest.raises(DeviceError, match=r"libcudart\.so\.13 not found.*--device cpu") as caught:
        read_accelerator("auto", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_torch_that_hangs_is_given_up(
    torch_is: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that does not answer ends in words, not in a command that never ends."""
    torch_is(last="import time; time.sleep(60)")
    monkeypatch.setattr(accelerator, "_TIMEOUT_S", 0.2)
    with pytest.raises(DeviceError, match=r"has not answered.*--device cpu"):
        read_accelerator("auto", tmp_path)


# --- cards that torch cannot use ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "smi", "words"),
    [
        ({}, "Tesla T4, 570.1, 7.5", "torch 2.13.0+cpu is built without CUDA"),
        (CUDA_13, "Tesla T4, 570.1, 7.5", "needs driver 580 or newer, and driver 570.1 is installed"),
        (CUDA_13 | {"kind": "cuda", "cards": [P100]}, "Tesla P100, 580.1, 6.0",
         "torch 2.14.1+cu130 has no kernels for its compute capability 6.0"),
    ],
    ids=["CPU build", "old driver", "no kernels"],
)  # fmt: skip
def test_a_card_that_torch_cannot_use_is_reported(
    torch_is: Install, tmp_path: Path, facts: dict[str, object], smi: str, words: str
) -> None:
    """`auto` takes the CPU with a note, `cuda` refuses in the same words; both give the command."""
    torch_is(**facts)
    machine = probe(root=nvidia(tmp_path, smi))
    assert (machine.device, machine.vram_bytes) == ("cpu", 0)
    (note,) = machine.unused
    assert machine.notes[0] == note
    assert note.startswith(smi.split(",")[0])
    assert words in note
    assert note.endswith(f"run {TO_CUDA_12}")
    for device in ("cuda", "cuda:0"):
        with pytest.raises(DeviceError) as caught:
            probe(device, root=tmp_path)
        assert str(caught.value) == f"{note}; or use --device cpu"


def test_torchs_own_words_reach_the_note(torch_is: Install, tmp_path: Path) -> None:
    """Where build and driver fit, its first line says more than we know."""
    torch_is(**CUDA_13)
    _, (note,) = read_accelerator("auto", nvidia(tmp_path, "Tesla T4, 590.1, 7.5"))
    assert "(The NVIDIA driver on your system is too old)" in note


def test_a_hidden_card_is_reported_as_hidden(
    torch_is: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable that hides it is named with its value."""
    torch_is(**CUDA_13)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    _, (note,) = read_accelerator("auto", nvidia(tmp_path, "Tesla T4, 590.1, 7.5"))
    assert "CUDA_VISIBLE_DEVICES is '-1'" in note


def test_a_card_whose_memory_cannot_be_read_is_reported(torch_is: Install, tmp_path: Path) -> None:
    """torch lists it and cannot open it: a note for `auto`, an error for `cuda`."""
    torch_is(**CUDA_13, kind="cuda", cards=[T4], broken=True)
    found, (note,) = read_accelerator("auto", tmp_path)
    assert found is None
    assert "cannot open it (CUDA error: out of memory)" in note
    with pytest.raises(DeviceError, match="out of memory"):
        read_accelerator("cuda:0", tmp_path)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_second_card_with_kernels_is_taken_and_the_first_is_reported(
    torch_is: Install, tmp_path: Path, device: str
) -> None:
    """A P100 in front of a T4: the T4 works, and the P100 is not passed over in silence."""
    torch_is(**CUDA_13, kind="cuda", cards=[P100, T4])
    found, (note,) = read_accelerator(device, tmp_path)
    assert found is not None
    assert (found.device, found.name) == ("cuda:1", "Tesla T4")
    assert note.startswith("Tesla P100 cannot be used")
    assert read_accelerator("cuda:1", tmp_path) == (found, ())
    with pytest.raises(DeviceError, match="Tesla P100 cannot be used"):
        read_accelerator("cuda:0", tmp_path)


def test_graphics_of_an_intel_processor_do_not_hide_an_nvidia_card(
    torch_is: Install, tmp_path: Path
) -> None:
    """A build for XPU runs on them; that another build would run on the card is said."""
    torch_is(version="2.13.0+xpu", kind="xpu", cards=[("UHD",)])
    nvidia(tmp_path, "RTX 3060, 590.1, 8.6")
    found, (note,) = read_accelerator("auto", tmp_path)
    assert found is not None
    assert found.device == "xpu:0"
    assert note.startswith("RTX 3060 cannot be used: torch 2.13.0+xpu is built without CUDA")


def test_a_card_in_use_is_not_asked_about_again(
    torch_is: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torch can use the first card, `nvidia-smi` is not started."""
    torch_is(**CUDA_13, kind="cuda", cards=[T4])
    monkeypatch.setattr(accelerator, "cards", lambda root: pytest.fail("cards were looked for"))
    for device in ("auto", "cuda", "cuda:0"):
        assert read_accelerator(device, tmp_path)[0] is not None


def test_the_drivers_version_decides_for_a_card_that_torch_sees(
    torch_is: Install, tmp_path: Path
) -> None:
    """torch does not tell it: a Blackwell card beside a build for CUDA 12.6 needs a driver first."""
    old = {"version": "2.14.1+cu126", "cuda": "12.6", "arches": ["sm_75", "sm_80"]}
    torch_is(**old, kind="cuda", cards=[("RTX 5090", 12, 0)])
    _, (note,) = read_accelerator("auto", nvidia(tmp_path, "RTX 5090, 570.1, 12.0"))
    assert "update the driver to 580 or newer" in note


def test_a_card_that_torch_names_is_not_reported_without_a_name(
    torch_is: Install, tmp_path: Path
) -> None:
    """Without `nvidia-smi` the system knows of a card only; it is the one that torch names."""
    torch_is(**CUDA_13, kind="cuda", cards=[P100])
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    _, (note,) = read_accelerator("auto", tmp_path)
    assert note.startswith("Tesla P100 cannot be used")


def test_an_amd_card_that_torch_sees_is_reported_once(torch_is: Install, tmp_path: Path) -> None:
    """By torch's name of it, not again by the system's."""
    torch_is(
        version="2.13.0+rocm7.2", hip="7.2", kind="cuda", arches=["gfx1030"],
        cards=[("RX 6700", 10, 3, "gfx1031")],
    )  # fmt: skip
    device = tmp_path / "sys/class/drm/renderD128/device"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x1002\n")
    (device / "mem_info_vram_total").write_text(f"{12 * 2**30}\n")
    (tmp_path / "dev/dri").mkdir(parents=True)
    (tmp_path / "dev/dri/renderD128").touch()
    _, (note,) = read_accelerator("auto", tmp_path)
    assert note.startswith("RX 6700 cannot be used: torch 2.13.0+rocm7.2 has no kernels")


def test_two_equal_cards_are_reported_once(torch_is: Install, tmp_path: Path) -> None:
    """One sentence is enough for both."""
    torch_is(**CUDA_13, kind="cuda", cards=[P100, P100])
    assert len(read_accelerator("auto", tmp_path)[1]) == 1


# --- on the command line ------------------------------------------------------------------------


@pytest.fixture
def card_unused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """This machine with a T4 beside a CPU build; returns the note. Workers run the real torch."""
    root = nvidia(tmp_path / "root", "Tesla T4, 580.1, 7.5")
    monkeypatch.setattr(profiles, "probe", partial(probe, root=root))
    monkeypatch.setattr(accelerator, "_ask_torch", lambda _: TorchAnswer(TorchFacts("2.13.0+cpu")))
    monkeypatch.setattr(cards.sys, "platform", "linux")
    (note,) = probe(root=root).unused
    return note


def test_probe_prints_the_note_in_one_line(
    card_unused: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that is broken over lines cannot be copied; JSON has the note, too."""
    assert main(["probe"]) == 0
    assert f"note: {card_unused}\n" in capsys.readouterr().out
    assert main(["probe", "--json"]) == 0
    machine = json.loads(capsys.readouterr().out)
    assert machine["notes"][0] == card_unused
    assert machine["device"] == "cpu"


def test_plan_prints_the_note_beside_the_plan(
    card_unused: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once on standard error, and in the plan itself, as text and as JSON."""
    assert main(["plan", "x"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [f"note: {card_unused}"]
    assert f"note: {card_unused}\n" in captured.out
    assert main(["plan", "x", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [f"note: {card_unused}"]
    assert json.loads(captured.out)["machine"]["notes"][0] == card_unused


def test_a_plan_that_does_not_fit_prints_the_note_once(
    card_unused: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reason for too little memory may be the card that is not used."""
    assert main(["plan", "x", "--ram", "100MB"]) == 1
    assert capsys.readouterr().err.count(card_unused) == 1


def test_asking_for_the_card_ends_with_the_same_words(
    card_unused: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--device cuda` is a known error in one line."""
    assert main(["plan", "x", "--device", "cuda"]) == 1
    assert capsys.readouterr().err == f"error: {card_unused}; or use --device cpu\n"


@pytest.mark.worker
def test_generate_prints_the_note_and_keeps_it(
    card_unused: str, tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It stands on standard error before the run, and among the notices of the run folder."""
    arguments = ["generate", "x", "--cascade", str(tiny), "--size", "64", "--steps", "1", "--json"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    captured = capfd.readouterr()
    assert f"note: {card_unused}\n" in captured.err
    assert captured.err.count(card_unused) == 1
    assert json.loads(captured.out)["notices"][0] == card_unused


@pytest.mark.worker
def test_a_run_in_python_reports_the_note(card_unused: str, tiny: Path, tmp_path: Path) -> None:
    """As an event, and in the result."""
    events: list[lm.Event] = []
    result = lm.generate(
        "x", cascade=str(tiny), size=64, steps=1, out=tmp_path / "run", report=events.append
    )
    assert result.notices[0] == card_unused
    assert [event.text for event in events if event.kind == "notice"] == [card_unused]


def test_fetch_says_it_too(card_unused: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Other files are needed for the CPU than for the card."""
    assert main(["fetch", "demo"]) == 0
    assert card_unused in capsys.readouterr().err


def test_a_plan_with_the_note_is_read_back(card_unused: str, tiny: Path, tmp_path: Path) -> None:
    """The run folder keeps the machine with its notes."""
    machine, _ = profiles.choose_machine()
    assert isinstance(machine, Machine)
    plan = lm.make_plan(machine, plan_of(tiny, size=64).request)
    folder = RunFolder.for_plan(tmp_path / "run", plan)
    assert RunFolder.open(folder.path).plan.machine.unused == (card_unused,)
