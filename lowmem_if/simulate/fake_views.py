"""Views of fake tensors without torch's cache of fake results.

torch finds the result of an operator by a key from all its arguments, and derives it with decompositions
if the key is new. Streaming cuts every weight out of one block of memory, so each key is new, and that
takes ten times as long as asking the meta kernel, which is what remains here.
"""

from __future__ import annotations

from typing import Any

from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager


def fake_view(func: Any, args: Any) -> FakeTensor:
    """The result of an operator that only looks at the storage of its first argument in another way."""
    tensor: FakeTensor = args[0]
    with in_kernel_invocation_manager(tensor.fake_mode):
        view = func(*args)
    return FakeTensor(tensor.fake_mode, view, tensor.fake_device)
