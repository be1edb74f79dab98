"""The environment variables of a worker process, each with the reason for it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from lowmem_if.system.host import segments_expand


def worker_environment(
    outer: Mapping[str, str],
    *,
    streams: bool = False,
    segments: bool = True,
    root: Path = Path("/"),
) -> dict[str, str]:
    """The worker's environment: no network access; the user's own settings win.

    Args:
        streams: whether memory is so short that weights remain in their files.
        segments: whether torch's allocator may use expandable segments where the driver has them.
        root: of the file system in which the drivers are looked for.
    """
    ours = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONIOENCODING": "utf-8",
        # The loaders' threads would each get a heap of their own, which glibc does not trim: 80 MB of
        # a 200 MB encoder stayed behind, with one heap 0.3 MB (docs/log.md).
        "MALLOC_ARENA_MAX": "1",
        # Two OpenMP threads of which one shares its core with another process: stage 1 of the demo took
        # 64 s, with less spinning 1.4 s; idle 0.7 and 0.8 s. Linux wheels of torch contain libgomp.
        "GOMP_SPINCOUNT": "1000",
        # The same for LLVM's and Intel's runtimes (macOS, Windows, conda), which spin for 200 ms: an
        # iteration of small layers took 43 ms next to a busy process, and 2.5 ms without spinning.
        "KMP_BLOCKTIME": "0",
        # Fresh memory in pages of 2 MB: reading weights into it was twice as fast (docs/log.md).
        "THP_MEM_ALLOC_ENABLE": "1",
    }
    if streams:
        # A freed activation leaves the heap at once (250 MB of an upscaler's), for 6 % of the time.
        ours |= {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
    older_name = "PYTORCH_CUDA_ALLOC_CONF"
    if segments and segments_expand(root) and older_name not in outer:
        ours["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    if sys.platform == "darwin":
        # What Metal has no kernel for is computed on the CPU, instead of ending the run.
        ours["PYTORCH_ENABLE_MPS_FALLBACK"] = "1"
    return ours | dict(outer) | {"HF_HUB_OFFLINE": "1"}
