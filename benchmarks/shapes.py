"""Rows that are not rates: balance, latency, memory, commands, idling, the screen."""

from __future__ import annotations

from typing import Any

from benchmarks import commands, ours, peers
from benchmarks.harness import (
    Case,
    Curve,
    Findings,
    Goal,
    Line,
    Plan,
    Sample,
    absolute,
    alternate,
    at_most,
    case,
    number,
    ratio,
    row,
    samples,
)
from benchmarks.jobs import LONGEST_SPIN, SHAPES


def _figures(runs: list[Any], name: str) -> Sample:
    return Sample([run[name] for run in runs])


def _beside_others(cases: list[Case], plan: Plan, unit: str, goal: Goal) -> Findings:
    """Set a goal for our own figure, and show each other system beside it. The first case is ours."""
    found = Findings()
    measured = samples(cases, plan.repetitions, found.notes)
    us = measured["shmqueue"]
    for name in list(measured)[1:]:
        found.lines.append(absolute(name, us, measured[name], unit=unit, goal=goal))
    return found


@row("uneven tasks (4,000 of 50 µs, then 40 of 20 ms): makespan over ideal")
def uneven(plan: Plan) -> Findings:
    cases = [
        case("shmqueue", ours.ours_uneven),
        case("Pool.map", peers.pool_uneven, method="map", chunk=None),
        case("Pool.map in chunks of 10", peers.pool_uneven, method="map", chunk=10),
        case("Pool.imap_unordered", peers.pool_uneven, method="imap_unordered", chunk=None),
    ]
    found = _beside_others(cases, plan, "", at_most(1.05, ""))
    found.notes.append("each task keeps a core busy for a fixed time; all workers have started before")
    return found


def _over_list_schedule(plan: Plan, row: str) -> Findings:
    """Compare makespans with those of a list schedule. The ratio is 1 if no task waited while a worker was free."""
    found = Findings()
    for shape in SHAPES[row]:
        cases = [case("shmqueue", ours.ours_scheduled, row=row, shape=shape)]
        (runs,) = alternate(cases, plan.repetitions + 2, found.notes).values()
        makespan = _figures(runs, "makespan")
        schedule = _figures(runs, "schedule")
        found.lines.append(ratio(f"list schedule, {shape}", makespan, schedule, unit="s", goal=at_most(1.05)))
    found.notes.append(
        "the list schedule is computed from the times that the tasks took in the same run; tasks of up to "
        f"{LONGEST_SPIN // 1000} ms keep a core busy, longer ones sleep; {ours.PAIR} workers have started and "
        f"run {len(ours.GROW):,} no-ops before"
    )
    return found


@row("long tasks behind short ones: makespan over a list schedule")
def tail(plan: Plan) -> Findings:
    return _over_list_schedule(plan, "tail")


@row("one long task first: makespan over a list schedule")
def head(plan: Plan) -> Findings:
    return _over_list_schedule(plan, "head")


@row("tasks of heavy-tailed times: makespan over a list schedule")
def heavy(plan: Plan) -> Findings:
    return _over_list_schedule(plan, "heavy")


@row("waves of short tasks and a few long ones: makespan over a list schedule")
def waves(plan: Plan) -> Findings:
    return _over_list_schedule(plan, "waves")


@row("20,000 no-ops, one task of 2 s, 3,000 no-ops: results later than 1 s after the start")
def late(plan: Plan) -> Findings:
    found = Findings()
    cases = [case("shmqueue", ours.ours_late, before=20_000, after=3_000)]
    us = samples(cases, plan.repetitions, found.notes)["shmqueue"]
    found.lines.append(absolute("–", us, None, unit="results", goal=at_most(2, "results")))
    found.notes.append(f"the long task sleeps, and its result is one of them; {ours.PAIR} workers have started before")
    return found


@row(
    "one task to idle workers and back, median",
    "the Python code of supervisor and worker takes about 65 µs; in a tight loop an idle core has to wake up, too",
)
def latency(plan: Plan) -> Findings:
    """Measure submit() and results(), in a tight loop and after a pause; futures; and the way there alone."""
    times = plan.size(2000, 300)
    found = Findings()
    for pause, where in ((0.0, "in a tight loop"), (0.0007, "after 0.7 ms")):
        shared = {"times": times, "pause": pause}
        cases = [case("shmqueue", ours.ours_there_and_back, **shared), case("Pool.apply", peers.pool_apply, **shared)]
        cases += [
            case("Executor", ours.ours_future, **shared),
            case("ProcessPoolExecutor", peers.executor_future, **shared),
        ]
        us, pool, future, executor = samples(cases, plan.repetitions + 2, found.notes).values()
        found.lines.append(ratio(f"Pool.apply, {where}", us, pool, unit="µs", goal=at_most(0.4)))
        against = f"ProcessPoolExecutor (Executor), submit().result(), {where}"
        found.lines.append(ratio(against, future, executor, unit="µs", goal=at_most(1)))
    cases = [
        case("shmqueue", ours.ours_wake, times=times // 2),
        case("Pool.apply", peers.pool_wake, times=times // 2),
        case("a bare pipe", peers.pipe_wake, times=times // 2),
    ]
    there = samples(cases, plan.repetitions, found.notes)
    for name in ("Pool.apply", "a bare pipe"):
        found.lines.append(ratio(f"{name}, until the function begins", there["shmqueue"], there[name], unit="µs"))
    return found


@row(
    "peak memory, by lines of a task file",
    "compiling the file takes 16 MiB; `python -m shmqueue` needs 27 MiB for 100,000 lines",
)
def memory(plan: Plan) -> Findings:
    found = Findings()
    for lines in (100_000, plan.size(5_000_000, 500_000)):
        cases = [
            case("shmqueue", commands.ours_memory, lines=lines),
            case("Pool.map", commands.pool_memory, lines=lines),
        ]
        runs = alternate(cases, plan.repetitions, found.notes)
        for whose, goal in (("supervisor", at_most(40, "MiB")), ("largest worker", None)):
            us, them = (_figures(runs[each.name], whose) for each in cases)
            against = f"Pool.map, {lines:,} lines, {whose}"
            line = Line(against, us, unit="MiB", theirs=them, figure=us, figure_unit="MiB", goal=goal)
            found.lines.append(line)
    for at, whose in enumerate(("supervisor", "largest worker")):
        few, many = (line.ours for line in found.lines[at::2][:2])
        goal = at_most(1.05) if whose == "supervisor" else None
        found.lines.append(ratio(f"itself, with fewer lines, {whose}", many, few, unit="MiB", goal=goal))
    found.notes.append("memory that processes share counts in each of them; the segment is 35 MiB, touched where used")
    return found


@row(
    "2,000 lines of `true` with --shell",
    "compiling the file takes 0.07 s, and each shell is started through subprocess, in Python",
)
def shell(plan: Plan) -> Findings:
    lines = plan.size(2000, 400)
    found = Findings()
    cases = [
        case("shmqueue", commands.ours_shell, lines=lines),
        case("xargs -P", commands.xargs_shell, lines=lines),
        case("GNU parallel", commands.parallel_shell, lines=lines),
    ]
    times = samples(cases, plan.repetitions, found.notes)
    for name, goal in (("xargs -P", at_most(1.15)), ("GNU parallel", None)):
        if name in times:
            found.lines.append(ratio(name, times["shmqueue"], times[name], unit="s", goal=goal))
    return found


@row("idle, 8 workers, share of a core")
def idle(plan: Plan) -> Findings:
    seconds = plan.size(15, 4)
    found = Findings()
    shares = samples([case("shmqueue", commands.ours_idle, workers=8, seconds=seconds)], plan.repetitions, found.notes)
    us = shares["shmqueue"]
    found.lines.append(absolute("–", us, None, unit="%", goal=at_most(0.3, "%")))
    found.notes.append(f"a command whose input, a pipe, is silent for {seconds} s; supervisor and workers together")
    return found


@row(
    "the screen, on against off",
    "two runs of a second differ by as much; the first line says what drawing itself takes",
)
def screen(plan: Plan) -> Findings:
    lines = plan.size(1_500_000, 300_000)
    found = Findings()
    drawing = samples([case("drawing", ours.ours_drawing, tasks=lines)], plan.repetitions, found.notes)["drawing"]
    found.lines.append(absolute("all the time, by the time it draws", drawing, None, unit="%", goal=at_most(2, "%")))
    cases = [case(f"screen {state}", commands.ours_screen, lines=lines, screen=state) for state in ("on", "off")]
    runs = alternate(cases, plan.repetitions + 2, found.notes)
    for name, unit, sign, against in (
        ("rate", "tasks/s", -1, "off, by time"),
        ("cpu", "µs", 1, "off, by processor time a task"),
    ):
        on, off = (_figures(runs[each.name], name) for each in cases)
        share = Sample([sign * 100 * (value - 1) for value in on.over(off).values])
        line = Line(against, ours=on, unit=unit, theirs=off, figure=share, figure_unit="%", goal=at_most(2, "%"))
        found.lines.append(line)
    return found


@row("start: few tasks, from the command or the call")
def start(plan: Plan) -> Findings:
    tasks = 10
    found = Findings()
    cases = [
        case("shmqueue --call", commands.ours_start, tasks=tasks),
        case("script with Pool.map", commands.pool_start, tasks=tasks),
        case("shmqueue --shell", commands.ours_start_shell, tasks=tasks),
        case("xargs -P", commands.xargs_start, tasks=tasks),
    ]
    runs = alternate(cases, plan.repetitions + 2, found.notes)
    pairs = ((cases[0].name, cases[1].name), (cases[2].name, cases[3].name))
    for until, what in (("first", "first task"), ("all", f"all {tasks} lines")):
        for us, them in pairs:
            if us in runs and them in runs:
                mine, other = (_figures(runs[name], until).scaled(1000) for name in (us, them))
                found.lines.append(ratio(f"{them} ({us}), {what}", mine, other, unit="ms"))
    cases = [case("parallel_map", ours.ours_small, tasks=tasks), case("Pool.map", peers.pool_small, tasks=tasks)]
    mine, other = samples(cases, plan.repetitions + 2, found.notes).values()
    against = f"Pool.map (parallel_map), {tasks} no-ops"
    found.lines.append(ratio(against, mine.scaled(1000), other.scaled(1000), unit="ms"))
    return found


@row("import, compiled, over a bare interpreter", "the goal supposes that concurrent.futures.process takes 19 ms")
def imports(plan: Plan) -> Findings:
    found = Findings()
    cases = [
        case("shmqueue", commands.ours_import, module="shmqueue"),
        case("concurrent.futures.process", commands.ours_import, module="concurrent.futures.process"),
    ]
    us, them = samples(cases, plan.repetitions + 2, found.notes).values()
    found.lines.append(absolute(cases[1].name, us, them, unit="ms", goal=at_most(20, "ms")))
    return found


@row("256 workers under fork, from the call")
def many_workers(plan: Plan) -> Findings:
    found = Findings()
    runs = alternate([case("shmqueue", ours.ours_many_workers, workers=256)], plan.repetitions, found.notes)
    for name, what in (("start", "until all have started"), ("whole", "until each has run a task, and all have ended")):
        goal = at_most(3, "s") if name == "whole" else None
        us = _figures(runs["shmqueue"], name)
        found.lines.append(Line(what, us, unit="s", theirs=None, figure=us, figure_unit="s", goal=goal))
    return found


@row("faster-fifo's own scenarios, in small")
def scenarios(plan: Plan) -> Findings:
    """Measure seconds for a tenth of the messages that faster-fifo's published benchmark sends."""
    found = Findings()
    part = plan.size(10, 100)
    shapes = [(1, 1, 200_000), (1, 2, 200_000), (1, 10, 200_000), (10, 1, 100_000), (3, 20, 100_000)]
    if not plan.quick:
        shapes += [(20, 3, 50_000), (20, 20, 50_000)]
    series: dict[str, list[Sample | None]] = {}
    labels = []
    for producers, consumers, published in shapes:
        count = published // part
        shape = {"producers": producers, "consumers": consumers, "messages": count}
        cases = [
            case("shmqueue", ours.ours_messages, **shape),
            case("faster-fifo get", peers.messages, kind="faster-fifo", many=1, **shape),
            case("faster-fifo get_many", peers.messages, kind="faster-fifo", many=100, **shape),
            case("multiprocessing.Queue", peers.messages, kind="multiprocessing", many=1, **shape),
        ]
        measured = samples(cases, plan.repetitions, found.notes)
        labels.append(f"{producers} to {consumers}, {number(producers * count)} messages")
        for each in cases:
            series.setdefault(each.name, []).append(measured.get(each.name))
    title = "faster-fifo's own scenarios, in small: producers to consumers, seconds"
    found.curves.append(Curve(title, "scenario", labels, series, unit="s"))
    found.notes.append(
        "shmqueue has one producer, which sends the messages of all producers; it also knows that each was received"
    )
    return found
