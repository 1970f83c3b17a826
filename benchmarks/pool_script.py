"""Run a file of tasks with multiprocessing.Pool, as a user would: `python benchmarks/pool_script.py FILE JOB`.

It prints the number of tasks and the smallest value.
"""

from __future__ import annotations

import multiprocessing
import sys

from jobs import JOBS


def main(path: str, job: str) -> None:
    with open(path, "rb") as file, multiprocessing.Pool() as pool:
        values = pool.map(JOBS[job], file)
    print(len(values), min(values).decode() if values[0] else "")


if __name__ == "__main__":
    main(*sys.argv[1:])
