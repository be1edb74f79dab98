"""`python -m lowmem_if` is the command line."""

import sys

from lowmem_if.cli import main

sys.exit(main())
