"""Run the DeepFloyd IF text-to-image cascade on machines it does not fit.

    import lowmem_if as lm
    result = lm.generate("a red circle on a blue background", out="runs/a")

or step by step: `machine = lm.probe()`, `request = lm.Request(("a red circle",), seed=(7,))`,
`plan = lm.make_plan(machine, request)`, `result = lm.run(plan, "runs/a")`.
"""

from lowmem_if.errors import (
    BatchError,
    CascadeError,
    CheckpointError,
    DeviceError,
    DoesNotFit,
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
from lowmem_if.planning.batch_file import BadLine
from lowmem_if.planning.lines import Line
from lowmem_if.planning.lora import Lora
from lowmem_if.planning.machine import Machine, probe
from lowmem_if.planning.plan import Plan, Step, make_plan
from lowmem_if.planning.profiles import Profile, load_profile
from lowmem_if.planning.request import Request
from lowmem_if.planning.strategies import Pin, parse_pins
from lowmem_if.report.notebook import NotebookProgress
from lowmem_if.running.batch import BatchResult, batch, enlarge
from lowmem_if.running.events import Event
from lowmem_if.running.fetching import Fetched, fetch
from lowmem_if.running.gallery import write_gallery
from lowmem_if.running.generate import generate, inpaint, upscale, vary
from lowmem_if.running.run_folder import RunFolder
from lowmem_if.running.scheduler import RunResult, resume, run
from lowmem_if.running.session import Session
from lowmem_if.running.workshop import Warm

__all__ = [
    "BadLine",
    "BatchError",
    "BatchResult",
    "CascadeError",
    "CheckpointError",
    "DeviceError",
    "DoesNotFit",
    "Event",
    "Fetched",
    "HubError",
    "Line",
    "Lora",
    "LoraError",
    "LowmemError",
    "Machine",
    "NotebookProgress",
    "OutOfMemory",
    "PictureError",
    "Pin",
    "Plan",
    "Profile",
    "ProfileError",
    "Request",
    "RequestError",
    "RunFolder",
    "RunFolderError",
    "RunResult",
    "Session",
    "SessionError",
    "Step",
    "Warm",
    "WorkerDied",
    "batch",
    "enlarge",
    "fetch",
    "generate",
    "inpaint",
    "load_profile",
    "make_plan",
    "parse_pins",
    "probe",
    "resume",
    "run",
    "upscale",
    "vary",
    "write_gallery",
]
