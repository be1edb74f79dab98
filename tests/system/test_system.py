"""Each system's way gives the same results; the other systems' ways run here, by injection."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from runs import plan_of
from safetensors.torch import load_file

from lowmem_if.api.run import run
from lowmem_if.cascade import safetensors_header
from lowmem_if.cli import main as cli
from lowmem_if.engine import run_folder, session, worker_process
from lowmem_if.engine.run_folder import RunFolder
from lowmem_if.engine.worker_environment import worker_environment
from lowmem_if.errors import HubError, RunFolderError
from lowmem_if.system import channel, exit_codes, file_operations, host, paths, process_memory
from lowmem_if.weights import memory_readings as torch_memory
from lowmem_if.weights.files.atomic import write_bytes
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.hub import download, transfer
from lowmem_if.weights.modules import materialize

On = Callable[[str, ModuleType], None]


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> On:
    """Let one module take the way of another system."""

    def pretend(platform: str, module: ModuleType) -> None:
        monkeypatch.setattr(module, "sys", SimpleNamespace(platform=platform))

    return pretend


# --- files


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_bytes_are_read_from_where_they_are(on: On, tmp_path: Path, platform: str) -> None:
    """Positioned reads give the same bytes, whether the system has them or not."""
    on(platform, file_operations)
    (tmp_path / "file").write_bytes(bytes(range(100)))
    with (tmp_path / "file").open("rb") as stream:
        for offset, size in ((90, 20), (0, 5), (50, 1), (100, 3)):
            target = bytearray(size)
            count = file_operations.read_at(stream.fileno(), memoryview(target), offset)
            assert bytes(target[:count]) == bytes(range(100))[offset : offset + size]
        file_operations.drop_cached(stream.fileno())


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_a_checkpoint_knows_its_own_file(
    on: On, tiny: Path, platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that nobody touched is the one that was opened, even if `fstat` numbers it differently."""
    on(platform, file_operations)
    if platform == "win32":
        monkeypatch.setattr(file_operations, "os", SimpleNamespace(**vars(os) | {"fstat": None}))
    file = next((tiny / "stage_1/unet").glob("*.safetensors"))
    with Checkpoint((file,)) as checkpoint:
        checkpoint.check()


class Busy:
    """Raises `PermissionError` so many times, as Windows does while a scanner has the file open."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self) -> str:
        self.left -= 1
        if self.left >= 0:
            raise PermissionError(errno.EACCES, "another program has it open")
        return "done"


def test_windows_waits_for_who_has_a_file_open(on: On) -> None:
    """It is tried again for about a second, and then the error is raised."""
    on("win32", file_operations)
    assert file_operations.patiently(Busy(3)) == "done"
    begun = time.monotonic()
    with pytest.raises(PermissionError):
        file_operations.patiently(Busy(10**6))
    assert 0.3 < time.monotonic() - begun < 3
    with pytest.raises(FileNotFoundError):
        file_operations.patiently(lambda: Path("gone").replace("other"))


def test_elsewhere_a_refusal_is_final() -> None:
    """On POSIX nobody's reading keeps a file from being replaced."""
    busy = Busy(1)
    with pytest.raises(PermissionError):
        file_operations.patiently(busy)
    assert busy.left == 0


def test_a_file_is_written_although_a_scanner_has_it_open(
    on: On, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`write_bytes` survives it, and leaves nothing beside the file."""
    on("win32", file_operations)
    busy, rename = Busy(2), Path.replace

    def refuse(source: Path, target: Path) -> Path:
        busy()
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", refuse)
    write_bytes(tmp_path / "run.json", b"{}")
    assert busy.left == -1
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


class Msvcrt:
    """Windows' lock of a file's bytes: one holder, whoever opened it."""

    LK_NBLCK, LK_UNLCK = 2, 0
    held: int | None = None

    @classmethod
    def locking(cls, descriptor: int, mode: int, count: int) -> None:
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0
        assert count == 1
        if mode == cls.LK_UNLCK:
            cls.held = None
        elif cls.held is not None:
            raise OSError(errno.EACCES, "Permission denied")
        else:
            cls.held = descriptor


def test_a_run_folder_is_locked_on_windows(
    on: On, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second holder is refused, and the lock is free as soon as the first has let go."""
    on("win32", file_operations)
    monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt)
    folder = RunFolder.for_plan(tmp_path / "run", plan_of("demo", size=64))
    with folder.locked(), pytest.raises(RunFolderError, match="in use"), folder.locked():
        pass
    assert Msvcrt.held is None
    with folder.locked():
        pass


# --- paths


@pytest.mark.parametrize(
    ("absolute", "long"),
    [
        ("C:\\runs\\fox", "\\\\?\\C:\\runs\\fox"),
        ("\\\\server\\share\\fox", "\\\\?\\UNC\\server\\share\\fox"),
        ("\\\\?\\C:\\runs", "\\\\?\\C:\\runs"),
    ],
)
def test_long_paths_have_a_form_of_their_own(absolute: str, long: str) -> None:
    """Drives, network shares, and what has the form already."""
    assert paths.long_form(absolute) == long


def long_paths(monkeypatch: pytest.MonkeyPatch, *, work: bool) -> None:
    ntdll = SimpleNamespace(RtlAreLongPathsEnabled=lambda: 0x7F00 + work)
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: ntdll, raising=False)


def test_a_run_folder_leaves_room_for_its_files(on: On, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where Windows needs it a path gets the long form."""
    short, long = Path("/runs/fox"), Path("/runs") / ("x" * 200)
    assert paths.roomy(long) == long
    on("win32", paths)
    long_paths(monkeypatch, work=False)
    assert paths.roomy(short) == short
    assert str(paths.roomy(long)) == f"\\\\?\\{long}"
    long_paths(monkeypatch, work=True)
    assert paths.roomy(long) == long
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: object())  # an old Windows
    assert not paths.long_paths_work()


def test_everything_in_a_run_folder_goes_by_its_roomy_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made, opened and looked for: nothing uses the name that was given."""
    monkeypatch.setattr(run_folder, "roomy", lambda path: tmp_path / "other")
    folder = RunFolder.for_plan(tmp_path / "run", plan_of("demo", size=64))
    assert folder.path == tmp_path / "other"
    assert RunFolder.open(tmp_path / "run").path == tmp_path / "other"
    assert RunFolder.begun(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_path_that_is_too_long_is_told_with_what_to_do(
    on: On, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a download, and where a file seems to be missing."""
    long = Path("/hf") / ("x" * 150) / ("y" * 150)
    assert paths.too_long(long) == ""
    on("win32", paths)
    long_paths(monkeypatch, work=False)
    assert paths.too_long(Path("/hf/short")) == ""
    assert paths.too_long(Path("/hf") / ("x" * 250) / "y"), "its folder is too long"
    told = str(safetensors_header.unreadable(long, FileNotFoundError(2, "gone")))
    assert "305 characters" in told
    assert "HF_HOME" in told
    file = transfer.HubFile("a/b", "c" * 40, "x" * 200, 5)
    with pytest.raises(HubError, match="LongPathsEnabled"):
        download._check_paths([transfer.Download(file, "", "e" * 64)])
    long_paths(monkeypatch, work=True)
    assert paths.too_long(long) == ""


def test_paths_are_quoted_as_the_shell_wants_it(on: On) -> None:
    """cmd takes single quotes for a part of the name."""
    assert paths.quoted(Path("runs/a fox")) == "'runs/a fox'"
    assert "chmod" in paths.right_to_read()
    on("win32", paths)
    assert paths.quoted(Path("runs\\a fox")) == '"runs\\a fox"'
    assert paths.quoted(Path("runs\\fox")) == "runs\\fox"
    assert "chmod" not in paths.right_to_read()


# --- the worker's line


def test_a_pipe_carries_lines_until_it_is_closed(on: On) -> None:
    """Windows' way: no descriptors come along, and the end is the end."""
    on("win32", channel)
    line = channel.Channel()
    with Path(os.devnull).open("rb") as lock:
        line.send(b"one\n", lock.fileno())
    line.send(b"x" * 9000 + b"\n")
    line.close()
    assert list(channel.received(line.far_end)) == [(b"one\n", None), (b"x" * 9000 + b"\n", None)]
    os.close(line.far_end)


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, ""), OSError(errno.EINVAL, "")])
def test_who_is_gone_is_told_nothing_on_windows(
    on: On, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """A closed pipe is EINVAL there; what else goes wrong is an error."""

    def write(descriptor: int, data: bytes) -> int:
        raise error

    on("win32", channel)
    fake = SimpleNamespace(pipe=os.pipe, close=os.close, write=write)
    monkeypatch.setattr(channel, "os", fake)
    line = channel.Channel()
    line.send(b"order\n")
    line.close()
    os.close(line.far_end)
    assert not channel.says_closed(OSError(errno.ENOSPC, ""))
    assert not channel.says_closed(OSError(errno.EINVAL, "", "a file"))
    on("linux", channel)
    assert not channel.says_closed(OSError(errno.EINVAL, ""))


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_standard_input_is_empty_once_orders_are_read_elsewhere(kind: str) -> None:
    """Whoever asks for descriptor 0 then gets the null device, and the orders arrive all the same."""
    code = (
        "import os\n"
        "from lowmem_if.system.channel import received, take_input\n"
        "line = take_input()\n"
        "assert os.path.samestat(os.fstat(0), os.stat(os.devnull))\n"
        "assert os.read(0, 1) == b''\n"
        "print([text for text, _ in received(line)])\n"
    )
    if kind == "pipe":
        far, near = os.pipe()
        os.write(near, b"a\nb\n")
        os.close(near)
    else:
        ours, theirs = socket.socketpair()
        ours.sendall(b"a\n")
        ours.close()
        far = theirs.detach()
    done = subprocess.run([sys.executable, "-c", code], stdin=far, capture_output=True, text=True)
    os.close(far)
    assert done.stdout.strip() == ("[b'a\\n', b'b\\n']" if kind == "pipe" else "[b'a\\n']"), done


@pytest.mark.parametrize(("name", "code"), [(None, 1), ("a file", 3)])
def test_a_pipe_that_nobody_reads_is_no_bug_of_ours(
    on: On, monkeypatch: pytest.MonkeyPatch, name: str | None, code: int
) -> None:
    """`lowmem-if probe | more`, left early: EINVAL on Windows, where it names no file."""

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument", name)

    on("win32", channel)
    monkeypatch.setattr(session, "choose_machine", fail)
    assert cli.main(["probe"]) == code


def test_a_worker_draws_the_same_through_a_pipe(on: On, tiny: Path, tmp_path: Path) -> None:
    """The whole way of Windows, with a real worker."""
    plan = plan_of(tiny, size=64)
    usual = run(plan, tmp_path / "socket").folder
    on("win32", channel)
    piped = run(plan, tmp_path / "pipe").folder
    name = "stage_1/0000.safetensors"
    assert torch.equal(load_file(usual / name)["tensor"], load_file(piped / name)["tensor"])


# --- memory


def test_memory_is_the_private_commit_on_windows(on: On, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapped files are not in it, whatever of them is in memory."""
    on("win32", process_memory)
    info = SimpleNamespace(rss=900, vms=700)
    monkeypatch.setattr(
        process_memory,
        "psutil",
        SimpleNamespace(Process=lambda: SimpleNamespace(memory_info=lambda: info)),
    )
    assert process_memory.own_memory() == (700, 200)
    assert process_memory.advise(4096, 100, process_memory.DONT_NEED) == errno.ENOSYS
    monkeypatch.setattr(process_memory.ctypes, "CDLL", None)  # there is no libc to ask
    process_memory.trim_heap()


class LibSystem:
    """macOS's answer about a process; refuses with a code."""

    def __init__(self, code: int = 0) -> None:
        self.code = code

    def proc_pid_rusage(self, process: int, flavor: int, usage: Any) -> int:
        assert (process, flavor) == (os.getpid(), 0)
        if not self.code:
            usage._obj.phys_footprint, usage._obj.resident_size = 500, 800
        return self.code


def test_memory_is_the_physical_footprint_on_macos(on: On, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Apple's own layout of the answer; the resident set where there is no answer."""
    assert (
        process_memory._Usage.phys_footprint.offset == 16 + 7 * 8
    )  # uuid and seven numbers before it
    assert ctypes.sizeof(process_memory._Usage) == 16 + 10 * 8
    on("darwin", process_memory)
    monkeypatch.setattr(process_memory.ctypes, "CDLL", lambda name: LibSystem())
    assert process_memory.own_memory() == (500, 300)
    monkeypatch.setattr(process_memory.ctypes, "CDLL", lambda name: LibSystem(1))
    assert process_memory.own_memory()[0] > 10_000_000


def test_an_apple_gpus_memory_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metal's buffers are in the footprint; the cache is emptied by the call that every torch has."""
    emptied = []
    monkeypatch.setattr(torch_memory, "own_memory", lambda: (500, 0))
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 100)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 200)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append("mps"))
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: emptied.append("accelerator"))
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    reading = torch_memory.release_memory("mps")
    assert (reading.ram_anon, reading.vram_allocated, reading.vram_used) == (300, 100, 200)
    assert emptied == ["mps"]


def test_one_loader_is_the_calling_thread() -> None:
    """An Apple GPU is filled by the thread that computes on it."""
    used: list[threading.Thread] = []
    materialize._in_parallel(lambda slot: used.append(threading.current_thread()), [1, 2], 1)
    assert used == [threading.main_thread()] * 2


# --- drivers, processors, endings


def linux(
    root: Path, *, version: str = "Linux version 6.8.0", signs: tuple[str, ...] = ("dev/nvidiactl",)
) -> Path:
    for sign in (*signs, "proc/version"):
        (root / sign).parent.mkdir(parents=True, exist_ok=True)
        (root / sign).touch()
    (root / "proc/version").write_text(version)
    return root


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


def test_the_users_own_allocator_settings_win(tmp_path: Path) -> None:
    """By the new name or the old one."""
    root = linux(tmp_path)
    own = worker_environment({"PYTORCH_ALLOC_CONF": "backend:native"}, root=root)
    assert own["PYTORCH_ALLOC_CONF"] == "backend:native"
    older = worker_environment({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, root=root)
    assert "PYTORCH_ALLOC_CONF" not in older


def test_a_jetson_is_known_by_its_device_tree(tmp_path: Path) -> None:
    """In a container neither the kernel's name nor the release file need be there."""
    root = linux(tmp_path, signs=(NVIDIA, "proc/device-tree/compatible"))
    (root / "proc/device-tree/compatible").write_bytes(b"nvidia,p3737-0000\0nvidia,tegra234\0")
    assert not host.segments_expand(root)


def test_what_metal_lacks_is_computed_on_the_cpu(on: On, monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS alone, unless the user has decided."""
    assert "PYTORCH_ENABLE_MPS_FALLBACK" not in worker_environment({})
    on("darwin", worker_process)
    assert worker_environment({})["PYTORCH_ENABLE_MPS_FALLBACK"] == "1"
    own = {"PYTORCH_ENABLE_MPS_FALLBACK": "0"}
    assert worker_environment(own)["PYTORCH_ENABLE_MPS_FALLBACK"] == "0"


def test_processors_are_counted_everywhere(on: On) -> None:
    """Where the system limits a process, those that it may use."""
    assert host.usable_cpus() == len(os.sched_getaffinity(0))
    on("win32", host)
    assert host.usable_cpus() == os.cpu_count()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, None),
        (1, None),
        (3, None),
        (-9, exit_codes.Ending("SIGKILL", "the system killed the worker")),
        (-7, exit_codes.Ending("SIGBUS", of_lost_file=True)),
        (-11, exit_codes.Ending("SIGSEGV")),
        (-60, exit_codes.Ending("signal 60")),
        (0xC0000005, exit_codes.Ending("0xC0000005 (access violation)")),
        (0xC0000006, exit_codes.Ending("0xC0000006 (a page could not be read)", of_lost_file=True)),
        (0xC0000017, exit_codes.Ending("0xC0000017 (not enough memory)", "Windows ended the worker: "
                                    "0xC0000017 (not enough memory)")),
        (0xC0FFEE00, exit_codes.Ending("0xC0FFEE00")),
    ],
)  # fmt: skip
def test_an_exit_code_is_told_in_words(code: int, expected: exit_codes.Ending | None) -> None:
    """Signals by name, statuses of Windows in hex; what a program chose itself is none."""
    assert exit_codes.ending(code) == expected


def test_a_worker_that_windows_ended_is_told_in_hex(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a known error with what to do, no bug of ours."""
    monkeypatch.setattr(worker_process, "ending", lambda code: exit_codes.ending(0xC0000005))
    monkeypatch.setattr(worker_process, "WORKER", ("-c", "raise SystemExit(1)"))
    with pytest.raises(worker_process.WorkerDied, match=r"0xC0000005 .access violation.*resume"):
        run(plan_of(tiny, size=64), tmp_path / "run")
