"""Repairs of diffusers and transformers that IF's published weights need today, in one place.

Written for diffusers 0.42 with transformers 5.23; `tests/test_library_repairs.py` fails as soon as one
of them is no longer needed, so that it can be deleted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.pipelines.deepfloyd_if import IFSafetyChecker
from transformers import core_model_loading


def repaired_safety_checker() -> Any:
    """IF's safety checker class, loadable.

    Its constructor never calls `post_init()`, which since transformers 5 sets the table of tied
    weights that loading reads. It ties none, so an empty table is right.
    """
    if not hasattr(IFSafetyChecker, "all_tied_weights_keys"):
        IFSafetyChecker.all_tied_weights_keys = {}
    return IFSafetyChecker


def declare_eight_bit(config: Any) -> Any:
    """The T5 configuration, told that its weights are in bitsandbytes' 8-bit layout.

    The published `model.8bit.safetensors` is older than the key that says so. Without it the scales are
    reported as unexpected, the int8 numbers are taken for weights, and the embeddings are garbage.
    """
    if getattr(config, "quantization_config", None) is None:
        config.quantization_config = {"load_in_8bit": True, "quant_method": "bitsandbytes"}
    return config


@contextmanager
def conversion_errors_kept(errors: list[BaseException]) -> Iterator[None]:
    """Collect what goes wrong while transformers quantises weights.

    It turns every such exception, memory running out among them, into text and later raises a
    RuntimeError without it; then nobody can tell that a cheaper strategy would have helped.
    """
    original = core_model_loading.log_conversion_errors

    @contextmanager
    def keeping(*args: Any, **kwargs: Any) -> Iterator[None]:
        with original(*args, **kwargs):
            try:
                yield
            except Exception as error:
                errors.append(error)
                raise

    core_model_loading.log_conversion_errors = keeping
    try:
        yield
    finally:
        core_model_loading.log_conversion_errors = original
