"""The modes of IF, and how each samples where the request sets nothing."""

from __future__ import annotations

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import STAGE_1, STAGE_2
from lowmem_if.cascade.parts import Cascade, StageDefaults

TEXT, VARY, INPAINT, UPSCALE = "text", "vary", "inpaint", "upscale"

MODES = (TEXT, VARY, INPAINT, UPSCALE)
"""Draw from text only, redraw an image, redraw a part of an image, enlarge an image."""

EMBED = "embed"
"""Encode prompts and draw nothing: the mode of `lowmem-if embed`, not of a picture."""

REDRAWN = (VARY, INPAINT)
"""Modes that add noise to an input image and redraw it, with a strength."""

_IF_DEFAULTS = {
    VARY: {
        STAGE_1: StageDefaults(80, 10.0, strength=0.7, fast_steps=30),
        STAGE_2: StageDefaults(50, 4.0, noise_level=250, strength=0.8, fast_steps=20),
    },
    INPAINT: {
        STAGE_1: StageDefaults(50, 7.0, strength=1.0, fast_steps=30),
        STAGE_2: StageDefaults(100, 4.0, noise_level=0, strength=0.8, fast_steps=20),
    },
}
"""The defaults of diffusers' pipelines for each mode."""

_DEMO_DEFAULTS = {
    mode: {
        STAGE_1: StageDefaults(27, 4.0, strength=strength, fast_steps=16),
        STAGE_2: StageDefaults(20, 1.0, noise_level=20, strength=0.8, fast_steps=12),
    }
    for mode, strength in ((VARY, 0.7), (INPAINT, 1.0))
}
"""Steps, guidance and noise are the demo's own; the strengths are those of diffusers' pipelines."""


def defaults_for(cascade: Cascade, mode: str, component: str) -> StageDefaults | None:
    """How a component of a cascade samples in a mode; None for a component that samples nothing."""
    own = _DEMO_DEFAULTS if cascade.defaults == catalog.DEMO_DEFAULTS else _IF_DEFAULTS
    return own.get(mode, {}).get(component, cascade.defaults.get(component))
