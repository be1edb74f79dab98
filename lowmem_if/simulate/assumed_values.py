"""What numbers a dry run knows, and what it has to make up.

A fake tensor has no numbers, and pipelines ask for some: a scheduler's timesteps, whether a picture is
in range. Small tensors that follow from known ones are therefore computed beside their fakes. Where an
unknown number is asked for, the answer must stand in `INVENTIONS`; any other question is an error.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from lowmem_if.errors import SimulationError

MOST_KNOWN_NUMBERS = 65_536
"""Of a tensor whose numbers are worth computing: no picture or weight, but every schedule."""


@dataclass(frozen=True, slots=True)
class AssumedValue:
    """An answer to a question that only real numbers could answer.

    Attributes:
        module, function: who asks.
        answer: what is said.
        why: why memory does not depend on it.
    """

    module: str
    function: str
    answer: Any
    why: str


INVENTIONS = (
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
"""An assumption, not an answer: nobody asks, the sizes follow from it."""


class AssumedValues:
    """The known numbers of fake tensors.

    Attributes:
        invented: the inventions used so far, and how often.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._known: Any = WeakTensorKeyDictionary()
        self._stale: dict[int, torch.UntypedStorage] = {}
        self.invented: Counter[AssumedValue] = Counter()

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The numbers of a tensor as a real one on the CPU, None if nobody knows them."""
        known: torch.Tensor | None = self._known.get(tensor)
        if known is None and _is_real(tensor) and tensor.numel() <= MOST_KNOWN_NUMBERS:
            known = tensor
        if known is None or known.untyped_storage()._cdata in self._stale:
            return None
        return known

    def faked(self, func: Any, arguments: Any) -> Any:
        """The arguments of an operator with fakes of those that are real: buffers, numpy's numbers."""
        if func in _LIFTS or not any(map(_is_real, tree_leaves(arguments))):
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
        """Compute beside a fake operator what it gives, where that is small and known."""
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, FakeTensor)]
        small = all(tensor.numel() <= MOST_KNOWN_NUMBERS for tensor in outputs)
        random = torch.Tag.nondeterministic_seeded in func.tags
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        written = func._schema.is_mutable
        if random or not small or func in _UNFILLED or any(self.of(t) is None for t in inputs):
            if written:
                self._forget(outputs)
            return
        real = self._compute(func, args, kwargs)
        for fake, number in zip(tree_leaves(out), tree_leaves(real), strict=True):
            if isinstance(fake, FakeTensor):
                self._known[fake] = number

    def shaped_by_numbers(self, func: Any, args: Any) -> torch.Tensor | None:
        """What an operator gives whose result's shape depends on numbers; None for other operators.

        Raises:
            SimulationError: the numbers are unknown.
        """
        if torch.Tag.dynamic_output_shape not in func.tags:
            return None
        if func is torch.ops.aten.index.Tensor and not any(
            index is not None and index.dtype == torch.bool for index in args[1]
        ):
            return None  # numbers choose among rows, only a mask decides how many there are
        inputs = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        if any(self.of(tensor) is None for tensor in inputs):
            self.invent()
        real: torch.Tensor = self._compute(func, args, {})
        fake = torch.empty(real.shape, dtype=real.dtype, device=inputs[0].device)
        self._known[fake] = real
        return fake

    def ask(self, tensor: torch.Tensor) -> Any:
        """The one number of a tensor, or what is invented for who asks.

        Raises:
            SimulationError: the number is unknown, and nothing is listed to be said.
        """
        known = self.of(tensor)
        if known is None:
            return self.invent()
        with no_dispatch():
            return known.item()

    def invent(self) -> Any:
        """What stands in `INVENTIONS` for the code that is asking now.

        Raises:
            SimulationError: nothing does.
        """
        frame: Any = sys._getframe(1)
        askers = []
        while frame is not None:
            asker = frame.f_globals.get("__name__", ""), frame.f_code.co_name
            for invention in INVENTIONS:
                if asker == (invention.module, invention.function):
                    self.invented[invention] += 1
                    return invention.answer
            if not asker[0].startswith(("torch.", "lowmem_if.simulate.")):
                askers.append(".".join(asker))
            frame = frame.f_back
        raise SimulationError(
            f"the dry run was asked for a number that only a real one has, by {', '.join(askers[:2])}; "
            "this is a bug of lowmem-if: its list of inventions lacks that question"
        )

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operator on the numbers behind its fake arguments."""
        with no_dispatch():
            return func(*tree_map(self._real, args), **tree_map(self._real, kwargs))

    def _real(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return self.of(leaf)
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    def _forget(self, written: list[FakeTensor]) -> None:
        """What was written over with unknown numbers is unknown, and so are all views of it."""
        for tensor in written:
            known = self._known.pop(tensor, None)
            if known is not None:
                storage = known.untyped_storage()
                self._stale[storage._cdata] = storage


def _is_real(leaf: Any) -> bool:
    """Whether a leaf is a tensor with numbers of its own."""
    is_tensor = isinstance(leaf, torch.Tensor) and not isinstance(leaf, FakeTensor)
    return is_tensor and leaf.device.type != "meta"


_LIFTS = {torch.ops.aten.lift_fresh.default, torch.ops.aten.lift.default}
"""What makes a real tensor a fake one itself."""

_UNFILLED = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
}
"""What they give has no numbers yet."""
