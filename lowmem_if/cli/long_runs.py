"""The question before a run of many hours, on a terminal only."""

from __future__ import annotations

import sys

import click

from lowmem_if.cli.output import say
from lowmem_if.engine.announcements.planned_event import RunPlanned
from lowmem_if.engine.events import Event
from lowmem_if.units import format_seconds

LONG_RUN_S = 3 * 3600
"""Predicted seconds from which on a run is started only after a question."""


def ask_if_long(event: Event, *, yes: bool) -> None:
    """Ask whether a run shall start that takes more than `LONG_RUN_S`; scripts are never asked.

    Raises:
        click.exceptions.Exit: the user does not want it; nothing was changed.
    """
    if yes or not isinstance(event, RunPlanned) or event.seconds <= LONG_RUN_S:
        return
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        return
    question = f"This takes about {format_seconds(event.seconds)}. Start it?"
    if not click.confirm(question, default=True, err=True):
        say("not started; nothing was changed. `lowmem-if plan` shows what takes the time")
        raise click.exceptions.Exit(1)
