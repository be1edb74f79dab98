"""A process that has imported torch, diffusers and transformers, and forks a worker for each start.

    python fork_server.py SOCKET LIFELINE

`fork_client.py` asks on the Unix socket at SOCKET. A message is JSON with Python's arguments, the
environment and the folder, together with the three standard descriptors and a pipe for the end. The
answer is the worker's process id. Nothing has computed here, so there are no threads to lose in a fork.

A worker's parent is a process that only waits for it, and writes into the pipe how it ended and how many
seconds of CPU it used. So any process can have workers here, also one that is not our parent. The server
ends when the descriptor LIFELINE closes.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import runpy
import select
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_REQUEST = 2**20
DESCRIPTORS = 4
"""Standard input, output and error, and the pipe for the end."""


def main() -> None:
    """Answer requests until the lifeline closes."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(
        signal.SIGCHLD, signal.SIG_IGN
    )  # nobody here asks how the waiting processes ended
    sys.path.insert(0, str(ROOT))
    _import_everything()
    gc.collect()
    gc.freeze()
    if (threads := len(list(Path("/proc/self/task").iterdir()))) > 1:
        raise SystemExit(f"importing has started {threads - 1} threads, which a fork would lose")
    listener.listen()
    lines: list[socket.socket] = []
    lifeline = int(sys.argv[2])
    while True:
        watched: list[int | socket.socket] = [lifeline, listener, *lines]
        ready = select.select(watched, [], [])[0]
        if lifeline in ready:
            return
        for line in [line for line in lines if line in ready]:
            if not _answer(line):
                lines.remove(line)
                line.close()
        if listener in ready:
            lines.append(listener.accept()[0])
            lines[-1].send(json.dumps(dict(os.environ)).encode())


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
    _prepare_first_uses()


def _prepare_first_uses() -> None:
    """Do once what each worker would do at its first use of the libraries; nothing here computes."""
    from diffusers import schedulers
    from PIL import Image
    from sentencepiece import sentencepiece_model_pb2  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from lowmem_if.engine import worker_answers
    from lowmem_if.planning import plan

    for name in filter(re.compile(r"^[A-Z].*Scheduler$").match, dir(schedulers)):
        getattr(schedulers, name)
    Image.preinit()
    get_checkpoint_conversion_mapping("t5")
    plan._adapter()
    worker_answers.reader()


def _answer(line: socket.socket) -> bool:
    """Answer one request; whether there was one."""
    message, descriptors, _flags, _address = socket.recv_fds(line, LARGEST_REQUEST, DESCRIPTORS)
    if not message:
        return False
    line.send(str(_start(json.loads(message), descriptors)).encode())
    for descriptor in descriptors:
        os.close(descriptor)
    return True


def _start(request: dict[str, Any], descriptors: Sequence[int]) -> int:
    """Fork a process that waits for the worker that it forks; the worker's process id."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        worker = os.fork()
        if worker == 0:
            _work(request, descriptors[:3])
        os.write(writing, str(worker).encode())
        _wait(worker, descriptors[3])
    os.close(writing)
    with os.fdopen(reading) as answer:
        return int(answer.read())


def _wait(worker: int, report: int) -> NoReturn:
    """Wait for the worker without any other open file, and report how it ended."""
    os.dup2(report, 0)
    os.closerange(1, os.sysconf("SC_OPEN_MAX"))
    _, status, used = os.wait4(worker, 0)
    os.write(0, f"{status} {used.ru_utime + used.ru_stime}".encode())
    os._exit(0)


def _work(request: dict[str, Any], standard: Sequence[int]) -> NoReturn:
    """Be the process that Python would be with these arguments."""
    code: object = 1
    try:
        for number, descriptor in enumerate(standard):
            os.dup2(descriptor, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        _open_streams()
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        _set_malloc(request["environment"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _run(request["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:  # noqa: BLE001  as Python itself ends
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _open_streams() -> None:
    """Open Python's streams again: those of the server know whether its own files can be sought."""
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(
        2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )


def _run(arguments: list[str]) -> None:
    """Run `[-P] [-u] -m MODULE ARGUMENT ...`, `-c CODE ARGUMENT ...`, or `SCRIPT ARGUMENT ...`."""
    safe = "-P" in arguments[:2]
    while arguments[0] in ("-P", "-u"):
        arguments = arguments[1:]
    kind, rest = arguments[0], arguments[1:]
    if kind in ("-m", "-c") and not safe:
        sys.path.insert(0, str(Path.cwd()) if kind == "-m" else "")
    if kind == "-m":
        warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        main_module = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main_module.__dict__)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")


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
