"""diffusers' own pipelines over a stage that this package has loaded, for a user's own loop."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping
from functools import cache
from inspect import signature
from types import TracebackType
from typing import Any, Self

import torch
from diffusers import (
    IFImg2ImgPipeline,
    IFImg2ImgSuperResolutionPipeline,
    IFInpaintingPipeline,
    IFInpaintingSuperResolutionPipeline,
    IFPipeline,
    IFSuperResolutionPipeline,
    StableDiffusionUpscalePipeline,
)

from lowmem_if.cascade.catalog import STAGE_1, STAGE_2, UPSCALER
from lowmem_if.cascade.modes import INPAINT, TEXT, VARY
from lowmem_if.cascade.strategies import MODEL_OFFLOAD
from lowmem_if.errors import (
    CascadeError,
    CheckpointError,
    DeviceError,
    DoesNotFit,
    RequestError,
    SessionError,
)

Encode = Callable[[list[str]], Mapping[str, torch.Tensor]]
"""Texts -> their embeddings, each (1, 77, width)."""

PIPELINES: dict[tuple[str, str], Any] = {
    (STAGE_1, TEXT): IFPipeline,
    (STAGE_1, VARY): IFImg2ImgPipeline,
    (STAGE_1, INPAINT): IFInpaintingPipeline,
    (STAGE_2, TEXT): IFSuperResolutionPipeline,
    (STAGE_2, VARY): IFImg2ImgSuperResolutionPipeline,
    (STAGE_2, INPAINT): IFInpaintingSuperResolutionPipeline,
    (UPSCALER, TEXT): StableDiffusionUpscalePipeline,
}
"""Stage and mode -> the pipeline of diffusers."""


class OpenPipeline:
    """What an opened stage has in addition to diffusers' pipeline, of whose class it is, too.

    Attributes:
        plan: what was chosen for this machine, and why; `print(stage.plan)` describes it.
        released: after `close()`, the proof of the release; None while it is open.
        unet, scheduler: as in diffusers.
    """

    plan: Any
    released: Any
    unet: Any
    scheduler: Any
    text_encoder: Any
    __call__: Callable[..., Any]

    def begin(
        self, plan: Any, encode: Encode, end: Callable[[], Any], release: Callable[[], None]
    ) -> None:
        """Take over a loaded stage.

        Args:
            encode: encodes texts with T5, which is not in this process.
            end: closes the stage and returns the proof that it was released.
            release: closes it without a proof, when nothing refers to this object any more.
        """
        self.plan, self.released = plan, None
        self._encode = encode
        self._end: Callable[[], Any] | None = end
        self._left = weakref.finalize(self, release)
        self._is_placing = False
        if plan.step.config.strategy == MODEL_OFFLOAD:
            self.enable_model_cpu_offload()

    @property
    def device(self) -> torch.device:
        """Where the stage computes, wherever its weights are kept."""
        return torch.device(self.plan.step.config.device)

    @property
    def dtype(self) -> torch.dtype:
        """The number type that the UNet computes in."""
        dtype: torch.dtype = getattr(torch, self.plan.step.config.compute_dtype)
        return dtype

    def close(self) -> None:
        """Release the stage, and prove it; a second call does nothing."""
        if self._end is None:
            return
        end, self._end = self._end, None
        self._left.detach()
        for name in self._part_names():
            vars(self).pop(name, None)
        self.released = end()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self._part_names():
            self._check_open()
        return super().__getattr__(name)  # type: ignore[misc]  # diffusers' ConfigMixin has it

    def to(self, *places: Any, **options: Any) -> Self:
        """This object: a stage is already where and in the type that it was planned for.

        Raises:
            DeviceError: another device or type is asked for.
        """
        if self._is_placing:
            moved: Self = super().to(*places, **options)  # type: ignore[misc]
            return moved
        self._check_open()
        wanted = [*places, options.get("device"), options.get("dtype"), options.get("torch_dtype")]
        for place in wanted:
            if place is not None and not self._is_at(place):
                raise DeviceError(
                    f"{self.plan.name} is planned for {self.device} in {str(self.dtype)[6:]} and "
                    f"cannot be moved to {place}: open it with another `device` or `dtype`"
                )
        return self

    def enable_model_cpu_offload(self, *_places: Any, **_options: Any) -> None:
        """Nothing, but for a stage whose plan is model offload: the plan has placed the weights."""
        self._check_open()
        if self.plan.step.config.strategy != MODEL_OFFLOAD:
            self._say_placed("enable_model_cpu_offload")
            return
        self._is_placing = True
        try:
            super().enable_model_cpu_offload(device=self.device)  # type: ignore[misc]
        finally:
            self._is_placing = False

    def enable_sequential_cpu_offload(self, *_places: Any, **_options: Any) -> None:
        """Nothing: the plan has placed the weights."""
        self._say_placed("enable_sequential_cpu_offload")

    def enable_group_offload(self, *_places: Any, **_options: Any) -> None:
        """Nothing: the plan has placed the weights."""
        self._say_placed("enable_group_offload")

    def encode_prompt(self, *args: Any, **options: Any) -> Any:
        """As in diffusers; T5 encodes texts in a process of its own, which ends before this returns.

        Raises:
            RequestError: a text cannot be encoded here; the message says what to give instead.
        """
        pipeline: Any = super()
        if self.text_encoder is not None:  # the upscaler's own, or the user's
            return pipeline.encode_prompt(*args, **options)
        given = signature(pipeline.encode_prompt).bind(*args, **options)
        given.apply_defaults()
        given.arguments |= self._embeddings_for(**given.arguments)
        return pipeline.encode_prompt(*given.args, **given.kwargs)

    def _embeddings_for(
        self,
        *,
        prompt: str | list[str] | None,
        do_classifier_free_guidance: bool,
        negative_prompt: str | list[str] | None,
        prompt_embeds: Any,
        negative_prompt_embeds: Any,
        **_others: Any,
    ) -> dict[str, Any]:
        """The embeddings that are not given, in place of their texts."""
        if prompt_embeds is None:
            prompt_embeds = self._encoded([prompt] if isinstance(prompt, str) else prompt)
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            negative = negative_prompt or ""
            texts = [negative] * len(prompt_embeds) if isinstance(negative, str) else negative
            negative_prompt_embeds = self._encoded(texts)
        return {
            "prompt": None,
            "negative_prompt": None,
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
        }

    def _encoded(self, texts: list[str] | None) -> torch.Tensor:
        self._check_open()
        if not texts:
            raise RequestError(
                f"{self.plan.name} needs a prompt, or its embedding as prompt_embeds"
            )
        try:
            known = self._encode(texts)
        except (CascadeError, CheckpointError, DoesNotFit) as error:
            raise RequestError(
                f"{self.plan.name} is open without a text encoder, and T5 cannot encode the text here "
                f"({error}). Give prompt_embeds and negative_prompt_embeds, as `lm.embed` returns them"
            ) from error
        return torch.cat([known[text] for text in texts]).to(self.device, self.dtype)

    def _is_at(self, place: Any) -> bool:
        if isinstance(place, torch.dtype):
            return bool(place == self.dtype)
        wanted, own = torch.device(place), self.device
        same_index = None in (wanted.index, own.index) or wanted.index == own.index
        return bool(wanted.type == own.type and same_index)

    def _say_placed(self, method: str) -> None:
        config = self.plan.step.config
        warnings.warn(
            f"{method}() does nothing here: {self.plan.name} is planned as {config}",
            stacklevel=3,
        )

    def _part_names(self) -> frozenset[str]:
        own: Any = type(self)
        return _part_names(own)

    def _check_open(self) -> None:
        if self._end is None:
            raise SessionError(f"{self.plan.name} is closed: open it again with open_stage")


@cache
def _part_names(cls: Any) -> frozenset[str]:
    """The names of a pipeline's components."""
    required, _optional = cls._get_signature_keys(cls)
    return frozenset(required)


@cache
def open_class(kind: type[Any]) -> type[Any]:
    """A subclass of a pipeline's class, of the same name, for an opened stage."""
    return type(kind.__name__, (OpenPipeline, kind), {"__module__": kind.__module__})
