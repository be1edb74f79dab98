"""One pass of a network of its real size on fake tensors: its activations' memory and its operations.

Inputs are those of the pipelines: a guided image is a pair, T5 and CLIP read one text, the decoder
makes one image. All weights have one type; `planning/estimates/memory.py` adds T5's float32 exceptions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from lowmem_if.cascade import catalog
from lowmem_if.cascade.configs import read_config
from lowmem_if.cascade.locate import DEMO_FOLDER
from lowmem_if.cascade.transfer_sizes import GUIDED_IMAGES
from lowmem_if.planning.estimates.execution import RAM_STRIPS, WHOLE
from lowmem_if.planning.estimates.memory_table import FUSED
from lowmem_if.simulate.fake_device import DEVICE, dry_run
from lowmem_if.simulate.tracing import Trace
from lowmem_if.stages.decoding.strip_decoder import decode_in_strips
from lowmem_if.weights.modules.meta_init import owner_of, place
from lowmem_if.weights.synthetic.architectures import Network, networks

_DTYPES = {2: torch.float16, 4: torch.float32}


@dataclass(frozen=True, slots=True)
class SimulatedPass:
    """The memory and operations of one pass of a network.

    Attributes:
        activation_bytes: the most beyond the weights, inputs and output included.
        flops: of its products and convolutions; a multiplication and an addition count as two.
    """

    activation_bytes: int
    flops: int


@dataclass(frozen=True)
class Known:
    """A network, the component that it is part of, and the first cascade that has it."""

    cascade: str
    component: str
    network: Network

    @property
    def name(self) -> str:
        return f"{self.cascade}/{self.network.folder}"

    @property
    def folder(self) -> str:
        return self.network.folder.partition("/")[2]

    @property
    def is_unet(self) -> bool:
        return self.folder == "unet"

    @property
    def is_vae(self) -> bool:
        return self.folder == "vae"

    @property
    def channels(self) -> int:
        """Channels of the first block, as in the catalogue."""
        blocks: list[int] = self.network.config.get("block_out_channels", [0])
        return blocks[0]

    @cached_property
    def parameters(self) -> int:
        count: int = sum(weight.numel() for weight in self.network.skeleton().parameters())
        return count


def known_networks() -> Iterator[Known]:
    """Every network of the catalogue and the bundled cascade, each once, except the watermark."""
    seen = []
    for cascade in catalog.CASCADES:
        for component, parts in _networks(cascade).items():
            for network in parts:
                if network not in seen and not network.folder.endswith("watermarker"):
                    seen.append(network)
                    yield Known(cascade, component, network)


def _networks(cascade: str) -> dict[str, tuple[Network, ...]]:
    if cascade != catalog.DEMO:
        return networks(cascade)
    # The bundled cascade has the classes of the published ones.
    return {
        component: tuple(
            replace(network, config=read_config(DEMO_FOLDER / network.folder / "config.json"))
            for network in parts
        )
        for component, parts in networks(next(iter(catalog.PUBLISHED))).items()
    }


def simulate_passes(
    known: Known, runs: Iterable[tuple[int, str]], *, item_bytes: int, decoding: str = WHOLE
) -> dict[tuple[int, str], SimulatedPass]:
    """Passes of one network over some images or texts with an attention kernel.

    Args:
        runs: (batch, kernel) of each pass.
        item_bytes: bytes of a number that it computes with.
    """
    with dry_run(kernel=FUSED) as trace:
        module = resident(known.network, _DTYPES[item_bytes], DEVICE)
        passes = {}
        for batch, trace.kernel in runs:
            run = prepared(known, module, batch=batch, decoding=decoding)
            passes[batch, trace.kernel] = traced(trace, DEVICE, run)
            del run
        return passes


def traced(trace: Trace, place: str, run: Callable[[], object]) -> SimulatedPass:
    """What calling `run` takes beyond what is in use already, in one place of the tracker."""
    usage = trace.tracker.usage(place)
    trace.tracker.begin_phase()
    before, trace.flops = usage.now, 0
    run()
    return SimulatedPass(usage.most - before, trace.flops)


def largest_layer_bytes(network: Network, *, item_bytes: int) -> int:
    """The bytes of the layer with the most weights of its own."""
    parts = network.skeleton().modules()
    numbers: int = max(sum(p.numel() for p in part.parameters(recurse=False)) for part in parts)
    return item_bytes * numbers


def prepared(
    known: Known, module: Any, *, batch: int, decoding: str = WHOLE, side: int | None = None
) -> Callable[[], object]:
    """A function that calls a network once as its pipeline does; the inputs are made here.

    Args:
        side: of the image or latents; None: as in the pipelines.
    """
    some = next(module.parameters())
    place = {"dtype": some.dtype, "device": some.device}
    if known.is_unet:
        return _unet_pass(known, module, GUIDED_IMAGES * batch, side, place)
    if known.is_vae:
        module.enable_slicing()
        if decoding != WHOLE:
            decode_in_strips(module, in_ram=decoding == RAM_STRIPS)
        side = side or catalog.facts(catalog.UPSCALER).side
        latents = torch.randn(batch, 4, side, side, **place)
        return lambda: module.decode(latents, return_dict=False)[0]
    if catalog.facts(known.component).postprocesses:
        side = module.config.vision_config.image_size
        pixels = torch.randn(batch, 3, side, side, **place)
        return lambda: module.vision_model(pixels)[1]
    ids = torch.ones(batch, catalog.MAX_TOKENS, dtype=torch.int64, device=some.device)
    mask = torch.ones_like(ids)
    return lambda: module(ids, attention_mask=mask)[0]


def resident(network: Network, dtype: torch.dtype, device: str) -> Any:
    """A network with weights of one type on a device; all numbers are zeros."""
    module: Any = network.skeleton().eval()
    names: dict[torch.nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    for parameter, its_names in names.items():
        place(module, its_names, torch.zeros(parameter.shape, dtype=dtype, device=device))
    for name, buffer in list(module.named_buffers()):
        owner, leaf = owner_of(module, name)
        owner._buffers[leaf] = torch.zeros(buffer.shape, dtype=buffer.dtype, device=device)
    return module


def _unet_pass(
    known: Known, unet: Any, pairs: int, side: int | None, place: dict[str, Any]
) -> Callable[[], object]:
    config, device = unet.config, place["device"]
    side = side or (
        catalog.facts(known.component).side
        if catalog.facts(known.component).decodes
        else config.sample_size
    )
    width = config.encoder_hid_dim or config.cross_attention_dim
    picture = torch.randn(pairs, config.in_channels, side, side, **place)
    words = torch.randn(pairs, catalog.MAX_TOKENS, width, **place)
    time = torch.tensor(500, device=device)
    labelled = config.class_embed_type or config.num_class_embeds
    level = torch.tensor([100] * pairs, device=device) if labelled else None
    return lambda: unet(picture, time, words, class_labels=level, return_dict=False)[0]
