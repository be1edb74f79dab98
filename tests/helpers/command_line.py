"""The command line as a process whose workers the tests' server forks: python command_line.py ..."""

from __future__ import annotations

import os
import sys

from lowmem_if.cli.main import main

if __name__ == "__main__":
    import fork_client

    if fork_client.ADDRESS in os.environ:
        fork_client.in_kernel()
    sys.exit(main(sys.argv[1:]))
