"""The floor: the packing loop and the dispatch loop of this design with nothing between them. No lock, no second
process, no wake-up, no bookkeeping of tasks: what is left is what any such design pays.
"""

from __future__ import annotations

import struct
import time

from benchmarks.harness import CORES
from benchmarks.jobs import JOBS, WrongError, payloads

SLOT, BLOCK = 128, 64  # bytes of a slot, slots that one struct packs
PACK, UNPACK = struct.Struct("=" + "8x120p" * BLOCK), struct.Struct("=" + "4xI120p" * BLOCK)


def floor(tasks: int) -> float:
    """Tasks a second if the two loops alone were spread evenly over the cores."""
    items = payloads(tasks // BLOCK * BLOCK)
    ring = memoryview(bytearray(SLOT * BLOCK * 256))
    words = memoryview(bytearray(8)).cast("Q")
    calls, clock, done, places = {0: JOBS["noop"]}, time.perf_counter, 0, len(ring) // PACK.size
    start = clock()
    for block in range(len(items) // BLOCK):
        at = block % places * PACK.size
        PACK.pack_into(ring, at, *items[block * BLOCK : block * BLOCK + BLOCK])
        fields = UNPACK.unpack_from(ring, at)
        for fn_id, payload in zip(fields[::2], fields[1::2]):
            if calls[fn_id](payload) is None:
                done += 1
                words[0] = done
    seconds = clock() - start
    if words[0] != len(items):
        raise WrongError(f"{len(items):,} tasks, {words[0]:,} done")
    return len(items) / (seconds / CORES)
