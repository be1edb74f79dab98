"""The user's own defaults of options: a TOML file in the platform's configuration folder, and presets.

    cascade = "if-xl"
    ram = "10GB"

    [presets.sketch]
    size = 64
    timesteps = "fast27"

A value counts in this order: the command line, the environment (`LOWMEM_IF_CASCADE`), the preset that
`--preset` names, the file, the built-in default.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from lowmem_if.errors import RequestError

SETTINGS = (
    "cascade", "part", "size", "steps", "guidance-scale", "timesteps", "scheduler", "thresholding",
    "negative-prompt", "lora", "prefer", "pin", "profile", "device", "ram", "vram", "compile", "quiet",
)  # fmt: skip
"""The options that can have a default of the user's own."""

WITH_SETTINGS = (
    "generate",
    "vary",
    "inpaint",
    "upscale",
    "batch",
    "plan",
    "embed",
    "fetch",
    "rehearse",
)
"""The commands that they count for: what resumes or shows a run takes its settings from the run."""

_PRESETS, _ANY_PRESET = "presets", "--preset"
Settings = Mapping[str, Any]


def settings_file() -> Path:
    """The file: `LOWMEM_IF_CONFIG`, or `config.toml` in the platform's configuration folder."""
    given = os.environ.get("LOWMEM_IF_CONFIG")
    return Path(given) if given else Path(click.get_app_dir("lowmem-if")) / "config.toml"


def read_settings(file: Path) -> tuple[Settings, Mapping[str, Settings]]:
    """(settings, presets by name) of a file; a missing file has none.

    Raises:
        RequestError: the file cannot be read, or has a key that is no setting.
    """
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RequestError(f"{file} cannot be read ({error}): mend or remove it") from error
    presets = found.pop(_PRESETS, {})
    if not isinstance(presets, dict) or not all(isinstance(p, dict) for p in presets.values()):
        raise RequestError(f"{file}: presets are tables like [presets.sketch]")
    for where, settings in [("", found), *presets.items()]:
        for name, value in settings.items():
            check_setting(name, f"{file}{f', preset {where}' if where else ''}: ")
            if not isinstance(value, str | int | float | list):
                raise RequestError(f"{file}: {name} is not a text, a number, or a list of texts")
    return found, presets


def check_setting(name: str, where: str = "") -> None:
    """Raise `RequestError` unless an option can have a default of the user's own."""
    if name in SETTINGS:
        return
    near = difflib.get_close_matches(name, SETTINGS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(SETTINGS)}"
    raise RequestError(f"{where}no setting {name!r}; {hint}")


def without_preset(arguments: Iterable[str]) -> tuple[list[str], str | None]:
    """The command line without `--preset NAME`, and the name; the last one counts."""
    kept: list[str] = []
    name = None
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            return [*kept, argument, *rest], name
        if argument == _ANY_PRESET:
            name = next(rest, "")
        elif argument.startswith(f"{_ANY_PRESET}="):
            name = argument.partition("=")[2]
        else:
            kept.append(argument)
    return kept, name


def defaults(app: click.Group, preset: str | None) -> dict[str, dict[str, Any]]:
    """Click's `default_map`: command -> parameter -> the user's value.

    Raises:
        RequestError: the file cannot be used, or there is no such preset.
    """
    file = settings_file()
    settings, presets = read_settings(file)
    if preset is not None:
        if preset not in presets:
            known = f"it has {', '.join(presets)}" if presets else "it has none"
            raise RequestError(f"no preset {preset!r} in {file}: {known}")
        settings = {**settings, **presets[preset]}
    settings = {**settings, **from_environment()}
    return {
        name: {
            parameter.name or "": _as_given(parameter, settings[setting])
            for setting, parameter in settable(app.commands[name]).items()
            if setting in settings
        }
        for name in WITH_SETTINGS
    }


def from_environment() -> Settings:
    """The settings that variables like `LOWMEM_IF_GUIDANCE_SCALE` give."""
    named = {name: variable_of(name) for name in SETTINGS}
    return {name: os.environ[key] for name, key in named.items() if os.environ.get(key)}


def variable_of(setting: str) -> str:
    """The environment variable of a setting."""
    return f"LOWMEM_IF_{setting.upper().replace('-', '_')}"


def settable(command: click.Command) -> dict[str, click.Option]:
    """The settings that a command has, with their options."""
    options = (each for each in command.params if isinstance(each, click.Option))
    return {
        flag.removeprefix("--"): each
        for each in options
        for flag in each.opts
        if flag.removeprefix("--") in SETTINGS
    }


def write_setting(file: Path, name: str, value: str | None) -> None:
    """Set a line of the file, or remove it; every other line and comment stays.

    Args:
        value: as on the command line; None removes the setting.

    Raises:
        RequestError: no such setting, or the file cannot be written.
    """
    check_setting(name)
    read_settings(file)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    tables = (number for number, line in enumerate(lines) if line.lstrip().startswith("["))
    end = next(tables, len(lines))
    own = re.compile(rf"\s*\"?{re.escape(name)}\"?\s*=")
    top = [line for line in lines[:end] if not own.match(line)]
    if value is not None:
        while top and not top[-1].strip():
            top.pop()
        top.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
        top += [""] if lines[end:] else []
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join([*top, *lines[end:]]) + "\n", encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{file} cannot be written ({error.strerror or error})") from error


def _as_given(parameter: click.Option, value: Any) -> Any:
    """A value of the file as click takes it: texts, and lists for options that may be repeated."""
    if parameter.is_flag:
        return value if isinstance(value, bool) else str(value).lower() in ("true", "1", "yes")
    if parameter.multiple:
        return [str(each) for each in (value if isinstance(value, list) else [value])]
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
