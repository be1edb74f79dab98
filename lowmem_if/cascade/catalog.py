"""What IF is made of: the cascades, their components, repositories, sizes and defaults.

The figures are from published configurations and file listings where those could be read. The
configurations of I-L and II-M are inferred from the others; their published rounded sizes agree with
the resulting parameter counts. Pipeline defaults are diffusers' own. IF's documentation passes 100 as
the upscaler's noise level.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowmem_if.cascade.parts import Cascade, Module, Part, StageDefaults, Weights

TEXT_ENCODER, STAGE_1, STAGE_2 = "text_encoder", "stage_1", "stage_2"
UPSCALER, POSTPROCESS = "upscaler", "postprocess"

COMPONENTS = (TEXT_ENCODER, STAGE_1, STAGE_2, UPSCALER, POSTPROCESS)
"""The components, in the order in which they run."""

_OLD_NAMES = {"finish": POSTPROCESS}
"""Names that version 0.1 wrote into run folders, plans and pins."""


def component_name(name: str) -> str:
    """The current name of a component, whichever version wrote it."""
    return _OLD_NAMES.get(name, name)


IMAGE_STAGES = (STAGE_1, STAGE_2, UPSCALER)
"""The image stages, in order; a request's size decides how many of them run."""


SIZES = {64: (STAGE_1,), 256: (STAGE_1, STAGE_2), 1024: IMAGE_STAGES}
"""Image side in pixels -> the stages that an image of this size runs through."""

TIMESTEP_LISTS = (
    "fast27", "smart27", "smart50", "smart100", "smart185", "super27", "super40", "super100",
)  # fmt: skip
"""Names of the timestep lists in `diffusers.pipelines.deepfloyd_if`, for stages 1 and 2."""

MAX_TOKENS = 77
"""Prompt tokens that IF was trained with. T5 can read more, but IF never saw more."""

TEXT_WIDTH = 4096
"""Numbers per token of T5-XXL, the text encoder of every published cascade."""

IF_LICENCE_PAGE = "https://huggingface.co/DeepFloyd/IF-I-XL-v1.0"
"""A user who accepts the licence on this page may also read the other IF repositories."""


IF_DEFAULTS = {
    STAGE_1: StageDefaults(100, 7.0, fast_steps=30),
    STAGE_2: StageDefaults(50, 4.0, noise_level=250, fast_steps=20),
    UPSCALER: StageDefaults(75, 9.0, noise_level=100, fast_steps=30),
}

DEMO_DEFAULTS = {
    STAGE_1: StageDefaults(27, 4.0, fast_steps=16),
    STAGE_2: StageDefaults(20, 1.0, noise_level=20, fast_steps=12),
    UPSCALER: StageDefaults(10, 1.0, noise_level=30, fast_steps=10),
}
"""The values that suited the bundled cascade best, chosen on scenes outside its published figures."""

KNOWN_WORDS = "known_words.json"
"""A file in the tokenizer folder of cascades trained like the bundled one: kind of word -> words."""


@dataclass(frozen=True, slots=True)
class Component:
    """The facts about a component that are the same in every cascade.

    Attributes:
        label: its name in sentences and tables.
        root: its folder in a local cascade.
        networks: the folders with weights in this root.
        extras: the small folders without weights.
        side: side of the square that its UNet was trained on, in pixels or latents; 0 without a UNet.
        output_folder: the folder of its results in a run folder; empty if it has none.
    """

    label: str
    root: str
    networks: tuple[str, ...]
    extras: tuple[str, ...]
    side: int = 0
    output_folder: str = ""

    @property
    def encodes(self) -> bool:
        """Whether it encodes prompts: one pass for each text, without denoising steps."""
        return self.networks == ("text_encoder",)

    @property
    def draws(self) -> bool:
        """Whether it is an image stage, which denoises with a UNet."""
        return "unet" in self.networks

    @property
    def decodes(self) -> bool:
        """Whether its UNet draws latents, which a VAE decodes."""
        return "vae" in self.networks

    @property
    def reads_t5(self) -> bool:
        """Whether it reads its prompts as embeddings of the T5 text encoder."""
        return self.draws and "text_encoder" not in self.networks

    @property
    def postprocesses(self) -> bool:
        """Whether it checks and marks finished images, on the CPU."""
        return "safety_checker" in self.networks


COMPONENT: dict[str, Component] = {
    TEXT_ENCODER: Component("text encoder", "stage_1", ("text_encoder",), ("tokenizer",)),
    STAGE_1: Component("stage 1", "stage_1", ("unet",), ("scheduler",), 64, "stage_1"),
    STAGE_2: Component(
        "stage 2", "stage_2", ("unet",), ("scheduler", "image_noising_scheduler"), 256, "stage_2"
    ),
    UPSCALER: Component(
        "upscaler", "upscaler", ("unet", "text_encoder", "vae"),
        ("tokenizer", "scheduler", "low_res_scheduler"), 256, "stage_3",
    ),
    POSTPROCESS: Component(
        "postprocess", "stage_1", ("safety_checker", "watermarker"), ("feature_extractor",)
    ),
}  # fmt: skip


T5_STAGES = tuple(stage for stage in IMAGE_STAGES if COMPONENT[stage].reads_t5)
"""The stages that read their prompts as embeddings of the T5 text encoder."""


def facts(component: str) -> Component:
    """What is the same about a component in every cascade."""
    return COMPONENT[component]


def label(component: str) -> str:
    """The name of a component in sentences and tables; any other name is returned unchanged."""
    return COMPONENT[component].label if component in COMPONENT else component


_T5_XXL = Module(
    "text_encoder",
    Weights(other=131_799_040, linear=3_623_878_656, kept=1_006_632_960, linear_rows=884_736),
    file_bytes=11_540_000_000,
)
_SAFETY = Module("safety_checker", Weights(other=303_983_618), file_bytes=608_000_000)
_WATERMARK = Module("watermarker", Weights(other=62 * 62 * 4), file_bytes=62 * 62 * 4 * 4)
_X4_UNET = Module(
    "unet",
    Weights(other=1_407_748, linear=471_990_272, linear_rows=268_544),
    file_bytes=946_800_000,
    channels=256,
)
_X4_TEXT = Module("text_encoder", Weights(other=340_387_840), file_bytes=680_800_000)
_X4_VAE = Module("vae", Weights(other=55_325_927), 110_700_000, channels=128)


def _unet(parameters: int, channels: int, *, matrices: int, rows: int) -> Module:
    weights = Weights(other=parameters - matrices, linear=matrices, linear_rows=rows)
    return Module("unet", weights, 2 * parameters, channels)


def _part(component: str, repository: str, *modules: Module, eight_bit: int = 0) -> Part:
    facts = COMPONENT[component]
    return Part(facts.root, repository, modules, facts.extras, eight_bit)


X4_REPOSITORY = "stabilityai/stable-diffusion-x4-upscaler"

FIRST_STAGES = {
    "I-XL": _unet(4_304_695_110, channels=704, matrices=4_303_482_880, rows=602_944),
    "I-L": _unet(935_365_830, channels=320, matrices=934_801_408, rows=280_768),
    "I-M": _unet(371_605_830, channels=192, matrices=371_257_344, rows=173_376),
}
"""Published networks of stage 1 by their own names, largest first."""

SECOND_STAGES = {
    "II-L": _unet(1_243_277_190, channels=160, matrices=1_242_590_208, rows=353_568),
    "II-M": _unet(461_064_198, channels=128, matrices=460_701_696, rows=183_936),
}
"""Published networks of stage 2 by their own names, largest first."""


def stage_repository(name: str) -> str:
    """The Hub repository of a published stage, like `I-L` or `II-M`."""
    return f"DeepFloyd/IF-{name}-v1.0"


def _if_cascade(name: str, first: str, second: str) -> Cascade:
    stage_1, stage_2 = stage_repository(first), stage_repository(second)
    return Cascade(
        name,
        {
            TEXT_ENCODER: _part(TEXT_ENCODER, stage_1, _T5_XXL, eight_bit=7_920_000_000),
            STAGE_1: _part(STAGE_1, stage_1, FIRST_STAGES[first]),
            STAGE_2: _part(STAGE_2, stage_2, SECOND_STAGES[second]),
            UPSCALER: _part(UPSCALER, X4_REPOSITORY, _X4_UNET, _X4_TEXT, _X4_VAE),
            POSTPROCESS: _part(POSTPROCESS, stage_1, _SAFETY, _WATERMARK),
        },
        IF_DEFAULTS,
        gated=True,
    )


_NAMED_PAIRS = {"if-xl": ("I-XL", "II-L"), "if-l": ("I-L", "II-M"), "if-m": ("I-M", "II-M")}
_MIXED_PAIRS = {
    f"{first}+{second}": (first, second)
    for first in FIRST_STAGES
    for second in SECOND_STAGES
    if (first, second) not in _NAMED_PAIRS.values()
}
STAGE_PAIRS = _NAMED_PAIRS | _MIXED_PAIRS
"""Name of a cascade on the Hub -> the names of its stages 1 and 2."""

PUBLISHED = {name: _if_cascade(name, *pair) for name, pair in _NAMED_PAIRS.items()}
"""The cascades on the Hub that have a name, largest first."""

MIXED = {name: _if_cascade(name, *pair) for name, pair in _MIXED_PAIRS.items()}
"""The other combinations of a published stage 1 with a published stage 2."""

ON_HUB = PUBLISHED | MIXED
"""Every cascade whose parts are on the Hub."""

DEMO = "demo"
"""The bundled cascade."""

CASCADES = (*PUBLISHED, DEMO)
"""The names of cascades; `--cascade` also accepts two stages, like `I-L+II-L`, and a folder."""


def smaller_cascades(name: str) -> tuple[str, ...]:
    """The named cascades that are smaller, largest first; none for a folder, whose size is unknown."""
    if name not in STAGE_PAIRS:
        return ()
    names, own = [*FIRST_STAGES, *SECOND_STAGES], STAGE_PAIRS[name]
    smaller = (
        other
        for other, pair in _NAMED_PAIRS.items()
        if pair != own
        and all(names.index(a) >= names.index(b) for a, b in zip(pair, own, strict=True))
    )
    return (*smaller, DEMO)
