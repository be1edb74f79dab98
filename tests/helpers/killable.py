"""A process that has imported everything and forks a worker for each line it reads.

    python killable.py        then lines of "RUN N": work on RUN, dying by SIGKILL at the N-th event.

Importing torch takes seconds; a fork of a process that has not computed yet takes none.
Answers each line with {"code": exit status, "events": [[kind, component], ...]}.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from pathlib import Path

from lowmem_if.engine.events import Event
from lowmem_if.engine.executor import work
from lowmem_if.engine.run_folder import RunFolder
from lowmem_if.engine.worker import quiet_libraries


def work_until(path: Path, last: int, pipe: int) -> None:
    count = 0

    def report(event: Event) -> None:
        nonlocal count
        if event.kind == "loading":
            return  # how many there are is a matter of time
        count += 1
        os.write(pipe, (json.dumps([event.kind, event.component]) + "\n").encode())
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    os.environ["LOWMEM_IF_CACHE"] = f"{path}-cache"
    work(RunFolder.open(path), report)


def main() -> None:
    quiet_libraries()
    gc.freeze()
    for line in sys.stdin:
        path, last = line.split()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            code = 1
            try:
                work_until(Path(path), int(last), writing)
                code = 0
            finally:
                os._exit(code)
        os.close(writing)
        with os.fdopen(reading) as events:
            seen = [json.loads(event) for event in events]
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "events": seen}), flush=True)


if __name__ == "__main__":
    main()
