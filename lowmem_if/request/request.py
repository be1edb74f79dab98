"""The request for a run: its images, and the options they share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lowmem_if.cascade import catalog
from lowmem_if.cascade.locate import Location, locate
from lowmem_if.cascade.locating.weights_choice import WeightsChoice
from lowmem_if.cascade.lora.adapter import Lora
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.sampling import SamplingOptions
from lowmem_if.request.texts.given_embeddings import GivenEmbeddings


@dataclass(frozen=True, slots=True)
class Request:
    """The images of a run and its run-wide options. `make_request` checks values and makes one.

    Attributes:
        images: numbered from 0 in the order of the run folder.
        weights: the cascade, its revision, and the parts that are loaded from elsewhere.
        lora: LoRAs for stages 1 and 2, which add up.
        embeds: a file with the embeddings of all prompts, so that no text encoder is needed.
        watermark: whether finished images get IF's watermark.
        safety_checker: whether IF's safety checker checks finished images.
        compile: whether UNets may be compiled where that saves time.
        gallery: whether the run folder contains an HTML page of all images, as for batches.
        seed: the run-wide seed; images without their own seed count up from it. Comparisons ignore it,
            because each image has its seed.
    """

    images: tuple[ImageSpec, ...]
    weights: WeightsChoice = field(default_factory=WeightsChoice)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    lora: tuple[Lora, ...] = ()
    embeds: GivenEmbeddings | None = None
    watermark: bool = True
    safety_checker: bool = True
    compile: bool = False
    gallery: bool = False
    seed: int = field(default=0, compare=False)

    @property
    def cascade(self) -> str:
        """The cascade: a name in the catalogue, or the absolute path of a folder."""
        return self.weights.cascade

    @property
    def revision(self) -> str:
        """Branch, tag or commit of the cascade's repositories on the Hub."""
        return self.weights.revision

    @property
    def components(self) -> tuple[str, ...]:
        """The components this request needs, in the order in which they run."""
        needed = components_of(self.images)
        return tuple(c for c in needed if not catalog.facts(c).encodes or self.embeds is None)

    @property
    def pictures(self) -> tuple[ImageSpec, ...]:
        """The images that are drawn; none if the request only encodes prompts."""
        return tuple(spec for spec in self.images if spec.stages)

    @property
    def size(self) -> int:
        """The largest size among the images."""
        return max(spec.size for spec in self.images)

    def alone(self, spec: ImageSpec) -> Request:
        """The request for only one of the images."""
        one = replace(spec, number=0)
        return replace(self, images=(one,), gallery=False, seed=spec.seed)

    def faster(self) -> Request:
        """The same images, drawn with less work where the user sets nothing."""
        return replace(self, sampling=replace(self.sampling, fast=True))

    def with_cascade(self, cascade: str) -> Request:
        """The same images from another cascade; parts of the user's own stay."""
        return replace(self, weights=self.weights.of_cascade(cascade))

    def locate(self, *, asks_hub: bool = True) -> Location:
        """Where the weights are on this disk, for the components that it needs.

        Args:
            asks_hub: whether the Hub is asked for the sizes of a part that is not on this disk.

        Raises:
            CascadeError, CheckpointError, HubError: as `cascade.locate.locate`.
        """
        return locate(self.weights, components=self.components, asks_hub=asks_hub)

    def no_larger_than(self, size: int) -> Request:
        """The same images, with larger ones reduced to `size`.

        Raises:
            RequestError, PictureError: the mode of an image does not exist at this size.
        """
        images = (replace(spec, size=min(spec.size, size)) for spec in self.images)
        return replace(self, images=tuple(images))

    def with_seed(self, seed: int) -> Request:
        """The same images; seeds that count up from the run-wide seed count up from `seed` instead."""
        shift, last = seed - self.seed, self.seed + len(self.images)
        images = (
            replace(spec, seed=spec.seed + shift) if self.seed <= spec.seed < last else spec
            for spec in self.images
        )
        return replace(self, images=tuple(images), seed=seed)


def components_of(images: tuple[ImageSpec, ...]) -> tuple[str, ...]:
    """The components that images need, in the order in which they run."""
    needed = {stage for spec in images for stage in spec.stages}
    if needed:
        needed.add(catalog.POSTPROCESS)
    if any(spec.needs_t5 for spec in images):
        needed.add(catalog.TEXT_ENCODER)
    return tuple(component for component in catalog.COMPONENTS if component in needed)
