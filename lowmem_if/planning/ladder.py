"""What to try after memory ran out: one rung down at a time, whatever was predicted."""

from __future__ import annotations

from dataclasses import replace

from lowmem_if.planning import catalog
from lowmem_if.planning.catalog import Part
from lowmem_if.planning.footprint import Setting, predict
from lowmem_if.planning.machine import Machine, cpu_compute_dtype
from lowmem_if.planning.plan import Prediction, Step
from lowmem_if.planning.strategies import FLOATS, MODEL_OFFLOAD, RESIDENT, SEQUENTIAL_OFFLOAD


def cheaper(step: Step, machine: Machine, part: Part) -> Step | None:
    """The next rung down the ladder after memory ran out; None at the bottom.

    Smaller batch, tiled VAE, weights in RAM, leaf by leaf, at last the CPU. From there on nothing is
    predicted to fit: it is what can still be tried.
    """
    setting = _cheaper_setting(step, machine)
    if setting is None:
        return None
    footprint = predict(part, setting)
    return replace(
        step,
        strategy=setting.strategy, storage_dtype=setting.storage, compute_dtype=setting.compute,
        device=setting.device, batch=setting.batch, vae_tiling=setting.vae_tiling,
        predicted=Prediction(footprint.vram_bytes, footprint.ram_bytes, None, footprint.read_bytes),
        reason="memory ran out with " + _spelled(step.setting),
        instead_of=_spelled(step.setting),
    )  # fmt: skip


def _cheaper_setting(step: Step, machine: Machine) -> Setting | None:
    setting = step.setting
    if setting.batch > 1:
        return replace(setting, batch=setting.batch // 2)
    if setting.component == catalog.UPSCALER and not setting.vae_tiling:
        return replace(setting, vae_tiling=True)
    if setting.device == "cpu":
        return None
    offloads = machine.kind in ("cuda", "xpu") and setting.storage in FLOATS
    if offloads and setting.strategy == RESIDENT and setting.component == catalog.UPSCALER:
        return replace(setting, strategy=MODEL_OFFLOAD)
    if offloads and setting.strategy != SEQUENTIAL_OFFLOAD:
        return replace(setting, strategy=SEQUENTIAL_OFFLOAD)
    compute = setting.compute if setting.compute != "float16" else cpu_compute_dtype(frozenset())[0]
    storage = compute if setting.storage in FLOATS else setting.storage
    return replace(setting, strategy=RESIDENT, storage=storage, compute=compute, device="cpu")


def _spelled(setting: Setting) -> str:
    tiled = ", tiled VAE" if setting.vae_tiling else ""
    return (
        f"{setting.strategy.replace('_', ' ')} {setting.storage} on {setting.device}, "
        f"batch {setting.batch}{tiled}"
    )
