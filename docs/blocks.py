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
from lowmem_if.planning.catalog import PUBLISHED, SIZES
from lowmem_if.planning.profiles import profile_names

README = Path(__file__).parents[1] / "README.md"
WAYS = {
    "resident": "R",
    "stream": "S",
    "model_offload": "M",
    "sequential_offload": "Q",
    "int8": "8",
    "nf4": "4",
}


def commands() -> str:
    """One line a command, from its own help."""
    rows = [
        f"| `lowmem-if {command.name}` | {command.callback.__doc__.splitlines()[0]} |"
        for command in app.registered_commands
        if command.callback and command.callback.__doc__
    ]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


def profiles() -> str:
    """The matrix: what the planner says of every shipped profile, published cascade and size."""
    columns = [(cascade, size) for cascade in PUBLISHED for size in sorted(SIZES, reverse=True)]
    headings = [f"{cascade} {size}" for cascade, size in columns]
    lines = [f"| profile | {' | '.join(headings)} |", "|---" * (len(columns) + 1) + "|"]
    for name in profile_names():
        cells = [_cell(name, cascade, size) for cascade, size in columns]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(profile: str, cascade: str, size: int) -> str:
    """Ways, peaks and time under `exact`, else under `balanced`, else what is short."""
    loaded = load_profile(profile)
    request = Request(("a red circle",), cascade=cascade, size=size, seed=(0,))
    for mark, prefer in (("", "exact"), ("*", "balanced")):
        try:
            plan = make_plan(loaded.machine, request, prefer=prefer, pins=loaded.pins)
        except DoesNotFit as error:
            short = error
            continue
        return f"{_ways(plan)}{mark} {_peaks(plan)} {_time(plan.seconds)}"
    return f"no: {short.component.replace('_', ' ')}, {short.needed_bytes / 1e9:.1f} GB"


def _ways(plan: Plan) -> str:
    """One sign a component: how its weights live, small where a CPU helps an accelerator out."""
    signs = [WAYS.get(step.storage_dtype) or WAYS[step.strategy] for step in plan.steps[:-1]]
    helps = [step.device == "cpu" != plan.machine.device for step in plan.steps[:-1]]
    word = "".join(s.lower() if h else s for s, h in zip(signs, helps, strict=True))
    return f"`{word}`"


def _peaks(plan: Plan) -> str:
    kinds = ("vram_bytes", "ram_bytes") if plan.machine.kind != "cpu" else ("ram_bytes",)
    highest = [max(getattr(step.predicted, kind) for step in plan.steps) for kind in kinds]
    return "+".join(f"{size / 1e9:.1f}" for size in highest)


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


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
