"""What a machine does in a second: the constants of the cost model, and what stands in for them.

Calibration (`probe --calibrate`, `rehearse`) measures them, a profile carries published ones, and where
there is neither, each class of device has its own. Only constants fitted on the machine itself predict
well (FlexGen, `experimental/cost_model.py`, says so of its own): assumed ones rank plans, no more.
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
        dtype: what is computed in.
        component: `stage_1` and so on, `vae`, or `any`.
        flops_per_s: with all that is not counted as such an operation, so far below a device's peak.
    """

    place: str
    dtype: str
    component: str
    flops_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """A machine's constants; bytes and operations are for a second.

    Attributes:
        disk_bytes: of a weight file that is not in the system's cache.
        cached_bytes: of a file in the cache, cast by one thread into memory that is used again.
        fill_bytes: of weights that a loader puts into memory that nobody has touched.
        bus_bytes, pageable_bytes: from RAM to the accelerator, pinned and not.
        launch_s: least seconds of one pass through a network, however small: its kernels are started.
        start_s: of the worker, until the first component loads.
        paces: of components, the most particular one counts.
        origin: where the constants come from, in words.
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
        """The pace of a component: its own, else any component's in that type, else the slowest."""
        here = [pace for pace in self.paces if pace.place == place]
        for name in (component, ANY):
            for pace in here:
                if (pace.component, pace.dtype) == (name, dtype):
                    return pace.flops_per_s
        return min(pace.flops_per_s for pace in here or self.paces)

    def with_paces(self, paces: tuple[Throughput, ...], origin: str) -> Speeds:
        """With paces that were measured since; the same component's older ones are dropped."""
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
    """The constants of a class of device, for a machine that was never calibrated.

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
    """The paces of an accelerator in its two 16-bit types and in float32."""
    return (
        Throughput(ACCELERATOR, "float16", ANY, half),
        Throughput(ACCELERATOR, "bfloat16", ANY, half),
        Throughput(ACCELERATOR, "float32", ANY, single),
    )
