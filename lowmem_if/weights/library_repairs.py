"""The repair of diffusers that IF's published weights need today.

Written for diffusers 0.42 with transformers 5.23; `tests/test_library_repairs.py` fails as soon as it is
no longer needed, so that it can be deleted.
"""

from __future__ import annotations

from typing import Any

from diffusers.pipelines.deepfloyd_if import IFSafetyChecker


def repaired_safety_checker() -> Any:
    """IF's safety checker class, loadable.

    Its constructor never calls `post_init()`, which since transformers 5 sets the table of tied
    weights that loading reads. It ties none, so an empty table is right.
    """
    if not hasattr(IFSafetyChecker, "all_tied_weights_keys"):
        IFSafetyChecker.all_tied_weights_keys = {}
    return IFSafetyChecker
