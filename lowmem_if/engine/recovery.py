"""Go on after memory ran out, the system killed the worker, or numbers overflowed.

After a shortage the step is planned again (`planning/fallback.py`), and the log names the reason. The
same step is tried again in a new worker if other components were loaded, if the worker had drawn before,
and once if RAM, which all processes share, ran out with the cheapest step there is. A step that gives
NaN or infinite numbers continues in a wider number type.
"""

from __future__ import annotations

from lowmem_if.cascade.catalog import label
from lowmem_if.cascade.locate import Location
from lowmem_if.cascade.strategies import PREFERENCES
from lowmem_if.engine.events import Notice, Report, Retry
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.worker_answers import MemoryShortage
from lowmem_if.errors import NotFinite, OutOfMemory, WorkerDied
from lowmem_if.planning.fallback import RAM, Findings, changed_pixels, cheaper, more_exact
from lowmem_if.planning.plan import Step


class Recovery:
    """What one call has found out about its components, and what it does after each failure."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._findings: dict[str, Findings] = {}
        self._tried_again: set[str] = set()

    def after_shortage(self, folder: RunFolder, short: MemoryShortage) -> None:
        """Change the folder's plan so that it needs less memory, or keep it for another try.

        Raises:
            OutOfMemory, WorkerDied: there is nothing left to try.
        """
        component = short.component
        if short.others or not short.is_new:
            self._try_again(folder, short, _reason(short))
            return
        step = self._cheaper(folder, short) if component else None
        if step is not None:
            self._replace(folder, step)
        elif short.resource == RAM and component not in self._tried_again:
            self._tried_again.add(component)
            self._try_again(folder, short, "and nothing takes less of it")
        elif component:
            raise _nothing_cheaper(folder, short)
        else:
            raise WorkerDied(
                f"the worker was killed while it started: `lowmem-if resume {folder.path}`"
            )

    def after_overflow(self, folder: RunFolder, error: NotFinite) -> None:
        """Change the folder's plan so that the component computes in a wider number type.

        Raises:
            NotFinite: the error, if no such type fits or is left.
        """
        plan, name = folder.plan, error.component
        found = self._findings.get(name, Findings()).overflowed(plan.step(name))
        self._findings[name] = found
        step = more_exact(plan, _location(folder), name, found)
        if step is None:
            raise NotFinite(f"{error}: {_what_to_do(folder, name)}") from error
        self._notice(folder, name, str(error))
        self._replace(folder, step)

    def _cheaper(self, folder: RunFolder, short: MemoryShortage) -> Step | None:
        plan, name = folder.plan, short.component
        found = self._findings.get(name, Findings())
        found = found.ran_out(plan.step(name), plan.machine, short.resource, short.available_bytes)
        self._findings[name] = found
        return cheaper(plan, _location(folder), name, found, short_of=short.resource)

    def _replace(self, folder: RunFolder, step: Step) -> None:
        """Continue with another step, and report it."""
        before = folder.plan.step(step.component)
        folder.replace_step(step, f"{step.component}: {step.reason}")
        if change := changed_pixels(before.config, step.config):
            other = "so pixels differ from those of the original plan"
            self._notice(folder, step.component, f"{change}, {other}")
        now = f"{step.reason}; now {step.config} on {step.config.device}"
        self._report(Retry(step.component, f"{label(step.component)}: {now}"))

    def _try_again(self, folder: RunFolder, short: MemoryShortage, why: str) -> None:
        """Report that the same step is tried in a new worker, which holds nothing from before."""
        if short.component:
            step = folder.plan.step(short.component)
            folder.replace_step(step, f"{short.component}: {short.resource} ran out {why}")
        name = label(short.component) or "before the first step"
        text = f"{name}: {short.resource} ran out {why}; trying the same with nothing else loaded"
        self._report(Retry(short.component, text))

    def _notice(self, folder: RunFolder, component: str, text: str) -> None:
        name = label(component)
        notice = text if text.startswith(name) else f"{name}: {text}"
        if folder.note(notice):
            self._report(Notice(notice, component))


def _reason(short: MemoryShortage) -> str:
    """What else held memory when a step ran out of it."""
    others = " and ".join(map(label, short.others))
    if others:
        return f"next to {others}, which remained loaded"
    return "in a worker that had drawn before"


def _location(folder: RunFolder) -> Location:
    return folder.plan.request.locate()


def _nothing_cheaper(folder: RunFolder, short: MemoryShortage) -> OutOfMemory:
    pinned = short.component in folder.plan.pins
    asked = folder.plan.asked
    if pinned:
        left = "your pin allows nothing cheaper"
    elif asked in (None, PREFERENCES[-1]):
        left = "nothing cheaper is left"
    else:
        left = f"--prefer {asked} allows nothing cheaper"
    return OutOfMemory(
        f"{short.resource} ran out in {label(short.component)} ({short.text}) and {left}: "
        f"free some memory, then `lowmem-if resume {folder.path}`"
    )


def _what_to_do(folder: RunFolder, component: str) -> str:
    """What the user can do about numbers that are not finite, where no wider type can be used."""
    if folder.plan.step(component).config.compute_dtype == "float32":
        return "fetch or copy them again"
    if component in folder.plan.pins:
        return f"your pin allows no wider number type; run it without --pin {component}=..."
    return "no wider number type fits this machine: give it more memory, or run with --device cpu"
