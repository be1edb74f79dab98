"""The commands that draw pictures or resume a run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lowmem_if.cli.command import argument, command, option, together
from lowmem_if.cli.long_runs import ask_if_long
from lowmem_if.cli.output import engine, notices_of, print_result
from lowmem_if.cli.shared_options import (
    COMMON,
    FILE,
    as_json,
    aspect,
    budgets,
    draw_options,
    drawing_options,
    image,
    mask,
    masking,
    other_versions,
    preview_every,
    profile,
    prompts,
    prompts_or_none,
    quiet,
    run_folder,
    strength,
    style_prompt,
    yes,
)
from lowmem_if.engine.results import RunResult
from lowmem_if.engine.session import Session
from lowmem_if.request.batch_request import unusable
from lowmem_if.request.seeds import parse_numbers

SECTION = "Draw pictures"


@command(
    "generate",
    'lowmem-if generate "a red circle on a blue background" --seed 1 --out runs/circle',
    'lowmem-if generate "a fox in the snow" --cascade I-L+II-L --part stage_1=my-if',
    section=SECTION,
)
@prompts
@drawing_options
@yes
@aspect
def generate(prompts: tuple[str, ...], **given: Any) -> None:
    """Draw pictures from text; an interrupted run can be resumed."""
    options = draw_options(given, prompts)
    _draw(given, options, lambda session: session.generate(prompts, **options))


@command(
    "vary",
    'lowmem-if vary photo.jpg "a green star" --strength 0.8',
    'lowmem-if vary photo.jpg --style-prompt "an oil painting" --size 256',
    section=SECTION,
)
@image
@prompts_or_none
@drawing_options
@yes
@strength
@style_prompt
def vary(image: Path, prompts: tuple[str, ...], **given: Any) -> None:
    """Draw a picture again, following a text or a style, as much as --strength says."""
    options = draw_options(given, prompts)
    _draw(given, options, lambda session: session.vary(image, prompts or "", **options))


@command(
    "inpaint",
    'lowmem-if inpaint photo.jpg mask.png "a yellow star on a blue background"',
    'lowmem-if inpaint photo.png hole.png "a yellow star" --mask-alpha --strength 0.9 --size 256',
    section=SECTION,
)
@image
@mask
@prompts
@drawing_options
@yes
@strength
@masking
def inpaint(image: Path, mask: Path, prompts: tuple[str, ...], **given: Any) -> None:
    """Repaint the part of a picture that is white in a mask of the same size."""
    options = draw_options(given, prompts)
    _draw(given, options, lambda session: session.inpaint(image, mask, prompts, **options))


@command(
    "upscale",
    "lowmem-if upscale small.png -o large.png",
    'lowmem-if upscale small.png "a red circle on a blue background" --seed 1',
    section=SECTION,
)
@image
@prompts_or_none
@drawing_options
@yes
def upscale(image: Path, prompts: tuple[str, ...], **given: Any) -> None:
    """Enlarge a picture four times: with stage 2 up to 64 pixels, with the upscaler at any size."""
    options = draw_options(given, prompts)
    _draw(given, options, lambda session: session.upscale(image, prompts or "", **options))


def _draw(
    given: dict[str, Any], options: dict[str, Any], call: Callable[[Session], RunResult]
) -> None:
    with _engine(given, options) as session:
        result = call(session)
    print_result(result, as_json=given["as_json"])


def _engine(given: dict[str, Any], options: dict[str, Any]) -> AbstractContextManager[Session]:
    """A session for the options of a command that draws."""
    return engine(
        quiet=given["quiet"],
        ask=partial(ask_if_long, yes=given["yes"]),
        notices=notices_of(options),
        simulate=given["simulate"],
    )


@command(
    "batch",
    "lowmem-if batch prompts.jsonl --size 256 --out runs/many",
    "cat prompts.txt | lowmem-if batch - --size 64",
    section=SECTION,
)
@argument(
    "file", type=FILE, metavar="FILE", help="JSON lines, CSV or prompts, one a line; - reads input."
)
@drawing_options
@yes
def batch(file: Path, **given: Any) -> None:
    """Draw the pictures of a file's lines; each component is loaded once for all of them."""
    options = draw_options(given)
    with _engine(given, options) as session:
        result = session.batch(file, **options)
    bad = {"bad_lines": [asdict(line) for line in result.bad_lines]} if result.bad_lines else {}
    print_result(result.run, as_json=given["as_json"], **bad)
    if result.bad_lines:
        raise unusable(result.bad_lines)


resuming_options = together(preview_every, other_versions, yes, as_json, quiet)


@command(
    "resume",
    "lowmem-if resume runs/fox",
    "lowmem-if resume runs/fox --json --quiet",
    section=SECTION,
)
@run_folder
@resuming_options
def resume(run_folder: Path, as_json: bool, quiet: bool, yes: bool, **options: Any) -> None:
    """Resume a run; finished work is read from its folder, never done again."""
    with engine(quiet=quiet, ask=partial(ask_if_long, yes=yes)) as session:
        result = session.resume(run_folder, **options)
    print_result(result, as_json=as_json)


@command(
    "continue",
    "lowmem-if continue runs/small --pick 3,7 --out runs/chosen",
    "lowmem-if continue runs/small --pick 0..4 --size 256",
    section=SECTION,
)
@run_folder
@option(
    "--pick", group=COMMON, required=True, help="Numbers of the pictures, like 3,7, 0..4 or 0-4."
)
@option(
    "--size",
    group=COMMON,
    type=int,
    default=1024,
    help="Size to enlarge to in pixels: 256 or 1024.",
)
@option(
    "--out",
    "-o",
    group=COMMON,
    type=FILE,
    help="A new folder or a picture's name; without it they grow in the run's folder.",
)
@budgets
@profile
@resuming_options
def enlarge(
    run_folder: Path, pick: str, as_json: bool, quiet: bool, yes: bool, **options: Any
) -> None:
    """Enlarge chosen pictures of a finished run; stage 1 is not run again."""
    numbers = parse_numbers("picture", pick)
    with engine(quiet=quiet, ask=partial(ask_if_long, yes=yes)) as session:
        result = session.enlarge(run_folder, numbers, **options)
    print_result(result, as_json=as_json)


COMMANDS = (generate, vary, inpaint, upscale, batch, resume, enlarge)
