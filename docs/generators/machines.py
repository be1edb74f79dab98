"""What the planner says of the machines that ship as profiles."""

from __future__ import annotations

from functools import cache

from lowmem_if import DoesNotFit, Plan, load_profile, make_plan, make_request
from lowmem_if.cascade.catalog import PUBLISHED, SIZES
from lowmem_if.hardware.profiles import profile_names

_SIGNS = {
    "resident": "R",
    "stream": "S",
    "model_offload": "M",
    "sequential_offload": "Q",
    "int8": "8",
    "int4": "4",
    "nf4": "4",
}


_SHORT = (
    "colab-free", "kaggle-t4", "rtx-3050-4gb", "rtx-2060-6gb", "rtx-4060-8gb", "rtx-3080-10gb",
    "rtx-3060-12gb", "rtx-4060-ti-16gb", "rx-7800-xt-16gb", "arc-a770-16gb", "apple-m-16gb",
    "laptop-cpu-16gb", "laptop-cpu-8gb",
)  # fmt: skip
"""The machines of the short table, one of each kind."""


def machines() -> str:
    """The short table of README.md: which machine, which command, how long."""
    lines = [
        "| machine | 1024 px: `--cascade if-xl` | peak memory | 256 px: `--cascade if-m --size 256` |",
        "|---|---|---|---|",
    ]
    for name in _SHORT:
        large, small = _plan(name, "if-xl", 1024), _plan(name, "if-m", 256)
        cells = [_machine(name), _large(large), _memory(large), _duration(small)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _machine(name: str) -> str:
    return f"{load_profile(name).description.split(';')[0]} (`{name}`)"


def _large(plan: Plan | DoesNotFit) -> str:
    """The time, and the level if the planner had to go further than `faithful`."""
    if isinstance(plan, DoesNotFit):
        return "does not fit"
    level = f" ({plan.prefer})" if plan.loosened else ""
    return f"{_duration(plan)}{level}"


def _memory(plan: Plan | DoesNotFit) -> str:
    if isinstance(plan, DoesNotFit):
        return ""
    ram = f"{_peak(plan, 'ram_bytes')} GB RAM"
    return ram if plan.machine.kind == "cpu" else f"{_peak(plan, 'vram_bytes')} GB VRAM, {ram}"


def profiles() -> str:
    """The matrix: every shipped profile, published cascade and size."""
    columns = [(cascade, size) for cascade in PUBLISHED for size in sorted(SIZES, reverse=True)]
    headings = [f"{cascade} {size}" for cascade, size in columns]
    lines = [f"| profile | {' | '.join(headings)} |", "|---" * (len(columns) + 1) + "|"]
    for name in profile_names():
        cells = [_cell(_plan(name, cascade, size)) for cascade, size in columns]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(plan: Plan | DoesNotFit) -> str:
    """Strategies, peaks and time, or what is short."""
    if isinstance(plan, DoesNotFit):
        return f"no: {plan.component.replace('_', ' ')}, {plan.needed_bytes / 1e9:.1f} GB"
    mark = "*" if plan.loosened else ""
    peaks = [_peak(plan, "ram_bytes")]
    if plan.machine.kind != "cpu":
        peaks.insert(0, _peak(plan, "vram_bytes"))
    return f"{_signs(plan)}{mark} {'+'.join(peaks)} {_duration(plan)}"


@cache
def _plan(profile: str, cascade: str, size: int) -> Plan | DoesNotFit:
    """The plan as without `--prefer`; else why none fits."""
    loaded = load_profile(profile)
    request = make_request(("a red circle",), cascade=cascade, size=size, seed=(0,))
    try:
        return make_plan(loaded.machine, request, pins=loaded.pins)
    except DoesNotFit as error:
        return error


def _signs(plan: Plan) -> str:
    """One sign for each strategy; in lower case if a machine with a GPU runs it on the CPU."""
    signs = [
        _SIGNS.get(step.config.storage_dtype) or _SIGNS[step.config.strategy]
        for step in plan.steps[:-1]
    ]
    on_cpu = [step.config.device == "cpu" != plan.machine.device for step in plan.steps[:-1]]
    word = "".join(s.lower() if cpu else s for s, cpu in zip(signs, on_cpu, strict=True))
    return f"`{word}`"


def _peak(plan: Plan, kind: str) -> str:
    return f"{max(getattr(step.estimate, kind) for step in plan.steps) / 1e9:.1f}"


def _duration(plan: Plan | DoesNotFit) -> str:
    if isinstance(plan, DoesNotFit):
        return "does not fit"
    seconds = plan.seconds
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
