"""A process that has imported torch, diffusers and transformers, and forks a worker for each start.

    python -P fork_server.py DESCRIPTOR

DESCRIPTOR is a socket on which `forked_workers.py` asks. A message is JSON with Python's arguments, the
environment and the folder, together with the three standard descriptors. The answer is the worker's
process id. Nothing has computed here, so there are no threads to lose in a fork.

A worker becomes a child of the test process: its own parent ends at once, and the test process adopts
orphans meanwhile (`PR_SET_CHILD_SUBREAPER`). So tests wait for it, signal it and read its exit code as
they do with any child.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import runpy
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_REQUEST = 2**20


def main() -> None:
    """Answer requests until the other end closes."""
    line = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_everything()
    gc.collect()
    gc.freeze()
    if (threads := len(list(Path("/proc/self/task").iterdir()))) > 1:
        raise SystemExit(f"importing has started {threads - 1} threads, which a fork would lose")
    line.send(b"ready")
    while True:
        message, standard, _flags, _address = socket.recv_fds(line, LARGEST_REQUEST, 3)
        if not message:
            return
        line.send(str(_start(json.loads(message), standard, line)).encode())
        for descriptor in standard:
            os.close(descriptor)


def _import_everything() -> None:
    """Import what a worker imports, also what its libraries import late."""
    import diffusers
    import transformers

    import lowmem_if.engine.worker.command_loop  # noqa: F401

    for name in (
        "AutoencoderKL DDPMScheduler DPMSolverMultistepScheduler IFPipeline IFSuperResolutionPipeline"
        " IFImg2ImgPipeline IFImg2ImgSuperResolutionPipeline IFInpaintingPipeline"
        " IFInpaintingSuperResolutionPipeline StableDiffusionUpscalePipeline UNet2DConditionModel"
    ).split():
        getattr(diffusers, name)
    for name in "CLIPTextModel CLIPTokenizer CLIPImageProcessor T5EncoderModel T5Tokenizer".split():
        getattr(transformers, name)


def _start(request: dict[str, Any], standard: Sequence[int], line: socket.socket) -> int:
    """Fork a worker that is nobody's child here; its process id."""
    reading, writing = os.pipe()
    between = os.fork()
    if between == 0:
        worker = os.fork()
        if worker == 0:
            for descriptor in (reading, writing, line.detach()):
                os.close(descriptor)
            _work(request, standard)
        os.write(writing, str(worker).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(between, 0)
    with os.fdopen(reading) as answer:
        return int(answer.read())


def _work(request: dict[str, Any], standard: Sequence[int]) -> NoReturn:
    """Be the process that Python would be with these arguments."""
    code: object = 1
    try:
        for number, descriptor in enumerate(standard):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        _set_malloc(request["environment"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _run(request["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001  as Python itself ends
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _run(arguments: list[str]) -> None:
    """Run `-P -m MODULE` or `SCRIPT ARGUMENT ...`."""
    if arguments[:2] == ["-P", "-m"]:
        warnings.filterwarnings("ignore", "'lowmem_if.*' found in sys.modules", RuntimeWarning)
        sys.argv = arguments[2:]
        runpy.run_module(arguments[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


def _set_malloc(environment: dict[str, str]) -> None:
    """Set glibc's thresholds as it does when a process starts with these variables."""
    names = {
        "MALLOC_MMAP_THRESHOLD_": M_MMAP_THRESHOLD,
        "MALLOC_TRIM_THRESHOLD_": M_TRIM_THRESHOLD,
    }
    for name, parameter in names.items():
        if name in environment:
            ctypes.CDLL(None).mallopt(parameter, int(environment[name]))


if __name__ == "__main__":
    main()
