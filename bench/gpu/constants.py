"""The measured constants, in the forms that profiles and the cost model read."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter

from bench.gpu.rows import Row
from lowmem_if.hardware.speeds import ACCELERATOR, ANY, CPU, Speeds, Throughput


def collected(results: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """All constants of all parts: `rates` (with the rehearsals' paces in it), `profile_rates`, the rest.

    `rates` is `lowmem_if.hardware.speeds.Speeds` as JSON; `profile_rates` are the keys of `[rates]` in a
    profile. Both are missing until the transfers have been measured.
    """
    found: dict[str, Any] = {}
    paces: list[dict[str, Any]] = []
    rows: list[Row] = [row for result in results for row in result["rows"]]
    for row in rows:
        constants = dict(row["constants"])
        paces += constants.pop("paces", [])
        for key, value in constants.items():
            nested = isinstance(value, dict) and key != "rates"
            found[key] = found.get(key, {}) | value if nested else value
    if "rates" in found:
        rates = _with_rehearsed(TypeAdapter(Speeds).validate_python(found["rates"]), paces)
        found["rates"] = TypeAdapter(Speeds).dump_python(rates, mode="json")
        found["profile_rates"] = profile_rates(rates)
    return found


def _with_rehearsed(rates: Speeds, paces: Sequence[dict[str, Any]]) -> Speeds:
    """Real-size networks say more of a component's pace than the shortened ones of a calibration."""
    of: dict[tuple[str, str, str], list[float]] = {}
    for pace in paces:
        of.setdefault((pace["place"], pace["dtype"], pace["component"]), []).append(
            pace["flops_per_s"]
        )
    measured = [Throughput(*key, statistics.median(values)) for key, values in of.items()]
    return rates.with_paces(tuple(measured), rates.origin)


def profile_rates(rates: Speeds) -> dict[str, Any]:
    """The keys of a profile's `[rates]`; only what was measured."""
    places = {
        "float16_tflops": (ACCELERATOR, "float16", 1e12),
        "float32_tflops": (ACCELERATOR, "float32", 1e12),
        "cpu_float32_gflops": (CPU, "float32", 1e9),
        "cpu_bfloat16_gflops": (CPU, "bfloat16", 1e9),
    }
    known = {(pace.place, pace.dtype): pace for pace in rates.paces if pace.component == ANY}
    keys: dict[str, Any] = {"source": rates.origin}
    for key, (place, dtype, unit) in places.items():
        if pace := known.get((place, dtype)):
            keys[key] = float(f"{pace.flops_per_s / unit:.3g}")
    return keys | {"disk": _size(rates.disk_bytes), "bus": _size(rates.bus_bytes)}


def _size(value: float) -> str:
    return f"{value / 1e9:.2f}GB"


def profile_text(keys: dict[str, Any]) -> str:
    """The `[rates]` table of a profile, to be pasted."""
    return "\n".join(["[rates]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())])
