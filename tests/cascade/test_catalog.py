"""The catalogue against the facts: sizes that were published or measured, and diffusers itself."""

from __future__ import annotations

import inspect

import pytest

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import (
    COMPONENTS,
    IF_DEFAULTS,
    POSTPROCESS,
    PUBLISHED,
    STAGE_1,
    STAGE_2,
    TEXT_ENCODER,
    UPSCALER,
)
from lowmem_if.cascade.parts import Module, StageDefaults
from lowmem_if.planning.estimates.weight_bytes import stored_bytes
from lowmem_if.request.sampling import Sampling

GB = 1e9
X4 = "stabilityai/stable-diffusion-x4-upscaler"


def module(cascade: str, component: str, folder: str = "unet") -> Module:
    modules = PUBLISHED[cascade].parts[component].modules
    return next(module for module in modules if module.folder == folder)


T5 = module("if-xl", TEXT_ENCODER, "text_encoder")

# --- the text encoder ---------------------------------------------------------------------------


def test_the_text_encoder_is_a_t5_xxl() -> None:
    """Its numbers follow from T5-XXL's configuration: 24 layers of width 4096, 10240 and 64 heads."""
    width, inner, layers, heads, vocabulary, buckets = 4096, 10240, 24, 64, 32128, 32
    assert T5.weights.linear == layers * (4 * width * width + 2 * width * inner)
    assert T5.weights.linear_rows == layers * (4 * width + 2 * inner)
    assert T5.weights.kept == layers * inner * width
    assert T5.weights.other == vocabulary * width + buckets * heads + (2 * layers + 1) * width
    assert T5.weights.parameters == pytest.approx(4.762e9, rel=1e-3)


SCALES = 3 * T5.weights.linear / 64 / GB
"""The published nf4 figures count one byte of scale for 64 numbers (nested quantisation); the loader
asks for none, which takes four."""


@pytest.mark.parametrize(
    ("storage", "compute", "size"),
    [
        ("float32", "float32", 19.05),
        ("float16", "float16", 11.54),  # `wo` in float32: 9.96 + 1.58 GB of published shards
        ("bfloat16", "bfloat16", 9.52),
        ("int8", "float16", 7.91),  # `wo` in float32: the published 8-bit file
        ("int8", "bfloat16", 5.90),
        ("nf4", "float16", 6.16 + SCALES),
        ("nf4", "bfloat16", 4.15 + SCALES),
    ],
)
def test_the_text_encoders_sizes_are_the_known_ones(
    storage: str, compute: str, size: float
) -> None:
    """Every storage of the encoder takes what the facts say, within half a percent."""
    assert stored_bytes(T5.weights, storage, compute) / GB == pytest.approx(size, rel=0.005)


def test_the_encoders_files_have_their_published_sizes() -> None:
    """fp16 shards of 9.96 and 1.58 GB, an 8-bit file of 7.92 GB."""
    for cascade in PUBLISHED.values():
        part = cascade.parts[TEXT_ENCODER]
        assert part.modules[0].file_bytes / GB == pytest.approx(9.96 + 1.58, rel=0.005)
        assert part.eight_bit_file_bytes / GB == pytest.approx(7.92, rel=0.005)


# --- the networks that draw ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cascade", "component", "millions", "file", "channels"),
    [
        ("if-xl", STAGE_1, 4304.7, 8.61, 704),
        ("if-l", STAGE_1, 935.4, 1.87, 320),
        ("if-m", STAGE_1, 371.6, 0.743, 192),
        ("if-xl", STAGE_2, 1243.3, 2.49, 160),
        ("if-l", STAGE_2, 461.1, 0.92, 128),
        ("if-m", STAGE_2, 461.1, 0.92, 128),
    ],
)
def test_unets_have_their_known_sizes(
    cascade: str, component: str, millions: float, file: float, channels: int
) -> None:
    """Parameters, fp16 file and width of every UNet are those of the facts."""
    unet = module(cascade, component)
    assert unet.weights.parameters / 1e6 == pytest.approx(millions, rel=2e-4)
    assert unet.file_bytes / GB == pytest.approx(file, rel=0.005)
    assert unet.channels == channels


@pytest.mark.parametrize("cascade", PUBLISHED)
def test_the_upscaler_is_the_same_everywhere(cascade: str) -> None:
    """UNet 473.4 M, CLIP text 340.4 M and VAE 55.3 M parameters, from Stability's repository."""
    part = PUBLISHED[cascade].parts[UPSCALER]
    assert part.repository == X4
    assert {m.folder: round(m.weights.parameters / 1e6, 1) for m in part.modules} == {
        "unet": 473.4, "text_encoder": 340.4, "vae": 55.3,
    }  # fmt: skip
    assert {m.folder: m.channels for m in part.modules} == {
        "unet": 256, "text_encoder": 0, "vae": 128,
    }  # fmt: skip


def test_the_finish_is_the_safety_checker_and_the_watermark() -> None:
    """304 M parameters in a 0.61 GB file, and one buffer of 62 x 62 x 4 numbers in float32."""
    checker = module("if-m", POSTPROCESS, "safety_checker")
    mark = module("if-m", POSTPROCESS, "watermarker")
    assert checker.weights.parameters / 1e6 == pytest.approx(304, rel=1e-3)
    assert checker.file_bytes / GB == pytest.approx(0.608, rel=1e-3)
    assert mark.weights.parameters == 62 * 62 * 4
    assert mark.file_bytes == 4 * mark.weights.parameters


@pytest.mark.parametrize("cascade", PUBLISHED)
def test_a_16bit_file_has_two_bytes_for_each_number(cascade: str) -> None:
    """File and parameter figures agree, but for the watermark and T5's `wo`, which are float32."""
    for part in PUBLISHED[cascade].parts.values():
        for m in part.modules:
            kept = 2 * m.weights.kept + (2 * m.weights.other if m.folder == "watermarker" else 0)
            assert m.file_bytes == pytest.approx(2 * m.weights.parameters + kept, rel=0.002)


# --- cascades -----------------------------------------------------------------------------------


def test_the_cascades_are_deepfloyds_published_ones() -> None:
    """XL goes with II-L, L and M with II-M; every repository is named once, in running order."""
    assert {name: cascade.repositories for name, cascade in PUBLISHED.items()} == {
        "if-xl": ("DeepFloyd/IF-I-XL-v1.0", "DeepFloyd/IF-II-L-v1.0", X4),
        "if-l": ("DeepFloyd/IF-I-L-v1.0", "DeepFloyd/IF-II-M-v1.0", X4),
        "if-m": ("DeepFloyd/IF-I-M-v1.0", "DeepFloyd/IF-II-M-v1.0", X4),
    }
    assert catalog.CASCADES == ("if-xl", "if-l", "if-m", "demo")


def test_the_cascades_stand_in_order_of_their_size() -> None:
    """Largest first: whoever looks for something smaller goes down the list."""
    sizes = [
        sum(m.weights.parameters for part in cascade.parts.values() for m in part.modules)
        for cascade in PUBLISHED.values()
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_all_published_cascades_are_gated_by_one_licence() -> None:
    """The page to accept the licence on is that of the largest repository."""
    assert all(cascade.gated for cascade in PUBLISHED.values())
    assert catalog.IF_LICENCE_PAGE.endswith(PUBLISHED["if-xl"].repositories[0])


@pytest.mark.parametrize("cascade", PUBLISHED)
def test_every_component_has_the_folders_that_a_local_cascade_has(cascade: str) -> None:
    """Roots, weight folders and small folders are the same for a name and for a folder."""
    parts = PUBLISHED[cascade].parts
    assert tuple(parts) == COMPONENTS
    for component, part in parts.items():
        folders = tuple(m.folder for m in part.modules)
        facts = catalog.COMPONENT[component]
        assert (part.root, folders, part.extras) == (facts.root, facts.networks, facts.extras)


def test_a_size_is_reached_by_the_stages_before_it() -> None:
    """64 takes stage 1, 256 also stage 2, 1024 also the upscaler."""
    assert catalog.SIZES == {
        64: (STAGE_1,), 256: (STAGE_1, STAGE_2), 1024: (STAGE_1, STAGE_2, UPSCALER),
    }  # fmt: skip
    assert (TEXT_ENCODER, *catalog.IMAGE_STAGES, POSTPROCESS) == COMPONENTS


@pytest.mark.parametrize("defaults", [IF_DEFAULTS, catalog.DEMO_DEFAULTS], ids=["if", "demo"])
def test_every_stage_has_defaults_and_only_the_later_ones_a_noise_level(
    defaults: dict[str, StageDefaults],
) -> None:
    """Stages 2 and 3 start from a noised picture, stage 1 from noise alone."""
    assert tuple(defaults) == catalog.IMAGE_STAGES
    assert defaults[STAGE_1].noise_level is None
    for stage in (STAGE_2, UPSCALER):
        assert defaults[stage].noise_level is not None
    assert 0 <= (defaults[UPSCALER].noise_level or 0) <= 350


# --- diffusers ----------------------------------------------------------------------------------


def test_the_defaults_are_those_of_diffusers_pipelines() -> None:
    """Steps, guidance and noise equal the pipelines' signatures, but for IF's x4 noise level of 100."""
    import diffusers

    pipelines = {
        STAGE_1: diffusers.IFPipeline,
        STAGE_2: diffusers.IFSuperResolutionPipeline,
        UPSCALER: diffusers.StableDiffusionUpscalePipeline,
    }
    for stage, pipeline in pipelines.items():
        parameters = inspect.signature(pipeline.__call__).parameters
        assert IF_DEFAULTS[stage].steps == parameters["num_inference_steps"].default
        assert IF_DEFAULTS[stage].guidance_scale == parameters["guidance_scale"].default
    noise = inspect.signature(diffusers.IFSuperResolutionPipeline.__call__).parameters
    assert IF_DEFAULTS[STAGE_2].noise_level == noise["noise_level"].default
    assert IF_DEFAULTS[UPSCALER].noise_level == 100


def test_the_timestep_lists_are_diffusers_own_with_their_lengths() -> None:
    """Every list of diffusers is known by its name, and its name tells how many steps it has."""
    from diffusers.pipelines import deepfloyd_if

    lists = {
        name.removesuffix("_timesteps"): len(getattr(deepfloyd_if, name))
        for name in dir(deepfloyd_if)
        if name.endswith("_timesteps")
    }
    assert set(catalog.TIMESTEP_LISTS) == set(lists)
    assert {name: Sampling(None, name, 7.0, None).count for name in lists} == lists


def test_max_tokens_is_what_ifs_pipeline_encodes() -> None:
    """IF's own pipeline pads and cuts prompts to as many tokens as the catalogue says."""
    import diffusers

    source = inspect.getsource(diffusers.IFPipeline.encode_prompt)
    assert f"max_length = {catalog.MAX_TOKENS}" in source
