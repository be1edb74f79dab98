"""The process that does the work and may be killed.

    python -m lowmem_if.running.worker RUN [PREVIEW_EVERY]

Events go to standard output, one JSON object a line; what libraries print goes to standard error.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

import torch

from lowmem_if.errors import LowmemError
from lowmem_if.planning.ladder import RAM, VRAM
from lowmem_if.running.events import Event
from lowmem_if.running.run_folder import RunFolder
from lowmem_if.running.turns import work
from lowmem_if.weights.memory import is_out_of_memory


def quiet_libraries() -> None:
    """Keep what the libraries say to what went wrong; the rest we say ourselves."""
    import diffusers
    import transformers

    warnings.simplefilter("ignore", FutureWarning)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def main() -> int:
    """Work on the folder that the command line names; exit like the command line does."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    lock = threading.Lock()

    def report(event: Event) -> None:
        with lock:
            events.write(event.to_line() + "\n")

    quiet_libraries()
    # The libraries' own objects stay to the end: collecting among them takes a second a component.
    gc.freeze()
    try:
        preview_every = int(sys.argv[2]) if len(sys.argv) > 2 else 0
        work(RunFolder.open(Path(sys.argv[1])), report, preview_every=preview_every)
    except LowmemError as error:
        report(Event("error", text=str(error), name=type(error).__name__))
        return error.exit_code
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        short_of = VRAM if isinstance(error, torch.OutOfMemoryError) else RAM
        text = next(iter(str(error).splitlines()), type(error).__name__)
        report(Event("out_of_memory", text=text, name=short_of))
        return LowmemError.exit_code
    return 0


def _leave_with_parent() -> None:
    """Our standard input closes when the parent is gone, however it went."""
    while sys.stdin.read(1):
        pass
    os._exit(LowmemError.exit_code)


if __name__ == "__main__":
    sys.exit(main())
