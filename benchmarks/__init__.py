"""Everything that makes BENCHMARKS.md: run `python -m benchmarks`.

    jobs.py      the functions that tasks call, and their payloads
    harness.py   runs measurements, which take turns; samples, goals, rows
    ours.py      measures shmqueue inside a Python process
    peers.py     measures other systems in the same way
    commands.py  measures command lines
    costs.py     where the processor time of a task goes
    rates.py, shapes.py, kinds.py    the rows, one function each, with their goals
    kept.py      the figures of the last whole run on each processor (kept.json)
    report.py    what a run found: for the terminal, beside what was kept, and internals.md
    document.py  BENCHMARKS.md and README's table, out of what was kept
    plots.py     draws the plots
    tools/       what is no benchmark: a storm of kills, the table of strategies, README's picture, a count of calls

Every measurement checks all values before it returns a rate. If a task is missing or a value is wrong, no rate is
printed, and the command exits with 1.
"""
