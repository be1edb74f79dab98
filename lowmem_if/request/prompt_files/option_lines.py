"""Lines like `--prompt "a fox" --seed 7`, of AUTOMATIC1111's script "prompts from file"."""

from __future__ import annotations

import re
import shlex
from typing import Any

from lowmem_if.errors import RequestError
from lowmem_if.request.seeds import parse_seeds

_BEGINNING = re.compile(r"--(prompt|negative[_-]prompt|seed|steps|cfg[_-]scale|width|height)\b")
_ROW = {"prompt": str, "negative_prompt": str, "seed": str, "size": int, "images": int,
        "aspect": str, "style_prompt": str}  # fmt: skip
"""Options that a row may set, and the kind of their values."""

_COUNTS = ("n_iter", "batch_size", "images")
_RUN_WIDE = {"steps": "--steps", "cfg_scale": "--guidance-scale", "sampler_name": "--scheduler",
             "denoising_strength": "--strength", "guidance_scale": "--guidance-scale"}  # fmt: skip
"""Options that hold for a whole run here -> the option of the command."""


def is_option_line(line: str) -> bool:
    """Whether a line is written as options; a prompt that begins with other hyphens is a prompt."""
    return bool(_BEGINNING.match(line))


def option_line(line: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The row that a line of options describes, and what to say of the options that it cannot hold.

    Raises:
        RequestError: a quote is not closed, a value is missing or no number, or there is no prompt.
    """
    options = _options(line)
    row: dict[str, Any] = {}
    for name, kind in _ROW.items():
        if name in options and name not in _COUNTS:
            row[name] = _value(name, options.pop(name), kind)
    if "prompt" not in row:
        raise RequestError('it has options and no --prompt "..."')
    counts = [_value(name, options.pop(name), int) for name in _COUNTS if name in options]
    if counts:
        row["images"] = 1
        for count in counts:
            row["images"] *= count
    if "seed" in row:
        row["seed"] = parse_seeds(row["seed"], 1)
    if {"width", "height"} <= {*options}:
        width, height = (_value(name, options.pop(name), int) for name in ("width", "height"))
        row |= {} if width == height else {"aspect": f"{width}:{height}"}
    return row, tuple(_left_out(name) for name in options)


def _left_out(name: str) -> str:
    option = _RUN_WIDE.get(name)
    return (
        f"--{name}: give {option} to the command" if option else f"--{name}: it has no such option"
    )


def _options(line: str) -> dict[str, str]:
    """Name with underscores -> value; an option without a value has an empty one."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise RequestError(f'it is not like --prompt "a fox" --seed 7 ({error})') from error
    found: dict[str, str] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            found[name := name.replace("-", "_")] = value
        else:
            found[name] = f"{found[name]} {word}".strip()
    return found


def _value(name: str, text: str, kind: type[Any]) -> Any:
    if not text and name != "negative_prompt":
        raise RequestError(f"--{name} has no value")
    try:
        return kind(text)
    except ValueError:
        raise RequestError(f"--{name} {text!r} is not a whole number") from None
