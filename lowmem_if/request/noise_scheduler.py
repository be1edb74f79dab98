"""The samplers that stages 1 and 2 may draw with.

Their UNets predict six channels, noise and its variance. Of diffusers' schedulers only a few know that;
others fail in it, or take the variance for noise.
"""

from __future__ import annotations

DDPM, DPM_SOLVER = "ddpm", "dpmsolver++"

SCHEDULERS = (DDPM, DPM_SOLVER)
"""The checkpoint's own; the multistep solver of second order, for few steps."""
