"""Work on one run and die by SIGKILL at the N-th event: python killable.py RUN N [COPIES].

Each event is a line on standard output, `[kind, component]` in JSON. If COPIES is given, it gets a copy
of the run folder at each event, named by the event's number: what a process that is killed there leaves.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from lowmem_if.engine.events import Event
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.worker.command_loop import quiet_libraries
from lowmem_if.engine.worker.executor import work


def main(path: Path, last: int, copies: Path | None = None) -> None:
    events = os.dup(1)
    os.dup2(2, 1)
    count = 0

    def report(event: Event) -> None:
        nonlocal count
        if event.kind == "loading":
            return  # how many there are is a matter of time
        count += 1
        if copies is not None:
            shutil.copytree(path, copies / str(count))
        os.write(events, (json.dumps([event.kind, event.component]) + "\n").encode())
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    quiet_libraries()
    work(RunFolder.open(path), report)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:]))
