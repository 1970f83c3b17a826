"""What BENCHMARKS.md is made from: `python -m benchmarks`.

    jobs.py      the functions that tasks call, and their payloads
    harness.py   a measurement is a process of its own; alternation, median and range, goals
    ours.py      what is measured of shmqueue in a process          peers.py     the same of others
    commands.py  what is measured of command lines                  floor.py     the loops without synchronization
    costs.py     where the processor time of a task goes
    rates.py, shapes.py, growth.py    the rows, one function each
    report.py, plots.py               BENCHMARKS.md and its drawings
    storm.py     workers killed under load              compare.py   the strategies, by their tests and rates
    screen.py    makes screen.svg, the picture in the README

Every measurement checks what came back before it has a rate. One that finds a task missing or a value wrong prints
no rate, and the command exits with 1.
"""
