"""How the rate would grow with more cores: a formula, and a simulation that shows what the formula leaves out.

Both have one supervisor and a core for each process. A task costs the supervisor `supervisor` seconds, and its worker
`worker` seconds besides the `task` itself.
"""

from __future__ import annotations

import heapq

from shmqueue import BATCH_SECONDS

MOST = 1024  # tasks in a batch


def rate(supervisor: float, worker: float, task: float, workers: int) -> float:
    """Return tasks a second: those of all workers, but no more than the supervisor can hand out and bring back."""
    return min(workers / (worker + task), 1 / supervisor)


def simulate(supervisor: float, worker: float, task: float, workers: int, batches: int = 20_000) -> float:
    """Return tasks a second of a simulated run of so many batches.

    A worker that is free asks for a batch. The supervisor serves one request after the other: it brings the last
    batch back, and hands out the next one. A worker has two batches, so that it can run one while the other waits.
    """
    size = max(1, min(MOST, int(BATCH_SECONDS / (worker + task))))
    requests = [(0.0, worker_number) for worker_number in range(workers) for _ in range(2)]
    free_at = [0.0] * workers
    supervisor_free = 0.0
    for _ in range(batches):
        asked, number = heapq.heappop(requests)
        supervisor_free = max(supervisor_free, asked) + size * supervisor
        free_at[number] = max(free_at[number], supervisor_free) + size * (worker + task)
        heapq.heappush(requests, (free_at[number], number))
    return batches * size / max(free_at)
