"""Errors of the libraries' loaders, as one line of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers
import transformers

from lowmem_if.errors import CheckpointError, LowmemError
from lowmem_if.weights.out_of_memory import is_shortage


@contextmanager
def errors_about(path: Path) -> Iterator[None]:
    """Translate a library's error about a folder or file into a `CheckpointError` of one line.

    The loaders raise exceptions of all classes, even plain `Exception`. Only memory errors are raised as
    they are.
    """
    try:
        yield
    except LowmemError:
        raise
    except Exception as error:
        if is_shortage(error):
            raise
        line = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise CheckpointError(
            f"{path}: cannot be loaded ({line.strip()[:200]}); fetch or copy it again{_or(error)}"
        ) from error


def _or(error: Exception) -> str:
    """Another possible cause: if a name is missing, the library may have an unknown version."""
    if not isinstance(error, AttributeError | ImportError | TypeError):
        return ""
    return (
        f"; if that does not help, transformers {transformers.__version__} or diffusers "
        f"{diffusers.__version__} is not one that lowmem-if knows: install another version"
    )
