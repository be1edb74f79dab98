"""The parts of documents that are made from the code: `python docs/blocks.py [--check]`.

A block stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. Without `--check` the blocks are
written anew; with it nothing is written, and a stale one ends with exit 1.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# Sizes come from the catalogue, whatever weights this machine happens to have.
os.environ["HF_HUB_CACHE"] = tempfile.gettempdir() + "/no-weights-here"

from lowmem_if import DoesNotFit, Plan, load_profile, make_plan, make_request
from lowmem_if.cascade.catalog import (
    PUBLISHED,
    SIZES,
    STAGE_1,
    STAGE_2,
    TEXT_ENCODER,
    UPSCALER,
    Part,
)
from lowmem_if.cascade.strategies import MODEL_OFFLOAD, RESIDENT, SEQUENTIAL_OFFLOAD
from lowmem_if.cli.main import app
from lowmem_if.hardware.profiles import profile_names
from lowmem_if.planning.memory_table import FUSED, StepProfile, look_up_step

README = Path(__file__).parents[1] / "README.md"
PUBLISHED_FIGURES = Path(__file__).with_name("published_figures.md")
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
    request = make_request(("a red circle",), cascade=cascade, size=size, seed=(0,))
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
    signs = [
        WAYS.get(step.config.storage_dtype) or WAYS[step.config.strategy]
        for step in plan.steps[:-1]
    ]
    helps = [step.config.device == "cpu" != plan.machine.device for step in plan.steps[:-1]]
    word = "".join(s.lower() if h else s for s, h in zip(signs, helps, strict=True))
    return f"`{word}`"


def _peaks(plan: Plan) -> str:
    kinds = ("vram_bytes", "ram_bytes") if plan.machine.kind != "cpu" else ("ram_bytes",)
    highest = [max(getattr(step.estimate, kind) for step in plan.steps) for kind in kinds]
    return "+".join(f"{size / 1e9:.1f}" for size in highest)


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def published() -> str:
    """Published figures beside the table of footprints."""
    xl, x4 = PUBLISHED["if-xl"].parts, PUBLISHED["if-xl"].parts[UPSCALER]
    t5 = _allocated(xl[TEXT_ENCODER], TEXT_ENCODER, RESIDENT)
    first = _allocated(xl[STAGE_1], STAGE_1, MODEL_OFFLOAD)
    leaves = _allocated(xl[STAGE_1], STAGE_1, SEQUENTIAL_OFFLOAD)
    second = _allocated(xl[STAGE_2], STAGE_2, RESIDENT)
    third = _allocated(x4, UPSCALER, MODEL_OFFLOAD)
    whole = _allocated(x4, UPSCALER, RESIDENT)
    held = _turn(xl[STAGE_1], STAGE_1, RESIDENT).reserved_bytes
    x4_held = _turn(x4, UPSCALER, RESIDENT).reserved_bytes
    size = (
        "theirs is a card's size; the driver's context and what is held in reserve are in it, too"
    )
    monitor = (
        "how theirs was read is not said; a monitor shows the reserve and the driver's context, too"
    )
    rows = [
        (
            "XL with model offload: 14 GB",
            "IF's documentation",
            f"{_gb(max(t5, first))}, its T5 in float16; {_gb(first)} without T5",
            size,
        ),
        (
            "each stage below 12 GB",
            "diffusers' slow tests",
            f"{_gb(t5)} T5, {_gb(first)} stage 1, {_gb(second)} stage 2",
            "they agree; both are what torch's allocator gave out",
        ),
        (
            "sequential offload of stage 1: 6 GB",
            "one user's report",
            _gb(leaves),
            "theirs may be all that was in use on the card; weights and activations cannot come to that",
        ),
        (
            "XL + II-L + x4, one at a time: 12 GB, give or take 1",
            "IF Lab's readme",
            f"{_gb(first)} at most (stage 1), {_gb(held)} held in reserve",
            monitor,
        ),
        (
            "L or M with x4, one at a time: 8 and 7 GB, give or take 1",
            "IF Lab's readme",
            f"{_gb(whole)} (upscaler), {_gb(x4_held)} held in reserve; {_gb(third)} with model offload",
            monitor,
        ),
    ]
    lines = ["| published | by | dry run | why they differ |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _turn(part: Part, component: str, strategy: str) -> StepProfile:
    turn = look_up_step(part, component, strategy, "float16", attention=FUSED, tiled=False)
    assert turn is not None, (component, strategy)
    return turn


def _allocated(part: Part, component: str, strategy: str) -> int:
    turn = _turn(part, component, strategy)
    return max(turn.loading_bytes, turn.drawing_bytes, turn.decoding_bytes)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


FILES: dict[Path, tuple[Callable[[], str], ...]] = {
    README: (commands, profiles),
    PUBLISHED_FIGURES: (published,),
}
"""Which blocks stand in which document."""


def main() -> int:
    """Write or check the blocks."""
    return max([_freshen(file, blocks) for file, blocks in FILES.items()])


def _freshen(file: Path, blocks: tuple[Callable[[], str], ...]) -> int:
    text = file.read_text(encoding="utf-8")
    fresh = text
    for block in blocks:
        begin, end = f"<!-- begin {block.__name__} -->", f"<!-- end {block.__name__} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(fresh):
            sys.stderr.write(f"{file.name} has no block {block.__name__}\n")
            return 1
        content = f"{begin}\n{block()}\n{end}"
        fresh = pattern.sub(lambda _match, content=content: content, fresh)
    if "--check" in sys.argv:
        if fresh != text:
            sys.stderr.write(f"{file.name} is stale: run `make format`\n")
        return int(fresh != text)
    file.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
