"""The command line: parse, call, print. Results go to standard output, progress to standard error."""

from __future__ import annotations

import io
import json
import platform
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from lowmem_if.errors import DoesNotFit, LowmemError, RequestError
from lowmem_if.planning import catalog
from lowmem_if.planning.locations import locate
from lowmem_if.planning.machine import Machine
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.planning.profiles import choose_machine
from lowmem_if.planning.request import Request
from lowmem_if.planning.strategies import BALANCED, EXACT, parse_pins
from lowmem_if.planning.units import format_bytes
from lowmem_if.report.picture import write_picture
from lowmem_if.report.progress import RunProgress, bytes_progress
from lowmem_if.report.tables import console, print_machine, print_plan, print_rehearsal, print_run
from lowmem_if.running.generate import new_folder, with_begun_seed
from lowmem_if.running.run_folder import RunFolder, library_versions
from lowmem_if.running.scheduler import RunResult, continue_run

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

Cascade = Annotated[
    str,
    typer.Option(help=f"One of {', '.join(catalog.CASCADES)}, or a folder in diffusers layout."),
]
Pins = Annotated[
    list[str] | None, typer.Option("--pin", help="COMPONENT=STRATEGY[:DTYPE]; never overridden.")
]
Prefer = Annotated[str, typer.Option(help="exact: change no pixel; balanced: may quantise, batch.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, mps or xpu.")]
Ram = Annotated[str | None, typer.Option(help="RAM to use at most, like 8GB.")]
Vram = Annotated[str | None, typer.Option(help="VRAM to use at most, like 7.5GiB.")]
ProfileName = Annotated[str | None, typer.Option(help="Plan for a machine profile: name or file.")]
Size = Annotated[int, typer.Option(help="Side of the picture: 64, 256 or 1024.")]
Revision = Annotated[str, typer.Option(help="Branch, tag or commit of the weights' repositories.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the options of `generate` and `plan` say."""

    request: Request
    seeded: bool
    machine: Callable[[], tuple[Machine, dict[str, Any]]]
    pins: dict[str, Any]
    prefer: str
    out: Path | None
    as_json: bool
    quiet: bool
    simulate: bool

    def plan(self) -> Plan:
        machine, profile_pins = self.machine()
        pins = profile_pins | self.pins
        if self.simulate:
            from lowmem_if.simulate.plans import simulated_plan

            return simulated_plan(machine, self.request, prefer=self.prefer, pins=pins, report=_say)
        return make_plan(machine, self.request, prefer=self.prefer, pins=pins)


def _asking(action: Callable[[_Asked], None]) -> Callable[..., None]:
    """A command with all the options of a request, which calls `action` with what they say."""

    def command(
        prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...")],
        negative_prompt: Annotated[
            str, typer.Option(help="What the picture should not show.")
        ] = "",
        cascade: Cascade = catalog.DEMO,
        revision: Revision = "main",
        seed: Annotated[str | None, typer.Option(help="One number, or one a prompt: 7,8.")] = None,
        images: Annotated[int, typer.Option(help="Pictures a prompt; seeds count up.")] = 1,
        size: Size = 1024,
        steps: Annotated[
            str | None, typer.Option(help="One number, or one a stage: 50,30,40.")
        ] = None,
        timesteps: Annotated[
            str | None, typer.Option(help=f"For stages 1, 2: {', '.join(catalog.TIMESTEP_LISTS)}.")
        ] = None,
        guidance_scale: Annotated[
            str | None, typer.Option(help="One number, or one a stage: 7,4,9.")
        ] = None,
        out: Annotated[Path | None, typer.Option(help="Run folder; begun ones go on.")] = None,
        device: Device = "auto",
        ram: Ram = None,
        vram: Vram = None,
        profile: ProfileName = None,
        pin: Pins = None,
        prefer: Prefer = EXACT,
        no_watermark: Annotated[bool, typer.Option("--no-watermark")] = False,
        no_safety_checker: Annotated[bool, typer.Option("--no-safety-checker")] = False,
        as_json: Json = False,
        quiet: Annotated[bool, typer.Option("--quiet", help="One line a step.")] = False,
        simulate: Annotated[
            bool, typer.Option("--simulate", help="Run dry what no shipped figure is there for.")
        ] = False,
    ) -> None:
        request = Request(
            tuple(prompts),
            negative_prompt=negative_prompt,
            cascade=cascade,
            revision=revision,
            seed=_numbers("seed", seed, int),
            images=images,
            size=size,
            steps=_numbers("steps", steps, int),
            timesteps=timesteps,
            guidance_scale=_numbers("guidance scale", guidance_scale, float),
            watermark=not no_watermark,
            safety_checker=not no_safety_checker,
        )
        action(
            _Asked(
                request,
                seed is not None,
                lambda: choose_machine(profile, device=device, ram=ram, vram=vram),
                parse_pins(pin or ()),
                prefer,
                out,
                as_json,
                quiet,
                simulate,
            )
        )

    command.__doc__ = action.__doc__
    return command


def _numbers(name: str, text: str | None, kind: type[Any]) -> tuple[Any, ...] | None:
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        what = "whole number" if kind is int else "number"
        raise RequestError(f"{name} {text!r} is not a {what}, or several with commas") from None


def _generate(asked: _Asked) -> None:
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
        result = continue_run(folder, report=progress)
    _print_result(result, as_json=asked.as_json)


def _plan(asked: _Asked) -> None:
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


def _print_balanced(asked: _Asked) -> None:
    """What would run under `balanced`, where nothing does that changes no pixel."""
    if asked.prefer != EXACT:
        return
    with suppress(DoesNotFit):
        plan = replace(asked, prefer=BALANCED).plan()
        out = console(sys.stdout)
        out.print(f"with --prefer {BALANCED}:")
        print_plan(plan, out)


app.command("generate")(_asking(_generate))
app.command("plan")(_asking(_plan))


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
        from lowmem_if.running.calibrating import calibrate as measure

        machine = replace(machine, rates=measure(machine, lambda what: _say(f"measuring: {what}")))
    if as_json:
        _print_json(asdict(machine))
    else:
        print_machine(machine, console(sys.stdout))


@app.command("resume")
def _resume(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN")],
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="One line a step.")] = False,
) -> None:
    """Continue a run folder; what is finished is read back, never done again."""
    folder = RunFolder.open(run_folder)
    with RunProgress(console(sys.stderr), quiet=quiet) as progress:
        result = continue_run(folder, report=progress)
    _print_result(result, as_json=as_json)


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
    from lowmem_if.weights import hub
    from lowmem_if.weights.hub_cache import drop_broken

    if convert not in (None, _COPIES, _NO_COPIES):
        raise RequestError(f"unknown conversion {convert!r}: use {_COPIES} or {_NO_COPIES}")
    if convert == _NO_COPIES:
        _remove_copies(cascade, revision)
        return
    machine, profile_pins = choose_machine(profile, device=device, ram=ram, vram=vram)
    request = Request(("fetch",), cascade=cascade, revision=revision, size=size, seed=(0,))
    published = catalog.PUBLISHED.get(cascade)
    if published:
        # Before the plan, which can only be made of files that are sound or not here at all.
        for file in drop_broken(published, request.components, revision=revision):
            _say(f"{file} is broken and is fetched anew")
    plan = make_plan(machine, request, prefer=prefer, pins=profile_pins | parse_pins(pin or ()))
    if published is None:
        typer.echo(f"{cascade} is on this disk already")
    else:
        eight_bit = plan.steps[0].storage_dtype == "int8"
        files = hub.list_files(
            published, request.components, eight_bit=eight_bit, revision=revision
        )
        with bytes_progress(console(sys.stderr), "downloading", quiet=quiet) as report:
            hub.fetch(files, report=lambda p: report(p.file, p.done_bytes, p.total_bytes))
        total = sum(repository.total_bytes for repository in files)
        typer.echo(
            f"{cascade}: {sum(len(r.files) for r in files)} files, {total / 1e9:.2f} GB are here"
        )
    if convert:
        _write_copies(request, quiet=quiet)


def _write_copies(request: Request, *, quiet: bool) -> None:
    """bfloat16 copies of what a CPU may stream for a request."""
    from lowmem_if.weights.converted import (
        convert,
        copy_bytes,
        needs_conversion,
        streamed_networks,
    )

    location = locate(request.cascade, components=(), revision=request.revision)
    for component, folder in streamed_networks(location).items():
        if component not in request.components:
            continue
        name = component.replace("_", " ")
        if not needs_conversion(folder):
            typer.echo(f"{name}: its weights are bfloat16 on file already")
            continue
        with bytes_progress(console(sys.stderr), f"converting {name}:", quiet=quiet) as report:
            copy = convert(folder, report=report)
        typer.echo(f"{name}: {format_bytes(copy_bytes(copy))} in bfloat16 are in {copy}")


def _remove_copies(cascade: str, revision: str) -> None:
    from lowmem_if.weights.converted import remove_converted, streamed_networks

    location = locate(cascade, components=(), revision=revision)
    freed = sum(map(remove_converted, streamed_networks(location).values()))
    removed = (
        f"{format_bytes(freed)} of bfloat16 copies are" if freed else "no copy was there to be"
    )
    typer.echo(f"{cascade}: {removed} removed")


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
    quiet: Annotated[bool, typer.Option("--quiet", help="One line a step.")] = False,
) -> None:
    """Run a few steps of everything with made-up weights; say what the real thing will take."""
    from lowmem_if.running.calibrating import keep
    from lowmem_if.running.rehearsal import rehearse

    machine, _ = choose_machine(device=device, ram=ram, vram=vram)
    request = Request(("a rehearsal",), cascade=cascade, seed=(1,), size=size)
    with RunProgress(console(sys.stderr), quiet=quiet) as progress:
        result = rehearse(
            request, machine, prefer=prefer, pins=parse_pins(pin or ()), folder=folder, steps=steps,
            report=progress,
        )  # fmt: skip
    rates = result.plan.machine.speeds
    keep(machine, rates)
    if as_json:
        _print_json(asdict(result))
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
    from lowmem_if.weights.synthesis import synthesize

    components = tuple(only or catalog.COMPONENTS)
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


def _print_result(result: RunResult, *, as_json: bool) -> None:
    if as_json:
        _print_json(_run_json(RunFolder.open(result.folder)))
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


def _unfit(asked: _Asked, error: DoesNotFit) -> dict[str, Any]:
    machine, _ = asked.machine()
    return {
        "fits": False,
        "machine": asdict(machine),
        "request": asdict(asked.request),
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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as Python does for standard error
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
    except BrokenPipeError:
        return 1
    except Exception:  # noqa: BLE001  the last resort, which prints everything
        return _report_bug(argv)
    return int(code)


def _say(text: str) -> None:
    """One line on standard error, whatever an error text holds."""
    sys.stderr.write(text.replace("\r", " ").replace("\n", " ").strip() + "\n")


def _report_bug(argv: Sequence[str] | None) -> int:
    sys.stderr.write(
        "This is a bug of lowmem-if. Please paste what follows into a report:\n"
        f"arguments: {list(sys.argv[1:] if argv is None else argv)!r}\n"
        f"versions: {library_versions()}, Python {platform.python_version()}, {sys.platform}\n"
        f"{traceback.format_exc()}"
    )
    return _BUG


if __name__ == "__main__":
    sys.exit(main())
