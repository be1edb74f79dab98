"""How the stages sample: the user's options, and the resulting values of each stage."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lowmem_if.cascade.catalog import IMAGE_STAGES, STAGE_2, facts
from lowmem_if.cascade.parts import StageDefaults
from lowmem_if.cascade.transfer_sizes import GUIDED_IMAGES
from lowmem_if.errors import RequestError
from lowmem_if.request.denoising.noise_scheduler import DDPM, DPM_SOLVER
from lowmem_if.request.denoising.shortcuts import EVERYTHING, FAST_SHORTCUTS, Shortcuts
from lowmem_if.request.image_spec import ImageSpec


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """The user's sampling options; None is the cascade's default. Tuples have one entry per stage.

    Attributes:
        steps: denoising steps of stage 1, stage 2 and the upscaler.
        timesteps: one of diffusers' named lists, which replaces `steps` in stages 1 and 2.
        guidance_scale: one scale per stage; 1 or less disables guidance.
        noise_level: noise added before stage 2, 0 to 999.
        scheduler: noise scheduler of stages 1 and 2, `ddpm` or `dpmsolver++`.
        thresholding: dynamic thresholding of stages 1 and 2: the ratio, and optionally the largest value
            that it scales down from.
        fast: whether work is left out where the user sets nothing (`--prefer fast`): fewer steps with
            the multistep solver, and guidance in the first of them only. The plan decides it.
    """

    steps: tuple[int, ...] | None = None
    timesteps: str | None = None
    guidance_scale: tuple[float, ...] | None = None
    noise_level: int | None = None
    scheduler: str = DDPM
    thresholding: tuple[float, ...] | None = None
    fast: bool = field(default=False, compare=False)

    @property
    def is_guided(self) -> bool:
        """Whether any stage may use guidance and therefore needs the negative prompt."""
        return self.guidance_scale is None or max(self.guidance_scale) > 1

    def in_stage(self, stage: str, defaults: StageDefaults) -> Sampling:
        """How one stage samples: by the user's options, else by the defaults of cascade and mode."""
        k = IMAGE_STAGES.index(stage)
        named = self.timesteps if facts(stage).reads_t5 else None
        usual = defaults.fast_steps if self.fast else defaults.steps
        steps = None if named else (self.steps[k] if self.steps else usual)
        scale = self.guidance_scale[k] if self.guidance_scale else defaults.guidance_scale
        noise_level = defaults.noise_level
        if stage == STAGE_2 and self.noise_level is not None:
            noise_level = self.noise_level
        shortcuts = FAST_SHORTCUTS if self.fast else EVERYTHING
        sampling = Sampling(
            steps, named, float(scale), noise_level, defaults.strength, shortcuts=shortcuts
        )
        if facts(stage).decodes:  # it has another kind of scheduler and samples latents
            return sampling
        scheduler = DPM_SOLVER if self.fast and not named else self.scheduler
        return replace(sampling, scheduler=scheduler, thresholding=self.thresholding)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one stage samples in one mode, with all defaults filled in.

    Attributes:
        steps: the number of denoising steps; None if `timesteps` sets them.
        timesteps: the name of a list of timesteps.
        strength: share of the steps that run, counted from the end, in modes that start from an image.
        scheduler, thresholding: for stages 1 and 2, see `SamplingOptions`.
        shortcuts: the passes and the guidance that are skipped.

    Raises:
        RequestError: with this strength, no step would run.
    """

    steps: int | None
    timesteps: str | None
    guidance_scale: float
    noise_level: int | None
    strength: float | None = None
    scheduler: str = DDPM
    thresholding: tuple[float, ...] | None = None
    shortcuts: Shortcuts = EVERYTHING

    def __post_init__(self) -> None:
        if self.strength is not None and self.count < 1:
            raise RequestError(
                f"strength {self.strength} of {self._all} steps is less than one step: increase one"
            )

    @property
    def count(self) -> int:
        """The number of denoising steps that run."""
        return self._all if self.strength is None else int(self._all * self.strength)

    @property
    def shortened(self) -> str:
        """What is left out, in words; empty if nothing is."""
        if self.shortcuts == EVERYTHING:
            return ""
        solver = f" of {self.scheduler}" if self.scheduler != DDPM else ""
        words = f"{self.count} steps{solver}, {len(self.passes)} of them computed"
        if self.is_guided and self.shortcuts.guided_share < 1:
            words += f", guidance in the first {self.shortcuts.guided_share:.0%}"
        return words

    @property
    def is_guided(self) -> bool:
        """Whether the pipeline computes two UNet inputs for each image, one without the prompt."""
        return self.guidance_scale > 1

    @property
    def passes(self) -> tuple[int, ...]:
        """UNet inputs for each image, 2 or 1, of every pass that is computed."""
        return tuple(
            GUIDED_IMAGES if self.is_guided and self.shortcuts.guides(step, self.count) else 1
            for step in range(self.count)
            if self.shortcuts.computes(step, self.count)
        )

    @property
    def _all(self) -> int:
        """The number of steps in the whole schedule; the name of a list ends with its length."""
        if self.timesteps:
            return int(self.timesteps.lstrip("abcdefghijklmnopqrstuvwxyz"))
        return self.steps or 0

    def of(self, spec: ImageSpec, stage: str) -> Sampling:
        """This sampling with the strength of one image."""
        if spec.strength is None or self.strength is None:
            return self
        return replace(self, strength=spec.strength[IMAGE_STAGES.index(stage)])
