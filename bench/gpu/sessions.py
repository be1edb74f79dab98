"""A session on the card: two calls, what stays loaded, release(), and what the card holds afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator

import lowmem_if as lm
from bench.gpu.ballast import holding
from bench.gpu.rows import BYTES, SECONDS, Row, figure, row
from bench.gpu.setup import Setup, fresh_folder, real_cascade
from lowmem_if.cascade.catalog import label
from lowmem_if.cascade.strategies import BALANCED


def rows(setup: Setup) -> Iterator[Row]:
    """The two calls, one row per component that was released, and the card without the worker."""
    folder = fresh_folder(setup, "session")
    options = {"size": 64, "steps": (2,), "seed": 1}
    with holding(setup.device) as card:
        before = card.used_bytes()
        with lm.Session(
            cascade=real_cascade(setup),
            device=setup.device,
            ram=f"{setup.ram_bytes}B",
            prefer=BALANCED,
        ) as session:
            for number, prompt in enumerate(("a red circle", "a blue star")):
                begun = time.monotonic()
                session.generate(prompt, out=folder / str(number), **options)
                seconds = figure("whole call", time.monotonic() - begun, unit=SECONDS)
                warm = figure("stays loaded", sum(each.bytes for each in session.warm))
                names = ", ".join(label(each.component) for each in session.warm)
                yield row(f"call {number + 1}", seconds, warm, text=f"warm: {names or 'nothing'}")
            for component, proof in session.release().items():
                yield _released(component, proof)
            yield row("after release()", figure("driver", card.used_bytes() - before))
        time.sleep(0.5)  # the driver frees a killed process's memory a little later
        left = card.used_bytes() - before
        yield row("after the session", figure("driver", left, 0, BYTES), ok=left <= 0)


def _released(component: str, proof: dict[str, object]) -> Row:
    left = {name: int(str(proof[f"{name}_left_bytes"])) for name in ("ram", "vram")}
    allowed = int(str(proof["allowed_bytes"]))
    return row(
        f"released: {component.replace('_', ' ')}",
        figure("RAM left", left["ram"], allowed),
        figure("VRAM left", left["vram"], allowed),
        ok=not proof["alive"] and max(left.values()) <= allowed,
        text="predicted is what may be left",
    )
