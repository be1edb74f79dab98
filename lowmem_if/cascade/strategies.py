"""Strategies: where a component's weights are kept while it computes. Pins: the user's own choices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lowmem_if.cascade.catalog import (
    COMPONENTS,
    IMAGE_STAGES,
    TEXT_ENCODER,
    component_name,
)
from lowmem_if.errors import RequestError
from lowmem_if.units import did_you_mean, unknown_name

RESIDENT = "resident"
MODEL_OFFLOAD = "model_offload"
SEQUENTIAL_OFFLOAD = "sequential_offload"
STREAM = "stream"

STRATEGIES = (RESIDENT, MODEL_OFFLOAD, SEQUENTIAL_OFFLOAD, STREAM)
"""Weights are kept on the device; in RAM, by module; in RAM, by leaf; or in the file, by layer."""

FLOATS = ("float16", "bfloat16", "float32")
QUANTISED = ("int8", "int4", "nf4")
STORAGES = (*FLOATS, *QUANTISED)
_QUANTISED_AS = {TEXT_ENCODER: ("int8", "nf4"), **dict.fromkeys(IMAGE_STAGES, ("int8", "int4"))}
"""The encoder's are bitsandbytes' types; a UNet's are ours (`cascade/quantised_layers.py`)."""
_QUANTISED_ON_FILE = {TEXT_ENCODER: (), **dict.fromkeys(IMAGE_STAGES, ("int8",))}
"""What can stream: there are 8-bit copies of UNets."""
_SHORT = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}

EXACT, FAITHFUL, BALANCED, FAST = "exact", "faithful", "balanced", "fast"
PREFERENCES = (EXACT, FAITHFUL, BALANCED, FAST)
"""How far a result may be from that of plain diffusers; each allows what the ones before it allow.

`exact`: the same bits on this device, in this number type. `faithful`: the same computation, rounded
otherwise: memory layout, decoding in strips, batches. `balanced`: also quantised weights.
`fast`: also less work, each kind with a measured loss.
"""


def allows(prefer: str, level: str) -> bool:
    """Whether a preference allows what `level` stands for."""
    return PREFERENCES.index(prefer) >= PREFERENCES.index(level)


def levels_of(prefer: str | None) -> tuple[str, ...]:
    """The levels that a planner may use, strictest first: the user's own, or all from `faithful` on.

    Raises:
        RequestError: there is no such level.
    """
    if not prefer:
        return PREFERENCES[PREFERENCES.index(FAITHFUL) :]
    if prefer not in PREFERENCES:
        raise unknown_name("preference", prefer, PREFERENCES)
    return (prefer,)


@dataclass(frozen=True, slots=True)
class Pin:
    """A user's choice for one component, never overridden; without `storage` the planner chooses."""

    strategy: str
    storage: str | None = None

    def __str__(self) -> str:
        return f"{self.strategy}:{self.storage}" if self.storage else self.strategy


def parse_pins(texts: Iterable[str]) -> dict[str, Pin]:
    """The pins in texts like `COMPONENT=STRATEGY[:DTYPE]`, the form of `--pin`.

    Raises:
        RequestError: a component, strategy or number type is unknown, or a component is pinned twice.
    """
    pins: dict[str, Pin] = {}
    for text in texts:
        name, _, choice = text.partition("=")
        component = component_name(name)
        if component in pins:
            raise RequestError(f"{component} is pinned twice: give only one --pin for it")
        pins[component] = parse_pin(component, choice)
    return pins


def parse_pin(component: str, choice: str) -> Pin:
    """The pin in a text like `STRATEGY[:DTYPE]`, for `component`."""
    component = component_name(component)
    strategy, colon, storage = choice.partition(":")
    storage = _SHORT.get(storage, storage)
    _check("component", component, COMPONENTS)
    _check("strategy", strategy, STRATEGIES)
    if colon:
        _check("number type", storage, STORAGES)
    if storage in QUANTISED:
        _check_quantised(component, strategy, storage)
    return Pin(strategy, storage or None)


def pin_texts(pins: Mapping[str, Pin]) -> dict[str, str]:
    """Pins in the form that plans and profiles contain."""
    return {component: str(pin) for component, pin in pins.items()}


def _check_quantised(component: str, strategy: str, storage: str) -> None:
    """Raise `RequestError` unless the component's weights can be quantised so, and be kept there."""
    possible = _QUANTISED_AS.get(component, ())
    if storage not in possible:
        known = " or ".join((*possible, "a float type"))
        raise RequestError(f"{component} cannot be {storage}: pin it to {known}")
    if strategy == RESIDENT or (strategy == STREAM and storage in _QUANTISED_ON_FILE[component]):
        return
    raise RequestError(
        f"{storage} weights of {component} cannot be kept by {strategy}: "
        f"pin {component}=resident:{storage}"
    )


def _check(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        near = did_you_mean(value.lower(), known)
        raise RequestError(
            f"unknown {what} {value!r} in --pin: use one of {', '.join(known)}{near}"
        )
