"""`lowmem-if config`: show and change the user's own defaults of options."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO

import click

from lowmem_if.cli.command import argument, command, option
from lowmem_if.cli.shared_options import COMMON
from lowmem_if.cli.user_settings import (
    SETTINGS,
    WITH_SETTINGS,
    check_setting,
    from_environment,
    read_settings,
    settable,
    settings_file,
    variable_of,
    write_setting,
)
from lowmem_if.errors import DoesNotFit, RequestError


@command("config", "lowmem-if config", "lowmem-if config cascade if-xl", section="Machine and runs")
@argument("name", required=False, metavar="[SETTING]", help="An option without its dashes.")
@argument("value", required=False, metavar="[VALUE]", help="Its new default.")
@option("--unset", group=COMMON, is_flag=True, help="Remove the setting.")
@click.pass_context
def config(ctx: click.Context, name: str | None, value: str | None, unset: bool) -> None:
    """Show or change your own defaults of options."""
    file = settings_file()
    if name is None:
        _show()
        return
    check_setting(name)
    if value is None and not unset:
        click.echo(read_settings(file)[0].get(name, f"{name} is not set in {file}"))
        return
    if value is not None:
        _check_value(ctx, name, value)
    write_setting(file, name, value)
    click.echo(f"{file}: {name} " + ("removed" if value is None else f"= {value}"))


def _show() -> None:
    """Every setting with its source, the presets, and what could be set."""
    file = settings_file()
    settings, presets = read_settings(file)
    given = from_environment()
    click.echo(f"{file}{'' if file.is_file() else ' (not there yet)'}")
    for name in SETTINGS:
        if name in given:
            click.echo(f"  {name} = {given[name]} (from {variable_of(name)})")
        elif name in settings:
            click.echo(f"  {name} = {settings[name]}")
    for preset, values in presets.items():
        said = ", ".join(f"{name} = {value}" for name, value in values.items())
        click.echo(f"  --preset {preset}: {said}")
    click.echo(f"settings: {', '.join(SETTINGS)}")


def _check_value(ctx: click.Context, name: str, value: str) -> None:
    """Raise the error that a plan with this option ends with; whether it fits does not matter."""
    app = ctx.find_root().command
    assert isinstance(app, click.Group)
    commands = [app.commands["plan"], *(app.commands[each] for each in WITH_SETTINGS)]
    takes_it = next(each for each in commands if name in settable(each))
    parameter = settable(takes_it)[name]
    try:
        parameter.process_value(ctx, [value] if parameter.multiple else value)
        if takes_it.name == "plan" and not parameter.is_flag:
            with redirect_stdout(StringIO()):
                takes_it.main(
                    ["a picture", f"--{name}", value], prog_name="plan", standalone_mode=False
                )
    except click.UsageError as error:
        raise RequestError(error.format_message()) from None
    except DoesNotFit:
        return


COMMANDS = (config,)
