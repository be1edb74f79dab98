"""What may be asked for, and how it is refused where nobody could run it."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_if.cascade.catalog import (
    IF_DEFAULTS,
    POSTPROCESS,
    STAGE_1,
    STAGE_2,
    TEXT_ENCODER,
    TIMESTEP_LISTS,
    UPSCALER,
)
from lowmem_if.engine.options import GenerateOptions
from lowmem_if.errors import RequestError
from lowmem_if.request.build import ROW_NAMES, make_request
from lowmem_if.request.image_spec import OPTIONS, ImageSpec, PictureOptions
from lowmem_if.request.request import Request
from lowmem_if.request.request_json import request_from_json, request_to_json
from lowmem_if.request.sampling import Sampling

ODD = (
    "دائرة حمراء 🔴",
    "赤い円",
    'say "hi" it\'s',
    "two\nlines\tand a tab",
    "e\u0301",
    "\U0001f9d1‍🎨",
)


def refused(prompts: Any = "a red circle", **values: Any) -> str:
    """The one line in which a request is refused."""
    with pytest.raises(RequestError) as caught:
        make_request(prompts, **{"seed": 1} | values)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def prompts_of(request: Request) -> list[str]:
    return [spec.prompt for spec in request.images]


# --- prompts ------------------------------------------------------------------------------------


def test_one_text_stands_for_one_prompt() -> None:
    """A string is one prompt, not a list of letters; lists and generators are prompts in order."""
    assert prompts_of(make_request("abc", seed=1)) == ["abc"]
    assert prompts_of(make_request(["a", "b"], seed=1)) == ["a", "b"]
    assert prompts_of(make_request((t for t in "xyz"), seed=1)) == ["x", "y", "z"]


@pytest.mark.parametrize("text", ODD)
def test_prompts_are_kept_as_they_are(text: str) -> None:
    """Scripts, emoji, quotes and newlines are neither changed nor normalised."""
    request = make_request((text,), negative_prompt=text, seed=1)
    (spec,) = request.images
    assert (spec.prompt, spec.negative_prompt) == (text, text)


@pytest.mark.parametrize("prompts", ["", "  \n\t", [], (), ["fine", ""], ["", "fine"], "\u2003"])
def test_an_empty_prompt_is_refused(prompts: Any) -> None:
    """No prompt, or one of nothing but white space, is refused with what to do."""
    assert "prompt is empty" in refused(prompts)


@pytest.mark.parametrize("prompts", [None, 5, [None], ["a", 5], [b"bytes"], b"bytes", [["a"]]])
def test_a_prompt_that_is_no_text_is_refused(prompts: Any) -> None:
    """Anything but text is refused with its type."""
    assert "must be text" in refused(prompts)


def test_a_negative_prompt_must_be_text_too() -> None:
    """The negative prompt may be empty, but not something else."""
    assert make_request("x", seed=1, negative_prompt="").images[0].negative_prompt == ""
    assert "must be text" in refused(negative_prompt=None)


@pytest.mark.parametrize("text", ["\ud800", "fine \udcff broken"])
def test_half_characters_are_refused(text: str) -> None:
    """Surrogates, which a terminal of another encoding leaves, could not be written into metadata."""
    assert "not valid Unicode" in refused(text)
    assert "not valid Unicode" in refused(negative_prompt=text)


# --- seeds --------------------------------------------------------------------------------------


def test_one_seed_serves_every_prompt() -> None:
    """The same prompt and seed give the same picture, whoever its neighbours are."""
    request = make_request(("a", "b"), seed=(7,))
    assert [spec.seed for spec in request.images] == [7, 7]
    assert make_request(("a", "b"), seed=7) == request


def test_each_prompt_may_have_its_own_seed() -> None:
    """As many seeds as prompts belong to them in order."""
    tasks = make_request(("a", "b"), seed=(7, 9)).images
    assert [(task.prompt, task.seed) for task in tasks] == [("a", 7), ("b", 9)]


def test_images_of_a_prompt_count_the_seed_up() -> None:
    """Image k of a prompt gets seed + k, and the images are numbered through."""
    tasks = make_request(("a", "b"), seed=(7, 100), images=3).images
    assert [(task.number, task.name, task.prompt, task.seed) for task in tasks] == [
        (0, "0000", "a", 7),
        (1, "0001", "a", 8),
        (2, "0002", "a", 9),
        (3, "0003", "b", 100),
        (4, "0004", "b", 101),
        (5, "0005", "b", 102),
    ]


def test_without_a_seed_one_is_drawn_and_written_down() -> None:
    """A drawn seed is part of the request, the same for every prompt, and another one next time."""
    requests = [make_request(("a", "b")) for _ in range(5)]
    for request in requests:
        assert request.images[0].seed == request.images[1].seed == request.seed >= 0
    assert len({request.seed for request in requests}) > 1
    assert len({*requests}) > 1
    assert replace(requests[0]) == requests[0]


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 2])
def test_large_seeds_are_fine(seed: int) -> None:
    """Every seed that a torch generator takes is taken."""
    assert make_request("a", seed=seed).images[0].seed == seed


@pytest.mark.parametrize("seed", [-2, 1.0, 1.5, "7", True, 2**63, (1, -1), (None,), [[1]], "x"])
def test_a_seed_that_is_none_is_refused(seed: Any) -> None:
    """Negative, fractional, too large seeds and texts are refused by name."""
    assert "seed" in refused(("a", "b"), seed=seed)


def test_minus_one_draws_a_seed() -> None:
    """As in other programs, and as without a seed; also in a row."""
    first, second = (make_request("a", seed=-1).images[0].seed for _ in range(2))
    assert first != second
    rows = [{"prompt": "a", "seed": -1}, {"prompt": "b", "seed": 3}]
    own, other = make_request(lines=rows, seed=1).images
    assert own.seed >= 0
    assert other.seed == 3


@pytest.mark.parametrize("aspect", ["16:9", "16x9", "32X18", "16/9", "16×9", " 16 : 9 "])
def test_an_aspect_has_many_forms(aspect: str) -> None:
    """As screens, cameras and other programs write it."""
    assert make_request("a", seed=1, aspect=aspect).images[0].aspect == (16, 9)


def test_the_last_images_seed_must_exist_too() -> None:
    """Seed + images may not run over the largest seed."""
    assert make_request("a", seed=2**63 - 6, images=5).images[-1].seed == 2**63 - 2
    assert "seed" in refused(seed=2**63 - 5, images=5)


@pytest.mark.parametrize("seed", [(), (1, 2, 3)])
def test_seeds_must_go_round(seed: tuple[int, ...]) -> None:
    """Seeds are one, or one for each prompt; the error counts both."""
    assert f"{len(seed)} seeds for 2 prompts" in refused(("a", "b"), seed=seed)


# --- sizes, steps, guidance ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "drawing"),
    [(64, (STAGE_1,)), (256, (STAGE_1, STAGE_2)), (1024, (STAGE_1, STAGE_2, UPSCALER))],
)
def test_the_size_decides_which_components_run(size: int, drawing: tuple[str, ...]) -> None:
    """The encoder comes first, then the stages up to the size, then the finish."""
    components = make_request("a", seed=1, size=size).components
    assert components == (TEXT_ENCODER, *drawing, POSTPROCESS)


@pytest.mark.parametrize("size", [0, -64, 128, 63, 64.5, "64", None, True, (64,), [64]])
def test_a_size_that_no_stage_makes_is_refused(size: Any) -> None:
    """Sizes are 64, 256 and 1024."""
    assert "64, 256 and 1024" in refused(size=size)


@pytest.mark.parametrize("images", [0, -1, 1.0, "2", True, None, 100_001])
def test_the_number_of_images_is_a_whole_number_above_zero(images: Any) -> None:
    """No, negative, fractional and absurd numbers of images are refused."""
    assert "images" in refused(images=images)


def test_steps_are_for_every_stage_or_for_each() -> None:
    """One number serves the three stages, three are one for each."""
    assert make_request("a", seed=1, steps=9).sampling.steps == (9, 9, 9)
    assert make_request("a", seed=1, steps=(1, 2, 3)).sampling.steps == (1, 2, 3)
    assert make_request("a", seed=1).sampling.steps is None


@pytest.mark.parametrize("steps", [0, -1, 1.5, 27.0, "27", True, 1001, (1, 2, 0), (1, None, 1)])
def test_steps_are_whole_numbers_that_the_schedulers_have(steps: Any) -> None:
    """Zero, fractions, texts and more than the 1000 training timesteps are refused."""
    assert "steps" in refused(steps=steps)


@pytest.mark.parametrize("name", ["steps", "guidance_scale"])
@pytest.mark.parametrize("values", [(), (1, 2), (1, 2, 3, 4)])
def test_values_for_the_stages_must_go_round(name: str, values: tuple[int, ...]) -> None:
    """Neither two nor four values can be dealt to three stages."""
    text = refused(**{name: values})
    assert name in text
    assert str(len(values)) in text


@pytest.mark.parametrize("scale", [0, 1, 7.0, 999, (7.0, 4, 9.5)])
def test_guidance_may_be_whole_or_not(scale: Any) -> None:
    """Guidance is any number from 0; 1 or less switches it off."""
    assert len(make_request("a", seed=1, guidance_scale=scale).sampling.guidance_scale or ()) == 3


@pytest.mark.parametrize("scale", [-0.1, 1000, float("nan"), float("inf"), "7", True, (7, None, 7)])
def test_guidance_that_is_no_sensible_number_is_refused(scale: Any) -> None:
    """Negative, endless and absurd scales and texts are refused."""
    assert "guidance scale" in refused(guidance_scale=scale)


@pytest.mark.parametrize("name", TIMESTEP_LISTS)
def test_a_named_list_of_timesteps_decides_the_steps_of_the_if_stages(name: str) -> None:
    """A list sets stages 1 and 2; the upscaler, which has no such lists, keeps to the steps."""
    request = make_request("a", seed=1, timesteps=name, steps=9)
    for stage in (STAGE_1, STAGE_2):
        sampling = request.sampling.in_stage(stage, IF_DEFAULTS[stage])
        assert (sampling.timesteps, sampling.steps) == (name, None)
        assert name.endswith(str(sampling.count))
    upscaler = request.sampling.in_stage(UPSCALER, IF_DEFAULTS[UPSCALER])
    assert (upscaler.timesteps, upscaler.steps, upscaler.count) == (None, 9, 9)


@pytest.mark.parametrize(
    "name", ["fast", "fast28", "FAST27", "", 27, ["fast27"], "fast27_timesteps"]
)
def test_an_unknown_list_of_timesteps_is_refused_with_the_known_ones(name: Any) -> None:
    """The error names every list there is."""
    assert all(known in refused(timesteps=name) for known in TIMESTEP_LISTS)


def test_sampling_without_wishes_is_the_cascades_own() -> None:
    """What the request leaves open is settled by the cascade's defaults."""
    request = make_request("a", seed=1)
    assert request.sampling.in_stage(STAGE_1, IF_DEFAULTS[STAGE_1]) == Sampling(
        100, None, 7.0, None
    )
    assert request.sampling.in_stage(STAGE_2, IF_DEFAULTS[STAGE_2]) == Sampling(50, None, 4.0, 250)
    assert request.sampling.in_stage(UPSCALER, IF_DEFAULTS[UPSCALER]) == Sampling(
        75, None, 9.0, 100
    )
    assert request.sampling.in_stage(UPSCALER, IF_DEFAULTS[UPSCALER]).count == 75


def test_sampling_takes_each_stages_own_wishes() -> None:
    """Of three values each stage gets its own; guidance comes out as a float, 0 included."""
    request = make_request("a", seed=1, steps=(3, 2, 1), guidance_scale=(5, 0, 2.5))
    samplings = [
        request.sampling.in_stage(stage, IF_DEFAULTS[stage])
        for stage in (STAGE_1, STAGE_2, UPSCALER)
    ]
    assert [(s.steps, s.guidance_scale) for s in samplings] == [(3, 5.0), (2, 0.0), (1, 2.5)]
    assert all(type(s.guidance_scale) is float for s in samplings)


# --- the cascade --------------------------------------------------------------------------------


def test_a_cascades_folder_is_kept_as_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may be continued from elsewhere: relative folders, `~` and links are settled at once."""
    home = tmp_path / "my 🎨 home"
    (home / "cascade").mkdir(parents=True)
    (home / "link").symlink_to("cascade")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    for name in ("cascade", "./cascade/", "~/cascade", "link", str(home / "cascade")):
        request = make_request("a", seed=1, cascade=name)
        assert request.cascade == str((home / "cascade").resolve())
        assert isinstance(request.cascade, str)


def test_a_name_of_the_catalogue_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that happens to be called like a cascade does not take its place."""
    (tmp_path / "if-xl").mkdir()
    monkeypatch.chdir(tmp_path)
    assert make_request("a", seed=1, cascade="if-xl").cascade == "if-xl"


@pytest.mark.parametrize(
    "name",
    [
        "if-xxl",
        "no/such/folder",
        "~no-such-user/x",
        "a\0b",
        pytest.param("x" * 5000, id="too long"),
    ],
)
def test_an_unknown_cascade_is_left_to_whoever_looks_for_it(name: str) -> None:
    """Names that are neither known nor a folder do not crash the request; `locate` refuses them."""
    assert make_request("a", seed=1, cascade=name).cascade == name


# --- values -------------------------------------------------------------------------------------


def test_a_request_is_a_frozen_value() -> None:
    """Equal wishes are equal requests, and nobody changes one in passing."""
    first = make_request("a", seed=1, steps=[1, 2, 3])
    assert first == make_request(["a"], seed=[1], steps=(1, 2, 3))
    assert hash(first) == hash(replace(first))
    with pytest.raises(AttributeError):
        first.watermark = False  # type: ignore[misc]


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(
    st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4),
    st.integers(0, 2**62),
    st.integers(1, 5),
)
def test_a_pictures_seed_does_not_depend_on_its_neighbours(
    prompts: list[str], seed: int, images: int
) -> None:
    """Prompt n alone gets the same seeds as prompt n among others."""
    try:
        together = make_request(tuple(prompts), seed=(seed,), images=images)
    except RequestError:
        return
    for n, prompt in enumerate(prompts):
        alone = make_request((prompt,), seed=(seed,), images=images).images
        among = together.images[n * images : (n + 1) * images]
        assert [(t.prompt, t.seed) for t in alone] == [(t.prompt, t.seed) for t in among]


def test_whole_numbers_of_other_libraries_are_whole_numbers() -> None:
    """numpy's are what a seed often comes as; they are kept as Python's."""
    asked = make_request("a", seed=numpy.int64(7), images=numpy.int32(2), size=numpy.int64(64))
    assert [(spec.seed, spec.size) for spec in asked.images] == [(7, 64), (8, 64)]
    assert all(type(v) is int for spec in asked.images for v in (spec.seed, spec.size))


def test_a_cascade_may_be_a_path(tmp_path: Path) -> None:
    """As every function that takes a folder allows."""
    assert make_request("a", seed=1, cascade=tmp_path).cascade == str(tmp_path.resolve())


@pytest.mark.parametrize(
    "change",
    [{"cascade": None}, {"cascade": 5}, {"watermark": "no"}, {"safety_checker": 0},
     {"negative_prompt": b"x"}, {"revision": 3}, {"prompts": b"a circle"}],
)  # fmt: skip
def test_values_of_the_wrong_kind_are_told(change: dict[str, Any]) -> None:
    """Python callers get the same one line as the command line."""
    assert "must be" in refused(**change)


def test_the_upscaler_has_a_step_less() -> None:
    """Its schedule begins one later: a thousandth step would be past its end."""
    assert "999" in refused(steps=(5, 5, 1000), size=1024)
    assert make_request("a", seed=1, steps=(1000, 1000, 999), size=1024).sampling.steps == (
        1000,
        1000,
        999,
    )
    assert make_request("a", seed=1, steps=1000, size=64).sampling.steps == (1000,) * 3


def test_named_timesteps_and_steps_do_not_contradict_each_other() -> None:
    """With a list, steps are the upscaler's alone: one number, and only where it runs."""
    assert make_request("a", seed=1, timesteps="fast27", steps=30).sampling.steps == (30,) * 3
    assert "fast27 sets" in refused(timesteps="fast27", steps=30, size=64)
    assert "fast27 sets" in refused(timesteps="fast27", steps=(10, 10, 30))


# --- rows of a batch ----------------------------------------------------------------------------


def test_a_row_may_say_everything_of_an_image_and_how_many() -> None:
    """The names are the image's own, so that a new option of an image is one of rows, too."""
    own = {field.name for field in fields(ImageSpec)}
    assert {*ROW_NAMES} == own - {"number"} | {"images", "invert_mask", "mask_alpha"}


def test_an_option_of_an_image_is_one_field_and_one_type() -> None:
    """Nothing else lists them: `ImageSpec` has default and check, `PictureOptions` the callers' type."""
    inputs = {"mode", "image", "mask"}  # they decide which function is called
    assert {*OPTIONS} == PictureOptions.__optional_keys__ | inputs
    assert PictureOptions.__optional_keys__ <= GenerateOptions.__optional_keys__


def test_a_misspelt_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RequestError, match=r"unknown names 'asspect': use aspect, "):
        make_request("a", asspect="3:2")  # type: ignore[call-arg]


def test_a_row_may_have_its_own_aspect() -> None:
    """Beside rows that take the run's, and one that is read back from JSON."""
    rows: list[dict[str, Any]] = [{"prompt": "a", "aspect": "3:2"}, {"prompt": "b"}]
    request = make_request(lines=rows, aspect=(1, 2), seed=1, size=64)
    assert [spec.aspect for spec in request.images] == [(3, 2), (1, 2)]
    assert request_from_json(request_to_json(request)) == request
    with pytest.raises(RequestError, match="is not like 3:2"):
        make_request(lines=[{"prompt": "a", "aspect": "wide"}])


def test_a_run_wide_seed_may_be_exchanged() -> None:
    """Images that count up from it follow; one with a seed of its own keeps it."""
    rows: list[dict[str, Any]] = [{"prompt": "a", "images": 2}, {"prompt": "b", "seed": 5}]
    drawn, asked = make_request(lines=rows), make_request(lines=rows, seed=99)
    assert drawn.with_seed(99) == asked
    assert [spec.seed for spec in asked.images] == [99, 100, 5]


@pytest.mark.parametrize(
    "asked",
    [
        {"prompts": ("a", "b"), "seed": 7, "images": 3},
        {"prompts": ("a", "a", "b"), "seed": (7, 9, 1)},
        {"prompts": ("a", "b"), "seed": range(4, 8)},
        {"prompts": "a", "seed": (4, 2), "steps": (1, 2, 3), "aspect": "3:2", "thresholding": 0.9},
        {"lines": [{"prompt": "a", "images": 2}, {"prompt": "b", "size": 64}], "seed": 3},
    ],
)
def test_a_request_is_read_back_from_json(asked: dict[str, Any]) -> None:
    """Whatever its images differ in."""
    request = make_request(**asked)
    data = json.loads(json.dumps(request_to_json(request)))
    assert request_from_json(data) == request
