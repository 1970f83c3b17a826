"""Everything that makes BENCHMARKS.md: run `python -m benchmarks`.

    jobs.py      the functions that tasks call, and their payloads
    harness.py   runs each measurement in its own process; samples, goals, rows
    ours.py      measures shmqueue inside a Python process
    peers.py     measures other systems in the same way
    commands.py  measures command lines
    floor.py     the packing loop and the dispatch loop alone, without synchronization
    costs.py     where the processor time of a task goes
    kept.py      the figures of an earlier quick run (kept.json), which a later one is compared with
    rates.py, shapes.py, kinds.py    the rows, one function each
    report.py, plots.py              write BENCHMARKS.md and draw its plots
    tools/       what is no benchmark: a storm of kills, the table of strategies, the picture in README

Every measurement checks all values before it returns a rate. If a task is missing or a value is wrong, no rate is
printed, and the command exits with 1.
"""
