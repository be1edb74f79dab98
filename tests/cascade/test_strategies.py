"""Pins: what a user may fix for a component, and how a slip is told."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_if.cascade.catalog import COMPONENTS, IMAGE_STAGES, TEXT_ENCODER
from lowmem_if.cascade.strategies import (
    FLOATS,
    QUANTISED,
    RESIDENT,
    STORAGES,
    STRATEGIES,
    STREAM,
    Pin,
    parse_pin,
    parse_pins,
    pin_texts,
)
from lowmem_if.errors import RequestError


def refused(*texts: str) -> str:
    """The one line in which pins are refused."""
    with pytest.raises(RequestError) as caught:
        parse_pins(texts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_pin_is_a_strategy_with_or_without_a_number_type() -> None:
    """`COMPONENT=STRATEGY[:DTYPE]`: what is not said stays open."""
    assert parse_pins(["stage_1=sequential_offload", "text_encoder=resident:int8"]) == {
        "stage_1": Pin("sequential_offload", None),
        "text_encoder": Pin("resident", "int8"),
    }
    assert parse_pins(["stage_2=stream", "upscaler=stream:bf16"]) == {
        "stage_2": Pin("stream", None),
        "upscaler": Pin("stream", "bfloat16"),
    }
    assert parse_pins([]) == {}


@pytest.mark.parametrize(
    ("short", "long"), [("fp16", "float16"), ("bf16", "bfloat16"), ("fp32", "float32")]
)
def test_number_types_have_short_names(short: str, long: str) -> None:
    """What everybody writes is understood."""
    assert parse_pin("stage_2", f"resident:{short}") == Pin("resident", long)


@pytest.mark.parametrize("text", ["stage_9=resident", "=resident", "", "stage 1=resident", "unet"])
def test_an_unknown_component_is_refused_with_the_known_ones(text: str) -> None:
    """The error quotes what was written and lists every component."""
    told = refused(text)
    assert repr(text.partition("=")[0]) in told
    assert all(component in told for component in COMPONENTS)


@pytest.mark.parametrize(
    "choice", ["", "offload", "Resident", "stream ", ":int8", "int8", "resident "]
)
def test_an_unknown_strategy_is_refused_with_the_known_ones(choice: str) -> None:
    """The error lists every strategy."""
    told = refused(f"stage_1={choice}")
    assert all(strategy in told for strategy in STRATEGIES)


@pytest.mark.parametrize("storage", ["fp64", "int2", "FP16", "float", "int8:int8", " int8"])
def test_an_unknown_number_type_is_refused_with_the_known_ones(storage: str) -> None:
    """The error lists every number type."""
    told = refused(f"text_encoder=resident:{storage}")
    assert repr(storage) in told
    assert all(known in told for known in STORAGES)


@pytest.mark.parametrize(
    ("component", "storage", "known"),
    [
        ("text_encoder", "int4", "int8 or nf4 or a float type"),
        ("stage_1", "nf4", "int8 or int4 or a float type"),
        ("stage_2", "nf4", "int8 or int4 or a float type"),
        ("upscaler", "nf4", "int8 or int4 or a float type"),
        ("postprocess", "int8", "pin it to a float type"),
    ],
)
def test_a_component_is_quantised_in_its_own_types(
    component: str, storage: str, known: str
) -> None:
    """The text encoder in bitsandbytes' types, UNets in ours; the error names what is possible."""
    told = refused(f"{component}=resident:{storage}")
    assert told.startswith(f"{component} cannot be {storage}: ")
    assert told.endswith(known)


@pytest.mark.parametrize("component", [TEXT_ENCODER, *IMAGE_STAGES])
@pytest.mark.parametrize("storage", QUANTISED)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_8_bit_unets_stream_and_no_quantised_weights_are_offloaded(
    component: str, storage: str, strategy: str
) -> None:
    """The error gives the pin that is possible."""
    own = ("int8", "nf4") if component == TEXT_ENCODER else ("int8", "int4")
    streams = (strategy, storage) == (STREAM, "int8") and component != TEXT_ENCODER
    if storage not in own:
        assert "cannot be" in refused(f"{component}={strategy}:{storage}")
    elif strategy == RESIDENT or streams:
        (pin,) = parse_pins([f"{component}={strategy}:{storage}"]).values()
        assert pin == Pin(strategy, storage)
    else:
        assert f"{component}=resident:{storage}" in refused(f"{component}={strategy}:{storage}")


def test_a_component_is_pinned_once() -> None:
    """Two pins of one component contradict each other, even if they are equal."""
    assert "stage_1 is pinned twice" in refused("stage_1=resident", "stage_1=resident")


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(COMPONENTS),
        st.builds(Pin, st.sampled_from(STRATEGIES), st.none() | st.sampled_from(FLOATS)),
    )
)
def test_pins_survive_being_written_down(pins: dict[str, Pin]) -> None:
    """What plans and profiles write is read back as the same pins."""
    assert parse_pins(f"{c}={text}" for c, text in pin_texts(pins).items()) == pins


def test_strategies_stand_in_order_of_their_speed() -> None:
    """Fastest and simplest first."""
    assert STRATEGIES == ("resident", "model_offload", "sequential_offload", "stream")


def test_a_pin_that_breaks_off_is_refused() -> None:
    """A colon promises a number type."""
    with pytest.raises(RequestError, match="unknown number type"):
        parse_pin("stage_1", "resident:")
