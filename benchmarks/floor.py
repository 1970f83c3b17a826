"""The floor: the packing loop and the dispatch loop of this design, with nothing between them.

There is no lock, no second process, no wake-up and no account of tasks. Every design of this kind pays what is left.
"""

from __future__ import annotations

import struct
import time

from benchmarks.harness import CORES
from benchmarks.jobs import JOBS, WrongError, payloads

SLOT = 128  # bytes of a slot
BLOCK = 64  # slots that one struct packs
PACK = struct.Struct("=" + "8x120p" * BLOCK)
UNPACK = struct.Struct("=" + "4xI120p" * BLOCK)


def floor(tasks: int) -> float:
    """Return tasks a second, as if the two loops were spread evenly over the cores."""
    items = payloads(tasks // BLOCK * BLOCK)
    ring = memoryview(bytearray(SLOT * BLOCK * 256))
    words = memoryview(bytearray(8)).cast("Q")
    calls = {0: JOBS["noop"]}
    blocks_in_ring = len(ring) // PACK.size
    done = 0
    start = time.perf_counter()
    for block in range(len(items) // BLOCK):
        at = block % blocks_in_ring * PACK.size
        PACK.pack_into(ring, at, *items[block * BLOCK : block * BLOCK + BLOCK])
        fields = UNPACK.unpack_from(ring, at)
        for fn_id, payload in zip(fields[::2], fields[1::2]):
            if calls[fn_id](payload) is None:
                done += 1
                words[0] = done
    seconds = time.perf_counter() - start
    if words[0] != len(items):
        raise WrongError(f"{len(items):,} tasks, {words[0]:,} done")
    return len(items) / (seconds / CORES)
