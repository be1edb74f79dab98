"""Networks in a user's own loop: gradients reach their inputs only, and a closed network says so.

`guard` changes how a network is called, not what it computes:

- Without gradients, or if no input requires one, it computes under `torch.no_grad()`: a loop that
  forgets `no_grad` builds no graph, whose memory no plan counts.
- If an input requires a gradient, the outputs have one with respect to the inputs. Gradients of weights
  are never computed, since they would take as much memory as the weights. The bits are those of
  `torch.autograd.grad` over the unguarded network.
- If weights are moved or overwritten after their layer's forward, such an input is refused: the
  backward pass would read the wrong weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch.autograd.function import once_differentiable
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from lowmem_if.errors import RequestError, SessionError

_METHODS = ("__call__", "decode", "encode")
"""The ways into a network: the last two are those of a VAE."""


class Guard:
    """What a guarded network does when it is called.

    Attributes:
        refusal: why no input may require a gradient; empty if inputs may.
        movable: whether its weights are ordinary tensors, which may be cast, moved and saved.
    """

    def __init__(self, refusal: str, *, movable: bool) -> None:
        self.refusal, self.movable = refusal, movable
        self._closed = ""
        self._graphs: WeakSet[_Graph] = WeakSet()

    def close(self, why: str) -> None:
        """Refuse every later call, and drop the graphs of outputs that still exist."""
        self._closed = why
        for graph in list(self._graphs):
            graph.drop(why)
        self._graphs.clear()

    def check_open(self) -> None:
        """Raise `SessionError` if the network is closed."""
        if self._closed:
            raise SessionError(self._closed)

    def run(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a network's method; see the module."""
        self.check_open()
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        wanted = [n for n, leaf in enumerate(leaves) if _requires_grad(leaf)]
        if not wanted:
            with torch.no_grad():
                return forward(*args, **kwargs)
        if self.refusal:
            raise RequestError(self.refusal)
        graph = _Graph(forward, leaves, spec, wanted)
        self._graphs.add(graph)
        outputs = _ThroughInputs.apply(graph, *(leaves[n] for n in wanted))
        return graph.assembled(outputs)


def guard(network: Any, refusal: str = "", *, movable: bool = True) -> Guard:
    """Guard a network in place: it gets a subclass of its class, of the same name.

    Args:
        refusal: why no input may require a gradient; empty: they may.
        movable: whether its weights may be cast, moved and saved.
    """
    network.guard = Guard(refusal, movable=movable)
    own: Any = type(network)
    network.__class__ = _guarded_class(own)
    made: Guard = network.guard
    return made


@cache
def _guarded_class(cls: type[Any]) -> type[Any]:
    """The class with guarded ways into it. Hooks of accelerate replace `forward` and remain inside."""

    def guarded(name: str) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return self.guard.run(getattr(cls, name).__get__(self), args, kwargs)

        return call

    def _apply(self: Any, change: Callable[..., Any], *rest: Any, **options: Any) -> Any:
        self.guard.check_open()
        if not self.guard.movable and not _changes_nothing(change, self):
            raise RequestError(
                "the weights of this network are in their files, so they cannot be moved or cast: "
                "open the stage with another `device` or `dtype`"
            )
        return self if not self.guard.movable else cls._apply(self, change, *rest, **options)

    def state_dict(self: Any, *args: Any, **options: Any) -> Any:
        self.guard.check_open()
        if not self.guard.movable:
            raise RequestError(
                "the weights of this network are in their files, so it has no state to save: "
                "copy the files, or open the stage with pin='resident'"
            )
        return cls.state_dict(self, *args, **options)

    members = {name: guarded(name) for name in _METHODS if hasattr(cls, name)}
    changed = {"_apply": _apply, "state_dict": state_dict, "__module__": cls.__module__}
    return type(cls.__name__, (cls,), members | changed)


def _changes_nothing(change: Callable[..., Any], network: Any) -> bool:
    """Whether a function of `Module.to` and the like leaves tensors of this network as they are."""
    before = torch.empty((), dtype=network.dtype, device=network.device)
    after = change(before)
    return bool((after.dtype, after.device) == (before.dtype, before.device))


def _requires_grad(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


class _Graph:
    """One call of a network with gradients: a graph of its own, from its inputs to its outputs."""

    def __init__(
        self, forward: Callable[..., Any], leaves: list[Any], spec: TreeSpec, wanted: list[int]
    ) -> None:
        self._forward, self._leaves, self._spec, self._wanted = forward, leaves, spec, wanted
        self._inputs: list[torch.Tensor] = []
        self._outputs: list[torch.Tensor] = []
        self._shape: tuple[list[Any], TreeSpec] | None = None
        self._dropped = ""

    def compute(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The output tensors, without the graph that leads to them."""
        with torch.enable_grad():
            self._inputs = [tensor.detach().requires_grad_() for tensor in inputs]
            leaves = list(self._leaves)
            for place, tensor in zip(self._wanted, self._inputs, strict=True):
                leaves[place] = tensor
            args, kwargs = tree_unflatten(leaves, self._spec)
            flat, spec = tree_flatten(self._forward(*args, **kwargs))
        self._forward, self._leaves = _nothing, []
        if not all(isinstance(leaf, torch.Tensor | None) for leaf in flat):
            raise RequestError(
                "this method returns more than tensors, through which no gradient is passed on: "
                "call it under torch.no_grad()"
            )
        self._outputs = [leaf for leaf in flat if leaf is not None]
        self._shape = [leaf is None for leaf in flat], spec
        return tuple(output.detach() for output in self._outputs)

    def assembled(self, outputs: tuple[torch.Tensor, ...]) -> Any:
        """The outputs as the network returns them."""
        assert self._shape is not None
        absent, spec = self._shape
        tensors = iter(outputs)
        return tree_unflatten([None if none else next(tensors) for none in absent], spec)

    def gradients(self, given: tuple[torch.Tensor | None, ...]) -> tuple[Any, ...]:
        """The gradients of the inputs, from those of the outputs."""
        if self._dropped:
            raise SessionError(self._dropped)
        pairs = [
            (output, gradient)
            for output, gradient in zip(self._outputs, given, strict=True)
            if gradient is not None and output.requires_grad
        ]
        if not pairs:
            return (None,) * len(self._inputs)
        outputs, gradients = zip(*pairs, strict=True)
        # The user may ask a second time (`retain_graph`), which this graph cannot know.
        found: tuple[Any, ...] = torch.autograd.grad(
            outputs, self._inputs, gradients, retain_graph=True, allow_unused=True
        )
        return found

    def drop(self, why: str) -> None:
        """Free the graph with the weights in it; a later backward pass is refused."""
        self._inputs, self._outputs, self._dropped = [], [], why


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    """What a graph calls after its forward pass, which is never."""


class _ThroughInputs(torch.autograd.Function):  # type: ignore[misc]
    """A network as one operation of the user's graph."""

    @staticmethod
    def forward(ctx: Any, graph: _Graph, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.graph = graph
        return graph.compute(inputs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *given: torch.Tensor | None) -> tuple[Any, ...]:
        return (None, *ctx.graph.gradients(given))
