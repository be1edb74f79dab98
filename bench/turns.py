"""One run in a process of its own, each component's turn timed: `python -m bench.turns RUN`.

The worker's own code works on the run folder; only that the processor's seconds are counted besides
those of the clock is added here. The result is one JSON line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from lowmem_if.engine.events import Event
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.worker.command_loop import quiet_libraries
from lowmem_if.engine.worker.executor import work


def main() -> None:
    """Work on the folder that the command line names; print seconds of each component."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    quiet_libraries()
    started: dict[str, tuple[float, float]] = {}
    seconds: dict[str, dict[str, float]] = {}

    def report(event: Event) -> None:
        now = (time.monotonic(), time.process_time())
        if event.kind == "started":
            started[event.component] = now
        if event.kind == "finished":
            wall, processor = (
                end - begin for end, begin in zip(now, started[event.component], strict=True)
            )
            seconds[event.component] = {"wall": wall, "processor": processor}

    work(RunFolder.open(Path(sys.argv[1])), report)
    results.write(json.dumps(seconds) + "\n")
    results.flush()


if __name__ == "__main__":
    main()
