"""The command line: parse, call, print. Results go to standard output, progress to standard error."""

from __future__ import annotations

import io
import json
import platform
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from lowmem_if.api.enlarge import continued
from lowmem_if.api.fetch import copy_for_streaming, fetch, remove_copies
from lowmem_if.api.generate import new_folder, with_begun_seed
from lowmem_if.cascade import catalog
from lowmem_if.cascade.strategies import BALANCED, EXACT, parse_pins
from lowmem_if.cli import options
from lowmem_if.cli.options import (
    Asked,
    Device,
    Json,
    OtherVersions,
    Pins,
    Prefer,
    PreviewEvery,
    ProfileName,
    Quiet,
    Ram,
    Revision,
    Size,
    Vram,
    asking,
    chosen_machine,
)
from lowmem_if.engine.gallery import write_gallery
from lowmem_if.engine.library_versions import installed_versions
from lowmem_if.engine.run_folder import RunFolder
from lowmem_if.engine.runner import RunResult, continue_run
from lowmem_if.errors import DoesNotFit, LowmemError, RequestError
from lowmem_if.hardware.profiles import choose_machine
from lowmem_if.report.memory_chart import write_picture
from lowmem_if.report.progress import RunProgress, bytes_progress
from lowmem_if.report.tables import console, print_machine, print_plan, print_rehearsal, print_run
from lowmem_if.request.batch_file import BadLine
from lowmem_if.request.batch_request import unusable
from lowmem_if.request.build import make_request
from lowmem_if.request.request import Request
from lowmem_if.request.request_json import request_to_json
from lowmem_if.request.seeds import parse_numbers
from lowmem_if.system.channel import says_closed
from lowmem_if.units import format_bytes

app = typer.Typer(
    help="Run the DeepFloyd IF cascade on machines it does not fit.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

_UsageError: Any = typer.BadParameter.__mro__[1]
"""Click's own class of it: typer carries a click inside and exports nothing above this one."""

_COPIES, _NO_COPIES = "bf16", "none"
"""What `fetch --convert` takes."""

_BUG = 3
_INTERRUPTED = 130


def _generate(asked: Asked) -> None:
    """Draw pictures; the run folder can be continued if anything stops it."""
    path = asked.out or new_folder(asked.request)
    if not asked.seeded:
        asked = replace(asked, request=with_begun_seed(path, asked.request))
    folder = RunFolder.for_plan(path, asked.plan())
    out = console(sys.stderr)
    for notice in _responsibility(asked.request):
        out.print(notice)
    out.print(f"run folder: {path}", markup=False, soft_wrap=True)
    with RunProgress(out, quiet=asked.quiet) as progress:
        result = continue_run(folder, report=progress, preview_every=asked.preview_every)
    _print_result(result, as_json=asked.as_json, bad_lines=asked.bad_lines)


def _batch(asked: Asked) -> None:
    """Draw a picture for each line of a file, each component loaded once for all of them."""
    for line in asked.bad_lines:
        _say(str(line))
    _generate(asked)
    if asked.bad_lines:
        raise unusable(asked.bad_lines)


def _plan(asked: Asked) -> None:
    """Say what would run where, with which peaks and why; run nothing."""
    try:
        plan = asked.plan()
    except DoesNotFit as error:
        if asked.as_json:
            _print_json(_unfit(asked, error))
        else:
            _print_balanced(asked)
        raise
    if asked.as_json:
        _print_json(plan.to_json())
    else:
        print_plan(plan, console(sys.stdout))


def _print_balanced(asked: Asked) -> None:
    """What would run under `balanced`, where nothing does that changes no pixel."""
    if asked.prefer != EXACT:
        return
    with suppress(DoesNotFit):
        plan = replace(asked, prefer=BALANCED).plan()
        out = console(sys.stdout)
        out.print(f"with --prefer {BALANCED}:")
        print_plan(plan, out)


def _vary(asked: Asked) -> None:
    """Draw a picture again, by a text or in a style, as far as --strength says."""
    _generate(asked)


def _inpaint(asked: Asked) -> None:
    """Draw again what is white in a mask of the picture's size; the rest is left."""
    _generate(asked)


def _upscale(asked: Asked) -> None:
    """Enlarge a picture four times: by stage 2 up to 64 pixels, by the upscaler at any size."""
    _generate(asked)


app.command("generate")(asking(_generate))
app.command("vary")(asking(_vary, options.vary))
app.command("inpaint")(asking(_inpaint, options.inpaint))
app.command("upscale")(asking(_upscale, options.upscale))
app.command("batch")(asking(_batch, options.batch))
app.command("plan")(asking(_plan, options.any_mode))


@app.command("probe")
def _probe(
    device: Device = "auto",
    ram: Ram = None,
    vram: Vram = None,
    no_accelerator: Annotated[bool, typer.Option("--no-accelerator")] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Measure disk, bus and arithmetic first, in half a minute."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what this machine has, what may be used, and why."""
    machine, _ = choose_machine(device="cpu" if no_accelerator else device, ram=ram, vram=vram)
    if calibrate:
        from lowmem_if.calibrate.measure import calibrate as measure

        machine = replace(machine, rates=measure(machine, lambda what: _say(f"measuring: {what}")))
    if as_json:
        _print_json(asdict(machine))
    else:
        print_machine(machine, console(sys.stdout))


@app.command("resume")
def _resume(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN")],
    as_json: Json = False,
    quiet: Quiet = False,
    preview_every: PreviewEvery = 0,
    other_versions: OtherVersions = False,
) -> None:
    """Continue a run folder; what is finished is read back, never done again."""
    folder = RunFolder.open(run_folder)
    with RunProgress(console(sys.stderr), quiet=quiet) as progress:
        result = continue_run(
            folder, report=progress, preview_every=preview_every, other_versions=other_versions
        )
    _print_result(result, as_json=as_json)


@app.command("continue")
def _continue(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN")],
    pick: Annotated[str, typer.Option(help="Numbers of the pictures: 3,7 or 0..4.")],
    size: Annotated[int, typer.Option(help="What they grow to: 256 or 1024.")] = 1024,
    out: Annotated[
        Path | None, typer.Option(help="A new folder; else they grow where they are.")
    ] = None,
    device: Device = "auto",
    ram: Ram = None,
    vram: Vram = None,
    profile: ProfileName = None,
    as_json: Json = False,
    quiet: Quiet = False,
    preview_every: PreviewEvery = 0,
    other_versions: OtherVersions = False,
) -> None:
    """Take chosen pictures of a finished run on to a larger size; stage 1 is not run again."""
    source = RunFolder.open(run_folder)
    machine, _ = chosen_machine(profile, device=device, ram=ram, vram=vram)
    numbers = parse_numbers("picture", pick)
    folder = continued(source, numbers, size, machine, out, other_versions=other_versions)
    with RunProgress(console(sys.stderr), quiet=quiet) as progress:
        result = continue_run(
            folder, report=progress, preview_every=preview_every, other_versions=other_versions
        )
    _print_result(result, as_json=as_json)


@app.command("gallery")
def _gallery(run_folder: Annotated[Path, typer.Argument(metavar="RUN")]) -> None:
    """Write all pictures of a run on one page, with their prompts and a filter: gallery.html."""
    typer.echo(write_gallery(RunFolder.open(run_folder)))


@app.command("show")
def _show(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN")],
    plot: Annotated[
        bool, typer.Option("--plot", help="Also draw memory over time into RUN/memory.png.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Predicted against measured, per step, of a run folder."""
    folder = RunFolder.open(run_folder)
    if plot:
        write_picture(folder, picture := run_folder / "memory.png")
        _say(f"memory over time: {picture}")
    if as_json:
        _print_json(_run_json(folder))
    else:
        print_run(folder, console(sys.stdout))


@app.command("fetch")
def _fetch(
    cascade: Annotated[str, typer.Argument(metavar="CASCADE")],
    revision: Revision = "main",
    size: Size = 1024,
    device: Device = "auto",
    ram: Ram = None,
    vram: Vram = None,
    profile: ProfileName = None,
    pin: Pins = None,
    prefer: Prefer = EXACT,
    convert: Annotated[
        str | None,
        typer.Option(
            help="bf16: also write bfloat16 copies of the UNets, for a CPU that streams them; "
            "none: remove those copies and do nothing else."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet")] = False,
) -> None:
    """Download the weights that a plan for this machine needs, and nothing else."""
    if convert not in (None, _COPIES, _NO_COPIES):
        raise RequestError(f"unknown conversion {convert!r}: use {_COPIES} or {_NO_COPIES}")
    if convert == _NO_COPIES:
        freed = remove_copies(cascade, revision=revision)
        copies = (
            f"{format_bytes(freed)} of bfloat16 copies are" if freed else "no copy was there to be"
        )
        typer.echo(f"{cascade}: {copies} removed")
        return
    with bytes_progress(console(sys.stderr), "downloading", quiet=quiet) as report:
        here = fetch(
            cascade, revision=revision, size=size, profile=profile, device=device, ram=ram,
            vram=vram, pins=parse_pins(pin or ()), prefer=prefer, report=report, notice=_say,
        )  # fmt: skip
    if here.files:
        typer.echo(f"{cascade}: {here.files} files, {here.total_bytes / 1e9:.2f} GB are here")
    else:
        typer.echo(f"{cascade} is on this disk already")
    if convert:
        _write_copies(cascade, revision, size, quiet=quiet)


def _write_copies(cascade: str, revision: str, size: int, *, quiet: bool) -> None:
    from lowmem_if.weights.files.bf16_copies import copy_bytes

    with bytes_progress(console(sys.stderr), "converting", quiet=quiet) as report:
        copies = copy_for_streaming(cascade, revision=revision, size=size, report=report)
    for component, copy in copies.items():
        told = (
            f"{format_bytes(copy_bytes(copy))} in bfloat16 are in {copy}"
            if copy
            else "its weights are bfloat16 on file already"
        )
        typer.echo(f"{component.replace('_', ' ')}: {told}")


@app.command("rehearse")
def _rehearse(
    cascade: Annotated[str, typer.Argument(metavar="CASCADE")],
    folder: Annotated[
        Path | None, typer.Option(help="Keep the made-up weights here for the next time.")
    ] = None,
    size: Size = 1024,
    steps: Annotated[int, typer.Option(min=2, max=50, help="Of each stage.")] = 3,
    device: Device = "auto",
    ram: Ram = None,
    vram: Vram = None,
    pin: Pins = None,
    prefer: Prefer = EXACT,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a few steps of everything with made-up weights; say what the real thing will take."""
    from lowmem_if.api.rehearse import rehearse
    from lowmem_if.calibrate.measure import keep

    machine, _ = chosen_machine(None, device=device, ram=ram, vram=vram)
    request = make_request(("a rehearsal",), cascade=cascade, seed=(1,), size=size)
    with RunProgress(console(sys.stderr), quiet=quiet) as progress:
        result = rehearse(
            request, machine, prefer=prefer, pins=parse_pins(pin or ()), folder=folder, steps=steps,
            report=progress,
        )  # fmt: skip
    rates = result.plan.machine.speeds
    keep(machine, rates)
    if as_json:
        _print_json(result.to_json())
    else:
        print_rehearsal(result, console(sys.stdout))


@app.command("synthesize")
def _synthesize(
    cascade: Annotated[str, typer.Argument(metavar="CASCADE")],
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    fill: Annotated[str, typer.Option(help="noise, or zeros: sparse files, no disk.")] = "noise",
    only: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(catalog.COMPONENTS)}.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet")] = False,
) -> None:
    """Write a real-size checkpoint with made-up weights, to rehearse with."""
    from lowmem_if.weights.synthetic.checkpoints import synthesize

    components = tuple(map(catalog.component_name, only or catalog.COMPONENTS))
    with bytes_progress(console(sys.stderr), "writing", quiet=quiet) as report:
        size = synthesize(cascade, folder, fill=fill, components=components, report=report)
    typer.echo(f"{folder}: {size / 1e9:.2f} GB of made-up weights, laid out like {cascade}")


def _responsibility(request: Request) -> list[str]:
    """What switching the check or the mark off means."""
    notices = []
    if not request.safety_checker:
        notices.append(
            "safety checker off: IF's licence asks you to keep harmful pictures from others"
        )
    if not request.watermark:
        notices.append("watermark off: say of these pictures that a machine made them")
    return notices


def _print_result(result: RunResult, *, as_json: bool, bad_lines: Sequence[BadLine] = ()) -> None:
    if as_json:
        bad = {"bad_lines": [asdict(line) for line in bad_lines]} if bad_lines else {}
        _print_json(_run_json(RunFolder.open(result.folder)) | bad)
        return
    for image in result.images:
        typer.echo(image)


def _run_json(folder: RunFolder) -> dict[str, Any]:
    plan = folder.plan.to_json()
    return {
        "run": str(folder.path),
        "complete": folder.complete,
        "images": [str(image) for image in folder.images],
        "steps": [
            {
                **step,
                "measured": folder.measured(step["component"]),
                "released": folder.released(step["component"]),
            }
            for step in plan["steps"]
        ],
        "notices": list(folder.notices),
        "log": list(folder.log),
    }


def _unfit(asked: Asked, error: DoesNotFit) -> dict[str, Any]:
    machine, _ = asked.machine()
    return {
        "fits": False,
        "machine": asdict(machine),
        "request": request_to_json(asked.request),
        "steps": [],
        "does_not_fit": {
            "component": error.component,
            "resource": error.resource,
            "needed_bytes": error.needed_bytes,
            "available_bytes": error.available_bytes,
            "nearest": error.nearest,
        },
    }


def _print_json(data: dict[str, Any]) -> None:
    plain = "utf" not in (getattr(sys.stdout, "encoding", None) or "").lower()
    typer.echo(json.dumps(data, ensure_ascii=plain, indent=1))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. 0 done, 1 known error, 2 usage, 3 a bug of ours, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what its encoding lacks, as \\u escapes
    try:
        code = app(args=None if argv is None else list(argv), standalone_mode=False) or 0
        if code == _INTERRUPTED:  # typer's answer to Ctrl-C
            raise KeyboardInterrupt
    except LowmemError as error:
        _say(f"error: {error}")
        return error.exit_code
    except _UsageError as error:
        _say(f"error: {error.format_message()}; see --help")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted: what is done is kept; begun runs go on with `lowmem-if resume RUN`")
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001  the last resort, which prints everything
        if isinstance(error, OSError) and says_closed(error):
            return 1
        return _report_bug(argv)
    return int(code)


def _say(text: str) -> None:
    """One line on standard error, whatever an error text holds."""
    sys.stderr.write(text.replace("\r", " ").replace("\n", " ").strip() + "\n")


def _report_bug(argv: Sequence[str] | None) -> int:
    sys.stderr.write(
        "This is a bug of lowmem-if. Please paste what follows into a report:\n"
        f"arguments: {list(sys.argv[1:] if argv is None else argv)!r}\n"
        f"versions: {installed_versions()}, Python {platform.python_version()}, {sys.platform}\n"
        f"{traceback.format_exc()}"
    )
    return _BUG


if __name__ == "__main__":
    sys.exit(main())
