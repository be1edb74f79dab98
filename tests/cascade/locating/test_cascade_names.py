"""Names of cascades: in every form that people write, and with the nearest right one if wrong."""

from __future__ import annotations

import pytest

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import STAGE_1, STAGE_2, UPSCALER
from lowmem_if.cascade.locate import locate
from lowmem_if.cascade.locating.cascade_names import canonical_name, component_of, stage_name
from lowmem_if.errors import CascadeError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("if-xl", "if-xl"),
        ("IF-XL", "if-xl"),
        (" Demo ", "demo"),
        ("I-L+II-L", "I-L+II-L"),
        ("i-l + ii-l", "I-L+II-L"),
        ("IF-I-L-v1.0+IF-II-L-v1.0", "I-L+II-L"),
        ("DeepFloyd/IF-I-M-v1.0+deepfloyd/if-ii-l-v1.0", "I-M+II-L"),
        ("I-XL+II-L", "if-xl"),
        ("I-M+II-M", "if-m"),
        ("DeepFloyd/IF-I-L-v1.0", "if-l"),
        ("I-XL", "if-xl"),
    ],
)
def test_every_form_of_a_name_is_the_catalogues(text: str, name: str) -> None:
    """Case, spaces, short and long names and repositories all lead to one name."""
    assert canonical_name(text) == name


@pytest.mark.parametrize("text", ["", "if-xxl", "II-L", "II-L+I-L", "I-L+II-XL", "I-L+", "a/b"])
def test_other_texts_have_no_name(text: str) -> None:
    """What names no cascade is left to be a folder or an error."""
    assert canonical_name(text) is None


def test_every_stage_1_goes_with_every_stage_2() -> None:
    """Six combinations exist, of which three have names of their own."""
    assert len(catalog.ON_HUB) == 6
    for name, (first, second) in catalog.STAGE_PAIRS.items():
        parts = catalog.ON_HUB[name].parts
        assert canonical_name(f"{first}+{second}") == name
        assert parts[STAGE_1].repository == catalog.stage_repository(first)
        assert parts[STAGE_2].repository == catalog.stage_repository(second)
        assert parts[UPSCALER] == catalog.PUBLISHED["if-m"].parts[UPSCALER]


def test_smaller_cascades_have_no_larger_stage() -> None:
    """What is proposed in place of a mix needs less memory in no stage more."""
    assert catalog.smaller_cascades("if-xl") == ("if-l", "if-m", "demo")
    assert catalog.smaller_cascades("I-M+II-L") == ("if-m", "demo")
    assert catalog.smaller_cascades("I-XL+II-M") == ("if-l", "if-m", "demo")
    assert catalog.smaller_cascades("if-m") == ("demo",)
    assert catalog.smaller_cascades("/a/folder") == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I-L+II-XL", "no stage 2 'II-XL', only II-L, II-M: did you mean 'I-L+II-L'?"),
        ("I-S+II-M", "no stage 1 'I-S', only I-XL, I-L, I-M: did you mean 'I-XL+II-M'?"),
        ("II-L+I-L", "no stage 1 'II-L', only I-XL, I-L, I-M: did you mean 'I-L+II-L'?"),
        ("I-L+II-L+x4", "leave the upscaler out: --size 1024 runs it"),
        ("I-L+II-L+II-M", "join one of I-XL, I-L, I-M and one of II-L, II-M, like I-L+II-L"),
        ("II-M", "is a stage 2: name a stage 1, too, like I-L+II-M"),
        (
            "DeepFloyd/IF-II-L-v1.0",
            "is a stage 2: name a stage 1, too, like I-L+II-L, or use if-xl",
        ),
        ("stabilityai/stable-diffusion-x4-upscaler", "is the upscaler of every cascade"),
        ("if-xx", "did you mean 'if-xl'?"),
        ("me/my-if", "give a repository of your own by --part stage_1=me/my-if"),
    ],
)
def test_a_wrong_name_is_refused_in_one_line_with_the_nearest(text: str, words: str) -> None:
    """The line says what is wrong and what could have been meant."""
    with pytest.raises(CascadeError) as caught:
        locate(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stage_is_known_by_its_repository() -> None:
    """Published repositories tell what they are for, and others do not."""
    assert component_of("DeepFloyd/IF-I-XL-v1.0") == STAGE_1
    assert component_of("DeepFloyd/IF-II-M-v1.0") == STAGE_2
    assert component_of("stabilityai/stable-diffusion-x4-upscaler") == UPSCALER
    assert component_of("me/IF-I-XL-v1.0") is None
    assert stage_name("if-ii-l-V1.0") == "II-L"
    assert stage_name("I-S") is None
