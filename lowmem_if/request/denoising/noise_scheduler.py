"""The noise schedulers that stages 1 and 2 may use.

Their UNets predict six channels: noise and its variance. Only a few of diffusers' schedulers support
this; others fail, or treat the variance as noise.
"""

from __future__ import annotations

DDPM, DPM_SOLVER = "ddpm", "dpmsolver++"

SCHEDULERS = (DDPM, DPM_SOLVER)
"""The checkpoint's own scheduler, and the second-order multistep solver for few steps."""
