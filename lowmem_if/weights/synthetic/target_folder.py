"""The folder that made-up weights are written into: empty, or one that holds the same cascade."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lowmem_if.errors import CascadeError
from lowmem_if.weights.synthetic.architectures import Network

_SIZES = ("block_out_channels", "sample_size", "d_model", "cross_attention_dim", "hidden_size")
"""Keys of a configuration that tell cascades apart."""


def check_target(folder: Path, cascade: str, networks: Iterable[Network]) -> None:
    """Raise `CascadeError` if the folder holds anything but this cascade.

    Args:
        networks: all networks of the cascade, whichever are to be written.
    """
    if not folder.is_dir():
        return
    networks = list(networks)
    ours = {network.folder.partition("/")[0] for network in networks}
    strangers = sorted(
        entry.name
        for entry in folder.iterdir()
        if not entry.name.startswith(".") and not (entry.name in ours and entry.is_dir())
    )
    if strangers:
        raise CascadeError(
            f"{folder} holds something else ({strangers[0]}): give a new or empty folder"
        )
    for network in networks:
        if other := _difference(folder / network.folder / "config.json", network.config):
            raise CascadeError(
                f"{folder} holds another cascade than {cascade} ({network.folder}: {other}): "
                "give a new or empty folder"
            )


def _difference(file: Path, config: dict[str, Any]) -> str:
    """How a configuration on disk differs from a network's own; empty if it is equal or missing."""
    if not file.is_file():
        return ""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return "its configuration is broken"
    for name in _SIZES:
        if name in config and name in found and _plain(found[name]) != _plain(config[name]):
            return f"{name} is {found[name]}, not {_plain(config[name])}"
    return ""


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    return list(value) if isinstance(value, tuple) else value
