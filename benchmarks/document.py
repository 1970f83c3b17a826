"""BENCHMARKS.md and what README says of speed, out of the figures that were kept of each processor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from benchmarks import kinds, rates, shapes  # noqa: F401  # they fill ROWS
from benchmarks.harness import ROOT, ROWS, TIMES, number
from benchmarks.kept import Figure, Machine
from benchmarks.report import joined, table

BENCHMARKS = ROOT / "BENCHMARKS.md"
README = ROOT / "README.md"
BEST = "`Pool.map` at its best chunk size"
# The rows that a user decides by. Each has lines: a label, and the figures, each by its row and its name there.
TWELVE: dict[str, dict[str, list[tuple[str, str]]]] = {
    "1,000,000 no-ops of 93 bytes, start and end included": {BEST: [("noop", "Pool.map")]},
    "the same, value returned, in order": {BEST: [("returned", "Pool.map")]},
    "the same, as TaskResults as they finish": {
        "`Pool.imap_unordered` at its best chunk size": [("finish", "Pool.imap_unordered")],
        "its default": [("finish", "Pool.imap_unordered, default")],
        "`map()`, which gives values alone: time": [("records", "map()")],
    },
    "93 bytes, processes running already": {
        f"no-op: {BEST}": [("warm", "no-op")],
        f"value returned: {BEST}": [("warm", "echo")],
        "no-op beside a busy loop on one core: `Pool.map` there": [("neighbour", "Pool.map there")],
        "no-op with 64 workers: 2 workers": [("workers", "the first tasks")],
    },
    f"value returned, by bytes, processes running already, against {BEST}": {
        **{
            f"{size} bytes": [("sizes", f"{size} bytes")]
            for size in ("8", "93", "120", "1,024", "16,384", "262,144", "2,097,152")
        },
        "the largest step from one power of two to the next: time": [("doubling", "the largest step")],
    },
    f"by kind, processes running already, against {BEST}": {
        f"{kind}: no-op; value returned": [("kinds", f"no-op, {kind}"), ("kinds", f"echo, {kind}")]
        for kind in ("str", "int", "float", "tuple", "dict", "object, with codec=pickle")
    },
    "4,000 tasks of 50 µs, then 40 of 20 ms; long tails": {
        "time over the ideal one: `Pool.map`": [("uneven", "Pool.map")],
        "tails: time over that of a list schedule": [
            ("tails", "4,000 of 50 µs, then 2 of 1 s"),
            ("tails", "1 of 1 s, then 1,500 of 1 ms"),
            ("tails", "2,000 by Pareto"),
        ],
    },
    "one task to idle workers and back: time": {
        "`Pool.apply`, in a tight loop": [("latency", "Pool.apply, in a tight loop")],
        "`Pool.apply`, after 0.7 ms": [("latency", "Pool.apply, after 0.7 ms")],
        "`submit().result()` of `ProcessPoolExecutor`, in a tight loop": [
            ("latency", "ProcessPoolExecutor.submit().result(), in a tight loop")
        ],
        "the same, after 0.7 ms": [("latency", "ProcessPoolExecutor.submit().result(), after 0.7 ms")],
    },
    "`Executor.map` of 20,000 trivial calls: time": {
        "`ProcessPoolExecutor`, both with `chunksize=500`": [("executor_map", "chunksize=500")],
        "the same, both without": [("executor_map", "chunksize=1")],
    },
    "2,000 lines of `true` with `--shell`: time": {"`xargs -P`": [("shell", "xargs -P")]},
    "peak memory of the supervisor": {
        "100,000 lines: `Pool.map`": [("memory", "100,000 lines, supervisor")],
        "5,000,000 lines: `Pool.map`": [("memory", "5,000,000 lines, supervisor")],
        "100,000 lines, as `python -m shmqueue`": [("memory", "100,000 lines, as a module, supervisor")],
    },
    "start": {
        "a command with ten lines: a script with `Pool`": [("start", "command, all 10 lines")],
        "the same as `python -m shmqueue`, which is compiled once": [("start", "module, all 10 lines")],
        "`parallel_map` of ten tasks: `Pool.map`, time": [("start", "parallel_map of 10")],
        "open and close, 1,000,000 payloads in memory: `Pool`": [("opening", "Pool")],
        "import, compiled: `concurrent.futures.process`": [("imports", "concurrent.futures.process")],
    },
}
PICTURES = {
    "chunks-noop": "1,000,000 no-ops of 93 bytes: rate against the chunk size of Pool.map",
    "payload": "Rate against bytes of a payload",
    "workers": "Rate against workers, their start and end included",
}
MOST_NAMED = 4  # missed goals of a row that are named one by one

PREFACE = """
Written by `python -m benchmarks`; [internals](benchmarks/internals.md) has all other rows, curves and costs, and
[calls](benchmarks/calls.md) counts calls and copies.
A figure is the median of seven turns, or of five or three if they are long, with its range; then what both sides took.
Where nothing else is said it is a ratio of rates. The systems take turns in small parts, and a ratio is taken turn by
turn. All values are checked before there is a rate. **Bold**: misses the goal. `python -m benchmarks quick` takes two
or three minutes, and compares with the figures that were kept of the same processor; `--rows NAME …` measures single
rows.
"""
FAULTS = """
Page faults are part of each cold row. The million payloads exist before the workers are forked, so each page of them is
copied when this process first touches it, for `Pool` as for shmqueue. That was measured by a fork and a loop that only
slices the list, against the same loop without a fork. The rows with processes running already say more about the queue.
"""
NOT_EQUIVALENT = """\
- `Pool`, `ProcessPoolExecutor`, joblib, loky, mpire and Pebble pickle, so they carry any Python object. shmqueue
  carries plain data, and other objects only with a codec. Payloads are bytes but in the row of kinds, on both sides.
- `Pool.map` holds all tasks and values in memory, and `imap_unordered` reads its whole input ahead. shmqueue reads its
  input only while there is room.
- shmqueue keeps an account of every task: one outcome whatever is killed, and its time, or that of a run of short ones.
  As they finish, its results are records. `Pool` returns the value alone, and waits for ever when a worker is killed.
- The chunk sizes of `Pool` were chosen by hand, the best of several for these very tasks. The batches of shmqueue size
  themselves.
- `xargs` does not keep the output of each line with its time and its exit code, and mixes that of lines that run at the
  same time.
- A list schedule is no system. It gives each task, in input order, to the first free worker, at no cost. It is computed
  from the times that the tasks took in the same run. Other makespans may be a little below it.
- faster-fifo and `multiprocessing.Queue` (in internals) are queues. They know nothing of tasks, and allow several
  producers.
"""


def missed(row: str, name: str, figure: Figure) -> bool:
    goal = ROWS[row].goals.get(name)
    return goal is not None and not goal.met(figure.median)


def cell(machine: Machine, keys: Sequence[tuple[str, str]]) -> str:
    """Return figures as a cell of the table. One figure alone has what both sides took beside it."""
    parts = []
    for row, name in keys:
        figure = machine.figure(row, name)
        if figure is None:
            continue
        median = number(figure.median, figure.unit)
        parts.append(f"**{median}** {figure.spread()}" if missed(row, name, figure) else f"{median} {figure.spread()}")
        if len(keys) == 1 and figure.unit == TIMES:
            us, them = (number(value, figure.per) for value in (figure.ours, figure.theirs or 0))
            parts.append(f"{us} against {them} {figure.per}")
        elif len(keys) == 1 and figure.theirs is not None:
            parts.append(f"the other {number(figure.theirs, figure.per)} {figure.per}".rstrip())
    return "; ".join(parts) or "–"


def twelve(machines: Mapping[str, Machine]) -> str:
    """Return the table of the rows that a user decides by, with a column for each processor."""
    rows = []
    for title, lines in TWELVE.items():
        for at, (label, keys) in enumerate(lines.items()):
            goals = (ROWS[row].goals.get(name) for row, name in keys)
            goal = ", ".join(dict.fromkeys(each.text().strip() for each in goals if each)) or "–"
            rows.append([title if at == 0 else "", label, goal, *(cell(each, keys) for each in machines.values())])
    heads = [f"{processor}, commit {each.facts['commit']}" for processor, each in machines.items()]
    return table(["what", "against", "goal", *heads], rows)


def _all_missed(machine: Machine) -> str:
    """Return a list of the rows that missed their goals, with the reasons."""
    lines = []
    first = [row for each in TWELVE.values() for keys in each.values() for row, _ in keys]
    for row in dict.fromkeys([*first, *ROWS]):  # as in the table, then the others
        figures = machine.rows.get(row, {})
        found = [
            f"{name} {number(figure.median)} {figure.unit}".rstrip() + f" ({ROWS[row].goals[name].text().strip()})"
            for name, figure in figures.items()
            if missed(row, name, figure)
        ]
        if found:
            more = f", and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
            reason = f" Why: {ROWS[row].reason}." if ROWS[row].reason else ""
            lines.append(f"- {ROWS[row].title}: {'; '.join(found[:MOST_NAMED])}{more}.{reason}")
    return "\n".join(lines) or "None."


def _faults(machines: Mapping[str, Machine]) -> str:
    """Return the paragraph on what part of a cold run are page faults, with a line for each processor."""
    shares = []
    for processor, machine in machines.items():
        noop, echo = (machine.figure("floor", name) for name in ("of a cold no-op", "of a cold echo"))
        if noop and echo and noop.theirs:
            percent = [f"{number(each.median)} {each.spread()} of {number(each.ours)} ns" for each in (noop, echo)]
            shares.append(
                f"On {processor} they take {number(noop.theirs)} ns a task: {percent[0]} for a no-op, "
                f"{percent[1]} with a value."
            )
    return "\n".join([FAULTS.strip(), *shares])


def benchmarks(machines: Mapping[str, Machine]) -> str:
    """Return BENCHMARKS.md. The processor that was measured last comes first."""
    processor = next(iter(machines))
    facts = [
        f"- {name}: {', '.join(each.facts[fact] for fact in ('Python', 'system', 'took'))}"
        for name, each in machines.items()
    ]
    return joined(
        "# Benchmarks",
        PREFACE.strip(),
        "\n".join(facts),
        "## Twelve rows",
        twelve(machines),
        _faults(machines),
        "## Pictures",
        f"On {processor}.",
        "\n".join(f"![{title}](benchmarks/plots/{name}.svg)" for name, title in PICTURES.items()),
        "## Missed",
        f"On {processor}.",
        _all_missed(machines[processor]),
        "## What is not equivalent",
        NOT_EQUIVALENT.strip(),
    )


# What README says of speed.

MARKS = "<!-- begin of speed, written by python -m benchmarks -->", "<!-- end of speed -->"
SPEED = """
On one machine ({processor}, commit {commit}), both sides taking turns in one run:

| | shmqueue against the other |
|---|---|
| 1,000,000 tasks of 93 bytes, start and end included, against `Pool.map` at its best chunk size | \
{noop/Pool.map} times its rate; if each returns a value, {returned/Pool.map} times |
| values of 1 KiB, 16 KiB, 256 KiB and 2 MiB, processes running already, against the same | {sizes/1,024 bytes}, \
{sizes/16,384 bytes}, {sizes/262,144 bytes} and {sizes/2,097,152 bytes} times its rate |
| 4,000 tasks of 50 µs, then 40 of 20 ms | {uneven/Pool.map/ours} times the ideal time. `Pool.map` takes \
{uneven/Pool.map/theirs} times, and {uneven/Pool.map in chunks of 10/theirs} times in chunks of 10 |
| values of 8 and of 120 bytes; no value, but a busy loop on one processor; both against `Pool.map` at its best | \
{sizes/8 bytes} and {sizes/120 bytes} times its rate; {neighbour/Pool.map there} times |
| the start: `parallel_map` of ten tasks against `Pool.map`; a command with ten lines against a script with `Pool` | \
{start/parallel_map of 10} times its time; {start/command, all 10 lines} ms, as `python -m shmqueue` \
{start/module, all 10 lines} ms, the script {start/command, all 10 lines/theirs} ms |

Bold: here the other is better. What else to know:

- Functions that do nearly nothing with a str, an int, a tuple or a dict have {kinds/no-op, str}, {kinds/no-op, int}, \
{kinds/no-op, tuple} and {kinds/no-op, dict} times the rate of `Pool.map`, which pickles a whole chunk at once.
- One call after the other through an Executor takes \
{latency/ProcessPoolExecutor.submit().result(), in a tight loop} times the time of `ProcessPoolExecutor`.
- 2,000 lines of `true` with `--shell` take {shell/xargs -P} times the time of `xargs -P2`.
- 100,000 lines take {memory/100,000 lines, supervisor} MiB of memory, `Pool.map` \
{memory/100,000 lines, supervisor/theirs}; 5,000,000 lines {memory/5,000,000 lines, supervisor} and \
{memory/5,000,000 lines, supervisor/theirs}."""
UNKNOWN = "{–}"


def speed(processor: str, machine: Machine) -> str:
    """Return SPEED with the figures of a processor. A line is left out if one of its figures was not kept.

    {ROW/LINE} is a figure, bold if the other is better, and {ROW/LINE/SIDE} what one side took.
    """

    def quoted(match: re.Match[str]) -> str:
        if match[1] == "processor":
            return processor
        if match[1] == "commit":
            return machine.facts["commit"]
        row, name, *side = match[1].split("/")
        figure = machine.figure(row, name)
        if figure is None:
            return UNKNOWN
        if side:
            return number(getattr(figure, side[0]), figure.per)
        text = number(figure.median)
        return f"**{text}**" if figure.is_worse(ROWS[row].goals.get(name)) else text

    lines = (re.sub(r"\{(.*?)\}", quoted, line) for line in SPEED.splitlines())
    return "\n".join(line for line in lines if UNKNOWN not in line)


def write(machines: Mapping[str, Machine]) -> None:
    """Write BENCHMARKS.md, and README's part for the processor that was measured last."""
    BENCHMARKS.write_text(benchmarks(machines))
    before, _, rest = README.read_text().partition(MARKS[0])
    _, closed, after = rest.partition(MARKS[1])
    if not closed:
        raise SystemExit(f"{README}: no marks of speed")
    processor, machine = next(iter(machines.items()))
    README.write_text(f"{before}{MARKS[0]}{speed(processor, machine)}\n{MARKS[1]}{after}")
