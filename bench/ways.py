"""The ways to a network that computes, each a context manager: the network inside, nothing after.

A way that only reads or writes files yields None.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import accelerate
import torch
from diffusers import IFPipeline, UNet2DConditionModel
from diffusers.hooks import apply_group_offloading
from transformers import BitsAndBytesConfig

from bench.cases import CONVERT, FAITHFUL, INT8, LIMIT, LIMIT_THREADS, STREAMED_COPY, WAYS, Case
from bench.networks import load_resident, network_class, stream
from lowmem_if.cascade.module_files import weight_variant
from lowmem_if.cascade.safetensors_header import read_headers
from lowmem_if.weights.files.weight_copies import convert, remove_converted
from lowmem_if.weights.loading import DTYPES, load_diffusers_model, stream_diffusers_model

PIECE_BYTES = 16 * 2**20

Open = Callable[[Case], AbstractContextManager[torch.nn.Module | None]]


def weight_files(case: Case) -> list[Path]:
    """The files that the network is loaded from."""
    return [case.weights / name for name in weight_variant(case.weights).files]


def weight_bytes(case: Case) -> int:
    """All weights in the type that is computed with."""
    headers = read_headers(weight_files(case)).values()
    return sum(prod(header.shape) for header in headers) * DTYPES[case.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Way:
    """How to get there, after `prepare`, which is not measured and tells the files that are read."""

    open: Open
    prepare: Callable[[Case], list[Path]] = weight_files


# --- the limit


@contextmanager
def _limit(case: Case, *, all_threads: bool) -> Iterator[None]:
    """Read all bytes once, into memory that nobody has touched before."""
    files = weight_files(case)
    memory = [torch.empty(file.stat().st_size, dtype=torch.uint8) for file in files]
    pieces = [
        (file, memoryview(target.numpy())[start : start + PIECE_BYTES], start)
        for file, target in zip(files, memory, strict=True)
        for start in range(0, len(target), PIECE_BYTES)
    ]
    with ThreadPoolExecutor(torch.get_num_threads() if all_threads else 1) as pool:
        list(pool.map(lambda piece: read_piece(*piece), pieces))
    yield


def read_piece(file: Path, target: memoryview, start: int) -> None:
    """Fill `target` with the file's bytes from `start` on."""
    with file.open("rb", buffering=0) as opened:
        while len(target):
            count = os.preadv(opened.fileno(), [target], start)
            if not count:
                raise EOFError(f"{file.name} has become shorter")
            target, start = target[count:], start + count


# --- the libraries


def _pretrained(case: Case, **options: Any) -> Any:
    """The library's own loader, as IF's documentation calls it, but for float16, which CPUs lack."""
    cls = network_class(case)
    dtype = "torch_dtype" if cls is UNet2DConditionModel else "dtype"
    if case.network.eight_bit:
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        options["device_map"] = {"": case.device}
    variant = weight_variant(case.weights).name
    loaded = cls.from_pretrained(
        case.weights, variant=variant, **{dtype: DTYPES[case.dtype]}, **options
    )
    return loaded.eval()


@contextmanager
def _from_pretrained(case: Case) -> Iterator[torch.nn.Module]:
    network = _pretrained(case)
    yield network if case.network.eight_bit else network.to(case.device)


@contextmanager
def _model_offload(case: Case) -> Iterator[torch.nn.Module]:
    # Unasked, diffusers looks for an accelerator; told to offload from the CPU it would do nothing.
    device = {} if case.device == "cpu" else {"device": case.device}
    _pipeline(None, None).enable_model_cpu_offload(**device)  # to fail before a long load
    network = _pretrained(case)
    is_unet = isinstance(network, UNet2DConditionModel)
    pipeline = _pipeline(*((None, network) if is_unet else (network, None)))
    pipeline.enable_model_cpu_offload(**device)
    yield network


def _pipeline(encoder: Any, unet: Any) -> Any:
    return IFPipeline(None, encoder, unet, None, None, None, None, requires_safety_checker=False)


@contextmanager
def _group_offload(case: Case, *, to_disk: bool) -> Iterator[torch.nn.Module]:
    """Leaf by leaf for a UNet, block by block for a text encoder, as in diffusers' documentation."""
    network = _pretrained(case)
    by: dict[str, Any] = {"offload_type": "leaf_level"}
    if not isinstance(network, UNet2DConditionModel):
        by = {"offload_type": "block_level", "num_blocks_per_group": 2}
    apply_group_offloading(
        network,
        onload_device=torch.device(case.device),
        offload_device=torch.device("cpu"),
        offload_to_disk_path=str(case.scratch) if to_disk else None,
        use_stream=case.device.startswith("cuda"),
        **by,
    )
    yield network


@contextmanager
def _disk_offload(case: Case) -> Iterator[torch.nn.Module]:
    network = _pretrained(case)
    yield accelerate.disk_offload(
        network, str(case.scratch), execution_device=torch.device(case.device)
    )


@contextmanager
def _device_map_disk(case: Case) -> Iterator[torch.nn.Module]:
    yield _pretrained(case, device_map={"": "disk"}, offload_folder=str(case.scratch))


# --- ours


@contextmanager
def _resident(case: Case) -> Iterator[torch.nn.Module]:
    yield load_resident(case)


@contextmanager
def _channels_last(case: Case, *, storage: str | None) -> Iterator[torch.nn.Module]:
    """As a stage loads its UNet on a CPU: layers after the first follow its layout."""
    options: Any = {"dtype": case.dtype, "device": case.device, "channels_last": True}
    with ExitStack() as closing:
        if storage is None:
            unet = load_diffusers_model(case.weights, UNet2DConditionModel, **options)
        else:
            streamed = stream_diffusers_model(
                case.weights,
                UNet2DConditionModel,
                storage=storage,
                resident_bytes=1 << 62,
                **options,
            )
            unet = closing.enter_context(streamed).module
        unet.conv_in.register_forward_pre_hook(
            lambda _module, args: (args[0].contiguous(memory_format=torch.channels_last),)
        )
        yield unet


@contextmanager
def _streamed(case: Case, *, share: float) -> Iterator[torch.nn.Module]:
    with stream(case, case.weights, int(share * weight_bytes(case))) as streamed:
        yield streamed.module


def _without_copy(case: Case) -> list[Path]:
    remove_converted(case.weights)
    return weight_files(case)


@contextmanager
def _convert(case: Case) -> Iterator[None]:
    convert(case.weights)
    yield


def _with_copy(case: Case) -> list[Path]:
    """Our loader finds a UNet's copy by itself; an encoder's is put where it loads from."""
    copy = convert(case.weights)
    files = [copy / name for name in weight_variant(copy).files]
    if network_class(case) is not UNet2DConditionModel:
        folder = _folder_of_copy(case)
        folder.mkdir()
        for file in [*copy.iterdir(), case.weights / "config.json"]:
            (folder / file.name).symlink_to(file.resolve())
    return files


def _folder_of_copy(case: Case) -> Path:
    return case.scratch / case.weights.name


@contextmanager
def _streamed_copy(case: Case) -> Iterator[torch.nn.Module]:
    is_unet = network_class(case) is UNet2DConditionModel
    with stream(case, case.weights if is_unet else _folder_of_copy(case), 0) as streamed:
        yield streamed.module


BY_NAME: dict[str, Way] = {
    LIMIT: Way(partial(_limit, all_threads=False)),
    LIMIT_THREADS: Way(partial(_limit, all_threads=True)),
    "from_pretrained": Way(_from_pretrained),
    "model-offload": Way(_model_offload),
    "group-offload": Way(partial(_group_offload, to_disk=False)),
    "group-offload-disk": Way(partial(_group_offload, to_disk=True)),
    "disk-offload": Way(_disk_offload),
    "device-map-disk": Way(_device_map_disk),
    "resident": Way(_resident),
    FAITHFUL: Way(partial(_channels_last, storage=None)),
    INT8: Way(partial(_channels_last, storage="int8")),
    "streamed-0": Way(partial(_streamed, share=0)),
    "streamed-quarter": Way(partial(_streamed, share=1 / 4)),
    "streamed-half": Way(partial(_streamed, share=1 / 2)),
    CONVERT: Way(_convert, _without_copy),
    STREAMED_COPY: Way(_streamed_copy, _with_copy),
}

assert BY_NAME.keys() == WAYS.keys()
