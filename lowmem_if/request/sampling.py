"""How the stages sample: what the user asked for, and what a stage does in the end."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lowmem_if.cascade.catalog import IMAGE_STAGES, STAGE_2, UPSCALER, StageDefaults
from lowmem_if.errors import RequestError
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.noise_scheduler import DDPM


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """What the user asked for; None leaves a value to the cascade. Tuples have one entry per stage.

    Attributes:
        steps: denoising steps of stage 1, stage 2 and the upscaler.
        timesteps: one of diffusers' named lists, which replaces `steps` in stages 1 and 2.
        guidance_scale: per stage; 1 or less disables guidance.
        noise_level: of stage 2, 0 to 999.
        scheduler: of stages 1 and 2, `ddpm` or `dpmsolver++`.
        thresholding: of stages 1 and 2: the ratio of dynamic thresholding, and optionally the largest
            value that it scales down from.
    """

    steps: tuple[int, ...] | None = None
    timesteps: str | None = None
    guidance_scale: tuple[float, ...] | None = None
    noise_level: int | None = None
    scheduler: str = DDPM
    thresholding: tuple[float, ...] | None = None

    @property
    def is_guided(self) -> bool:
        """Whether any stage may use guidance, and so needs the negative prompt."""
        return self.guidance_scale is None or max(self.guidance_scale) > 1

    def in_stage(self, stage: str, defaults: StageDefaults) -> Sampling:
        """How one stage samples: what was asked for, else the defaults of the cascade and mode."""
        k = IMAGE_STAGES.index(stage)
        named = self.timesteps if stage != UPSCALER else None
        steps = None if named else (self.steps[k] if self.steps else defaults.steps)
        scale = self.guidance_scale[k] if self.guidance_scale else defaults.guidance_scale
        noise_level = defaults.noise_level
        if stage == STAGE_2 and self.noise_level is not None:
            noise_level = self.noise_level
        sampling = Sampling(steps, named, float(scale), noise_level, defaults.strength)
        if stage == UPSCALER:  # another kind of scheduler, and it samples latents
            return sampling
        return replace(sampling, scheduler=self.scheduler, thresholding=self.thresholding)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one stage samples in one mode; nothing is left to a default.

    Attributes:
        timesteps: the name of a list that decides the steps; `steps` counts them otherwise.
        strength: for modes that start from an image: the share of the steps, the last ones, that run.
        scheduler, thresholding: for stages 1 and 2, see `SamplingOptions`.

    Raises:
        RequestError: the strength leaves no step.
    """

    steps: int | None
    timesteps: str | None
    guidance_scale: float
    noise_level: int | None
    strength: float | None = None
    scheduler: str = DDPM
    thresholding: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.strength is not None and self.count < 1:
            raise RequestError(
                f"strength {self.strength} of {self._all} steps is less than one: give more of either"
            )

    @property
    def count(self) -> int:
        """Denoising steps that run."""
        return self._all if self.strength is None else int(self._all * self.strength)

    @property
    def _all(self) -> int:
        """Steps of the whole schedule; a list carries its length in its name."""
        if self.timesteps:
            return int(self.timesteps.lstrip("abcdefghijklmnopqrstuvwxyz"))
        return self.steps or 0

    def of(self, spec: ImageSpec, stage: str) -> Sampling:
        """This sampling with the image's own strength."""
        if spec.strength is None or self.strength is None:
            return self
        return replace(self, strength=spec.strength[IMAGE_STAGES.index(stage)])
