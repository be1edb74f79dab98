"""The commands about weights: download, rehearse, make up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from lowmem_if.api.fetch import copy_for_streaming, fetch, remove_copies
from lowmem_if.cascade import catalog
from lowmem_if.cli.command import argument, command, option
from lowmem_if.cli.output import print_json, say
from lowmem_if.cli.shared_options import (
    COMMON,
    FILE,
    RUN,
    as_json,
    budgets,
    cascade_argument,
    embeds,
    part,
    pin,
    prefer,
    profile,
    quiet,
    revision,
    size,
)
from lowmem_if.engine.options import Parts, checked_pins
from lowmem_if.engine.session import Session
from lowmem_if.errors import RequestError
from lowmem_if.report.progress import RunProgress, bytes_progress
from lowmem_if.report.tables import console, print_rehearsal
from lowmem_if.request.build import make_request
from lowmem_if.units import format_bytes

SECTION = "Weights"
_COPIES, _NO_COPIES = {"bf16": "bfloat16", "int8": "int8"}, "none"
"""What `fetch --convert` takes."""


@command(
    "fetch",
    "lowmem-if fetch if-xl",
    "lowmem-if fetch if-l --part stage_1=me/my-if@v2",
    section=SECTION,
)
@cascade_argument
@part
@size
@embeds
@option(
    "--convert", group=COMMON,
    help="bf16: also write bfloat16 copies of the UNets, for a CPU that streams them; "
    "int8: 8-bit copies, for --pin stage_1=stream:int8 and the like; none: only remove all copies.",
)  # fmt: skip
@budgets
@profile
@pin
@prefer
@revision
@quiet
def fetch_weights(cascade: str, convert: str | None, quiet: bool, **options: Any) -> None:
    """Download the weights that a plan for this machine needs, and nothing else."""
    known = (*_COPIES, _NO_COPIES)
    if convert not in (None, *known):
        raise RequestError(f"unknown conversion {convert!r}: use {' or '.join(known)}")
    if convert == _NO_COPIES:
        _remove_copies(cascade, options["revision"], options["parts"])
        return
    with bytes_progress(console(sys.stderr), "downloading", quiet=quiet) as report:
        found = fetch(cascade, **options, report=report, notice=say)
    if found.files:
        click.echo(f"{cascade}: {found.files} files, {found.total_bytes / 1e9:.2f} GB are here")
    else:
        click.echo(f"{cascade} is on this disk already")
    if convert:
        names = ("revision", "size", "parts")
        wanted = {name: options[name] for name in names}
        _write_copies(cascade, _COPIES[convert], wanted, quiet=quiet)


def _remove_copies(cascade: str, revision: str, parts: Parts) -> None:
    freed = remove_copies(cascade, revision=revision, parts=parts)
    copies = f"{format_bytes(freed)} of copies removed" if freed else "no copy to remove"
    click.echo(f"{cascade}: {copies}")


def _write_copies(cascade: str, dtype: str, options: dict[str, Any], *, quiet: bool) -> None:
    from lowmem_if.weights.files.weight_copies import copy_bytes

    with bytes_progress(console(sys.stderr), "converting", quiet=quiet) as report:
        copies = copy_for_streaming(cascade, dtype=dtype, **options, report=report)
    for component, copy in copies.items():
        what = (
            f"{format_bytes(copy_bytes(copy))} in {dtype} are in {copy}"
            if copy
            else "its weights are bfloat16 on file already"
        )
        click.echo(f"{component.replace('_', ' ')}: {what}")


@command(
    "rehearse",
    "lowmem-if rehearse if-xl --size 256",
    "lowmem-if rehearse if-xl --folder weights --steps 5",
    section=SECTION,
)
@cascade_argument
@part
@size
@option(
    "--folder", group=COMMON, type=FILE, help="Keep the made-up weights here for the next time."
)
@option(
    "--steps", group=RUN, type=click.IntRange(2, 50), default=3,
    help="Denoising steps of each stage.",
)  # fmt: skip
@budgets
@pin
@prefer
@as_json
@quiet
def rehearse_cascade(
    cascade: str, parts: Parts, size: int, folder: Path | None, steps: int, as_json: bool,
    quiet: bool, **options: Any,
) -> None:  # fmt: skip
    """Run a few steps of everything with made-up weights; predict the real run from them."""
    from lowmem_if.api.rehearse import rehearse
    from lowmem_if.calibrate.measure import keep

    prefer, pins = options.pop("prefer"), checked_pins(options.pop("pins"))
    with Session(keep_loaded=False) as session:
        machine = session.measure(**options)
    request = make_request("a rehearsal", cascade=cascade, parts=parts, seed=1, size=size)
    with RunProgress(console(sys.stderr), quiet=quiet) as progress:
        result = rehearse(
            request, machine, prefer=prefer, pins=pins, folder=folder, steps=steps, report=progress
        )
    keep(machine, result.plan.machine.speeds)
    if as_json:
        print_json(result.to_json())
    else:
        print_rehearsal(result, console(sys.stdout))


@command(
    "synthesize",
    "lowmem-if synthesize if-xl weights",
    "lowmem-if synthesize I-L+II-L weights --fill zeros --only stage_1",
    section=SECTION,
)
@cascade_argument
@argument("folder", type=FILE, metavar="DIR", help="The folder to write.")
@option(
    "--fill", group=COMMON, default="noise",
    help="noise, or zeros: sparse files that take no space.",
)  # fmt: skip
@option(
    "--only", group=COMMON, multiple=True,
    help=f"Write only this component; may be repeated: {', '.join(catalog.COMPONENTS)}.",
)  # fmt: skip
@quiet
def synthesize_weights(
    cascade: str, folder: Path, fill: str, only: tuple[str, ...], quiet: bool
) -> None:
    """Write a checkpoint of the real size with made-up weights, to rehearse with."""
    from lowmem_if.weights.synthetic.checkpoints import synthesize

    components = only or catalog.COMPONENTS
    with bytes_progress(console(sys.stderr), "writing", quiet=quiet) as report:
        written = synthesize(cascade, folder, fill=fill, components=components, report=report)
    click.echo(f"{folder}: {written / 1e9:.2f} GB of made-up weights, laid out like {cascade}")


COMMANDS = (fetch_weights, rehearse_cascade, synthesize_weights)
