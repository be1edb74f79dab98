"""The parts of README.md that are made from the code: `python docs/blocks.py [--check]`.

A block stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. Without `--check` the blocks are
written anew; with it nothing is written, and a stale one ends with exit 1.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

# Sizes come from the catalogue, whatever weights this machine happens to have.
os.environ["HF_HUB_CACHE"] = tempfile.gettempdir() + "/no-weights-here"

from lowmem_if import DoesNotFit, Plan, Request, load_profile, make_plan
from lowmem_if.cli import app
from lowmem_if.planning.catalog import PUBLISHED
from lowmem_if.planning.profiles import profile_names

README = Path(__file__).parents[1] / "README.md"
SHORT = {"text_encoder": "T5", "stage_1": "I", "stage_2": "II", "upscaler": "x4"}


def commands() -> str:
    """One line a command, from its own help."""
    rows = [
        f"| `lowmem-if {command.name}` | {command.callback.__doc__.splitlines()[0]} |"
        for command in app.registered_commands
        if command.callback and command.callback.__doc__
    ]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


def profiles() -> str:
    """What the planner says of every shipped profile and published cascade."""
    lines = [f"| profile | {' | '.join(PUBLISHED)} |", "|---" * (len(PUBLISHED) + 1) + "|"]
    for name in profile_names():
        cells = [_cell(name, cascade) for cascade in PUBLISHED]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(profile: str, cascade: str) -> str:
    loaded = load_profile(profile)
    request = Request(("a red circle",), cascade=cascade, seed=(0,))
    for prefer in ("exact", "balanced"):
        try:
            plan = make_plan(loaded.machine, request, prefer=prefer, pins=loaded.pins)
        except DoesNotFit as error:
            short = error
            continue
        return _ways(plan) + (" (`--prefer balanced`)" if prefer == "balanced" else "")
    return f"no: {short.component.replace('_', ' ')} needs {short.needed_bytes / 1e9:.1f} GB"


def _ways(plan: Plan) -> str:
    """How each component lives: its storage, and what is not plain residence on the device."""
    words = []
    for step in plan.steps[:-1]:
        way = "" if step.strategy == "resident" else " " + step.strategy.split("_")[0]
        place = " on the CPU" if step.device == "cpu" != plan.machine.device else ""
        words.append(f"{SHORT[step.component]} {step.storage_dtype}{way}{place}")
    return ", ".join(words)


def main() -> int:
    """Write or check the blocks."""
    text = README.read_text(encoding="utf-8")
    fresh = text
    for block in (commands, profiles):
        begin, end = f"<!-- begin {block.__name__} -->", f"<!-- end {block.__name__} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(fresh):
            sys.stderr.write(f"{README.name} has no block {block.__name__}\n")
            return 1
        content = f"{begin}\n{block()}\n{end}"
        fresh = pattern.sub(lambda _match, content=content: content, fresh)
    if "--check" in sys.argv:
        if fresh != text:
            sys.stderr.write(f"{README.name} is stale: run `make format`\n")
        return int(fresh != text)
    README.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
