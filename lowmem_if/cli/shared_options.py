"""The options that several commands share, and what their texts mean in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from lowmem_if.cascade import catalog
from lowmem_if.cascade.locating.weights_choice import parse_parts
from lowmem_if.cascade.modes import MODES, TEXT
from lowmem_if.cascade.strategies import PREFERENCES, parse_pins
from lowmem_if.cli.command import argument, option, together
from lowmem_if.cli.output import note
from lowmem_if.errors import RequestError
from lowmem_if.request.denoising.noise_scheduler import DDPM, SCHEDULERS
from lowmem_if.request.seeds import RANDOM, parse_seeds
from lowmem_if.units import is_bare

COMMON, PICTURE, START = "Common options", "Picture options", "Input picture options"
MACHINE, RUN, OUTPUT = "Machine and plan options", "Run options", "Output options"

FILE = click.Path(path_type=Path)


def _numbers(kind: type[Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A callback that reads one number, or several with commas."""

    def read(_ctx: click.Context, parameter: click.Parameter, text: str | None) -> Any:
        return numbers((parameter.name or "").replace("_", " "), text, kind)

    return read


def numbers(name: str, text: str | None, kind: type[Any]) -> tuple[Any, ...] | None:
    """One number, or several with commas; None if there is no text.

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


def _memory(_ctx: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """A memory size; a small number without a unit gets one, with a note."""
    if text is None or not is_bare(text):
        return text
    note(f"--{parameter.name} {text} is read as {text} GB: write {text}GB")
    return f"{text}GB"


def _parts(_ctx: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> Any:
    return parse_parts(texts)


def _pins(_ctx: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> Any:
    return parse_pins(texts)


prompts = argument(
    "prompts", nargs=-1, required=True, metavar="PROMPT...", help="What the pictures should show."
)
prompts_or_none = argument(
    "prompts", nargs=-1, metavar="[PROMPT...]", help="What the new picture shows; may be left out."
)
image = argument("image", type=FILE, metavar="IMAGE", help="The picture to begin with.")
mask = argument(
    "mask", type=FILE, metavar="MASK", help="A mask of the same size, white where to repaint."
)
run_folder = argument("run_folder", type=FILE, metavar="RUN", help="The run folder.")
CASCADES = f"{', '.join(catalog.CASCADES)}, two stages like I-L+II-L"
cascade_argument = argument(
    "cascade", metavar="CASCADE", help=f"One of {CASCADES}, or a folder in diffusers layout."
)

cascade = option(
    "--cascade", group=COMMON, default=catalog.DEMO,
    help=f"One of {CASCADES}, or a folder in diffusers layout.",
)  # fmt: skip
part = option(
    "--part", "parts", group=COMMON, multiple=True, callback=_parts,
    metavar="COMPONENT=WEIGHTS",
    help="Load a component from fine-tuned weights in diffusers layout: a folder, or a repository "
    "OWNER/NAME[@REVISION]; may be repeated.",
)  # fmt: skip
size = option(
    "--size", group=COMMON, type=int, default=1024,
    help="Shorter side of the pictures in pixels: 64, 256 or 1024.",
)  # fmt: skip
out = option(
    "--out", "-o", group=COMMON, type=FILE,
    help="Run folder. An unfinished run in it is resumed. A picture's name like fox.png puts the "
    "picture there, and the run folder next to it.",
)  # fmt: skip
aspect = option(
    "--aspect", group=PICTURE, help="Width and height of the pictures, like 3:2 or 3x2."
)
strength = option(
    "--strength", group=START, callback=_numbers(float),
    help="How much of the picture is replaced by noise, above 0 and up to 1: one number, or one for "
    "stage 1 and one for stage 2, like 0.7,0.8.",
)  # fmt: skip
style_prompt = option(
    "--style-prompt", group=START, default="", show_default=False,
    help="How the picture is drawn; PROMPT says what it shows.",
)  # fmt: skip
masking = together(
    option("--invert-mask", group=START, is_flag=True, help="Repaint the mask's black parts instead."),
    option(
        "--mask-alpha", group=START, is_flag=True,
        help="Repaint the mask's transparent parts instead; with --invert-mask, the opaque ones.",
    ),
)  # fmt: skip
any_start = together(
    option("--mode", group=START, default=TEXT, help=f"How pictures are made: {', '.join(MODES)}."),
    option("--image", group=START, type=FILE, help="The picture to begin with."),
    option("--mask", group=START, type=FILE, help="A mask, white where to repaint."),
    masking,
    strength,
    style_prompt,
)

budgets = together(
    option("--device", group=MACHINE, default="auto", help="auto, cpu, cuda, cuda:N, mps or xpu."),
    option(
        "--ram", group=MACHINE, callback=_memory, help="How much RAM may be used at most, like 8GB."
    ),
    option(
        "--vram",
        group=MACHINE,
        callback=_memory,
        help="How much VRAM may be used at most, like 7.5GiB.",
    ),
)
profile = option(
    "--profile", group=MACHINE, help="Plan for this machine profile (a name or a file)."
)
pin = option(
    "--pin", "pins", group=MACHINE, multiple=True, callback=_pins,
    metavar="COMPONENT=STRATEGY[:DTYPE]", help="Fix a component's strategy; never overridden.",
)  # fmt: skip
prefer = option(
    "--prefer", group=MACHINE, metavar="LEVEL",
    help=f"How far pixels may change at most: {', '.join(PREFERENCES)}. "
    "Without it: the strictest from faithful on that fits.",
)  # fmt: skip
simulate = option(
    "--simulate", group=MACHINE, is_flag=True,
    help="Measure peak memory by a dry run where the shipped table has no entry (minutes).",
)  # fmt: skip
revision = option(
    "--revision", group=MACHINE, default="main",
    help="Branch, tag or commit of the weights' repositories.",
)  # fmt: skip
as_json = option("--json", "as_json", group=OUTPUT, is_flag=True, help="Print one JSON object.")
quiet = option("--quiet", group=OUTPUT, is_flag=True, help="Print results and errors only.")
yes = option(
    "--yes", "-y", group=RUN, is_flag=True,
    help="Start a run of many hours without a question; scripts are never asked.",
)  # fmt: skip
preview_every = option(
    "--preview-every", group=RUN, type=int, default=0, metavar="STEPS",
    help="Write each unfinished picture after this many steps; 0: never.",
)  # fmt: skip
other_versions = option(
    "--other-versions", group=RUN, is_flag=True,
    help="Resume even if libraries that pixels depend on have changed.",
)  # fmt: skip

embeds = option(
    "--embeds", group=COMMON, type=FILE,
    help="A file with the embeddings of all prompts, from `embed`: no text encoder is needed.",
)  # fmt: skip

picture_options = together(
    option(
        "--negative-prompt", group=PICTURE, default="", show_default=False,
        help="What the pictures should not show.",
    ),
    option(
        "--steps", group=PICTURE, callback=_numbers(int),
        help="Denoising steps: one number, or one for each stage that runs, like 50,30,40.",
    ),
    option(
        "--timesteps", group=PICTURE,
        help=f"Timesteps of stages 1 and 2: {', '.join(catalog.TIMESTEP_LISTS)}.",
    ),
    option(
        "--guidance-scale", group=PICTURE, callback=_numbers(float),
        help="How closely the prompt is followed: one number, or one for each stage that runs, like "
        "7,4,9.",
    ),
    option(
        "--scheduler", group=PICTURE, default=DDPM,
        help=f"Noise scheduler of stages 1 and 2: {' or '.join(SCHEDULERS)} (for few steps).",
    ),
    option(
        "--noise-level", group=PICTURE, type=int,
        help="Noise added before stage 2 (0-999). Higher values let stage 2 change more.",
    ),
    option(
        "--thresholding", group=PICTURE, callback=_numbers(float),
        help="Dynamic thresholding of stages 1 and 2: ratio, and largest value, like 0.95,1.5.",
    ),
    option(
        "--lora", group=PICTURE, multiple=True, metavar="[STAGE=]FILE[:SCALE]",
        help="A LoRA (a file, or a folder with one) for stage 1 or 2, which its tensor shapes decide; "
        "several add up.",
    ),
    option(
        "--no-safety-checker", group=PICTURE, is_flag=True,
        help="Do not check finished pictures for harmful content.",
    ),
    option(
        "--no-watermark", group=PICTURE, is_flag=True,
        help="Do not put IF's visible mark on finished pictures.",
    ),
)  # fmt: skip
drawing_options = together(
    cascade,
    part,
    size,
    option(
        "--seed", group=COMMON,
        help="One number, one for each prompt (7,8), or a series (1..16 or 1-16). Without it, or "
        "with -1, one is drawn.",
    ),
    option(
        "--images", group=COMMON, type=int, default=1,
        help="Pictures for each prompt; seeds count up.",
    ),
    out,
    embeds,
    picture_options,
    budgets,
    profile,
    pin,
    prefer,
    option(
        "--compile", group=MACHINE, is_flag=True,
        help="Compile UNets with torch.compile where that saves time.",
    ),
    simulate,
    revision,
    preview_every,
    as_json,
    quiet,
)  # fmt: skip


def draw_options(given: Mapping[str, Any], prompts: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of `drawing_options` as options of the engine's methods.

    Raises:
        RequestError: the seeds cannot be read.
    """
    options = {
        name: value
        for name, value in given.items()
        if name not in ("as_json", "quiet", "yes", "simulate", "no_watermark", "no_safety_checker")
    }
    seed = None if given["seed"] is None else parse_seeds(given["seed"], len(prompts) or 1)
    return options | {
        "seed": None if seed == (RANDOM,) else seed,
        "watermark": not given["no_watermark"],
        "safety_checker": not given["no_safety_checker"],
    }
