"""The speeds of a machine: the constants of the cost model, and assumed ones for unknown machines.

Calibration (`probe --calibrate`, `rehearse`) measures them, and a profile contains published ones.
Otherwise each class of device has assumed ones. Only constants that were fitted on the machine itself
predict well (so does FlexGen's `experimental/cost_model.py` say); assumed ones can only rank plans.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

CPU, ACCELERATOR = "cpu", "accelerator"
ANY = "any"


@dataclass(frozen=True, slots=True)
class Throughput:
    """Floating-point operations a second that one component reaches.

    Attributes:
        place: `cpu` or `accelerator`.
        dtype: the number type that it computes in.
        component: `stage_1` and so on, `vae`, or `any`.
        flops_per_s: with contiguous tensors. It includes the time of everything that is no such
            operation, so it is far below the peak of a device.
    """

    place: str
    dtype: str
    component: str
    flops_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """A machine's speeds; bytes and operations are per second.

    Attributes:
        disk_bytes: read from a weight file that is not in the system's cache.
        cached_bytes: read from a cached file and cast by one thread into reused memory.
        fill_bytes: of weights that one loader writes into fresh memory.
        bus_bytes, pageable_bytes: copied from RAM to the accelerator, from pinned memory and other.
        launch_s: least seconds of a pass through a network of any size, for launching its kernels.
        start_s: seconds from starting the worker until the first component is loaded.
        paces: throughputs of components; the most specific one counts.
        origin: where the numbers come from, in words.
    """

    disk_bytes: float
    cached_bytes: float
    fill_bytes: float
    bus_bytes: float
    pageable_bytes: float
    launch_s: float
    start_s: float
    paces: tuple[Throughput, ...]
    origin: str

    def flops_per_s(self, place: str, component: str, dtype: str) -> float:
        """The throughput of a component: its own, else that of any in this type, else the slowest."""
        here = [pace for pace in self.paces if pace.place == place]
        for name in (component, ANY):
            for pace in here:
                if (pace.component, pace.dtype) == (name, dtype):
                    return pace.flops_per_s
        return min(pace.flops_per_s for pace in here or self.paces)

    def with_paces(self, paces: tuple[Throughput, ...], origin: str) -> Speeds:
        """These speeds with newer throughputs; older ones of the same components are dropped."""
        new = {_key(pace) for pace in paces}
        kept = tuple(pace for pace in self.paces if _key(pace) not in new)
        return replace(self, paces=(*paces, *kept), origin=origin)


def _key(pace: Throughput) -> tuple[str, str, str]:
    return pace.place, pace.dtype, pace.component


_CPU_PACES = (
    Throughput(CPU, "float32", ANY, 0.15e12),
    Throughput(CPU, "bfloat16", ANY, 0.25e12),
)
"""Two AVX512-bf16 cores did 0.09 and 0.29 (docs/log.md), four of a laptop do more in float32."""

_ACCELERATOR_TFLOPS = {
    # (float16 or bfloat16, float32). A T4 draws IF's II-M at 2.47 steps a second (diffusers' torch 2.0
    # benchmark), 3.40e12 operations each: 8.4e12 of 65e12. The others are assumed.
    "old": (4.0, 4.0),
    "cuda": (8.4, 4.0),
    "xpu": (6.0, 3.0),
    "mps": (2.0, 1.8),
}

_DISK_BYTES, _BUS_BYTES = 0.47e9, 12.9e9
"""FlexGen's fitted cost model of a cloud T4."""


def assumed(kind: str, capability: tuple[int, int] = (0, 0)) -> Speeds:
    """The assumed speeds of a class of device, for a machine that was never calibrated.

    Args:
        kind: `cpu`, `cuda`, `xpu` or `mps`.
        capability: CUDA compute capability; before 7.0 nothing multiplies matrices in float16.
    """
    paces: tuple[Throughput, ...] = _CPU_PACES
    if kind != CPU:
        old = kind == "cuda" and (0, 0) < capability < (7, 0)
        half, single = _ACCELERATOR_TFLOPS["old" if old else kind]
        paces += accelerator_paces(half * 1e12, single * 1e12)
    return Speeds(
        disk_bytes=_DISK_BYTES,
        cached_bytes=2.6e9,  # cast through a float32 scratch, measured (docs/log.md)
        fill_bytes=1.3e9,  # between the 0.7 and 1.6 that were measured (docs/log.md)
        bus_bytes=_BUS_BYTES,
        pageable_bytes=_BUS_BYTES / 2,
        launch_s=0.02 if kind == CPU else 0.04,
        start_s=6.0,
        paces=paces,
        origin=f"assumed for {'a CPU' if kind == CPU else f'any {kind} device'}",
    )


def accelerator_paces(half: float, single: float) -> tuple[Throughput, ...]:
    """The throughputs of an accelerator in both 16-bit types and in float32."""
    return (
        Throughput(ACCELERATOR, "float16", ANY, half),
        Throughput(ACCELERATOR, "bfloat16", ANY, half),
        Throughput(ACCELERATOR, "float32", ANY, single),
    )
