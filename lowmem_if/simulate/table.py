"""Write the table of footprints that ships with the package: `make footprints`, some minutes."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from lowmem_if.planning import catalog
from lowmem_if.planning.catalog import Part
from lowmem_if.planning.footprint_table import (
    ATTENTION,
    FILE,
    FUSED,
    FootprintTable,
    Pass,
    Turn,
)
from lowmem_if.planning.modes import TEXT
from lowmem_if.planning.plan import Prediction, Step
from lowmem_if.planning.strategies import FLOATS, QUANTISED, RESIDENT, STRATEGIES
from lowmem_if.planning.tasks import Sampling
from lowmem_if.simulate.accelerator import DEVICE
from lowmem_if.simulate.networks import (
    Known,
    known_networks,
    largest_layer_bytes,
    simulate_pass,
)
from lowmem_if.simulate.steps import DECODING, DRAWING, LEAST_STEPS, LOADING, simulate_step
from lowmem_if.weights.synthesis import ZEROS, synthesize

VERSIONS = ("torch", "diffusers", "transformers", "accelerate", "bitsandbytes")
_ITEM_BYTES = (2, 4)

Report = Callable[[str], object]


def write_table(file: Path = FILE, report: Report = lambda _line: None) -> None:
    """Simulate everything and write it down, the libraries' versions with it."""
    passes = tuple(row for known in known_networks() for row in passes_of(known, report))
    turns = tuple(turns_of_all(report))
    versions = {name: version(name) for name in VERSIONS}
    table = FootprintTable(versions=versions, passes=passes, turns=turns)
    file.write_text(as_text(table), encoding="utf-8")


def as_text(table: FootprintTable) -> str:
    """One line a row, so that changes can be read."""
    content = table.model_dump()
    passes, turns = (
        ",\n".join(json.dumps(row) for row in content[name]) for name in ("passes", "turns")
    )
    versions = json.dumps(table.versions)
    return f'{{"versions": {versions},\n"passes": [\n{passes}\n],\n"turns": [\n{turns}\n]}}\n'


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


def turns_of_all(report: Report = lambda _line: None) -> Iterator[Turn]:
    """Every published component on an accelerator, under every strategy it could have there."""
    seen = set()
    for name, cascade in catalog.PUBLISHED.items():
        with tempfile.TemporaryDirectory() as folder:
            for component, part in cascade.parts.items():
                key = component, part.modules
                if component == catalog.FINISH or key in seen:
                    continue
                seen.add(key)
                report(f"{name} {component}: files of its sizes")
                synthesize(name, Path(folder), fill=ZEROS, components=(component,))
                for case in cases(component):
                    report(f"{name} {component}: {case}")
                    yield turn_of(component, part, case, Path(folder) / part.root)


@dataclass(frozen=True, slots=True)
class Case:
    """What a turn depends on beside its networks."""

    strategy: str
    storage: str
    attention: str = FUSED
    tiled: bool = False


def cases(component: str) -> Iterator[Case]:
    """How a component may live on an accelerator."""
    if component == catalog.TEXT_ENCODER:
        yield Case(RESIDENT, "int8")
    for storage in FLOATS:
        for strategy in STRATEGIES:
            for attention in ATTENTION:
                for tiled in (False, True) if component == catalog.UPSCALER else (False,):
                    yield Case(strategy, storage, attention, tiled)


def turn_of(component: str, part: Part, case: Case, root: Path) -> Turn:
    """The row of one case, from weights whose headers are in `root`."""
    simulated = simulate_step(step_of(component, case), root, attention=case.attention)
    return Turn(
        component=component,
        modules={module.folder: module.weights.parameters for module in part.modules},
        strategy=case.strategy,
        storage=case.storage,
        attention=case.attention,
        tiled=case.tiled,
        loading_bytes=simulated.peak("allocated", LOADING),
        drawing_bytes=simulated.peak("allocated", DRAWING),
        decoding_bytes=simulated.peak("allocated", DECODING),
        reserved_bytes=simulated.peak("reserved"),
        anonymous_bytes=simulated.peak("anonymous"),
        pinned_bytes=simulated.peak("pinned"),
        to_device_bytes=[p.to_device for p in simulated.phases if p.name == DRAWING][-1],
    )


def step_of(component: str, case: Case) -> Step:
    """A step of one picture as a plan would have it."""
    defaults = catalog.IF_DEFAULTS.get(component)
    sampling = defaults and Sampling(
        LEAST_STEPS, None, defaults.guidance_scale, defaults.noise_level
    )
    compute = "float16" if case.storage in QUANTISED else case.storage
    return Step(
        component, case.strategy, case.storage, compute, DEVICE, 1, case.tiled,
        {TEXT: sampling} if sampling else {}, 1.0, 0, Prediction(0, 0, 0.0, 0), "", "",
    )  # fmt: skip


if __name__ == "__main__":
    write_table(report=lambda line: sys.stderr.write(line + "\n"))
