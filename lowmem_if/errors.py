"""Every error this package raises on purpose, drawn as a tree.

    LowmemError                one line: what happened, and what to do
    ├── RequestError           the request itself cannot be run (prompt, seed, size, steps, pin)
    ├── CacheError             there is no folder to keep files in for later runs
    ├── BatchError             a file of prompts cannot be read, or some of its lines could not be used
    ├── EmbeddingsError        a file of prompt embeddings cannot be used, or lacks a prompt
    ├── PictureError           an input image is missing, broken, or has a size that no stage accepts
    ├── ProfileError           a machine profile is unknown, unreadable or has a wrong key
    ├── CascadeError           no such cascade, or a folder that is not one
    ├── CheckpointError        a file of the weights is missing, truncated, corrupt or of another shape
    │   └── LoraError          a LoRA is missing, of an unknown kind, or for no stage that runs
    ├── DeviceError            the requested device is missing, or cannot do what was pinned
    ├── DoesNotFit             no strategy fits the budget; has the figures
    ├── HubError               a download failed
    ├── MissingPackage         a package that only some commands need is not installed
    ├── RunFolderError         the run folder is busy, unwritable, or of another request or version
    ├── NotFinite              a component returns NaN or infinite numbers in every number type that fits
    ├── SessionError           a session is closed, or busy with another call
    ├── SimulationError        a dry run cannot continue: an unsupported torch, or an unknown number
    └── WorkerDied             the worker process ended without an answer (most often: out of memory)
        └── OutOfMemory        ... because memory ran out, and no cheaper strategy was left

The command line prints `str(error)` and exits with `exit_code`; any other exception is
a bug of lowmem-if and exits with 3.
"""

from __future__ import annotations


class LowmemError(Exception):
    """Root of the tree; never raised itself. Its text says what happened and what to do."""

    exit_code = 1


class RequestError(LowmemError):
    """The request itself cannot be run: an empty prompt, a negative seed, an unknown strategy."""

    exit_code = 2


class CacheError(LowmemError):
    """There is no folder to keep files in for later runs; says which variable sets one."""


class BatchError(LowmemError):
    """A file of prompts cannot be read, or some of its lines could not be used; names them."""


class EmbeddingsError(LowmemError):
    """A file of prompt embeddings is missing, broken, for another encoder, or lacks a prompt."""


class PictureError(LowmemError):
    """An input image is missing, broken, or has a size that no stage accepts."""


class ProfileError(LowmemError):
    """A machine profile is unknown, unreadable or holds a wrong key; names the file and the key."""


class CascadeError(LowmemError):
    """The cascade is unknown or not downloaded, or the given folder is not a cascade."""


class CheckpointError(LowmemError):
    """A file of the weights is missing, truncated, corrupt or does not match its configuration."""


class LoraError(CheckpointError):
    """A LoRA cannot be used: no file, a pickle, an unknown kind, or for no stage that runs."""


class DeviceError(LowmemError):
    """This machine does not have the requested device, or the device cannot do what was requested."""


class HubError(LowmemError):
    """A download failed for a known reason: licence, login, revision, network, disk."""


class MissingPackage(LowmemError):
    """An optional package is not installed; says how to install it."""


class RunFolderError(LowmemError):
    """The run folder is in use, cannot be written, or belongs to another request or version."""


class NotFinite(LowmemError):
    """A result holds NaN or infinite numbers; it is not kept.

    Attributes:
        component: the component with this result; set outside the worker.
    """

    component: str = ""


class SessionError(LowmemError):
    """The session is closed, or another call is using it: it does one thing at a time."""


class SimulationError(LowmemError):
    """The dry run cannot continue: torch has an unsupported version, or a number is unknown."""


class WorkerDied(LowmemError):
    """The process that ran a component ended without an answer; the run can be resumed."""


class OutOfMemory(WorkerDied):
    """Memory ran out in `component` and every cheaper strategy was tried."""


class DoesNotFit(LowmemError):
    """No strategy for `component` fits.

    Attributes:
        component: the first component that has no fitting strategy.
        resource: "VRAM" or "RAM", of which the best remaining strategy needs too much.
        needed_bytes, available_bytes: of that resource.
        nearest: what would fit, in words, computed by planning again.
    """

    def __init__(
        self,
        component: str,
        resource: str,
        needed_bytes: int,
        available_bytes: int,
        nearest: str,
    ) -> None:
        self.component = component
        self.resource = resource
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes
        self.nearest = nearest
        super().__init__(
            f"{component.replace('_', ' ')} does not fit: it needs {needed_bytes / 1e9:.1f} GB of "
            f"{resource} and {available_bytes / 1e9:.1f} GB are available. {nearest}"
        )
