"""A session: the calls of the package with one worker, which keeps what fits and survives."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from faults import inject
from fork_client import Forked
from runs import CPU, kinds, plan_of, results, run_here, with_prompt
from sample_pictures import noise

import lowmem_if as lm
from lowmem_if.cascade.catalog import POSTPROCESS, STAGE_1, STAGE_2, TEXT_ENCODER
from lowmem_if.engine import worker_process
from lowmem_if.engine.events import Event
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.errors import RequestError, RunFolderError, SessionError
from lowmem_if.hardware import profiles

RED, BLUE = "a red circle", "a blue star"
SMALL = (TEXT_ENCODER, STAGE_1, POSTPROCESS)


ANSWERS = """
import os
while os.read(0, 10000):
    print('{"kind": "done"}', flush=True)
"""
"""A worker that says to everything that it is done, at once: starting a true one takes seconds."""


@pytest.fixture(scope="module")
def session(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[lm.Session]:
    """A session whose worker serves several tests."""
    out = tmp_path_factory.mktemp("session")
    with lm.Session(cascade=tiny, device="cpu", ram="8GB", prefer="exact") as session:
        with pytest.MonkeyPatch.context() as patched:  # for the worker, before a test has its world
            patched.setenv("LOWMEM_IF_CACHE", str(out / "cache"))
            session.generate(RED, size=64, steps=2, seed=1, out=out / "run")
        yield session


@pytest.fixture
def events() -> list[Event]:
    return []


def warm(session: lm.Session) -> list[str]:
    return sorted(one.component for one in session.loaded)


class Workers:
    """The processes that were started since."""

    def __init__(self) -> None:
        self.before = self.all()

    def __call__(self) -> list[psutil.Process]:
        return [child for child in self.all() if child not in self.before]

    def all(self) -> list[psutil.Process]:
        forked = [psutil.Process(one.pid) for one in [*Forked.running] if one.poll() is None]
        return psutil.Process().children() + forked


@pytest.fixture
def workers() -> Workers:
    return Workers()


@pytest.mark.worker
def test_calls_draw_as_without_a_session_and_load_only_once(
    session: lm.Session, tiny: Path, tmp_path: Path, events: list[Event]
) -> None:
    """Text, then a variation: the same bytes as runs alone, by one worker, nothing loaded twice."""
    session.release()
    first = plan_of(tiny, "a text that nobody has embedded yet", size=256)
    image = noise(tmp_path / "image.png")
    second = plan_of(tiny, BLUE, size=256, mode="vary", image=image)
    told = [
        session.run(plan, tmp_path / name, report=events.append)
        for name, plan in (("a", first), ("b", second))
    ]
    assert not kinds(events, "starting")
    assert sorted({*kinds(events, "loading")}) == warm(session)
    assert kinds(events, "cache_hit") == [TEXT_ENCODER, STAGE_1, STAGE_2, POSTPROCESS]
    for result, plan in zip(told, (first, second), strict=True):
        alone = run_here(plan, tmp_path / f"alone-{plan.request.images[0].mode}")
        assert results(result.folder) == results(alone.path)
        assert [step.step for step in result.steps] == list(alone.plan.steps)


@pytest.mark.worker
def test_every_function_of_the_package_runs_in_the_session(
    session: lm.Session, tiny: Path, tmp_path: Path, events: list[Event]
) -> None:
    """All of them take the session's options, and the call's own before these."""
    image, mask = noise(tmp_path / "image.png"), noise(tmp_path / "mask.png", seed=1)
    common: dict[str, Any] = {"steps": 2, "seed": 1, "report": events.append}
    drawn = [
        session.generate(RED, size=64, **common),
        session.vary(image, BLUE, size=64, **common),
        session.inpaint(image, mask, BLUE, size=64, **common),
        session.upscale(noise(tmp_path / "small.png", 64, 64), size=256, **common),
        session.batch([RED, BLUE], size=64, out=tmp_path / "many", **common).run,
        session.enlarge(tmp_path / "many", [1], size=256, out=tmp_path / "large", report=events.append),
        session.generate(RED, size=64, pins={"stage_1": "resident:bfloat16"}, **common),
    ]  # fmt: skip
    assert [len(result.images) for result in drawn] == [1, 1, 1, 1, 2, 1, 1]
    assert not kinds(events, "starting")
    assert kinds(events, "evicted") == [STAGE_1]  # the pinned one took its place
    plans = [RunFolder.open(result.folder).plan for result in drawn]
    assert {plan.request.cascade for plan in plans} == {str(tiny)}
    assert {plan.machine.ram_bytes for plan in plans} == {8 * 10**9}
    assert [plan.request.images[0].mode for plan in plans[:4]] == [
        "text",
        "vary",
        "inpaint",
        "upscale",
    ]


@pytest.mark.worker
def test_a_run_begun_outside_is_resumed_inside_from_wherever_one_stands(
    session: lm.Session, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are the caller's, although the worker began elsewhere; what is done is not done again."""
    plan = plan_of(tiny, RED, size=64)
    folder = run_here(plan, tmp_path / "elsewhere" / "run")
    expected = results(folder.path)
    for lost in ("0000.png", "stage_1/0000.safetensors"):
        (folder.path / lost).unlink()
    monkeypatch.chdir(tmp_path / "elsewhere")
    events: list[Event] = []
    result = session.resume("run", report=events.append)
    assert result.folder == Path("run")
    assert results(folder.path) == expected
    assert kinds(events, "skipped") == [TEXT_ENCODER]


@pytest.mark.worker
def test_a_known_error_is_the_callers_own_and_leaves_the_session_as_it_was(
    session: lm.Session, tiny: Path, tmp_path: Path, events: list[Event]
) -> None:
    """The worker lives on after an error that it could tell, and so does what is loaded in it."""
    session.run(plan_of(tiny, RED, size=64), tmp_path / "a")
    before = warm(session)
    folder = RunFolder.for_plan(tmp_path / "b", plan_of(tiny, BLUE, size=64))
    folder.prepare()
    folder.keep_weights(STAGE_1, "another fingerprint")
    with pytest.raises(RunFolderError, match="files of stage_1 have changed"):
        session.run(folder.plan, folder.path)
    with pytest.raises(RequestError, match="prompt"):
        session.generate("")
    # The failed run has encoded its prompt, which loads the encoder if it was evicted before.
    assert warm(session) == sorted({*before, TEXT_ENCODER})
    session.run(plan_of(tiny, RED, size=64), tmp_path / "c", report=events.append)
    assert not kinds(events, "starting")
    with folder.locked():
        pass  # nobody holds what is not worked on any more


@pytest.mark.worker
def test_released_components_are_gone_and_the_session_goes_on(
    session: lm.Session, tiny: Path, tmp_path: Path, events: list[Event]
) -> None:
    """Of each the proof; then everything is loaded again by the same worker."""
    session.run(plan_of(tiny, RED, size=64), tmp_path / "a")
    loaded = warm(session)
    assert all(one.bytes > 0 and one.strategy in ("resident", "stream") for one in session.loaded)
    proofs = session.release()
    assert sorted(proofs) == loaded
    for proof in proofs.values():
        assert proof["alive"] == []
        assert max(proof["ram_left_bytes"], proof["vram_left_bytes"]) <= proof["allowed_bytes"]
    assert session.loaded == ()
    assert session.release() == {}
    session.run(plan_of(tiny, "a text of its own", size=64), tmp_path / "b", report=events.append)
    assert list(dict.fromkeys(kinds(events, "loading"))) == list(SMALL)


@pytest.mark.worker
def test_one_call_at_a_time(session: lm.Session, tiny: Path, tmp_path: Path) -> None:
    """A call from another thread, or from a report, while one is going on is refused."""
    refused: list[str] = []

    def call() -> None:
        for action in (session.release, session.close):
            with pytest.raises(SessionError, match="busy with another call") as error:
                action()
            refused.append(str(error.value))

    def report(event: Event) -> None:
        if event.kind == "cache_hit" and not refused:
            call()
            other = threading.Thread(target=call)
            other.start()
            other.join()

    session.run(plan_of(tiny, RED, size=64), tmp_path / "a")
    result = session.run(plan_of(tiny, BLUE, size=64), tmp_path / "b", report=report)
    assert len(refused) == 4
    assert len(result.images) == 1


@pytest.mark.worker
def test_an_interrupted_call_ends_the_worker_and_nothing_else(
    session: lm.Session, tiny: Path, tmp_path: Path, events: list[Event], workers: Workers
) -> None:
    """Ctrl-C in a call: no process is left, the folder can be continued, the session goes on."""

    def interrupt(event: Event) -> None:
        if event.kind == "drawing" and event.component == STAGE_1:
            raise KeyboardInterrupt

    plan = plan_of(tiny, RED, size=64)
    with pytest.raises(KeyboardInterrupt):
        session.run(plan, tmp_path / "run", report=interrupt)
    assert session.loaded == ()
    assert len(workers.all()) == len(workers.before) - 1
    session.resume(tmp_path / "run", report=events.append)
    assert kinds(events, "skipped") == [TEXT_ENCODER]
    assert warm(session) == sorted([STAGE_1, POSTPROCESS])
    assert results(tmp_path / "run") == results(run_here(plan, tmp_path / "alone").path)


@pytest.mark.worker
def test_memory_that_runs_out_beside_others_is_tried_again_without_them(
    tiny: Path, tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch, events: list[Event]
) -> None:
    """The same setting in a new worker before anything cheaper, told; the next run makes room before."""
    inject(monkeypatch, "out_of_memory_beside_stage_1", starts)
    plan = plan_of(tiny, RED, size=256)
    with lm.Session() as session:
        result = session.run(plan, tmp_path / "a", report=events.append)
        assert starts.read_text() == "xx"
        (retry,) = [event for event in events if event.kind == "retry"]
        assert retry.component == STAGE_2
        assert "text encoder and stage 1, which remained loaded; trying the same" in retry.text
        folder = RunFolder.open(result.folder)
        assert folder.plan == plan
        assert len(folder.log) == 1
        assert folder.notices == ()
        assert results(result.folder) == results(run_here(plan, tmp_path / "alone").path)
        events.clear()
        session.run(replace_prompt(plan, BLUE), tmp_path / "b", report=events.append)
        assert not kinds(events, "retry")
        assert {TEXT_ENCODER, STAGE_1} <= {*kinds(events, "evicted")}
        assert starts.read_text() == "xx"


@pytest.mark.worker
def test_a_worker_that_the_system_kills_costs_a_step_and_not_the_call(
    tiny: Path,
    tmp_path: Path,
    starts: Path,
    monkeypatch: pytest.MonkeyPatch,
    events: list[Event],
    workers: Workers,
) -> None:
    """SIGKILL in the second run: a new worker does the same step with nothing loaded, the same bits."""
    inject(monkeypatch, "killed_in_the_second_run", starts)
    with lm.Session() as session:
        session.run(plan_of(tiny, RED, size=64), tmp_path / "a")
        plan = plan_of(tiny, BLUE, size=64)
        result = session.run(plan, tmp_path / "b", report=events.append)
        assert starts.read_text() == "xx"
        assert kinds(events, "retry") == [STAGE_1]
        assert kinds(events, "skipped") == [TEXT_ENCODER]
        assert RunFolder.open(result.folder).plan == plan
        assert results(result.folder) == results(run_here(plan, tmp_path / "alone").path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that do nothing."""
    monkeypatch.setattr(worker_process, "WORKER", ("-c", ANSWERS))


@pytest.mark.usefixtures("quick")
def test_a_worker_that_dies_between_two_calls_is_replaced(
    tiny: Path, tmp_path: Path, events: list[Event], workers: Workers
) -> None:
    """Killed while nothing was asked of it: the next call begins with another, and tells of no retry."""
    with lm.Session() as session:
        session.run(plan_of(tiny, RED, size=64), tmp_path / "a")
        (worker,) = workers()
        worker.kill()
        worker.wait()
        assert session.loaded == ()
        session.run(plan_of(tiny, RED, size=64), tmp_path / "a", report=events.append)
        assert kinds(events, "starting") == [""]
        assert not kinds(events, "retry")


@pytest.mark.usefixtures("quick")
def test_a_closed_session_has_no_worker_and_does_no_more(
    tiny: Path, tmp_path: Path, workers: Workers
) -> None:
    """The process ends with the block, and with it everything; what is asked then is refused."""
    with lm.Session() as session:
        session.run(plan_of(tiny, RED, size=64), tmp_path / "a")
        assert len(workers()) == 1
    assert workers() == []
    assert session.loaded == ()
    for call in (session.release, session.__enter__, lambda: session.generate(RED)):
        with pytest.raises(SessionError, match="closed: begin another"):
            call()
    session.close()


@pytest.mark.usefixtures("quick")
def test_a_plan_that_streams_gets_a_worker_with_its_settings(
    tiny: Path, tmp_path: Path, events: list[Event]
) -> None:
    """Only from others to streaming a worker is replaced: its settings do no harm to other plans."""
    plain, streaming = plan_of(tiny, RED), plan_of(tiny, RED, pins=["stage_1=stream"])
    with lm.Session(report=events.append) as session:
        for number, plan in enumerate((plain, plain, streaming, plain, streaming)):
            session.run(plan, tmp_path / str(number))
            assert len(kinds(events, "starting")) == (1 if number < 2 else 2)


@pytest.mark.usefixtures("quick")
def test_a_session_that_is_let_go_of_leaves_no_worker(
    tiny: Path, tmp_path: Path, workers: Workers
) -> None:
    """A notebook's cell run again makes another session: the first one's worker ends with it."""
    session = lm.Session()
    session.run(plan_of(tiny, RED, size=64), tmp_path / "run")
    assert len(workers()) == 1
    del session
    gc.collect()
    assert workers() == []


def test_a_session_begins_by_doing_nothing(workers: Workers) -> None:
    """No process and no measuring before the first call; letting go of nothing is fine."""
    with lm.Session(ram="1GB", pins={"stage_1": "stream"}) as session:
        assert session.loaded == ()
        assert session.release() == {}
        assert workers() == []
    with pytest.raises(RequestError, match="Session has no option 'sizes'"):
        lm.Session(sizes=64)  # type: ignore[call-arg]


def test_the_machine_is_measured_while_no_worker_takes_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the worker holds would count as taken: its life long the first reading holds."""
    left = iter([8 * 10**9, 6 * 10**9, 5 * 10**9])
    measured: list[str] = []

    def probe(device: str, **_budgets: None) -> lm.Machine:
        measured.append(device)
        return replace(CPU, ram_bytes=next(left))

    class Process(SimpleNamespace):
        stdout, code = None, None
        poll = wait = lambda self: self.code

        def kill(self) -> None:
            self.code = -9

    monkeypatch.setattr(profiles, "probe", probe)
    session = lm.Session()
    assert session.measure().ram_bytes == 8 * 10**9
    session._worker._process = Process()  # type: ignore[assignment]
    assert session.measure().ram_bytes == 8 * 10**9
    assert session.measure(ram="1GB").ram_bytes == 10**9
    assert measured == ["auto"]
    assert session.measure(device="cpu").ram_bytes == 6 * 10**9  # the worker had to end before
    assert not session._worker.is_open
    assert session.measure().ram_bytes == 5 * 10**9


@pytest.mark.usefixtures("quick")
def test_the_old_name_of_what_is_loaded_still_works(tiny: Path, tmp_path: Path) -> None:
    """`warm` was the name in version 0.1."""
    with lm.Session() as session:
        session.run(plan_of(tiny, RED, size=64), tmp_path / "run")
        assert session.warm == session.loaded


def test_a_session_plans_with_its_own_options() -> None:
    """The profile's machine and pins, the session's pins over them, and a call's options over all."""
    request = lm.make_request((RED,), seed=(1,), size=64)
    with lm.Session(profile="colab-free", pins={"stage_1": "stream"}, ram="9GB") as session:
        plan = session.plan(request)
        assert (plan.machine.name, plan.machine.ram_bytes) == ("colab-free", 9 * 10**9)
        assert plan.pins["stage_1"] == "stream"
        machine = session.measure(ram="10GB")
        other = session.plan(request, machine, prefer="balanced", pins={})
        assert (other.machine, other.prefer) == (machine, "balanced")
        assert "stage_1" not in other.pins


def test_the_planner_of_a_session_can_be_another_one(tmp_path: Path) -> None:
    """As the command line has one for dry runs; it is called as `make_plan` is."""
    asked: list[lm.Request] = []

    def planner(machine: lm.Machine, request: lm.Request, **options: Any) -> lm.Plan:
        asked.append(request)
        return lm.make_plan(machine, request, **options)

    request = lm.make_request((RED,), seed=(1,), size=64)
    with lm.Session(planner=planner, profile="colab-free") as session:
        assert session.plan(request).machine.name == "colab-free"
    assert asked == [request]


@pytest.mark.worker
def test_a_session_that_keeps_nothing_unloads_after_each_step(
    tiny: Path, tmp_path: Path, events: list[Event]
) -> None:
    """As the functions of the package do: with a proof for each component, and one worker."""
    with lm.Session(keep_loaded=False, report=events.append) as session:
        folder = RunFolder.open(session.run(plan_of(tiny, RED, size=64), tmp_path / "run").folder)
        assert session.loaded == ()
    assert kinds(events, "starting") == [""]
    assert all(folder.released(component) for component in SMALL)
    assert not any(folder.kept_loaded(component) for component in SMALL)


def replace_prompt(plan: lm.Plan, prompt: str) -> lm.Plan:
    return replace(plan, request=with_prompt(plan.request, prompt))
