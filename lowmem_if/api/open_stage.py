"""Open one stage of a cascade for a loop of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from lowmem_if.engine.opened.stage_request import StageRequest
from lowmem_if.engine.options import StageOptions, check_options
from lowmem_if.system.foreign_logs import IMPORTING_PIPELINES, without

if TYPE_CHECKING:
    from lowmem_if.stages.opened.open_pipeline import OpenPipeline


def open_stage(
    cascade: str | Path, stage: str | int, **options: Unpack[StageOptions]
) -> OpenPipeline:
    """Open one stage as diffusers' own pipeline, planned for this machine, in this process.

        with lm.open_stage("if-xl", 1) as stage_1:
            noise = stage_1.unet(x, t, encoder_hidden_states=embeds, return_dict=False)[0]

    Weights that are missing here are downloaded: those of this stage alone.

    Args:
        cascade: a name in the catalogue, or a folder.
        stage: 1, 2 or 3, or a name: `stage_1`, `stage_2`, `upscaler`.
        options: see `StageOptions`: among them `mode`, `dtype`, `pin`, `batch`, `ram` and `vram`. The
            budgets are for this process as a whole, with everything that it holds already.

    Returns:
        An `IFPipeline`, or its sibling for the stage and the mode, which is a context manager, too; else
        call its `close()`. `plan` says what was chosen and why. It has no T5 text encoder: texts are
        encoded in a process of its own, or are given as `prompt_embeds`. No safety checker runs.

    Raises:
        DoesNotFit: the stage needs more than the remaining memory; the message says what to close.
        RequestError: an unknown option, stage, mode or number type.
        LowmemError: the weights, the device or the network cannot be used.
    """
    check_options("open_stage", options, StageOptions)
    wanted = StageRequest.of(cascade, stage, options)
    with without(*IMPORTING_PIPELINES):
        from lowmem_if.engine.opened.open_stages import open_one

    return open_one(wanted, options)


def close_stages() -> None:
    """Close every stage that is open in this process, whichever variable holds it."""
    from lowmem_if.engine.opened.open_stages import close_all

    close_all()
