"""Rows that are not rates: balance, latency, memory, commands, idling, the screen."""

from __future__ import annotations

from typing import Any

from benchmarks import commands, ours, peers
from benchmarks.harness import (
    Curve,
    Findings,
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
    take_turns,
)
from benchmarks.jobs import LONGEST_SPIN, SHAPES

TIGHT = "in a tight loop"
PAUSED = "after 0.7 ms"


def _figures(runs: list[Any], name: str) -> Sample:
    return Sample([run[name] for run in runs])


@row("uneven tasks (4,000 of 50 µs, then 40 of 20 ms): makespan over ideal", {"Pool.map": at_most(1.05, "")})
def uneven(plan: Plan) -> Findings:
    cases = [case("shmqueue", ours.ours_uneven), case("Pool.map", peers.pool_uneven, method="map", chunk=None)]
    if not plan.quick:
        cases.append(case("Pool.map in chunks of 10", peers.pool_uneven, method="map", chunk=10))
        cases.append(case("Pool.imap_unordered", peers.pool_uneven, method="imap_unordered", chunk=None))
    measured = samples(take_turns(cases, plan.turns))
    us = measured.pop("shmqueue")
    found = Findings([absolute(name, us, them, unit="") for name, them in measured.items()])
    found.notes.append("each task keeps a core busy for a fixed time; all workers have started before")
    return found


@row(
    "long tasks behind short ones, before them, and among them: makespan over a list schedule",
    dict.fromkeys(SHAPES, at_most(1.05)),
)
def tails(plan: Plan) -> Findings:
    """Compare makespans with those of a list schedule. The ratio is 1 if no task waited while a worker was free."""
    found = Findings()
    runs = take_turns([case(shape, ours.ours_scheduled, shape=shape) for shape in SHAPES], plan.few)
    for shape, each in runs.items():
        found.lines.append(ratio(shape, _figures(each, "makespan"), _figures(each, "schedule"), unit="s"))
    found.notes.append(
        "the list schedule is computed from the times that the tasks took in the same run; tasks of up to "
        f"{LONGEST_SPIN // 1000} ms keep a core busy, longer ones sleep; {ours.PAIR} workers have started and "
        f"run {len(ours.GROW):,} no-ops before"
    )
    return found


@row(
    "20,000 no-ops, one task of 2 s, 3,000 no-ops: results later than 1 s after the start",
    {"late": at_most(2, "results")},
)
def late(plan: Plan) -> Findings:
    us = samples(take_turns([case("late", ours.ours_late, before=20_000, after=3_000)], plan.repetitions))["late"]
    found = Findings([absolute("late", us, None, unit="results")])
    found.notes.append(f"the long task sleeps, and its result is one of them; {ours.PAIR} workers have started before")
    return found


@row(
    "one task to idle workers and back, median",
    {
        f"Pool.apply, {TIGHT}": at_most(0.6),
        f"Pool.apply, {PAUSED}": at_most(0.4),
        f"ProcessPoolExecutor.submit().result(), {TIGHT}": at_most(0.9),
        f"ProcessPoolExecutor.submit().result(), {PAUSED}": at_most(0.9),
        "Pool.apply, until the function begins": at_most(0.5),
    },
    "two processes have to wake up, and each runs Python code around the task",
)
def latency(plan: Plan) -> Findings:
    """Measure submit() and results(), in a tight loop and after a pause; futures; and the way there alone."""
    found = Findings()
    for pause, where, times in ((0.0, TIGHT, 300), (0.0007, PAUSED, 150)):
        shared = {"times": times, "pause": pause}
        cases = [
            case("shmqueue", ours.ours_there_and_back, **shared),
            case("Executor", ours.ours_future, **shared),
            case("Pool.apply", peers.pool_apply, **shared),
            case("ProcessPoolExecutor", peers.executor_future, **shared),
        ]
        us, future, pool, executor = samples(take_turns(cases, plan.turns)).values()
        found.lines.append(ratio(f"Pool.apply, {where}", us, pool, unit="µs"))
        found.lines.append(ratio(f"ProcessPoolExecutor.submit().result(), {where}", future, executor, unit="µs"))
    cases = [
        case("shmqueue", ours.ours_wake, times=100),
        case("a bare pipe", peers.pipe_wake, times=100),
        case("Pool.apply", peers.pool_wake, times=100),
    ]
    there = samples(take_turns(cases, plan.turns))
    for name in ("Pool.apply", "a bare pipe"):
        found.lines.append(ratio(f"{name}, until the function begins", there["shmqueue"], there[name], unit="µs"))
    return found


@row(
    "Executor.map of 20,000 trivial calls, processes running already: time",
    {"chunksize=500": at_most(2), "chunksize=1": at_most(0.25)},
    "a chunk of calls is pickled as a whole on both sides; what is left is one task",
)
def executor_map(plan: Plan) -> Findings:
    found = Findings()
    for chunk in (500, 1):
        shared = {"calls": 20_000, "chunk": chunk}
        cases = [case("us", ours.ours_calls, **shared), case("them", peers.executor_calls, **shared)]
        us, them = (seconds.scaled(1000) for seconds in samples(take_turns(cases, plan.turns)).values())
        found.lines.append(ratio(f"chunksize={chunk}", us, them, unit="ms"))
    return found


FEW, MANY = 100_000, 5_000_000  # lines of a task file


@row(
    "peak memory, by lines of a task file",
    {
        f"{FEW:,} lines, supervisor": at_most(38, "MiB"),
        f"{MANY:,} lines, supervisor": at_most(38, "MiB"),
        f"{FEW:,} lines, as a module, supervisor": at_most(38, "MiB"),
        "itself, with fewer lines, supervisor": at_most(1.05),
    },
    "compiling the file takes 16 MiB",
)
def memory(plan: Plan) -> Findings:
    found = Findings()
    for lines, turns in ((FEW, plan.repetitions), (MANY, 1)):
        cases = [
            case("shmqueue", commands.ours_memory, lines=lines),
            case("Pool.map", commands.pool_memory, lines=lines),
        ]
        us, them = alternate(cases, turns, found.notes).values()
        for whose in ("supervisor", "largest worker"):
            name = f"{lines:,} lines, {whose}"
            found.lines.append(absolute(name, _figures(us, whose), _figures(them, whose), unit="MiB"))
    module = case("shmqueue as a module", commands.ours_memory, lines=FEW, command=commands.MODULE)
    runs = alternate([module], plan.repetitions, found.notes)[module.name]
    for at, whose in enumerate(("supervisor", "largest worker")):
        few, many = (line.ours for line in found.lines[at::2][:2])
        found.lines.append(ratio(f"itself, with fewer lines, {whose}", many, few, unit="MiB"))
    found.lines.append(
        absolute(f"{FEW:,} lines, as a module, supervisor", _figures(runs, "supervisor"), None, unit="MiB")
    )
    found.notes.append("memory that processes share counts in each of them; the segment is 35 MiB, touched where used")
    return found


@row(
    "2,000 lines of `true` with --shell",
    {"xargs -P": at_most(1.15)},
    "compiling the file takes 0.07 s, and each shell is started through subprocess, in Python",
)
def shell(plan: Plan) -> Findings:
    found = Findings()
    cases = [case("shmqueue", commands.ours_shell, lines=2000), case("xargs -P", commands.xargs_shell, lines=2000)]
    if not plan.quick:
        cases.append(case("GNU parallel", commands.parallel_shell, lines=2000))
    times = samples(alternate(cases, plan.few, found.notes))
    us = times.pop("shmqueue")
    found.lines += [ratio(name, us, them, unit="s") for name, them in times.items()]
    return found


@row("idle, 8 workers, share of a core", {"idle": at_most(0.3, "%")})
def idle(plan: Plan) -> Findings:
    seconds = 8
    found = Findings()
    cases = [case("idle", commands.ours_idle, workers=8, seconds=seconds)]
    us = samples(alternate(cases, plan.repetitions, found.notes))["idle"]
    found.lines.append(absolute("idle", us, None, unit="%"))
    found.notes.append(f"a command whose input, a pipe, is silent for {seconds} s; supervisor and workers together")
    return found


@row(
    "the screen, on against off",
    dict.fromkeys(("drawing, by time", "off, by time", "off, by processor time"), at_most(2, "%")),
    "two runs of a second differ by as much; the first line says what drawing itself takes",
)
def screen(plan: Plan) -> Findings:
    lines = 1_500_000
    found = Findings()
    drawing = samples(alternate([case("drawing", ours.ours_drawing, tasks=lines)], plan.repetitions, found.notes))
    found.lines.append(absolute("drawing, by time", drawing["drawing"], None, unit="%"))
    cases = [case(f"screen {state}", commands.ours_screen, lines=lines, screen=state) for state in ("on", "off")]
    runs = alternate(cases, plan.few, found.notes)
    for key, unit, sign, name in (("rate", "tasks/s", -1, "off, by time"), ("cpu", "µs", 1, "off, by processor time")):
        on, off = (_figures(runs[each.name], key) for each in cases)
        share = Sample([sign * 100 * (value - 1) for value in on.over(off).values])
        found.lines.append(Line(name, on, unit, off, figure=share, figure_unit="%"))
    return found


@row(
    "start: few tasks, from the command or the call",
    {
        "command, all 10 lines": at_most(100, "ms"),
        "module, all 10 lines": at_most(100, "ms"),
        "parallel_map of 10": at_most(1.3),
    },
    "the command compiles its file and starts workers that watch each other; Pool's script does neither",
)
def start(plan: Plan) -> Findings:
    tasks = 10
    found = Findings()
    cases = [
        case("shmqueue --call", commands.ours_start, tasks=tasks),
        case("script with Pool.map", commands.pool_start, tasks=tasks),
        case("shmqueue --shell", commands.ours_start_shell, tasks=tasks),
        case("xargs -P", commands.xargs_start, tasks=tasks),
        case("shmqueue as a module", commands.ours_start, tasks=tasks, command=commands.MODULE),
    ]
    runs = alternate(cases, plan.turns, found.notes)
    for us, them, what in (
        (cases[0], cases[1], "command"),
        (cases[4], cases[1], "module"),
        (cases[2], cases[3], "shell"),
    ):
        for key, until in (("first", "first task"), ("all", f"all {tasks} lines")):
            mine, other = (_figures(runs[each.name], key).scaled(1000) for each in (us, them))
            found.lines.append(absolute(f"{what}, {until}", mine, other, unit="ms"))
    cases = [case("parallel_map", ours.ours_small, tasks=tasks), case("Pool.map", peers.pool_small, tasks=tasks)]
    mine, other = (each.scaled(1000) for each in samples(take_turns(cases, 3 * plan.turns)).values())
    found.lines.append(ratio(f"parallel_map of {tasks}", mine, other, unit="ms"))
    return found


@row("open and close, with 1,000,000 payloads in memory", {"Pool": at_most(50, "ms")})
def opening(plan: Plan) -> Findings:
    cases = [case("shmqueue", ours.ours_open, tasks=1_000_000), case("Pool", peers.pool_open, tasks=1_000_000)]
    mine, other = (each.scaled(1000) for each in samples(take_turns(cases, 2 * plan.turns)).values())
    return Findings([absolute("Pool", mine, other, unit="ms")])


@row(
    "import, compiled, over a bare interpreter",
    {"concurrent.futures.process": at_most(18, "ms")},
    "the goal supposes that concurrent.futures.process takes 19 ms",
)
def imports(plan: Plan) -> Findings:
    found = Findings()
    cases = [
        case("shmqueue", commands.ours_import, module="shmqueue"),
        case("concurrent.futures.process", commands.ours_import, module="concurrent.futures.process"),
    ]
    us, them = samples(alternate(cases, plan.repetitions, found.notes)).values()
    found.lines.append(absolute(cases[1].name, us, them, unit="ms"))
    return found


@row("256 workers under fork, from the call", {"until each has run a task, and all have ended": at_most(3, "s")})
def many_workers(plan: Plan) -> Findings:
    runs = take_turns([case("shmqueue", ours.ours_many_workers, workers=256)], plan.repetitions)["shmqueue"]
    parts = (("start", "until all have started"), ("whole", "until each has run a task, and all have ended"))
    return Findings([absolute(name, _figures(runs, key), None, unit="s") for key, name in parts])


@row("faster-fifo's own scenarios, in small")
def scenarios(plan: Plan) -> Findings:
    """Measure seconds for a tenth of the messages that faster-fifo's published benchmark sends."""
    found = Findings()
    shapes = [(1, 1, 200_000), (1, 2, 200_000), (1, 10, 200_000), (10, 1, 100_000), (3, 20, 100_000)]
    shapes += [(20, 3, 50_000), (20, 20, 50_000)]
    series: dict[str, list[Sample | None]] = {}
    labels = []
    for producers, consumers, published in shapes:
        count = published // 10
        shape = {"producers": producers, "consumers": consumers, "messages": count}
        cases = [
            case("shmqueue", ours.ours_messages, **shape),
            case("faster-fifo get", peers.messages, kind="faster-fifo", many=1, **shape),
            case("faster-fifo get_many", peers.messages, kind="faster-fifo", many=100, **shape),
            case("multiprocessing.Queue", peers.messages, kind="multiprocessing", many=1, **shape),
        ]
        measured = samples(alternate(cases, plan.repetitions, found.notes))
        labels.append(f"{producers} to {consumers}, {number(producers * count)} messages")
        for each in cases:
            series.setdefault(each.name, []).append(measured.get(each.name))
    title = "faster-fifo's own scenarios, in small: producers to consumers, seconds"
    found.curves.append(Curve(title, "scenario", labels, series, unit="s"))
    found.notes.append(
        "shmqueue has one producer, which sends the messages of all producers; it also knows that each was received"
    )
    return found
