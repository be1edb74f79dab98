"""What a cascade's JSON files must say, each for itself and one beside the other.

Declared is what would otherwise fail only while drawing, hours later. IF's own sizes are not demanded,
and what the libraries check while they load is left to them. A key that may be absent has the
libraries' own default.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from lowmem_if.cascade.catalog import POSTPROCESS, STAGE_1, STAGE_2, TEXT_ENCODER, UPSCALER, Part
from lowmem_if.cascade.safetensors_header import unreadable
from lowmem_if.errors import CheckpointError

T = TypeVar("T")

_CLIP_TOKENS = 77
"""Positions of every CLIP text encoder."""


class _File(BaseModel):
    """The keys that are read here; the others are the libraries' business."""

    model_config = ConfigDict(frozen=True, strict=True)


class _T5(_File):
    d_model: PositiveInt


class _T5Tokenizer(_File):
    tokenizer_class: str = Field("T5Tokenizer", pattern="^T5")


class _UNet(_File):
    encoder_hid_dim: PositiveInt | None = None
    cross_attention_dim: PositiveInt = 1280

    @property
    def text_width(self) -> int:
        return self.encoder_hid_dim or self.cross_attention_dim


class _DrawingUNet(_UNet):
    sample_size: PositiveInt
    in_channels: Literal[3]
    class_embed_type: None = None


class _EnlargingUNet(_UNet):
    sample_size: PositiveInt
    in_channels: Literal[6]
    class_embed_type: Literal["timestep"]


class _LatentUNet(_UNet):
    in_channels: PositiveInt


class _VAE(_File):
    latent_channels: PositiveInt = 4

    @property
    def channels_with_picture(self) -> int:
        return self.latent_channels + 3


class _CLIP(_File):
    hidden_size: PositiveInt = 512


class _CLIPTokenizer(_File):
    tokenizer_class: str = Field(pattern="^CLIP")
    model_max_length: int = Field(ge=2, le=_CLIP_TOKENS)


class _Scheduler(_File):
    class_name: str = Field(alias="_class_name", pattern="^[A-Z][A-Za-z0-9]*Scheduler$")
    num_train_timesteps: PositiveInt = 1000


class UpscalerIndex(_File):
    """The upscaler's `model_index.json`."""

    max_noise_level: NonNegativeInt = 350


class _Vision(_File):
    image_size: PositiveInt = 224


class _SafetyChecker(_File):
    vision_config: _Vision | None = None

    @property
    def image_size(self) -> int:
        return (self.vision_config or _Vision()).image_size


class _Crop(_File):
    height: PositiveInt = 224


def _square(size: object) -> object:
    """Older files give the side alone."""
    return {"height": size} if isinstance(size, int) else size


class _FeatureExtractor(_File):
    crop: Annotated[_Crop, BeforeValidator(_square)] = Field(_Crop(), alias="crop_size")

    @property
    def crop_size(self) -> int:
        return self.crop.height


_SCHEDULER = "scheduler_config.json"
_FILES: dict[str, dict[str, type[_File]]] = {
    TEXT_ENCODER: {
        "text_encoder/config.json": _T5,
        "tokenizer/tokenizer_config.json": _T5Tokenizer,
    },
    STAGE_1: {
        "unet/config.json": _DrawingUNet,
        f"scheduler/{_SCHEDULER}": _Scheduler,
    },
    STAGE_2: {
        "unet/config.json": _EnlargingUNet,
        f"scheduler/{_SCHEDULER}": _Scheduler,
        f"image_noising_scheduler/{_SCHEDULER}": _Scheduler,
    },
    UPSCALER: {
        "model_index.json": UpscalerIndex,
        "unet/config.json": _LatentUNet,
        "vae/config.json": _VAE,
        "text_encoder/config.json": _CLIP,
        "tokenizer/tokenizer_config.json": _CLIPTokenizer,
        f"scheduler/{_SCHEDULER}": _Scheduler,
        f"low_res_scheduler/{_SCHEDULER}": _Scheduler,
    },
    POSTPROCESS: {
        "safety_checker/config.json": _SafetyChecker,
        "watermarker/config.json": _File,
        "feature_extractor/preprocessor_config.json": _FeatureExtractor,
    },
}
"""Component -> file in its root -> what it must say."""


class _Number(NamedTuple):
    """A number in a configuration."""

    component: str
    file: str
    name: str


_TEXT_WIDTH = _Number(TEXT_ENCODER, "text_encoder/config.json", "d_model")
_SAME = (
    (_TEXT_WIDTH, _Number(STAGE_1, "unet/config.json", "text_width")),
    (_TEXT_WIDTH, _Number(STAGE_2, "unet/config.json", "text_width")),
    (
        _Number(UPSCALER, "text_encoder/config.json", "hidden_size"),
        _Number(UPSCALER, "unet/config.json", "text_width"),
    ),
    (
        _Number(UPSCALER, "vae/config.json", "channels_with_picture"),
        _Number(UPSCALER, "unet/config.json", "in_channels"),
    ),
    (
        _Number(POSTPROCESS, "safety_checker/config.json", "image_size"),
        _Number(POSTPROCESS, "feature_extractor/preprocessor_config.json", "crop_size"),
    ),
)
"""Pairs that are equal wherever the files belong together."""


def read_config(file: Path) -> dict[str, Any]:
    """A JSON configuration file; a missing or broken one is a `CheckpointError`."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: no valid JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: not a JSON object; fetch it again")
    return config


def read_as(file: Path, kind: type[T]) -> T:
    """A JSON configuration file as a value of `kind`; one that is none is a `CheckpointError`."""
    try:
        return TypeAdapter(kind).validate_python(read_config(file))
    except ValidationError as error:
        raise CheckpointError(f"{file}: {_first(error)}; fetch or copy the folder again") from error


def configuration_files(component: str, part: Part) -> Iterator[str]:
    """The configurations that a component reads, as paths in its root."""
    folders = {".", *part.extras, *(module.folder for module in part.modules)}
    for name in _FILES[component]:
        if str(Path(name).parent) in folders:
            yield name


def check_configurations(roots: Mapping[str, Path], parts: Mapping[str, Part]) -> None:
    """Read every configuration of the components in `parts`.

    Raises:
        CheckpointError: one is missing, broken or of another network, or two contradict each other.
    """
    read: dict[tuple[str, str], tuple[Path, _File]] = {}
    for component, part in parts.items():
        for name in configuration_files(component, part):
            file = roots[part.root] / name
            read[component, name] = (file, read_as(file, _FILES[component][name]))
    for one, other in _SAME:
        if one[:2] in read and other[:2] in read:
            _compare(*read[one[:2]], one.name, *read[other[:2]], other.name)


def _compare(
    one: Path, its_content: _File, its_name: str, other: Path, content: _File, name: str
) -> None:
    """Raise `CheckpointError` unless a number in `other` is the one in `one`."""
    expected, found = getattr(its_content, its_name), getattr(content, name)
    if expected != found:
        raise CheckpointError(
            f"{other}: {name} is {found}, but {its_name} in {one} is {expected}: "
            "they are of different networks; fetch or copy both folders again"
        )


def _first(error: ValidationError) -> str:
    """The first thing wrong with a file: its key, and what about it."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{key} is missing"
    return f"{key} is {problem['input']!r:.60}: {problem['msg'].lower()}"
