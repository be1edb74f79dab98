"""The numbers that a dry run knows, and those that it has to assume.

A fake tensor has no numbers, but pipelines read some: a scheduler's timesteps, whether an image is in
range. So small tensors that follow from known ones are computed together with their fakes. If a
pipeline reads an unknown number, the answer must be listed in `ASSUMED_VALUES`; otherwise it is an
error.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from lowmem_if.errors import SimulationError

MOST_KNOWN_NUMBERS = 65_536
"""The largest tensor whose numbers are computed: every schedule, but no image and no weight."""


@dataclass(frozen=True, slots=True)
class AssumedValue:
    """An answer where only a real tensor could give one.

    Attributes:
        module, function: the code that reads the number.
        answer: the number that it gets.
        why: why memory does not depend on it.
    """

    module: str
    function: str
    answer: Any
    why: str


ASSUMED_VALUES = (
    AssumedValue(
        "diffusers.image_processor",
        "preprocess",
        0.0,
        "the x4 pipeline asks whether its picture has negative values, and then only warns",
    ),
    AssumedValue(
        "lowmem_if.stages.finite",
        "is_finite",
        True,
        "a run in which a number is not finite ends there",
    ),
)

OUTLIER_COLUMNS = AssumedValue(
    "bitsandbytes.autograd._functions",
    "matmul",
    64,
    "columns of an 8-bit layer's input with large numbers; without any, T5-XXL takes 74 kB less",
)
"""An assumption, not an answer: no code reads it, but sizes depend on it."""


class AssumedValues:
    """The known numbers of fake tensors.

    Attributes:
        assumed: the assumed values used so far, and how often.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._known: Any = WeakTensorKeyDictionary()
        self._stale: dict[int, torch.UntypedStorage] = {}
        self.assumed: Counter[AssumedValue] = Counter()

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The numbers of a tensor as a real one on the CPU; None if they are unknown."""
        known: torch.Tensor | None = self._known.get(tensor)
        if known is None and _is_real(tensor) and tensor.numel() <= MOST_KNOWN_NUMBERS:
            known = tensor
        if known is None or known.untyped_storage()._cdata in self._stale:
            return None
        return known

    def faked(self, func: Any, arguments: Any) -> Any:
        """The arguments of an operator, with fakes in place of real tensors (buffers, from numpy)."""
        if func in _LIFTS or not any(map(_is_real, tensors_in(arguments))):
            return arguments
        return tree_map(self._fake, arguments)

    def _fake(self, leaf: Any) -> Any:
        if not _is_real(leaf):
            return leaf
        fake = self._mode.from_tensor(leaf)
        if leaf.numel() <= MOST_KNOWN_NUMBERS:
            self._known[fake] = leaf
        return fake

    def follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Compute the real result of a fake operator, if it is small and known."""
        outputs = [tensor for tensor in tensors_in(out) if isinstance(tensor, FakeTensor)]
        if (
            any(self.of(tensor) is None for tensor in tensors_in((args, kwargs)))
            or any(tensor.numel() > MOST_KNOWN_NUMBERS for tensor in outputs)
            or func in _UNFILLED
            or torch.Tag.nondeterministic_seeded in func.tags
        ):
            if func._schema.is_mutable:
                self._forget(outputs)
            return
        real = self._compute(func, args, kwargs)
        for fake, number in zip(tree_leaves(out), tree_leaves(real), strict=True):
            if isinstance(fake, FakeTensor):
                self._known[fake] = number

    def shaped_by_numbers(self, func: Any, args: Any) -> torch.Tensor | None:
        """The result of an operator whose shape depends on numbers; None for other operators.

        Raises:
            SimulationError: the numbers are unknown.
        """
        if not _has_shape_by_numbers(func):
            return None
        if func is torch.ops.aten.index.Tensor and not any(
            index is not None and index.dtype == torch.bool for index in args[1]
        ):
            return None  # indices choose rows; only a mask decides how many there are
        inputs = list(tensors_in(args))
        if any(self.of(tensor) is None for tensor in inputs):
            self.assume()
        real: torch.Tensor = self._compute(func, args, {})
        fake = torch.empty(real.shape, dtype=real.dtype, device=inputs[0].device)
        self._known[fake] = real
        return fake

    def ask(self, tensor: torch.Tensor) -> Any:
        """The single number of a tensor, or the value that is assumed for the code that reads it.

        Raises:
            SimulationError: the number is unknown, and no value is listed for this code.
        """
        known = self.of(tensor)
        if known is None:
            return self.assume()
        with no_dispatch():
            return known.item()

    def assume(self) -> Any:
        """The value in `ASSUMED_VALUES` for the code that reads a number now.

        Raises:
            SimulationError: there is none.
        """
        frame: Any = sys._getframe(1)
        askers = []
        while frame is not None:
            asker = frame.f_globals.get("__name__", ""), frame.f_code.co_name
            for value in ASSUMED_VALUES:
                if asker == (value.module, value.function):
                    self.assumed[value] += 1
                    return value.answer
            if not asker[0].startswith(("torch.", "lowmem_if.simulate.")):
                askers.append(".".join(asker))
            frame = frame.f_back
        raise SimulationError(
            f"{', '.join(askers[:2])} reads a number that only a real run has; "
            "this is a bug of lowmem-if: its list of assumed values has none for it"
        )

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator on the numbers of its fake arguments."""
        with no_dispatch():
            return func(*tree_map(self._real, args), **tree_map(self._real, kwargs))

    def _real(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return self.of(leaf)
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    def _forget(self, written: list[FakeTensor]) -> None:
        """A tensor overwritten with unknown numbers is unknown, and so are all its views."""
        for tensor in written:
            known = self._known.pop(tensor, None)
            if known is not None:
                storage = known.untyped_storage()
                self._stale[storage._cdata] = storage


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors among an operator's arguments or results: on their own, or in lists and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))


@cache
def _has_shape_by_numbers(func: Any) -> bool:
    return torch.Tag.dynamic_output_shape in func.tags


def _is_real(leaf: Any) -> bool:
    """Whether a leaf is a tensor with numbers of its own."""
    is_tensor = isinstance(leaf, torch.Tensor) and not isinstance(leaf, FakeTensor)
    return is_tensor and leaf.device.type != "meta"


_LIFTS = {torch.ops.aten.lift_fresh.default, torch.ops.aten.lift.default}
"""Operators that turn real tensors into fake ones themselves."""

_UNFILLED = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
}
"""Operators whose results have no numbers yet."""
