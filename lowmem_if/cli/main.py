"""The command line: its commands, its exit codes, and what it says about errors."""

from __future__ import annotations

import io
import platform
import sys
import traceback
from collections.abc import Sequence

import click

from lowmem_if.cli import (
    config_command,
    draw_commands,
    embed_command,
    inspect_commands,
    run_commands,
    weight_commands,
)
from lowmem_if.cli.command import CommandGroup, option
from lowmem_if.cli.output import JSON_PRINTED, Interrupted, print_json, say
from lowmem_if.cli.shared_options import MACHINE
from lowmem_if.cli.user_settings import WITH_SETTINGS, defaults, without_preset
from lowmem_if.engine.run_folder.library_versions import PACKAGE, installed_versions
from lowmem_if.errors import LowmemError
from lowmem_if.system.channel import says_closed

_USAGE, _BUG, _INTERRUPTED = 2, 3, 130


@click.group(
    PACKAGE,
    cls=CommandGroup,
    no_args_is_help=False,
    epilog="Shell completion: `_LOWMEM_IF_COMPLETE=bash_source lowmem-if` prints a script for bash; "
    "zsh_source and fish_source do the same for these shells.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False,
    callback=inspect_commands.print_version, help="Show the version and exit.",
)  # fmt: skip
def app() -> None:
    """Run the DeepFloyd IF cascade on machines it does not fit."""


for _module in (
    draw_commands, embed_command, inspect_commands, run_commands, weight_commands, config_command,
):  # fmt: skip
    for _command in _module.COMMANDS:
        app.add_command(_command)

_preset = option(
    "--preset", group=MACHINE, metavar="NAME", expose_value=False,
    help="Use a preset of your settings file; `lowmem-if config` lists them.",
)  # fmt: skip
for _name in WITH_SETTINGS:
    _preset(app.commands[_name])  # `main` takes it off the command line


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0 done, 1 known error, 2 usage, 3 a bug of ours, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what its encoding lacks, as \\u escapes
    given = list(sys.argv[1:] if argv is None else argv)
    JSON_PRINTED.set(False)
    try:
        arguments, preset = without_preset(given)
        own = defaults(app, preset)
        return app.main(arguments, prog_name=PACKAGE, standalone_mode=False, default_map=own) or 0
    except LowmemError as error:
        _print_failure(given, type(error).__name__, str(error), error.exit_code)
        say(f"error: {error}")
        return error.exit_code
    except click.UsageError as error:
        told = f"{error.format_message().rstrip('.')}; see --help"
        _print_failure(given, "UsageError", told, _USAGE)
        say(f"error: {told}")
        return _USAGE
    except (KeyboardInterrupt, click.Abort, Interrupted) as stopped:
        told = ": ".join(["interrupted", *map(str, stopped.args)])
        _print_failure(given, "Interrupted", told, _INTERRUPTED)
        say(told)
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001  the last resort, which prints everything
        if isinstance(error, OSError) and says_closed(error):
            return 1
        return _report_bug(argv)


def _print_failure(arguments: Sequence[str], kind: str, message: str, exit_code: int) -> None:
    """Print a failure as one JSON object if the command line asks for JSON."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--json" in options and not JSON_PRINTED.get():
        print_json({"error": {"kind": kind, "message": message, "exit_code": exit_code}})


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
