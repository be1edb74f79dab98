"""What libraries say when memory runs out: each text is recognised, and as the right memory."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from runs import kinds, plan_of

from lowmem_if.engine import worker_process
from lowmem_if.engine.events import Event, ignore
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.worker import command_loop, executor
from lowmem_if.engine.worker.model_cache import ModelCache
from lowmem_if.engine.worker_answers import MemoryRanOut
from lowmem_if.engine.worker_commands import Command
from lowmem_if.planning.fallback import RAM, VRAM
from lowmem_if.weights.out_of_memory import (
    WORDINGS,
    find_wording,
    is_of_host,
    is_shortage,
    last_words,
)

ACCELERATOR_ERROR = getattr(torch, "AcceleratorError", RuntimeError)

DEVICE = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 14.74 GiB"),
    torch.OutOfMemoryError("HIP out of memory. Tried to allocate 2.00 GiB"),
    torch.OutOfMemoryError("XPU out of memory. Tried to allocate 2.00 GiB"),
    torch.OutOfMemoryError("words that nobody has written down"),
    ACCELERATOR_ERROR("CUDA error: out of memory\nCUDA kernel errors might be asynchronously"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY"),
    RuntimeError("cudaErrorMemoryAllocation"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("HIP error: hipErrorOutOfMemory"),
    RuntimeError("HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    RuntimeError("rocblas_status_memory_error"),
    RuntimeError("MIOpen Error: miopenStatusAllocFailed"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB, max allowed: 9.07 GB)"),
    RuntimeError("Invalid buffer size: 16.00 GiB"),
    RuntimeError("Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"),
    RuntimeError("kIOGPUCommandBufferCallbackErrorOutOfMemory"),
    RuntimeError(
        "Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"
    ),
    RuntimeError("level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)"),
)
HOST = (
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate"
    ),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] can't allocate memory: you tried 1 bytes"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("bad allocation"),
    RuntimeError("could not create a memory object"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    RuntimeError("Native API returns: 6 (UR_RESULT_ERROR_OUT_OF_HOST_MEMORY)"),
    OSError("The paging file is too small for this operation to complete. (os error 1455)"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    MemoryError(),
)
OTHERS = (
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    ValueError("out of memory lane"),
    OSError(errno.ENOSPC, "No space left on device"),
    KeyError("out of memory"),
)
EXITED = "Error out of memory at line 341 in file /src/csrc/ops.cu"


def named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:60]


@pytest.mark.parametrize("error", DEVICE, ids=named)
def test_an_accelerators_words_are_a_shortage_of_its_memory(error: BaseException) -> None:
    """Whatever the class, and even where the words name no memory at all."""
    assert is_shortage(error)
    assert not is_of_host(error)


@pytest.mark.parametrize("error", HOST, ids=named)
def test_a_host_allocators_words_mean_ram_on_any_device(error: BaseException) -> None:
    """On an accelerator, too, RAM runs out while weights are on their way."""
    assert is_shortage(error)
    assert is_of_host(error)


@pytest.mark.parametrize("error", OTHERS, ids=named)
def test_other_errors_are_no_shortage(error: BaseException) -> None:
    """A bug stays a bug; words alone do not count in an exception of another kind."""
    assert not is_shortage(error)


def test_a_shortage_that_something_else_was_raised_from_counts() -> None:
    """Libraries wrap what they catch."""
    for cause, host in ((DEVICE[0], False), (HOST[0], True)):
        wrapped = KeyError("cannot be loaded")
        wrapped.__cause__ = cause
        assert is_shortage(wrapped)
        assert is_of_host(wrapped) == host


def test_every_entry_of_the_table_is_tested() -> None:
    """Each is what some text above is recognised by."""
    found = {find_wording(str(error)) for error in (*DEVICE, *HOST)}
    missing = [wording.words for wording in WORDINGS if wording not in found]
    assert missing == []


# --- from the worker to the plan ----------------------------------------------------------------


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> RunFolder:
    """A run whose stage 1 is planned for a card, and whose text encoder is on the CPU."""
    made = RunFolder.for_plan(tmp_path / "run", plan_of(tiny, size=64))
    made.replace_step(made.plan.step("stage_1").with_config(device="cuda:0"), "for a test")
    return made


@pytest.mark.parametrize("error", [*DEVICE, *HOST], ids=named)
def test_what_ran_out_follows_from_the_steps_device(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """On a card VRAM unless the words are the host's; on the CPU RAM, whatever they are."""

    def fail(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(command_loop, "work", fail)
    monkeypatch.setattr(command_loop, "_log_into", lambda _folder: None)
    answer = command_loop._answer(Command(str(folder.path)), None, ModelCache(), ignore)
    assert answer.kind == "out_of_memory"
    on_card = VRAM if error in DEVICE else RAM
    assert worker_process._resource(folder, "stage_1", answer) == on_card
    assert worker_process._resource(folder, "text_encoder", answer) == RAM
    assert worker_process._resource(folder, "", answer) == RAM


def test_a_device_without_room_for_its_first_use_is_short_in_the_steps_turn(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the step before, which is done, would be planned again."""

    def fail(*_args: object) -> None:
        raise DEVICE[0]

    events: list[Event] = []
    monkeypatch.setattr(executor, "wake", fail)
    with pytest.raises(torch.OutOfMemoryError):
        executor.work(folder, events.append)
    assert kinds(events, "started") == ["text_encoder"]


class Ended:
    """A worker process that has ended."""

    stdout = None

    def __init__(self, code: int) -> None:
        self._code = code

    def wait(self) -> int:
        return self._code


@pytest.mark.parametrize(
    ("code", "said", "resource"),
    [
        (1, EXITED, VRAM),
        (-6, "terminate called after throwing an instance of 'c10::OutOfMemoryError'\n"
             "  what():  CUDA out of memory. Tried to allocate 20.00 MiB", VRAM),
        (-6, "terminate called after throwing an instance of 'std::bad_alloc'", RAM),
        (-9, "", RAM),
        (0xC0000017, "", RAM),
    ],
)  # fmt: skip
def test_a_worker_that_ends_for_want_of_memory_is_no_bug(
    folder: RunFolder, code: int, said: str, resource: str
) -> None:
    """bitsandbytes calls exit(1) from C++, other libraries abort, systems kill."""
    answer = ended(folder, code, said)
    assert isinstance(answer, MemoryRanOut)
    assert worker_process._resource(folder, "stage_1", answer) == resource


def ended(folder: RunFolder, code: int, said: str, before: str = "") -> Event:
    """What is made of a worker that ends like this, with other words of an earlier one in the log."""
    shop = worker_process.WorkerProcess()
    folder.log_file.write_text(before)
    shop._follow_log(folder.log_file)
    with folder.log_file.open("a") as log:
        log.write(f"\n{said}\n")
    shop._process = Ended(code)  # type: ignore[assignment]
    return shop._explain_exit("stage_1")


def test_what_an_earlier_worker_said_does_not_count(folder: RunFolder) -> None:
    """The log of a run holds the words of all its workers."""
    with pytest.raises(worker_process.WorkerCrashed, match="a fault"):
        ended(folder, 1, "ZeroDivisionError: a fault", before=EXITED)
    assert last_words(f"one\n{EXITED}\ntwo") == EXITED
    assert last_words("Error no kernel image at line 1 in file x") == ""
