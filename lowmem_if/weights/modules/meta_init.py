"""Networks without weights: their modules on torch's meta device, and which stored tensor fills what.

The libraries' own tables map published names to today's: diffusers renames the attention of old
autoencoders, transformers drops CLIP's `text_model.` prefix.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.quantizers import AutoHfQuantizer

from lowmem_if.errors import CheckpointError
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.stored import CONVOLUTION_AXES, Stored
from lowmem_if.weights.library_differences import kept_dtype, nested_name

_SCALES = "SCB"
"""The name of a row's largest magnitudes in bitsandbytes' 8-bit layout."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one tensor: its names in the module (several if tied), type, and what fills it.

    `scales` are the rows' largest magnitudes, for a weight that is stored as 8-bit numbers.
    `channels_last` is the layout in memory of a convolution's weight; files have the usual one.
    """

    names: tuple[str, ...]
    dtype: torch.dtype
    stored: Stored
    scales: Stored | None = None
    channels_last: bool = False

    def empty(self, device: str) -> torch.Tensor:
        """Memory for the tensor, in its layout."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return torch.empty(self.stored.shape, dtype=self.dtype, device=device, memory_format=layout)

    def shaped(self, flat: torch.Tensor) -> torch.Tensor:
        """Memory of the tensor's size as the tensor, in its layout."""
        if not self.channels_last:
            return flat.view(self.stored.shape)
        outer, inner, height, width = self.stored.shape
        return flat.view(outer, height, width, inner).permute(0, 3, 1, 2)


def diffusers_skeleton(cls: Any, config: dict[str, Any]) -> torch.nn.Module:
    """A diffusers network by its configuration, in evaluation mode, with weights on the meta device."""
    with init_empty_weights():
        module: torch.nn.Module = cls.from_config(config)
    return module.eval()


def transformers_skeleton(cls: Any, config: Any) -> torch.nn.Module:
    """A transformers network by its configuration, on the meta device, with tied weights tied."""
    with init_empty_weights():
        module: Any = cls(config)
    module.tie_weights()
    skeleton: torch.nn.Module = module.eval()
    return skeleton


def quantised_skeleton(cls: Any, config: Any, settings: Any, dtype: torch.dtype) -> torch.nn.Module:
    """The same with bitsandbytes' layers in place of the linear layers that transformers chooses.

    Args:
        settings: a `BitsAndBytesConfig`.
        dtype: the type of everything that is not quantised.
    """
    config.dtype = dtype
    module: Any = transformers_skeleton(cls, config)
    quantizer: Any = AutoHfQuantizer.from_config(settings, pre_quantized=False)
    quantizer.preprocess_model(model=module, device_map={"": "cpu"})
    quantizer.postprocess_model(module)
    skeleton: torch.nn.Module = module.eval()
    return skeleton


def slots(
    module: torch.nn.Module,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    *,
    channels_last: bool = False,
) -> list[Slot]:
    """Every parameter and saved buffer of a network with its stored tensor, in file order.

    Args:
        channels_last: whether the weights of convolutions have their channels last in memory.

    Raises:
        CheckpointError: tensors are missing, left over, or of another shape.
    """
    tensors: dict[int, list[str]] = {}
    shapes: dict[str, torch.Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        tensors.setdefault(id(tensor), []).append(name)
        shapes[name] = tensor
    stored = _renamed(module, checkpoint, shapes)
    found, missing, mismatched = [], [], []
    for names in tensors.values():
        source = next((stored[name] for name in names if name in stored), None)
        if source is None:
            missing.append(names[0])
        elif source.shape != tuple(shapes[names[0]].shape):
            mismatched.append(names[0])
        else:
            floating = source.dtype.is_floating_point or source.scales is not None
            kept = _own_dtype(module, names[0], dtype) if floating else source.dtype
            scales = stored.get(names[0].removesuffix("weight") + _SCALES)
            last = channels_last and len(source.shape) == CONVOLUTION_AXES
            found.append(Slot(tuple(names), kept, source, scales, last))
    _check_names(checkpoint, "missing", missing)
    _check_names(checkpoint, "mismatched", mismatched)
    return sorted(found, key=lambda slot: (slot.stored.file, slot.stored.header.offset))


def place(module: torch.nn.Module, names: Iterable[str], tensor: torch.Tensor) -> None:
    """Put a tensor, or a finished parameter, into the module under these names."""
    parameter = tensor
    if not isinstance(tensor, torch.nn.Parameter):
        parameter = as_weight(tensor)
    for name in names:
        owner, leaf = owner_of(module, name)
        if leaf in owner._buffers:
            owner._buffers[leaf] = tensor
        else:
            owner._parameters[leaf] = parameter


def as_weight(tensor: torch.Tensor) -> torch.nn.Parameter:
    """The tensor as a parameter that requires a gradient, as the libraries' do; none is ever computed.

    Without it `torch.matmul` computes the same product in another way (it does not fold batches of
    strided inputs), and images differ in their last bits from those of plain diffusers.
    """
    return torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


def move_buffers(module: torch.nn.Module, device: str) -> torch.nn.Module:
    """Move the buffers that no checkpoint holds (CLIP's position numbers) to the device."""
    for name, buffer in list(module.named_buffers()):
        if buffer.device.type != torch.device(device).type:
            owner, leaf = owner_of(module, name)
            owner._buffers[leaf] = buffer.to(device)
    return module


def owner_of(module: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str]:
    """The submodule that a parameter or buffer belongs to, and its name there."""
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def _renamed(
    module: torch.nn.Module, checkpoint: Checkpoint, wanted: dict[str, torch.Tensor]
) -> dict[str, Stored]:
    """The checkpoint's tensors under the module's names."""
    rename = _transformers_names if isinstance(module, PreTrainedModel) else _diffusers_names
    renamed = {
        new: checkpoint.stored(old) for old, new in rename(module, checkpoint, wanted).items()
    }
    unsaved = {name for name, _ in module.named_buffers()} - wanted.keys()
    eight_bit = {
        f"{name}.{extra}"
        for name, layer in module.named_modules()
        if _is_eight_bit(layer)
        for extra in (_SCALES, "weight_format")
    }
    _check_names(checkpoint, "unexpected", renamed.keys() - wanted.keys() - unsaved - eight_bit)
    return renamed


def _is_eight_bit(layer: torch.nn.Module) -> bool:
    library: Any = sys.modules.get("bitsandbytes")  # without it there is no such layer
    return library is not None and isinstance(layer, library.nn.Linear8bitLt)


def _diffusers_names(
    module: Any, checkpoint: Checkpoint, _wanted: dict[str, torch.Tensor]
) -> dict[str, str]:
    table: Any = {name: name for name in checkpoint}
    module._fix_state_dict_keys_on_load(table)
    return {old: new for new, old in table.items()}


def _transformers_names(
    module: Any, checkpoint: Checkpoint, wanted: dict[str, torch.Tensor]
) -> dict[str, str]:
    renamings = [
        entry for entry in get_model_conversion_mapping(module) if isinstance(entry, WeightRenaming)
    ]
    prefix = module.base_model_prefix

    def renamed(name: str) -> str:
        if name in wanted:
            return name
        return nested_name(rename_source_key(name, renamings, [], prefix, wanted)[0], wanted)

    return {name: renamed(name) for name in checkpoint}


def _own_dtype(module: torch.nn.Module, name: str, dtype: torch.dtype) -> torch.dtype:
    return kept_dtype(module, name, dtype) if isinstance(module, PreTrainedModel) else dtype


def _check_names(checkpoint: Checkpoint, what: str, names: Collection[str]) -> None:
    if names:
        raise CheckpointError(
            f"{checkpoint.paths[0].parent}: {len(names)} {what} weights, first {min(names)}; "
            "its files are not those of its config.json: fetch or copy the folder again"
        )
