"""What a cascade's JSON files must contain, and which of their values must agree.

The models declare what would otherwise fail only while a stage draws, hours later. They do not demand
IF's own sizes, and they leave to the libraries what these check while loading. A key that may be absent
has the libraries' own default.
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

from lowmem_if.cascade.catalog import POSTPROCESS, STAGE_1, STAGE_2, TEXT_ENCODER, UPSCALER
from lowmem_if.cascade.parts import Part, Place
from lowmem_if.cascade.safetensors_header import unreadable
from lowmem_if.errors import CheckpointError

T = TypeVar("T")

_CLIP_TOKENS = 77
"""Token positions of every CLIP text encoder."""


class _File(BaseModel):
    """The keys that are checked here; the libraries check the others."""

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


class _Stage1UNet(_UNet):
    sample_size: PositiveInt
    in_channels: Literal[3]
    class_embed_type: None = None


class _Stage2UNet(_UNet):
    sample_size: PositiveInt
    in_channels: Literal[6]
    class_embed_type: Literal["timestep"]


class _UpscalerUNet(_UNet):
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
    """A crop size as an object; older files contain only the side."""
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
        "unet/config.json": _Stage1UNet,
        f"scheduler/{_SCHEDULER}": _Scheduler,
    },
    STAGE_2: {
        "unet/config.json": _Stage2UNet,
        f"scheduler/{_SCHEDULER}": _Scheduler,
        f"image_noising_scheduler/{_SCHEDULER}": _Scheduler,
    },
    UPSCALER: {
        "model_index.json": UpscalerIndex,
        "unet/config.json": _UpscalerUNet,
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
"""Component -> file in its root -> what the file must contain."""


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
"""Pairs of numbers that are equal if the files belong together."""


def read_config(file: Path) -> dict[str, Any]:
    """The content of a JSON configuration file.

    Raises:
        CheckpointError: the file is missing or broken.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not valid JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: not a JSON object; fetch it again")
    return config


def read_as(file: Path, kind: type[T]) -> T:
    """The content of a JSON configuration file as a value of `kind`.

    Raises:
        CheckpointError: the file is missing, broken, or does not describe such a value.
    """
    try:
        return TypeAdapter(kind).validate_python(read_config(file))
    except ValidationError as error:
        raise CheckpointError(f"{file}: {_first(error)}; fetch or copy the folder again") from error


def text_width(root: Path) -> int:
    """Numbers per token of the embeddings that the UNet in a stage's folder reads.

    Raises:
        CheckpointError: its configuration is missing or broken.
    """
    return read_as(root / "unet/config.json", _UNet).text_width


def configuration_files(component: str, part: Part) -> Iterator[str]:
    """The configuration files that a component reads, as paths in its root."""
    folders = {".", *part.extras, *(module.folder for module in part.modules)}
    for name in _FILES[component]:
        if str(Path(name).parent) in folders:
            yield name


def check_configurations(places: Mapping[str, Place], parts: Mapping[str, Part]) -> None:
    """Read every configuration of the components in `parts`; `places`: component -> its folders.

    Raises:
        CheckpointError: a file is missing, broken or for another network, or two files disagree.
    """
    read: dict[tuple[str, str], tuple[Path, _File]] = {}
    for component, part in parts.items():
        for name in configuration_files(component, part):
            file = places[component].file(name)
            read[component, name] = (file, read_as(file, _FILES[component][name]))
    for one, other in _SAME:
        if one[:2] in read and other[:2] in read:
            _compare(*read[one[:2]], one.name, *read[other[:2]], other.name)


def _compare(
    one: Path, its_content: _File, its_name: str, other: Path, content: _File, name: str
) -> None:
    """Raise `CheckpointError` unless a number in `other` equals the one in `one`."""
    expected, found = getattr(its_content, its_name), getattr(content, name)
    if expected != found:
        raise CheckpointError(
            f"{other}: {name} is {found}, but {its_name} in {one} is {expected}: "
            "they belong to different networks; fetch or copy both folders again"
        )


def _first(error: ValidationError) -> str:
    """The first error in a file: the key, and what is wrong with its value."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{key} is missing"
    return f"{key} is {problem['input']!r:.60}: {problem['msg'].lower()}"
