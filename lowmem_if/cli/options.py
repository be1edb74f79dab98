"""The options of a request on the command line, and what they say: the same for every mode."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from lowmem_if.cascade import catalog
from lowmem_if.cascade.modes import INPAINT, MODES, TEXT, UPSCALE, VARY
from lowmem_if.cascade.strategies import EXACT, parse_pins
from lowmem_if.errors import RequestError
from lowmem_if.hardware.machine import Machine
from lowmem_if.hardware.profiles import choose_machine
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.request.batch_file import BadLine
from lowmem_if.request.batch_request import read_request
from lowmem_if.request.build import make_request
from lowmem_if.request.noise_scheduler import DDPM, SCHEDULERS
from lowmem_if.request.request import Request
from lowmem_if.request.seeds import parse_seeds

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
Quiet = Annotated[bool, typer.Option("--quiet", help="One line a step.")]
PreviewEvery = Annotated[
    int, typer.Option(help="Steps after which the picture in the making is written.")
]
OtherVersions = Annotated[
    bool,
    typer.Option(
        "--other-versions", help="Go on even if libraries have changed that pixels depend on."
    ),
]
Prompts = Annotated[list[str], typer.Argument(metavar="PROMPT...")]
PromptsOrNone = Annotated[list[str] | None, typer.Argument(metavar="[PROMPT...]")]
Image = Annotated[Path, typer.Argument(metavar="IMAGE")]
Mask = Annotated[Path, typer.Argument(metavar="MASK", help="White where to repaint.")]
Strength = Annotated[
    str | None,
    typer.Option(
        help="How much is noised away, above 0 to 1: one number, or one for each of 0.7,0.8."
    ),
]
StylePrompt = Annotated[str, typer.Option(help="How to draw it; PROMPT says what is there.")]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="[STAGE=]FILE[:SCALE]",
        help="A LoRA for stage 1 or 2, told by its shapes; several add up.",
    ),
]
Aspect = Annotated[str | None, typer.Option(help="Of pictures that are no squares, like 3:2.")]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the options of a command that draws say."""

    request: Request
    seeded: bool
    machine: Callable[[], tuple[Machine, dict[str, Any]]]
    pins: dict[str, Any]
    prefer: str
    out: Path | None
    as_json: bool
    quiet: bool
    preview_every: int = 0
    bad_lines: tuple[BadLine, ...] = ()
    simulate: bool = False

    def plan(self) -> Plan:
        """The plan for the machine that the options mean.

        Raises:
            LowmemError: as `make_plan` and `choose_machine`.
        """
        machine, profile_pins = self.machine()
        pins = profile_pins | self.pins
        if self.simulate:
            from lowmem_if.simulate.plans import simulated_plan

            return simulated_plan(
                machine, self.request, prefer=self.prefer, pins=pins,
                report=partial(typer.echo, err=True),
            )  # fmt: skip
        return make_plan(machine, self.request, prefer=self.prefer, pins=pins)


Opening = Callable[..., dict[str, Any]]
"""What stands first on a command line, of one mode, as values of a `Request`."""


def text(prompts: Prompts, aspect: Aspect = None) -> dict[str, Any]:
    return {"prompts": tuple(prompts), "aspect": aspect}


def vary(
    image: Image,
    prompts: PromptsOrNone = None,
    strength: Strength = None,
    style_prompt: StylePrompt = "",
) -> dict[str, Any]:
    return {
        "mode": VARY,
        "image": image,
        "prompts": tuple(prompts or [""]),
        "strength": numbers("strength", strength, float),
        "style_prompt": style_prompt,
    }


def inpaint(
    image: Image, mask: Mask, prompts: Prompts, strength: Strength = None
) -> dict[str, Any]:
    return {
        "mode": INPAINT,
        "image": image,
        "mask": mask,
        "prompts": tuple(prompts),
        "strength": numbers("strength", strength, float),
    }


def upscale(image: Image, prompts: PromptsOrNone = None) -> dict[str, Any]:
    return {"mode": UPSCALE, "image": image, "prompts": tuple(prompts or [""])}


def batch(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON lines, CSV or prompts, one a line; or -.")
    ],
) -> dict[str, Any]:
    return {"file": file}


def any_mode(
    prompts: Prompts,
    mode: Annotated[str, typer.Option(help=f"One of {', '.join(MODES)}.")] = TEXT,
    image: Annotated[Path | None, typer.Option(help="The picture to begin with.")] = None,
    mask: Annotated[Path | None, typer.Option(help="White where to repaint.")] = None,
    strength: Strength = None,
    style_prompt: StylePrompt = "",
    aspect: Aspect = None,
) -> dict[str, Any]:
    return {
        "mode": mode,
        "image": image,
        "mask": mask,
        "prompts": tuple(prompts),
        "strength": numbers("strength", strength, float),
        "style_prompt": style_prompt,
        "aspect": aspect,
    }


def asking(action: Callable[[Asked], None], opening: Opening = text) -> Callable[..., None]:
    """A command with an opening and all the options of a request, which calls `action` with them."""
    first, others = (_parameters(function) for function in (opening, _asked))
    del others["opening"]

    def command(**given: Any) -> None:
        own = opening(**{name: given.pop(name) for name in first})
        action(_asked(own, **given))

    parameters = first | others
    command.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    command.__annotations__ = {name: p.annotation for name, p in parameters.items()}
    command.__doc__ = action.__doc__
    return command


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """A function's parameters with their annotations as they are meant, for typer to read."""
    hints = get_type_hints(function, include_extras=True)
    return {
        name: parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(function).parameters.items()
    }


def _asked(
    opening: dict[str, Any],
    negative_prompt: Annotated[str, typer.Option(help="What the picture should not show.")] = "",
    cascade: Cascade = catalog.DEMO,
    revision: Revision = "main",
    seed: Annotated[
        str | None, typer.Option(help="One number, one a prompt: 7,8, or a series: 1..16.")
    ] = None,
    images: Annotated[int, typer.Option(help="Pictures a prompt; seeds count up.")] = 1,
    size: Size = 1024,
    steps: Annotated[str | None, typer.Option(help="One number, or one a stage: 50,30,40.")] = None,
    timesteps: Annotated[
        str | None, typer.Option(help=f"For stages 1, 2: {', '.join(catalog.TIMESTEP_LISTS)}.")
    ] = None,
    guidance_scale: Annotated[
        str | None, typer.Option(help="One number, or one a stage: 7,4,9.")
    ] = None,
    noise_level: Annotated[
        int | None, typer.Option(help="Of stage 2, 0 to 999: more lets it draw more anew.")
    ] = None,
    scheduler: Annotated[
        str, typer.Option(help=f"Of stages 1, 2: {' or '.join(SCHEDULERS)} (for few steps).")
    ] = DDPM,
    thresholding: Annotated[
        str | None, typer.Option(help="Of stages 1, 2: ratio, and largest value: 0.95,1.5.")
    ] = None,
    lora: Loras = None,
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
    quiet: Quiet = False,
    preview_every: PreviewEvery = 0,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile UNets with torch.compile where it pays.")
    ] = False,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Run dry what no shipped figure is there for.")
    ] = False,
) -> Asked:
    values: dict[str, Any] = {
        "negative_prompt": negative_prompt,
        "cascade": cascade,
        "revision": revision,
        "seed": None if seed is None else parse_seeds(seed, len(opening.get("prompts", ())) or 1),
        "images": images,
        "size": size,
        "steps": numbers("steps", steps, int),
        "timesteps": timesteps,
        "guidance_scale": numbers("guidance scale", guidance_scale, float),
        "noise_level": noise_level,
        "scheduler": scheduler,
        "thresholding": numbers("thresholding", thresholding, float),
        "lora": tuple(lora or ()),
        "watermark": not no_watermark,
        "safety_checker": not no_safety_checker,
        "compile": compiled,
    }
    request, bad_lines = _request(opening, values)
    return Asked(
        request,
        seed is not None,
        cache(partial(chosen_machine, profile, device=device, ram=ram, vram=vram)),
        parse_pins(pin or ()),
        prefer,
        out,
        as_json,
        quiet,
        preview_every,
        bad_lines,
        simulate,
    )


def chosen_machine(
    profile: str | None, *, device: str, ram: str | None, vram: str | None
) -> tuple[Machine, dict[str, Any]]:
    """`choose_machine`; a card that torch cannot use is reported on standard error at once.

    Raises:
        LowmemError: as `choose_machine`.
    """
    machine, pins = choose_machine(profile, device=device, ram=ram, vram=vram)
    for card in machine.unused:
        typer.echo(f"note: {card}", err=True)
    return machine, pins


def _request(
    opening: dict[str, Any], values: dict[str, Any]
) -> tuple[Request, tuple[BadLine, ...]]:
    """The request that opening and options make, and the lines of a batch that are none."""
    if "file" in opening:
        return read_request(opening["file"], **values)
    return make_request(**opening, **values), ()


def numbers(name: str, text: str | None, kind: type[Any]) -> tuple[Any, ...] | None:
    """One number or several with commas, None of no text.

    Raises:
        RequestError: it is something else.
    """
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        what = "whole number" if kind is int else "number"
        raise RequestError(f"{name} {text!r} is not a {what}, or several with commas") from None
