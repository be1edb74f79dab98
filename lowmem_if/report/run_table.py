"""The runs on this disk as a table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowmem_if.api.history import PastRun
from lowmem_if.units import counted, format_bytes, shorten

_PROMPT_LENGTH = 40


def print_runs(runs: Sequence[PastRun], out: Console) -> None:
    """Print a row for each run, and what all of them take."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("changed", "run folder", "prompt", "pictures", "state", "size"):
        numeric = heading in ("pictures", "size")
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for run in runs:
        when = datetime.fromtimestamp(run.changed_s).strftime("%Y-%m-%d %H:%M")
        prompt = shorten(" ".join(run.prompt.split()), _PROMPT_LENGTH)
        pictures = f"{run.images_done} of {run.images}" if run.images else "-"
        cells = (when, str(run.folder), prompt, pictures, run.state, format_bytes(run.size_bytes))
        table.add_row(*map(Text, cells))
    out.print(table)
    total, tensors = (
        sum(getattr(run, name) for run in runs) for name in ("size_bytes", "tensor_bytes")
    )
    more = f"; `lowmem-if clean RUN` would free up to {format_bytes(tensors)}" if tensors else ""
    line = f"{counted(len(runs), 'run')}, {format_bytes(total)}{more}"
    out.print(line, markup=False, soft_wrap=True)
