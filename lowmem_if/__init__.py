"""Run the DeepFloyd IF text-to-image cascade on machines it does not fit.

    import lowmem_if as lm
    result = lm.generate("a red circle on a blue background", out="runs/a")

or step by step: `machine = lm.probe()`, `request = lm.make_request("a red circle", seed=7)`,
`plan = lm.make_plan(machine, request)`, `result = lm.run(plan, "runs/a")`.
"""

from lowmem_if.api.batch import batch
from lowmem_if.api.embed import embed
from lowmem_if.api.enlarge import enlarge
from lowmem_if.api.fetch import Fetched, fetch
from lowmem_if.api.generate import generate, inpaint, upscale, vary
from lowmem_if.api.history import PastRun, clean, list_runs
from lowmem_if.api.open_stage import close_stages, open_stage
from lowmem_if.api.run import resume, run
from lowmem_if.cascade.lora.adapter import Lora
from lowmem_if.cascade.strategies import Pin, parse_pins
from lowmem_if.engine.events import Event
from lowmem_if.engine.opened.stage_plan import StagePlan
from lowmem_if.engine.options import (
    DrawOptions,
    EmbedOptions,
    EnlargeOptions,
    FetchOptions,
    GenerateOptions,
    ImageOptions,
    InpaintOptions,
    MachineOptions,
    PlanOptions,
    ResumeOptions,
    RunOptions,
    SessionOptions,
    StageOptions,
)
from lowmem_if.engine.results import BatchResult, Pictures, RunResult
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.gallery import write_gallery
from lowmem_if.engine.run_folder.library_versions import PACKAGE, installed_versions
from lowmem_if.engine.session import Session
from lowmem_if.engine.worker_answers import LoadedComponent
from lowmem_if.errors import (
    BatchError,
    CascadeError,
    CheckpointError,
    DeviceError,
    DoesNotFit,
    EmbeddingsError,
    HubError,
    LoraError,
    LowmemError,
    OutOfMemory,
    PictureError,
    ProfileError,
    RequestError,
    RunFolderError,
    SessionError,
    WorkerDied,
)
from lowmem_if.hardware.machine import Machine, probe
from lowmem_if.hardware.profiles import Profile, load_profile
from lowmem_if.planning.plan import Plan, Step, make_plan
from lowmem_if.report.notebook import NotebookProgress
from lowmem_if.request.batch_file import BadLine
from lowmem_if.request.build import make_request
from lowmem_if.request.image_spec import PictureOptions
from lowmem_if.request.request import Request
from lowmem_if.weights.embedding_files.embedding_tensors import load_embeddings

__all__ = [
    "BadLine",
    "BatchError",
    "BatchResult",
    "CascadeError",
    "CheckpointError",
    "DeviceError",
    "DoesNotFit",
    "DrawOptions",
    "EmbedOptions",
    "EmbeddingsError",
    "EnlargeOptions",
    "Event",
    "FetchOptions",
    "Fetched",
    "GenerateOptions",
    "HubError",
    "ImageOptions",
    "InpaintOptions",
    "LoadedComponent",
    "Lora",
    "LoraError",
    "LowmemError",
    "Machine",
    "MachineOptions",
    "NotebookProgress",
    "OutOfMemory",
    "PastRun",
    "PictureError",
    "PictureOptions",
    "Pictures",
    "Pin",
    "Plan",
    "PlanOptions",
    "Profile",
    "ProfileError",
    "Request",
    "RequestError",
    "ResumeOptions",
    "RunFolder",
    "RunFolderError",
    "RunOptions",
    "RunResult",
    "Session",
    "SessionError",
    "SessionOptions",
    "StageOptions",
    "StagePlan",
    "Step",
    "WorkerDied",
    "batch",
    "clean",
    "close_stages",
    "embed",
    "enlarge",
    "fetch",
    "generate",
    "inpaint",
    "list_runs",
    "load_embeddings",
    "load_profile",
    "make_plan",
    "make_request",
    "open_stage",
    "parse_pins",
    "probe",
    "resume",
    "run",
    "upscale",
    "vary",
    "write_gallery",
]

__version__: str
"""The installed version of this package."""

_RENAMED = {"Warm": LoadedComponent}
"""The names that these classes had in version 0.1."""


def __getattr__(name: str) -> object:
    """The version, and the classes under their names of version 0.1."""
    if name == "__version__":
        return installed_versions().get(PACKAGE, "unknown")
    if name in _RENAMED:
        return _RENAMED[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
