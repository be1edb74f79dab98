"""The process of one part: `python -m bench.gpu.child MODULE SETUP FILE` writes rows as JSON lines."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

from bench.gpu.setup import Setup


def main(module: str, setup: str, file: str) -> None:
    """Measure one part; each row is on disk before the next one is measured."""
    with Path(file).open("a", encoding="utf-8", buffering=1) as lines:
        for row in import_module(module).rows(Setup.from_json(setup)):
            lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
