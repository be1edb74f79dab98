"""Write the shipped table of measured memory: `make footprints`, half an hour."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path

from lowmem_if.cascade import catalog
from lowmem_if.cascade.modes import TEXT
from lowmem_if.cascade.parts import Part
from lowmem_if.cascade.strategies import FLOATS, QUANTISED, RESIDENT, STRATEGIES
from lowmem_if.planning.estimates.execution import WHOLE, Estimate, ExecutionConfig
from lowmem_if.planning.estimates.memory_table import (
    ATTENTION,
    FILE,
    FUSED,
    SAME_IN_16_BITS,
    MemoryTable,
    PassProfile,
    StepProfile,
    part_key,
    read_table,
)
from lowmem_if.planning.plan import Step
from lowmem_if.request.sampling import Sampling
from lowmem_if.simulate.fake_device import DEVICE
from lowmem_if.simulate.networks import (
    Known,
    known_networks,
    largest_layer_bytes,
    simulate_passes,
)
from lowmem_if.simulate.simulated_step import DECODING, DRAWING, LEAST_STEPS, LOADING, simulate_step
from lowmem_if.weights.synthetic.checkpoints import ZEROS, synthesize

VERSIONS = ("torch", "diffusers", "transformers", "accelerate", "bitsandbytes")
_ITEM_BYTES = (2, 4)

Report = Callable[[str], object]


def write_table(file: Path = FILE, report: Report = lambda _line: None) -> None:
    """Simulate the missing rows, or all if other library versions wrote the file; write each at once."""
    versions = {name: version(name) for name in VERSIONS}
    table = MemoryTable(versions=versions, passes=(), turns=())
    if file.is_file() and read_table(file).versions == versions:
        table = read_table(file)
    for row in _missing_passes(table, report):
        table = table.model_copy(update={"passes": (*table.passes, row)})
        file.write_text(as_text(table), encoding="utf-8")
    for turn in _missing_turns(table, report):
        table = table.model_copy(update={"turns": (*table.turns, turn)})
        file.write_text(as_text(table), encoding="utf-8")


def as_text(table: MemoryTable) -> str:
    """One line for each row, so that changes can be read."""
    content = table.model_dump()
    passes, turns = (
        ",\n".join(json.dumps(row) for row in content[name]) for name in ("passes", "turns")
    )
    versions = json.dumps(table.versions)
    return f'{{"versions": {versions},\n"passes": [\n{passes}\n],\n"turns": [\n{turns}\n]}}\n'


def _missing_passes(table: MemoryTable, report: Report) -> Iterator[PassProfile]:
    there = {(row.network, row.item_bytes, row.attention) for row in table.passes}
    for known, item_bytes in product(known_networks(), _ITEM_BYTES):
        key = known.name, item_bytes
        missing = {attention for attention in ATTENTION if (*key, attention) not in there}
        if missing:
            report(f"{known.name}: {item_bytes} bytes")
            rows = passes_of(known, item_bytes)
            yield from (row for row in rows if row.attention in missing)


def passes_of(known: Known, item_bytes: int) -> Iterator[PassProfile]:
    """The rows of one network, one for each kernel of attention."""
    runs = simulate_passes(known, product((1, 2), ATTENTION), item_bytes=item_bytes)
    more = {k: runs[2, k].activation_bytes - runs[1, k].activation_bytes for k in ATTENTION}
    for attention in ATTENTION:
        yield PassProfile(
            network=known.name,
            folder=known.folder,
            parameters=known.parameters,
            channels=known.channels,
            item_bytes=item_bytes,
            attention=attention,
            activation_bytes=runs[1, attention].activation_bytes,
            more_bytes=more[attention],
            largest_layer_bytes=largest_layer_bytes(known.network, item_bytes=item_bytes),
            flops=runs[1, attention].flops,
        )


def _missing_turns(table: MemoryTable, report: Report) -> Iterator[StepProfile]:
    """Every published component on an accelerator, with every strategy that it can have there."""
    there = {key_of(row) for row in table.turns}
    for name, cascade in catalog.PUBLISHED.items():
        for component, part in cascade.parts.items():
            missing = [case for case in cases(component) if (part_key(part), case) not in there]
            if catalog.facts(component).postprocesses or not missing:
                continue
            there |= {(part_key(part), case) for case in missing}
            with tempfile.TemporaryDirectory() as folder:
                synthesize(name, Path(folder), fill=ZEROS, components=(component,))
                for case in missing:
                    report(f"{name} {component}: {case}")
                    yield turn_of(component, part, case, Path(folder) / part.root)


@dataclass(frozen=True, slots=True)
class Case:
    """What a step depends on in addition to its networks."""

    strategy: str
    storage: str
    attention: str = FUSED
    decoding: str = WHOLE


def key_of(row: StepProfile) -> tuple[frozenset[tuple[str, int]], Case]:
    """The component and the case of a row."""
    case = Case(row.strategy, row.storage, row.attention)
    return frozenset(row.modules.items()), case


def cases(component: str) -> Iterator[Case]:
    """How a component can be executed on an accelerator; the look-up treats some of these as one."""
    if catalog.facts(component).encodes:
        yield Case(RESIDENT, "int8")
    for storage, attention, strategy in product(FLOATS, ATTENTION, STRATEGIES):
        if storage != "bfloat16" or component not in SAME_IN_16_BITS:
            yield Case(strategy, storage, attention)


def turn_of(component: str, part: Part, case: Case, root: Path) -> StepProfile:
    """The row of one case, by the headers of the weights in `root`."""
    simulated = simulate_step(step_of(component, case), root, attention=case.attention)
    return StepProfile(
        component=component,
        modules={module.folder: module.weights.parameters for module in part.modules},
        strategy=case.strategy,
        storage=case.storage,
        attention=case.attention,
        loading_bytes=simulated.peak("allocated", LOADING),
        drawing_bytes=simulated.peak("allocated", DRAWING),
        decoding_bytes=simulated.peak("allocated", DECODING),
        reserved_bytes=simulated.peak("reserved"),
        anonymous_bytes=simulated.peak("anonymous"),
        pinned_bytes=simulated.peak("pinned"),
        to_device_bytes=[p.to_device for p in simulated.phases if p.name == DRAWING][-1],
    )


def step_of(component: str, case: Case) -> Step:
    """A step of one image as in a plan."""
    defaults = catalog.IF_DEFAULTS.get(component)
    sampling = None
    if defaults:
        sampling = Sampling(LEAST_STEPS, None, defaults.guidance_scale, defaults.noise_level)
    compute = "float16" if case.storage in QUANTISED else case.storage
    config = ExecutionConfig(
        component, case.strategy, case.storage, compute, 1, DEVICE, decoding=case.decoding
    )
    return Step(config, Estimate(0, 0, 0), {TEXT: sampling} if sampling else {}, "", "")


if __name__ == "__main__":
    write_table(report=lambda line: sys.stderr.write(line + "\n"))
