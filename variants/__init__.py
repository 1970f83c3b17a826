# SPDX-License-Identifier: MIT
"""The strategies by name: `variants.strategies["slot_state"]` is a class for Supervisor(queue=...).

A module is imported when its class is asked for, so that `python -m variants.NAME` runs it once. To use one in your
own package, copy its file and strategy.py next to shmqueue.py, and worker_lanes.py for slot_state.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import ClassVar

import shmqueue


class Strategies(Mapping[str, type[shmqueue.SharedTaskQueue]]):
    """Name to class, the built-in one first."""

    _places: ClassVar[dict[str, str]] = {
        "lockf": "shmqueue:SharedTaskQueue",
        "single_lock": "variants.single_lock:SingleLock",
        "robust_mutex": "variants.robust_mutex:RobustMutexQueue",
        "semaphore": "variants.semaphore:SemaphoreQueue",
        "worker_lanes": "variants.worker_lanes:WorkerLanes",
        "slot_state": "variants.slot_state:SlotState",
    }

    def __getitem__(self, name: str) -> type[shmqueue.SharedTaskQueue]:
        module, _, attribute = self._places[name].partition(":")
        strategy: type[shmqueue.SharedTaskQueue] = getattr(importlib.import_module(module), attribute)
        return strategy

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


strategies = Strategies()
