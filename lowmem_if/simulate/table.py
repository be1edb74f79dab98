"""Write the table of footprints that ships with the package: `make footprints`, some minutes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from lowmem_if.planning.footprint_table import ATTENTION, FILE, FootprintTable, Pass
from lowmem_if.simulate.networks import (
    Known,
    known_networks,
    largest_layer_bytes,
    simulate_pass,
)

VERSIONS = ("torch", "diffusers", "transformers", "accelerate", "bitsandbytes")
_ITEM_BYTES = (2, 4)

Report = Callable[[str], object]


def write_table(file: Path = FILE, report: Report = lambda _line: None) -> None:
    """Simulate everything and write it down, the libraries' versions with it."""
    passes = tuple(row for known in known_networks() for row in passes_of(known, report))
    table = FootprintTable(versions={name: version(name) for name in VERSIONS}, passes=passes)
    file.write_text(as_text(table), encoding="utf-8")


def as_text(table: FootprintTable) -> str:
    """One line a row, so that changes can be read."""
    rows = ",\n".join(json.dumps(row) for row in table.model_dump()["passes"])
    return f'{{"versions": {json.dumps(table.versions)},\n"passes": [\n{rows}\n]}}\n'


def passes_of(known: Known, report: Report = lambda _line: None) -> Iterator[Pass]:
    """All rows of one network."""
    for item_bytes in _ITEM_BYTES:
        for attention in ATTENTION:
            for tiled in (False, True) if known.folder == "vae" else (False,):
                report(f"{known.name}: {item_bytes} bytes, {attention}, {tiled=}")
                yield _pass(known, item_bytes, attention, tiled=tiled)


def _pass(known: Known, item_bytes: int, attention: str, *, tiled: bool) -> Pass:
    one = simulate_pass(known, item_bytes=item_bytes, batch=1, kernel=attention, tiled=tiled)
    # The autoencoder takes pictures one by one, in tiles or not: further ones add their output.
    first, second = (
        simulate_pass(known, item_bytes=item_bytes, batch=batch, kernel=attention, tiled=False)
        for batch in (1, 2)
    )
    return Pass(
        network=known.name,
        folder=known.folder,
        parameters=known.parameters,
        channels=known.channels,
        item_bytes=item_bytes,
        attention=attention,
        tiled=tiled,
        activation_bytes=one.activation_bytes,
        more_bytes=second.activation_bytes - first.activation_bytes,
        largest_layer_bytes=largest_layer_bytes(known.network, item_bytes=item_bytes),
        flops=one.flops,
    )


if __name__ == "__main__":
    write_table(report=lambda line: sys.stderr.write(line + "\n"))
