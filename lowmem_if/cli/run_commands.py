"""The commands about the runs on this disk: list them, and remove what finished ones do not need."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from lowmem_if.api.history import clean, list_runs
from lowmem_if.cli.command import argument, command
from lowmem_if.cli.output import print_json, say
from lowmem_if.cli.shared_options import FILE, as_json
from lowmem_if.engine.run_folder.out_folder import RUNS
from lowmem_if.report.run_table import print_runs
from lowmem_if.report.tables import console
from lowmem_if.units import format_bytes

SECTION = "Look before and after"


@command("runs", "lowmem-if runs", "lowmem-if runs old/runs runs/fox --json", section=SECTION)
@argument(
    "folders", nargs=-1, type=FILE, metavar="[FOLDER...]",
    help=f"Run folders, or folders that contain some; {RUNS} if left out.",
)  # fmt: skip
@as_json
def runs(folders: tuple[Path, ...], as_json: bool) -> None:
    """List runs: when, which prompt, how many pictures, whether complete, and size on disk."""
    found = list_runs(folders or ([RUNS] if RUNS.exists() else []))
    if as_json:
        rows = [asdict(run) | {"folder": str(run.folder)} for run in found]
        print_json({"runs": rows})
    elif found:
        print_runs(found, console(sys.stdout))
    else:
        say(f"no runs in {', '.join(map(str, folders or [RUNS]))}")


@command(
    "clean", "lowmem-if clean runs/fox", "lowmem-if clean runs/fox runs/stars", section=SECTION
)
@argument("runs", nargs=-1, required=True, type=FILE, metavar="RUN...", help="The run folders.")
def clean_runs(runs: tuple[Path, ...]) -> None:
    """Remove the intermediate tensors of finished runs; pictures, gallery and record are kept."""
    for run in runs:
        click.echo(f"{run}: {format_bytes(clean(run))} freed")


COMMANDS = (runs, clean_runs)
