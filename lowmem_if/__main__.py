"""`python -m lowmem_if` is the command line."""

import sys

from lowmem_if.cli.main import main

sys.exit(main())
