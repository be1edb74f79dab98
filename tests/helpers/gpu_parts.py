"""Stand-ins for parts of the GPU check, named as `tests/bench/test_gpu_check.py` calls them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from bench.gpu.rows import Row, figure, row
from bench.gpu.setup import Setup


def rows(setup: Setup) -> Iterator[Row]:
    """What the folder's name asks for, after one row that is sound."""
    yield row("first", figure("size", 2e9, 1e9), text=", ".join(setup.have))
    kind = setup.out.name
    if kind == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "raises":
        raise ValueError("a fault made for a test")
    if kind == "hangs" and "first" not in setup.have:
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (setup.out / "helper").write_text(str(helper.pid))
        time.sleep(60)
    yield row("last", ok=kind != "finds")
