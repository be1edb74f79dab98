"""The messages of libraries and drivers when memory runs out, and which memory they mean.

Which memory ran out depends on where a step computes, not on the exception's class. On an accelerator
it is VRAM, unless the message is one of a host allocator. Some of these messages have other causes,
too: then a smaller step fails as well, and the run ends with the message itself.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wording:
    """A part of a message, in lower case; `host`: the words can only mean RAM."""

    words: str
    speaker: str
    host: bool = False


WORDINGS = (
    Wording("defaultcpuallocator", "torch's CPU allocator", host=True),
    Wording("can't allocate memory", "torch's CPU allocator on Linux and macOS", host=True),
    Wording("cannot allocate memory", "the system's own text for ENOMEM", host=True),
    Wording("not enough memory: you tried", "torch's CPU allocator on Windows", host=True),
    Wording("std::bad_alloc", "C++", host=True),
    Wording("bad allocation", "C++ on Windows", host=True),
    Wording("paging file is too small", "Windows, error 1455", host=True),
    Wording("could not create a memory object", "oneDNN", host=True),
    Wording("host_allocation_failed", "cuDNN 9", host=True),
    Wording("out_of_host_memory", "XPU: unified runtime, SYCL, Level Zero", host=True),
    Wording("out of memory", "the allocators and drivers of CUDA, HIP, XPU and MPS"),
    Wording("cuda_error_out_of_memory", "the CUDA driver"),
    Wording("cudaerrormemoryallocation", "the CUDA runtime"),
    Wording("cublas_status_alloc_failed", "cuBLAS"),
    Wording("cublas_status_not_initialized", "cuBLAS, in cublasCreate"),
    Wording("cudnn_status_alloc_failed", "cuDNN before 9"),
    Wording("cudnn_status_not_initialized", "cuDNN, whose handle found no room"),
    Wording("device_allocation_failed", "cuDNN 9"),
    Wording("cudnn_status_internal_error", "cuDNN, whose kernels found no room (pytorch 81620)"),
    Wording("unable to find an engine", "cuDNN, no engine of which has room for its workspace"),
    Wording("hiperroroutofmemory", "HIP"),
    Wording("hipblas_status_alloc_failed", "hipBLAS"),
    Wording("rocblas_status_memory_error", "rocBLAS"),
    Wording("miopenstatusallocfailed", "MIOpen"),
    Wording("invalid buffer size", "MPS, for one buffer above Metal's limit"),
    Wording("insufficient memory", "Metal's command buffers"),
    Wording("callbackerroroutofmemory", "Metal's command buffers"),
    Wording("out_of_device_memory", "XPU: unified runtime, SYCL, Level Zero"),
    Wording("out_of_resources", "XPU: unified runtime, SYCL, Level Zero"),
)
"""The host's are first, since some of them contain those of a device."""

_LAST_WORDS = re.compile(r"^Error out of memory at line \d+ in file .*$", re.MULTILINE)
"""bitsandbytes calls `exit(1)` from C++ after this line (`csrc/ops.cuh`, CUDA_CHECK_RETURN)."""

_TORCH_CLASSES = {"OutOfMemoryError"}
_SPEAKING_CLASSES = {"SafetensorError", "DeferredCudaCallError"}
"""They are not RuntimeErrors, but carry a message of the system or a driver."""


def find_wording(text: str) -> Wording | None:
    """The entry of the table that a text contains."""
    lower = text.lower()
    return next((wording for wording in WORDINGS if wording.words in lower), None)


def last_words(log: str) -> str:
    """The line with which bitsandbytes ends a process that has no VRAM left; empty if there is none."""
    found = _LAST_WORDS.search(log)
    return found.group() if found else ""


def is_shortage(error: BaseException) -> bool:
    """Whether an exception, or one that it was raised from, reports that memory ran out."""
    return any(_says_so(each) for each in _chain(error))


def is_of_host(error: BaseException) -> bool:
    """Whether an exception that reports that memory ran out can only mean RAM."""
    for each in _chain(error):
        if _says_so(each):
            wording = find_wording(str(each))
            own = isinstance(each, MemoryError | OSError)
            return own or (wording is not None and wording.host)
    return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _says_so(error: BaseException) -> bool:
    names = {cls.__name__ for cls in type(error).__mro__}
    if isinstance(error, MemoryError) or names & _TORCH_CLASSES:
        return True
    wording = find_wording(str(error))
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM or (wording is not None and wording.host)
    speaks = isinstance(error, RuntimeError) or bool(names & _SPEAKING_CLASSES)
    return speaks and wording is not None
