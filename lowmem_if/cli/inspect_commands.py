"""The commands that show plans, machines and runs."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from lowmem_if.cli.command import command, option
from lowmem_if.cli.output import (
    note,
    note_unused,
    planner,
    print_json,
    run_json,
    say,
    total_json,
    unfit_json,
)
from lowmem_if.cli.shared_options import (
    MACHINE,
    OUTPUT,
    any_start,
    as_json,
    aspect,
    budgets,
    draw_options,
    drawing_options,
    prompts,
    run_folder,
)
from lowmem_if.engine.announcements.request_notices import request_notices
from lowmem_if.engine.options import PlanOptions, RequestOptions, part_of
from lowmem_if.engine.run_folder.embedding_copies import check_embeddings
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.gallery import write_gallery
from lowmem_if.engine.run_folder.library_versions import PACKAGE, installed_versions
from lowmem_if.engine.session import Session
from lowmem_if.errors import DoesNotFit
from lowmem_if.planning.levels import savings
from lowmem_if.report.memory_chart import write_chart
from lowmem_if.report.tables import console, print_machine, print_plan, print_run
from lowmem_if.request.build import make_request

SECTION = "Look before and after"


@command(
    "plan",
    'lowmem-if plan "a fox in the snow" --cascade if-xl',
    'lowmem-if plan "a fox in the snow" --cascade if-xl --profile colab-free --json',
    section=SECTION,
)
@prompts
@drawing_options
@aspect
@any_start
def plan(prompts: tuple[str, ...], as_json: bool, simulate: bool, **given: Any) -> None:
    """Show what would run where, with peaks of memory, times and reasons; run nothing."""
    options = draw_options(given, prompts)
    request = make_request(prompts, **part_of(options, RequestOptions))
    for text in request_notices(request):
        note(text)
    wishes = part_of(options, PlanOptions)
    with Session(keep_loaded=False, planner=planner(simulate=simulate), **wishes) as session:
        note_unused(machine := session.measure())
        try:
            found = session.plan(request, machine)
        except DoesNotFit as error:
            if as_json:
                print_json(unfit_json(request, machine, error))
            elif wishes["prefer"]:
                with suppress(DoesNotFit):
                    looser = session.plan(request, machine, prefer=None)
                    click.echo("without --prefer:")
                    print_plan(looser, console(sys.stdout))
            raise
    check_embeddings(found)
    if as_json:
        more = {"total": total_json(found), "looser": [asdict(each) for each in savings(found)]}
        print_json({**found.to_json(), **more})
    else:
        print_plan(found, console(sys.stdout), savings(found))


@command("probe", "lowmem-if probe", "lowmem-if probe --calibrate", section=SECTION)
@budgets
@option(
    "--no-accelerator", group=MACHINE, is_flag=True, help="Look at the CPU only, as --device cpu."
)
@option(
    "--calibrate", group=MACHINE, is_flag=True,
    help="Measure disk, bus and arithmetic first (half a minute).",
)  # fmt: skip
@as_json
def probe(
    device: str, ram: str | None, vram: str | None, no_accelerator: bool, calibrate: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Show what this machine has, what may be used, and why."""
    with Session(keep_loaded=False) as session:
        machine = session.measure(device="cpu" if no_accelerator else device, ram=ram, vram=vram)
    if calibrate:
        from lowmem_if.calibrate.measure import calibrate as measure

        machine = replace(machine, rates=measure(machine, lambda what: say(f"measuring: {what}")))
    if as_json:
        print_json(asdict(machine))
    else:
        print_machine(machine, console(sys.stdout))


@command("show", "lowmem-if show runs/fox", "lowmem-if show runs/fox --plot", section=SECTION)
@run_folder
@option(
    "--plot", group=OUTPUT, is_flag=True, help="Also draw memory over time into RUN/memory.png."
)
@as_json
def show(run_folder: Path, plot: bool, as_json: bool) -> None:
    """Show the predicted and the measured figures of each step of a run."""
    folder = RunFolder.open(run_folder)
    if plot:
        write_chart(folder, picture := run_folder / "memory.png")
        say(f"memory over time: {picture}")
    if as_json:
        print_json(run_json(folder))
    else:
        print_run(folder, console(sys.stdout))


@command("gallery", "lowmem-if gallery runs/many", "lowmem-if gallery runs/small", section=SECTION)
@run_folder
def gallery(run_folder: Path) -> None:
    """Write all pictures of a run on one page, with their prompts and a filter: gallery.html."""
    click.echo(write_gallery(RunFolder.open(run_folder)))


@command("version", "lowmem-if version", "lowmem-if version --json", section=SECTION)
@as_json
def version(as_json: bool) -> None:
    """Show the versions of lowmem-if, Python and the libraries that are installed."""
    versions = installed_versions() | {"python": sys.version.split()[0]}
    if as_json:
        print_json(versions)
        return
    for name, number in versions.items():
        click.echo(f"{name} {number}")


def print_version(ctx: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    """Print this package's version and exit, for `--version`."""
    if asked and not ctx.resilient_parsing:
        click.echo(f"{PACKAGE} {installed_versions().get(PACKAGE, 'of unknown version')}")
        ctx.exit()


COMMANDS = (plan, probe, show, gallery, version)
