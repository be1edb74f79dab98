"""What the machine is said to have: made-up file trees, made-up readings, a stand-in for torch."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_if.errors import DeviceError, DoesNotFit
from lowmem_if.hardware import machine as module
from lowmem_if.hardware.accelerator import Accelerator
from lowmem_if.hardware.cards import looks_present
from lowmem_if.hardware.machine import (
    Machine,
    accelerator_compute_dtype,
    cpu_compute_dtype,
    probe,
    with_budget,
)
from lowmem_if.planning.estimates.memory import headroom
from lowmem_if.planning.plan import make_plan
from lowmem_if.request.build import make_request
from lowmem_if.system.host import segments_expand

GB = 10**9
T4 = Accelerator("cuda:0", "Tesla T4", 15 * GB, 14 * GB, (7, 5))


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """16 GB of RAM of which 10 are available, and an empty Hugging Face cache."""
    ram(monkeypatch, 16 * GB, 10 * GB)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no" / "hub"))


def ram(monkeypatch: pytest.MonkeyPatch, total: int, available: int) -> None:
    reading = SimpleNamespace(total=total, available=available)
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: reading)


def has(monkeypatch: pytest.MonkeyPatch, found: Accelerator | None) -> None:
    """Let probe() see this accelerator, with segments that expand."""
    monkeypatch.setattr(module, "segments_expand", lambda root: True)
    monkeypatch.setattr(module, "looks_present", lambda root: True)
    monkeypatch.setattr(module, "read_accelerator", lambda device, root: (found, ()))


def cpuinfo(root: Path, flags: str, *, key: str = "flags\t\t") -> Path:
    """A system whose CPU lists these flags."""
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text(
        f"processor\t: 0\nvmx flags\t: bf16 avx512_bf16\n{key}: {flags}\nbugs\t\t: bf16\n"
    )
    return root


# --- the number type of a CPU -------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_cpu_with_bfloat16_units_computes_in_bfloat16(tmp_path: Path, flag: str) -> None:
    """x86 and Arm CPUs that list a bfloat16 feature use it, and the reason names the feature."""
    key = "Features\t" if flag == "bf16" else "flags\t\t"
    machine = probe("cpu", root=cpuinfo(tmp_path, f"fpu sse2 avx2 {flag} last", key=key))
    assert machine.compute_dtype == "bfloat16"
    assert flag in machine.compute_dtype_reason


@pytest.mark.parametrize("flags", ["fpu sse2 avx2 f16c", "avx512f avx512_fp16", "fphp asimdhp", ""])
def test_a_cpu_without_bfloat16_units_computes_in_float32(tmp_path: Path, flags: str) -> None:
    """Without a bfloat16 feature it is float32, half precision units or not, and the reason says so."""
    machine = probe("cpu", root=cpuinfo(tmp_path, flags))
    assert machine.compute_dtype == "float32"
    assert "no bfloat16" in machine.compute_dtype_reason
    assert "float16 is some 400 times slower" in machine.compute_dtype_reason


def test_a_system_without_cpuinfo_computes_in_float32(tmp_path: Path) -> None:
    """macOS and Windows list no features: float32, no crash."""
    assert probe("cpu", root=tmp_path).compute_dtype == "float32"


def test_cpuinfo_that_is_no_text_is_survived(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 in the list of features do no harm."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_bytes(b"model name : \xff\xfe\nflags : avx2 amx_bf16 \xff\n")
    assert probe("cpu", root=tmp_path).compute_dtype == "bfloat16"


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(
    st.frozensets(
        st.sampled_from(["avx2", "f16c", "avx512_fp16", "amx_fp16", "fphp", "bf16", "amx_bf16"])
    )
)
def test_no_cpu_ever_computes_in_float16(features: frozenset[str]) -> None:
    """float16 on a CPU is some 400 times slower than bfloat16: it is never chosen."""
    dtype, reason = cpu_compute_dtype(features)
    assert dtype in ("bfloat16", "float32")
    assert (dtype == "bfloat16") == bool(features & {"bf16", "amx_bf16"})
    assert reason


# --- the number type of an accelerator ----------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "capability", "dtype"),
    [
        ("cuda", (7, 5), "float16"),  # T4
        ("cuda", (7, 0), "float16"),  # V100
        ("cuda", (8, 6), "float16"),
        ("cuda", (12, 0), "float16"),
        ("cuda", (6, 0), "float16"),  # P100, the one Pascal with fast float16
        ("cuda", (6, 1), "float32"),  # GTX 10
        ("cuda", (5, 2), "float32"),
        ("mps", (0, 0), "float16"),
        ("xpu", (0, 0), "float16"),
    ],
)
def test_an_accelerator_computes_in_the_weights_own_type_unless_it_crawls(
    kind: str, capability: tuple[int, int], dtype: str
) -> None:
    """float16 wherever the hardware is fast at it, float32 on the cards that are not."""
    chosen, reason = accelerator_compute_dtype(kind, capability)
    assert chosen == dtype
    assert reason


def test_a_t4_is_told_that_bfloat16_came_with_ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a T4 the type is float16, and the reason says why not bfloat16."""
    has(monkeypatch, T4)
    machine = probe()
    assert machine.compute_dtype == "float16"
    assert "Ampere" in machine.compute_dtype_reason
    assert "Ampere" not in accelerator_compute_dtype("cuda", (8, 6))[1]


def test_a_slow_card_is_told_which_capability_it_has() -> None:
    """The reason for float32 names the compute capability that was read."""
    assert "6.1" in accelerator_compute_dtype("cuda", (6, 1))[1]


# --- RAM and disk -------------------------------------------------------------------------------


def limit(root: Path, size: int, used: int) -> str:
    """A control group limit on the way to this process; returns its folder."""
    folder = root / "sys/fs/cgroup/app"
    folder.mkdir(parents=True)
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/self").mkdir()
    (root / "proc/self/cgroup").write_text("0::/app\n")
    (folder / "memory.max").write_text(f"{size}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    return str(folder)


def test_ram_is_what_is_available_not_what_is_built_in(tmp_path: Path) -> None:
    """Outside of a container the readings of the system are taken as they are."""
    machine = probe("cpu", root=tmp_path)
    assert (machine.ram_bytes, machine.ram_total_bytes) == (10 * GB, 16 * GB)
    assert machine.notes == ()


def test_the_containers_limit_counts_and_is_told(tmp_path: Path) -> None:
    """A tighter control group sets both RAM figures, and a note names its limit and its folder."""
    folder = limit(tmp_path, 4 * GB, GB)
    machine = probe("cpu", root=tmp_path)
    assert (machine.ram_bytes, machine.ram_total_bytes) == (3 * GB, 4 * GB)
    assert any("4.0 GB" in note and folder in note for note in machine.notes)


def test_a_limit_wider_than_what_is_free_changes_nothing(tmp_path: Path) -> None:
    """Where the host has less left than the container may use, the host's figure counts."""
    limit(tmp_path, 15 * GB, GB)
    machine = probe("cpu", root=tmp_path)
    assert (machine.ram_bytes, machine.ram_total_bytes) == (10 * GB, 15 * GB)
    assert machine.notes == ()


def test_more_ram_available_than_there_is_is_cut_and_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A reading of more available than total (seen in some containers) is distrusted in a note."""
    ram(monkeypatch, 8 * GB, 9 * GB)
    machine = probe("cpu", root=tmp_path)
    assert machine.ram_bytes == 8 * GB
    assert machine.notes


def test_no_ram_available_at_all_is_survived(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A reading of nothing available is passed on; the planner then says what does not fit."""
    ram(monkeypatch, 8 * GB, 0)
    assert probe("cpu", root=tmp_path).ram_bytes == 0


def test_disk_is_measured_where_the_cache_will_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The cache folder need not exist yet: its nearest existing parent tells the free bytes."""
    asked: list[Path] = []

    def usage(folder: Path) -> SimpleNamespace:
        asked.append(Path(folder))
        return SimpleNamespace(free=123)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert probe("cpu", root=tmp_path).disk_free_bytes == 123
    assert asked == [tmp_path]


# --- accelerators -------------------------------------------------------------------------------


def test_without_signs_of_an_accelerator_nothing_asks_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`auto` on a machine without device files is the CPU, at once."""
    monkeypatch.setattr(module, "looks_present", lambda root: False)
    monkeypatch.setattr(module, "read_accelerator", lambda *_: pytest.fail("torch was asked"))
    machine = probe(root=tmp_path)
    assert (machine.device, machine.kind, machine.vram_bytes) == ("cpu", "cpu", 0)


def test_the_cpu_is_taken_when_asked_for_whatever_else_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`cpu` never asks about an accelerator."""
    monkeypatch.setattr(module, "looks_present", lambda root: True)
    monkeypatch.setattr(module, "read_accelerator", lambda *_: pytest.fail("torch was asked"))
    assert probe("cpu", root=tmp_path).device == "cpu"


def test_signs_without_a_card_end_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`auto` takes the CPU when there are device files but no accelerator, and says nothing."""
    has(monkeypatch, None)
    machine = probe(root=tmp_path)
    assert (machine.device, machine.notes, machine.unused) == ("cpu", (), ())


def test_the_number_of_cards_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run uses one of them, so the figures are those of one."""
    has(monkeypatch, replace(T4, count=2))
    machine = probe(root=tmp_path)
    assert (machine.devices, machine.vram_total_bytes) == (2, 15 * GB)


def test_an_accelerators_figures_are_taken_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Device, name and memory are the accelerator's, RAM stays the system's."""
    has(monkeypatch, T4)
    machine = probe(root=tmp_path)
    assert (machine.device, machine.kind, machine.device_name) == ("cuda:0", "cuda", "Tesla T4")
    assert (machine.vram_bytes, machine.vram_total_bytes) == (14 * GB, 15 * GB)
    assert machine.ram_bytes == 10 * GB
    assert not machine.unified
    assert machine.notes == ()


@pytest.mark.parametrize(
    ("free", "taken"), [(0, 0), (-5, 0), (16 * GB, 15 * GB), (15 * GB + 1, 15 * GB)]
)
def test_a_wrong_reading_of_vram_is_cut_and_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, taken: int
) -> None:
    """Nothing free, less than nothing, or more than there is: cut to sense, and a note shows it."""
    has(monkeypatch, replace(T4, free_bytes=free))
    machine = probe(root=tmp_path)
    assert machine.vram_bytes == taken
    assert any(str(free) in note and "cuda:0" in note for note in machine.notes)


def test_an_accelerator_without_any_memory_is_survived(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A total of 0 is passed on with a note."""
    has(monkeypatch, replace(T4, total_bytes=0, free_bytes=0))
    machine = probe(root=tmp_path)
    assert machine.vram_bytes == 0
    assert machine.notes


def test_on_apple_vram_is_no_more_than_ram(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Unified memory is one budget: the accelerator's share ends where the free RAM does."""
    has(monkeypatch, Accelerator("mps", "Apple arm64", 11 * GB, 11 * GB))
    machine = probe(root=tmp_path)
    assert machine.unified
    assert machine.vram_bytes == machine.ram_bytes == 10 * GB


@pytest.mark.parametrize(
    "device",
    ["gpu", "", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "mps:0", "cuda:0\n", "xpu0"],
)
def test_an_unknown_device_is_refused_with_the_known_ones(tmp_path: Path, device: str) -> None:
    """What is no device's name is a DeviceError of one line that lists the names."""
    with pytest.raises(DeviceError) as caught:
        probe(device, root=tmp_path)
    assert repr(device) in str(caught.value)
    assert all(name in str(caught.value) for name in ("auto", "cpu", "cuda:N", "mps", "xpu"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cuda", "cuda:3", "xpu", "mps"], ids="asked for {}".format)
def test_a_device_that_is_not_here_is_refused_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str
) -> None:
    """Asking for an accelerator on a machine without one says so and offers `--device cpu`."""
    monkeypatch.setattr(module, "looks_present", lambda root: False)
    with pytest.raises(DeviceError, match=f"there is no {device} device here.*--device cpu"):
        probe(device, root=tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="device files are Linux's")
@pytest.mark.parametrize(
    "sign",
    ["dev/nvidiactl", "dev/nvidia0", "dev/dxg", "dev/kfd", "proc/driver/nvidia/version",
     "dev/dri/renderD128"],
)  # fmt: skip
def test_device_files_are_signs_of_an_accelerator(tmp_path: Path, sign: str) -> None:
    """NVIDIA, WSL2, AMD and Intel leave a device file; without one there is nothing to ask about."""
    (tmp_path / "dev/dri").mkdir(parents=True)
    (tmp_path / "dev/dri/card0").touch()
    assert not looks_present(tmp_path)
    (tmp_path / sign).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / sign).touch()
    assert looks_present(tmp_path)


# --- budgets ------------------------------------------------------------------------------------


def test_a_budget_replaces_the_reading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Budgets below the readings are taken without a word."""
    has(monkeypatch, T4)
    machine = probe(ram_bytes=3 * GB, vram_bytes=5 * GB, root=tmp_path)
    assert (machine.ram_bytes, machine.vram_bytes) == (3 * GB, 5 * GB)
    assert machine.notes == ()


def test_a_budget_above_the_reading_is_taken_and_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The user's word counts even above the reading, and the note says what was read."""
    has(monkeypatch, T4)
    machine = probe(ram_bytes=12 * GB, vram_bytes=15 * GB, root=tmp_path)
    assert (machine.ram_bytes, machine.vram_bytes) == (12 * GB, 15 * GB)
    assert any("RAM" in note and "10.0 GB" in note for note in machine.notes)
    assert any("VRAM" in note and "14.0 GB" in note for note in machine.notes)


def test_no_budget_changes_nothing(tmp_path: Path) -> None:
    """Without a budget the machine stays equal to what was measured."""
    machine = probe("cpu", root=tmp_path)
    assert with_budget(machine) == machine


def test_a_budget_keeps_earlier_notes(tmp_path: Path) -> None:
    """A budget's note is added to those of the readings."""
    machine = replace(probe("cpu", root=tmp_path), notes=("before",))
    notes = with_budget(machine, ram_bytes=11 * GB).notes
    assert notes[0] == "before"
    assert len(notes) == 2


def test_a_machine_is_a_frozen_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two readings of the same state are equal, and nobody changes one in passing."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=123))
    first, second = probe("cpu", root=tmp_path), probe("cpu", root=tmp_path)
    assert first == second
    assert isinstance(first, Machine)
    with pytest.raises(AttributeError):
        first.ram_bytes = 1  # type: ignore[misc]


# --- readings that are wrong ---------------------------------------------------------------------


def plans(machine: Machine) -> bool:
    """Whether the planner answers with a plan or with a refusal in one line."""
    try:
        make_plan(machine, make_request(("a",), cascade="if-m", seed=(1,), size=64))
    except DoesNotFit as error:
        return "\n" not in str(error)
    return True


@pytest.mark.parametrize(
    "error", [PermissionError("no"), module.psutil.AccessDenied(), RuntimeError("no"), ValueError()]
)
def test_ram_that_cannot_be_read_is_none_and_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    """Without permission there is no RAM to plan with; a note says how to give what may be used."""

    def refuse() -> None:
        raise error

    monkeypatch.setattr(module.psutil, "virtual_memory", refuse)
    machine = probe("cpu", root=tmp_path)
    assert machine.ram_bytes == 0
    assert any("--ram" in note for note in machine.notes)
    assert plans(machine)
    assert probe("cpu", ram_bytes=8 * GB, root=tmp_path).ram_bytes == 8 * GB


@pytest.mark.parametrize(
    ("total", "available", "safe"),
    [(16 * GB, 20 * GB, 16 * GB), (16 * GB, -1, 0), (0, 5 * GB, 0), (-5, 3, 0)],
)
def test_ram_that_cannot_be_true_is_cut_and_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, total: int, available: int, safe: int
) -> None:
    """More available than there is, or less than nothing: the safe end is taken, the reading told."""
    ram(monkeypatch, total, available)
    machine = probe("cpu", root=tmp_path)
    assert machine.ram_bytes == safe
    assert str(available) in machine.notes[0]
    assert plans(machine)


@pytest.mark.parametrize(("free", "safe"), [(0, 0), (-1, 0), (99 * GB, 15 * GB)])
def test_vram_that_cannot_be_true_never_stops_the_planner(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, safe: int
) -> None:
    """No free VRAM, or more than there is: told, cut, and planned for or refused in words."""
    has(monkeypatch, replace(T4, free_bytes=free))
    machine = probe("cuda", root=tmp_path)
    assert machine.vram_bytes == safe
    assert any(str(free) in note for note in machine.notes)
    assert plans(machine)


def test_with_no_vram_at_all_the_cpu_is_proposed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A card that others have filled: the refusal computes that the CPU would do."""
    has(monkeypatch, replace(T4, free_bytes=0))
    with pytest.raises(DoesNotFit, match="Try --device cpu"):
        make_plan(
            probe("cuda", root=tmp_path), make_request(("a",), cascade="if-m", seed=(1,), size=64)
        )


def test_a_disk_that_cannot_be_read_is_full_and_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What cannot be asked has no room, and the plan is made all the same."""

    def refuse(folder: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    machine = probe("cpu", root=tmp_path)
    assert machine.disk_free_bytes == 0
    assert any("disk" in note for note in machine.notes)
    assert plans(machine)


@pytest.mark.parametrize("limit", ["max", "garbage", "-1", "\x00"])
def test_a_control_file_of_max_or_garbage_is_no_limit(tmp_path: Path, limit: str) -> None:
    """The group's file tells nothing, so the system's own reading counts."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a\n")
    (tmp_path / "sys/fs/cgroup/a").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/a/memory.max").write_text(limit)
    machine = probe("cpu", root=tmp_path)
    assert (machine.ram_bytes, machine.ram_total_bytes) == (10 * GB, 16 * GB)
    assert plans(machine)


# --- facts that change plans ---------------------------------------------------------------------


def test_windows_leaves_more_vram_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its driver lends RAM instead of failing: what would fill the card to its end is not planned."""
    has(monkeypatch, T4)
    here = probe("cuda", root=tmp_path)
    monkeypatch.setattr(module.sys, "platform", "win32")
    machine = probe("cuda", root=tmp_path)
    assert (here.spills_vram, machine.spills_vram) == (False, True)
    assert any("Windows" in note for note in machine.notes)
    request = make_request(("a",), cascade="if-xl", seed=(1,), size=64)
    needed = make_plan(here, request).step("stage_1").estimate.vram_bytes
    tight = needed + headroom("cuda:0")[0]
    plain, windows = (
        make_plan(replace(m, vram_bytes=tight), request).step("stage_1") for m in (here, machine)
    )
    assert (plain.config.strategy, windows.config.strategy) == ("resident", "stream")


@pytest.mark.parametrize(("sign", "keeps"), [("dev/nvidiactl", False), ("dev/kfd", True)])
def test_without_expandable_segments_plans_count_the_allocators_reserve(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sign: str, keeps: bool
) -> None:
    """On AMD's cards, WSL and Jetson torch keeps what it has freed; plans know, and say so."""
    has(monkeypatch, T4)
    monkeypatch.setattr(module, "segments_expand", segments_expand)
    monkeypatch.setattr("sys.platform", "linux")
    (tmp_path / sign).parent.mkdir()
    (tmp_path / sign).touch()
    machine = probe("cuda", root=tmp_path)
    assert (machine.keeps_reserve, machine.counts_reserve) == (keeps, keeps)
    assert any("segments" in note for note in machine.notes) == keeps


def test_wsl_pins_next_to_nothing_and_lends_ram(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The kernel of Windows' Linux is known by its name: transfers are unpinned, and VRAM spills."""
    has(monkeypatch, T4)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/version").write_text("Linux version 5.15.167.4-microsoft-standard-WSL2\n")
    machine = probe("cuda", root=tmp_path)
    assert (machine.pinned_bytes, machine.spills_vram, machine.counts_reserve) == (0, True, True)
    assert any("WSL" in note for note in machine.notes)
    assert machine.speeds.bus_bytes == machine.speeds.pageable_bytes
