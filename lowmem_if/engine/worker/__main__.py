"""`python -m lowmem_if.engine.worker` is the worker process."""

from lowmem_if.engine.worker.command_loop import main

main()
