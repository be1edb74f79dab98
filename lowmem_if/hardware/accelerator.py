"""Which accelerator torch can use, how much of its memory is free, and why it cannot use other cards.

A process of its own imports torch for this: the import takes seconds, and asking CUDA for free memory
leaves a context on the card until that process ends. So callers look for signs of a card first
(`cards.looks_present`).
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from lowmem_if.errors import DeviceError
from lowmem_if.hardware.cards import AMD, APPLE, INTEL, NVIDIA, Card, cards
from lowmem_if.hardware.torch_build import TorchAnswer, TorchFacts, why_unused

_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One accelerator as torch sees it.

    Attributes:
        device: `cuda:0`, `xpu:0` or `mps`.
        name: its name by the maker.
        total_bytes: its memory.
        free_bytes: free by the driver.
        capability: CUDA compute capability (7, 5); (0, 0) elsewhere.
        count: devices of this kind that torch sees, this one included.
    """

    device: str
    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int] = (0, 0)
    count: int = 1


def read_accelerator(
    device: str = "auto", root: Path = Path("/")
) -> tuple[Accelerator | None, tuple[str, ...]]:
    """The accelerator that `device` names, and a sentence about each card that is not used instead.

    Args:
        device: `cuda:1` is that one; `auto`, `cuda` and the like are the first one that torch can use.
        root: root of the file system in which cards are looked for.

    Returns:
        None for the accelerator if `device` is "auto" and torch can use none.

    Raises:
        DeviceError: torch cannot use the device; says why, and what to do.
    """
    reading = _ask_torch(device)
    facts, number = reading.facts, reading.number
    kind, _, index = device.partition(":")
    if kind == facts.kind and int(index or 0) >= len(facts.devices):
        raise DeviceError(
            f"there is no {device} here, only {len(facts.devices)} device(s); "
            f"use --device {facts.kind}:0"
        )
    unused = {card: why_unused(card, facts) for card in _passed_over(reading, index, root)}
    reasons = tuple(words for words in unused.values() if words)
    if number is not None and kind in ("auto", facts.kind):
        seen = facts.devices[number]
        name = facts.kind if facts.kind == "mps" else f"{facts.kind}:{number}"
        found = Accelerator(
            name, seen.name, reading.total_bytes, reading.free_bytes, seen.capability,
            len(facts.devices),
        )  # fmt: skip
        return found, reasons
    if kind == "auto":
        return None, reasons
    own = next((words for card, words in unused.items() if words and card.kind == kind), "")
    if own:
        raise DeviceError(f"{own}; or use --device cpu")
    here = f"torch {facts.version} sees {facts.kind or 'no accelerator'}"
    raise DeviceError(f"there is no {device} device here ({here}); use --device cpu or auto")


def _passed_over(reading: TorchAnswer, index: str, root: Path) -> tuple[Card, ...]:
    """The cards that the user may have meant but that are not used; torch may be able to use them."""
    facts, number = reading.facts, reading.number
    seen = _seen(facts)
    before = seen[:number]
    if index:
        before = seen[int(index) :][:1] if number is None else ()
    # The GPU inside an Intel processor is an XPU, too: it does not replace another maker's card.
    settled = number is not None and facts.kind != "xpu"
    if settled and not before:
        return ()
    here = cards(root)
    driver = next((card.driver for card in here if card.driver), "")
    passed = tuple(replace(card, driver=driver) for card in before)
    makers = {card.maker for card in seen}
    return passed if settled else passed + tuple(c for c in here if c.maker not in makers)


def _seen(facts: TorchFacts) -> tuple[Card, ...]:
    """The devices that torch sees, as cards."""
    maker = {"cuda": AMD if facts.hip else NVIDIA, "xpu": INTEL}.get(facts.kind, APPLE)
    return tuple(Card(maker, device.name, device.capability) for device in facts.devices)


def _ask_torch(device: str) -> TorchAnswer:
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "lowmem_if.hardware.torch_facts", device],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"torch has not answered for {_TIMEOUT_S} s about the accelerator; use --device cpu"
        ) from None
    try:
        last = answer.stdout.strip().splitlines()[-1] if answer.returncode == 0 else ""
        return TypeAdapter(TorchAnswer).validate_json(last)
    except (IndexError, ValidationError):
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise DeviceError(
            f"torch cannot be asked about the accelerator ({last}); use --device cpu"
        ) from None
