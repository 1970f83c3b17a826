"""Deliberate mistakes, one at a time, each of which a test must catch.

    python -m tests.tools.mutants [--list] [--jobs N] [NAME ...]

A row of MUTANTS names a mistake, says why it would hurt a user, and names the tests that should catch it. A test that
is added or changed can so be shown to see something.

First all of these tests run on an unchanged copy of the project: a test that fails there, or is skipped, catches
nothing. Then each mistake is made in a copy of its own, in a temporary folder, and its tests run there:

    caught     a test fails by what it asserts
    survived   all tests pass
    timed out  a test waits too long. That is a find only if the row says that the mistake is a hang: a machine that is
               busy would look the same
    broken     no test ran to its end, as if the text were no program any more
    left out   it is one in variants/dask_cluster.py, and `distributed` is not installed. `tox -e mutants` installs it

Whatever a mistake leaves behind is ended and removed. The exit code is 1 unless every mistake is caught. A row whose
old text is not in its file exactly once is an error.
"""

import argparse
import contextlib
import importlib.util
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple

import shmqueue
from tests.helpers import ROOT, processes_in

MARK = "SHMQUEUE_MUTANT"  # in the environment of all processes of a run
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "plots")
PATIENCE = 4  # a run may take so many times what its tests take on the unchanged copy,
SPARE_SECONDS = 20.0  # and so much more
interrupted = threading.Event()  # by Ctrl-C: what runs is ended
WAITED = ("Timeout (>", "TimeoutExpired", "TimeoutError")  # in the message of a test that has waited too long


class Mutant(NamedTuple):
    """A mistake: the text `old` of a file, which is there once, becomes `new`. hang: it makes a test wait for ever."""

    name: str
    why: str
    old: str
    new: str
    tests: tuple[str, ...]
    file: str = "shmqueue.py"
    hang: bool = False


DASK = "variants/dask_cluster.py"


def explored(*names):
    """Return the ids of these scenarios of the explorer."""
    return tuple(f"test_explorer.py::test_no_schedule_goes_wrong[{name}]" for name in names)


MUTANTS = (
    # The queue: positions, claims, and what a dead worker leaves.
    Mutant(
        "room-one-too-many",
        "A full ring is written over: tasks are lost.",
        "return int(self.num_slots - (self._pushed - self._claimed))",
        "return int(self.num_slots - (self._pushed - self._claimed)) + 1",
        explored("small ring-1 preemptions"),
    ),
    Mutant(
        "repair-of-one-half",
        "After a death in a claim, tasks are run twice.",
        "for half in itertools.chain.from_iterable(self.halves):\n            if",
        "for half, _ in self.halves:\n            if",
        explored("nothing returned-1 kills"),
    ),
    Mutant(
        "claim-of-more-than-a-half",
        "A worker claims more tasks than its lane has room for.",
        "count = min(self.batch, self.share(words[PUSHED] - first, limit))",
        "count = self.share(words[PUSHED] - first, limit + self.batch)",
        ("test_layout.py::test_the_ring_is_a_queue_whatever_the_order_of_pushes_and_claims",),
    ),
    Mutant(
        "no-fair-share",
        "One worker claims everything, and the others have nothing to do until it is halted.",
        "return int(min(limit, available, max(-(-available // (2 * self.num_workers)), limit // 8)))",
        "return int(min(limit, available))",
        ("test_layout.py::test_a_worker_claims_no_more_than_its_share",),
    ),
    Mutant(
        "successor-told-to-leave",
        "The successor of a worker that was told to leave leaves as well, and so on.",
        "        words[status + LEAVE] = 0\n",
        "",
        ("test_contract.py::test_a_worker_told_to_leave_gives_back_its_lane[lockf]",),
    ),
    Mutant(
        "dead-batch-kept",
        "The screen shows the task of a dead worker as that of its successor.",
        "            words[half.end] = words[half.first]\n        words[status + PUBLISHED]",
        "            pass\n        words[status + PUBLISHED]",
        ("test_supervisor.py::test_a_new_worker_has_nothing_in_hand_of_its_predecessor",),
    ),
    Mutant(
        "bell-of-a-dead-process",
        "A new worker that falls asleep is not woken, if its predecessor was woken from a sleep of the same number.",
        "        self.rung = 0\n        self.killed_for = None\n",
        "        rung = self.rung\n        self.rung = 0\n        self.rung = rung\n        self.killed_for = None\n",
        explored("one after the other-1 kills"),
    ),
    Mutant(
        "asleep-word-of-a-dead-worker",
        "A dead worker counts as asleep: it is rung instead of one that lives.",
        "words[status + LEAVE] = 0\n        words[status + ASLEEP] = 0\n",
        "words[status + LEAVE] = 0\n        asleep = words[status + ASLEEP]\n        words[status + ASLEEP] = 0\n"
        "        words[status + ASLEEP] = asleep\n",
        explored("nothing returned-1 kills"),
    ),
    Mutant(
        "wrap-of-the-ring",
        "Tasks at the end of the ring are read from beyond it.",
        "    head = min(count, size - index)\n",
        "    head = count\n",
        ("test_layout.py::test_ring_spans_cover_positions_in_order_and_never_wrap",),
    ),
    Mutant(
        "task-ids-of-32-bits",
        "A run of more than four thousand million tasks stops with an error.",
        "[number & 0xFFFFFFFF for number in numbers]",
        "list(numbers)",
        ("test_supervisor.py::test_task_ids_go_on_past_32_bits",),
    ),
    Mutant(
        "length-of-long-slots",
        "A payload that just fits a long slot loses its last byte.",
        "self.capacity = area - (1 if self._short else 2)",
        "self.capacity = area - 1",
        ("test_layout.py::test_slots_hold_as_much_as_they_say",),
    ),
    Mutant(
        "counters-not-checked",
        "A damaged segment is not noticed: a run hangs, or gives wrong results.",
        "if pushed != self._pushed or not self._claimed <= claimed <= pushed:",
        "if False:",
        ("test_layout.py::test_counters_that_cannot_be_right_are_an_error",),
    ),
    Mutant(
        "claims-not-checked",
        "A damaged segment is not noticed: a run hangs, or gives wrong results.",
        "if not 0 <= number - self.harvested <= 2:",
        "if False:",
        ("test_halt.py::test_words_of_a_worker_that_cannot_be_right_are_an_error",),
    ),
    Mutant(
        "bounds-not-checked",
        "A damaged segment is not noticed: a run hangs, or gives wrong results.",
        "if not 0 <= bound - first <= self._queue.batch:",
        "if False:",
        ("test_halt.py::test_words_of_a_worker_that_cannot_be_right_are_an_error",),
    ),
    Mutant(
        "second-outcome-taken",
        "A task whose outcome comes twice has two results.",
        "if tasks.settled.find(1, start, stop) >= 0:",
        "if False:",
        ("test_retries.py::test_a_task_has_one_outcome",),
    ),
    # Wake-ups. The supervisor's waits have deadlines, so one that is lost costs it time, and nothing else.
    Mutant(
        "no-bell-for-the-supervisor",
        "Each result waits for the next check of the workers.",
        'system.write(self._pipes.bell, b"!")',
        'system.write(self._pipes.bell, b"")',
        ("test_contract.py::test_who_sleeps_is_woken[lockf]",),
    ),
    Mutant(
        "no-bell-for-workers",
        "A worker that sleeps never wakes.",
        'if process.child is not None:\n                    self._write(process.wake, b"!")',
        'if process.child is not None:\n                    self._write(process.wake, b"")',
        ("test_contract.py::test_who_sleeps_is_woken[lockf]",),
        hang=True,
    ),
    Mutant(
        "no-bell-on-retirement",
        "A worker that sleeps and is too large stays as it is.",
        'self._queue.tell_to_leave(process.index)\n        self._write(process.wake, b"!")',
        'self._queue.tell_to_leave(process.index)\n        self._write(process.wake, b"")',
        ("test_supervisor.py::test_a_sleeper_that_is_told_to_leave_does_so_at_once",),
    ),
    Mutant(
        "bell-not-emptied",
        "The supervisor takes a whole processor while it waits.",
        "                system.read(bell, 4096)\n",
        "                pass\n",
        ("test_sources.py::test_a_pipe_that_says_nothing_costs_nothing_and_is_waited_for",),
    ),
    Mutant(
        "wake-not-emptied",
        "An idle worker takes a whole processor once it was woken.",
        "                system.read(self._pipes.wake, 4096)\n",
        "                pass\n",
        ("test_supervisor.py::test_workers_with_nothing_to_do_sleep",),
    ),
    # Halts.
    Mutant(
        "idle-workers-get-nothing",
        "Tasks wait behind a slow one while other workers have nothing to do.",
        "(process.halt_again or (hungry and slow))",
        "process.halt_again",
        ("test_halt.py::test_one_long_task_first_keeps_nothing_back",),
        hang=True,
    ),
    Mutant(
        "results-wait",
        "Results wait for a long task of the same worker.",
        "        if take_back or results_wait:\n",
        "        if take_back:\n",
        ("test_halt.py::test_results_do_not_wait_for_a_long_task_of_the_same_worker",),
        hang=True,
    ),
    Mutant(
        "halts-for-nothing",
        "Workers that have nothing to give are stopped again and again.",
        "take_back = glance.not_begun > 0 and (",
        "take_back = (",
        ("test_halt.py::test_halts_are_few_where_there_is_nothing_to_take",),
    ),
    Mutant(
        "failed-halt-leaves-it-stopped",
        "A worker that did not stand still in time stays stopped for ever.",
        "        self.go_on()\n        return False\n",
        "        return False\n",
        ("test_halt.py::test_a_worker_that_does_not_stand_still_is_continued",),
        hang=True,
    ),
    Mutant(
        "stop-of-somebody-else-undone",
        "Somebody who stops a worker to look at it finds that it goes on.",
        "        if not self._stopped_before:\n            self.signal(signal.SIGCONT)",
        "        if True:\n            self.signal(signal.SIGCONT)",
        ("test_halt.py::test_a_worker_that_somebody_stopped_is_read_and_stays_stopped",),
    ),
    Mutant(
        "stopped-sleepers-end-the-run",
        "A run ends with an error because somebody has stopped its workers for some seconds.",
        "            if not self._pool.continue_stopped():\n",
        "            if self:\n",
        ("test_supervisor.py::test_sleeping_workers_that_somebody_stopped_are_continued",),
    ),
    Mutant(
        "stopped-holder-blocks",
        "A worker that somebody has stopped while it holds the lock blocks all others.",
        "            for process in suspects:\n                process.signal_group(signal.SIGCONT)\n",
        "            for process in suspects:\n",
        ("test_endings.py::test_a_worker_stopped_while_it_holds_the_lock_does_not_hold_up_the_run[Unsigned-fork]",),
        hang=True,
    ),
    Mutant(
        "charged-in-a-published-batch",
        "A death between two batches charges a task that had finished.",
        "and number > words[process.status + PUBLISHED]",
        "",
        ("test_halt.py::test_nobody_is_charged_in_a_batch_that_its_worker_has_left",),
    ),
    Mutant(
        "timeout-of-another-task",
        "A crash is reported as the timeout of an earlier task.",
        "if doomed is not None and doomed.position in (None, position):",
        "if doomed is not None:",
        ("test_halt.py::test_a_worker_killed_for_a_task_that_has_ended_is_a_crash_of_the_next",),
    ),
    Mutant(
        "timeout-of-the-batch",
        "Short tasks time out because their batch takes long.",
        "            process.seen = (glance.number, glance.done)\n            process.progress_since = now\n",
        "            process.seen = (glance.number, glance.done)\n",
        ("test_supervisor.py::test_a_timeout_is_for_each_task_and_not_for_the_batch",),
    ),
    Mutant(
        "overdue-worker-kept",
        "A task that runs too long in a worker that cannot be halted is never ended.",
        "        if not halted and now - process.progress_since >= timeout + OVERDUE_SECONDS:\n",
        "        if False:\n",
        ("test_halt.py::test_a_worker_that_does_not_stand_still_is_killed_for_a_task_that_runs_too_long",),
        hang=True,
    ),
    # Payloads and values that do not fit.
    Mutant(
        "heap-never-freed",
        "After 32 MiB of large payloads a run stops for ever.",
        "        self._in_use[pages] = bytes(count)\n",
        "",
        ("test_layout.py::test_blocks_of_the_heap_never_overlap_and_come_back",),
    ),
    Mutant(
        "heap-kept-by-failed-tasks",
        "After 32 MiB of payloads of tasks that fail a run stops for ever.",
        "                tasks.release(1)\n                self._finish(tasks.job, result)",
        "                self._finish(tasks.job, result)",
        ("test_supervisor.py::test_the_heap_is_empty_once_its_tasks_have_their_outcomes",),
    ),
    Mutant(
        "heap-kept-by-cancelled-tasks",
        "After 32 MiB of payloads of tasks that were cancelled a Supervisor stops for ever.",
        "        tasks.release(len(tasks.payloads))\n        if tasks.job is not None:",
        "        if tasks.job is not None:",
        ("test_supervisor.py::test_the_heap_is_empty_once_its_tasks_have_their_outcomes",),
    ),
    Mutant(
        "heap-kept-by-tasks-that-are-ok",
        "After 32 MiB of large payloads a run stops for ever.",
        "            tasks.release(stop - start)\n",
        "",
        ("test_supervisor.py::test_the_heap_is_empty_once_its_tasks_have_their_outcomes",),
    ),
    Mutant(
        "heap-not-reserved",
        "A full /dev/shm kills the program with SIGBUS.",
        "        if not all(self._reserved[pages]):\n",
        "        if False:\n",
        ("test_endings.py::test_memory_that_others_have_filled_is_one_failed_task",),
    ),
    Mutant(
        "segment-not-reserved",
        "A small /dev/shm kills the program with SIGBUS.",
        "            self.reserve(0, reserved)\n",
        "            pass\n",
        ("test_endings.py::test_no_room_for_the_segment_is_a_clear_error",),
    ),
    Mutant(
        "payload-files-kept",
        "The files of large payloads fill shared memory until the run ends.",
        "        self._file_bytes -= size\n        system.unlink(path)",
        "        self._file_bytes -= size",
        ("test_supervisor.py::test_files_of_payloads_and_values_go_with_their_tasks",),
    ),
    Mutant(
        "payload-files-counted-for-ever",
        "After 64 MiB of payloads in files a run stops for ever.",
        "        self._file_bytes -= size\n        system.unlink(path)",
        "        system.unlink(path)",
        ("test_supervisor.py::test_files_of_payloads_and_values_go_with_their_tasks",),
    ),
    Mutant(
        "value-files-kept",
        "The files of large values fill shared memory until the run ends.",
        "            data = system.read_file(path, *SIZE.unpack(data))\n            system.unlink(path)\n",
        "            data = system.read_file(path, *SIZE.unpack(data))\n",
        ("test_supervisor.py::test_files_of_payloads_and_values_go_with_their_tasks",),
    ),
    Mutant(
        "spill-fails-unnoticed",
        "A large value for which there is no room arrives as nothing, and its task is ok.",
        "head, data = FAILURE, Failure(text).encode()[:room]",
        'head, data = BYTES, b""',
        ("test_supervisor.py::test_a_value_without_room_waits_for_some",),
    ),
    Mutant(
        "spill-does-not-wait",
        "A task fails though there would be room for its value in a moment.",
        "if error.errno != errno.ENOSPC or alone > SPILL_TRIES:",
        "if True:",
        ("test_supervisor.py::test_a_value_without_room_waits_for_some",),
    ),
    Mutant(
        "spill-without-limit",
        "The large values of a fast worker fill shared memory.",
        "if self._bytes_left() <= SPILL_BYTES:",
        "if True:",
        ("test_supervisor.py::test_few_values_wait_in_files",),
    ),
    Mutant(
        "orphans-leave-files",
        "A worker whose supervisor was killed leaves a file in shared memory that nothing removes.",
        "if not system.exists(self._segment.path):  # the run",
        "if False:  # the run",
        ("test_endings.py::test_an_orphan_leaves_no_file_once_a_sweep_has_removed_the_run",),
    ),
    # The ledger: retries, cancelling, grace.
    Mutant(
        "one-retry-less",
        "A task is tried once less than was asked for.",
        "return result.attempts <= self._most and",
        "return result.attempts < self._most and",
        ("test_supervisor.py::test_retries_end_with_the_first_that_is_ok[1-failed]",),
    ),
    Mutant(
        "every-status-retried",
        "Tasks are started again though --retry-on does not name their status.",
        "and result.status in self._statuses",
        "",
        ("test_retries.py::test_only_these_statuses_are_tried_again",),
    ),
    Mutant(
        "retried-at-once",
        "--retry-delay does not wait: a service that is down gets all attempts in a moment.",
        "while self.delayed and self.delayed[0][0] <= now:",
        "while self.delayed:",
        ("test_retries.py::test_tasks_that_wait_for_a_retry_hold_up_nothing",),
    ),
    Mutant(
        "cancelled-and-tried-again",
        "After Ctrl-C tasks that fail are started again.",
        "if self.retries.wanted(result) and not self._is_cancelled(tasks.job):",
        "if self.retries.wanted(result):",
        ("test_retries.py::test_a_task_that_fails_after_a_cancel_is_not_tried_again",),
    ),
    Mutant(
        "last-result-forgotten",
        "A task that failed and waited for its retry is reported as never begun.",
        "self._finish(tasks.job, before or result)",
        "self._finish(tasks.job, result)",
        ("test_retries.py::test_a_task_that_waits_for_its_retry_ends_with_its_last_status",),
    ),
    Mutant(
        "waiting-for-retry-and-lost",
        "A run that is given up has no outcome for tasks that wait for their retry.",
        "        self.again.extend(self.retries.take_due(math.inf))\n",
        "",
        ("test_retries.py::test_an_abort_gives_tasks_that_wait_for_their_retry_their_last_status",),
    ),
    Mutant(
        "cancel-says-yes",
        "cancel(tsk_id) says that a task never began, though it was tried before.",
        "                    return not started\n",
        "                    return True\n",
        ("test_retries.py::test_a_task_whose_pause_is_over_is_not_one_that_never_began",),
    ),
    Mutant(
        "cancel-loses-others",
        "To cancel one task loses those before it.",
        "for part in (tasks.part(at + 1, len(tasks.payloads)), tasks.part(0, at)):",
        "for part in (tasks.part(at + 1, len(tasks.payloads)),):",
        ("test_retries.py::test_one_of_the_tasks_that_were_taken_back_is_cancelled",),
    ),
    Mutant(
        "close-while-paused",
        "To close a Supervisor that is paused never ends.",
        "        self.paused = False\n        while self._ledger.unfinished()",
        "        while self._ledger.unfinished()",
        ("test_supervisor.py::test_close_finishes_what_a_pause_holds_up",),
        hang=True,
    ),
    Mutant(
        "endless-input-after-cancel",
        "After Ctrl-C an endless input is read on and on.",
        "        if ledger.stopping and not source.finite:\n",
        "        if False:\n",
        ("test_supervisor.py::test_after_cancel_an_endless_iterable_is_not_read_on",),
    ),
    Mutant(
        "ctrl-z-counts-for-timeouts",
        "Tasks time out because the run was stopped by Ctrl-Z for a while.",
        "            process.progress_since += system.monotonic() - since\n",
        "",
        ("test_supervisor.py::test_time_that_a_run_stands_still_is_not_a_tasks",),
    ),
    Mutant(
        "no-sigterm-before-the-kill",
        "--grace gives a task no chance to tidy up.",
        "        self.told = True\n        self.signal_group(signal.SIGTERM)",
        "        self.told = True",
        ("test_retries.py::test_a_task_that_ends_in_its_grace_is_a_timeout",),
    ),
    Mutant(
        "grace-without-end",
        "A task that ignores SIGTERM is never ended.",
        "            if now >= process.kill_at:\n",
        "            if False:\n",
        ("test_retries.py::test_a_task_that_ignores_sigterm_is_killed_after_its_grace",),
        hang=True,
    ),
    Mutant(
        "ok-after-the-timeout",
        "A task that ran too long and ended in its grace is reported as ok.",
        "if doomed is not None and doomed.grace and done and doomed.position == start:",
        "if False:",
        ("test_retries.py::test_a_task_that_ends_in_its_grace_is_a_timeout",),
    ),
    Mutant(
        "max-rss-without-end",
        "A task that holds too much memory is never ended.",
        "elif now - process.retiring >= MEMORY_SECONDS:",
        "elif False:",
        ("test_supervisor.py::test_a_task_that_stays_above_max_rss_ends_with_its_worker",),
        hang=True,
    ),
    Mutant(
        "failures-kept",
        "The supervisor's memory grows with each task that fails.",
        "        del self.failures[5:-5]\n",
        "",
        ("test_supervisor.py::test_few_failures_are_kept",),
    ),
    Mutant(
        "order-without-back-pressure",
        "In input order a slow task lets the results of all others pile up in memory.",
        "return self.outstanding + self._waiting > limit",
        "return False",
        ("test_supervisor.py::test_in_order_a_slow_task_does_not_let_the_rest_run_away",),
    ),
    Mutant(
        "iterables-read-in-blocks",
        "The tasks of a slow generator are held back until there are two thousand.",
        "if len(taken) >= room or clock() > until:",
        "if len(taken) >= room:",
        ("test_supervisor.py::test_the_tasks_of_a_slow_iterable_begin_as_they_come",),
    ),
    # Sources.
    Mutant(
        "carriage-returns-kept",
        "Files from Windows give payloads with a carriage return.",
        '.replace(b"\\r\\n", b"\\n")',
        "",
        ("test_cli.py::test_any_file_is_read_as_its_lines",),
    ),
    Mutant(
        "byte-order-mark-kept",
        "The first line of a file from Windows names no function.",
        "            lines[0] = lines[0].removeprefix(self._mark)\n",
        "",
        ("test_cli.py::test_any_file_is_read_as_its_lines",),
    ),
    Mutant(
        "last-line-lost",
        "The last line is lost if it has no newline.",
        'if b"\\n" in block or not block:',
        'if b"\\n" in block:',
        ("test_cli.py::test_any_file_is_read_as_its_lines",),
    ),
    Mutant(
        "lines-not-counted",
        "An error names the wrong line of a long file.",
        "        self._line += len(lines)\n",
        "",
        ("test_cli.py::test_a_line_far_behind_is_named_by_its_number",),
    ),
    Mutant(
        "comments-run",
        "Lines that were commented out are run as shell commands.",
        'if x and not (self._comments and x.startswith(b"#"))',
        "if x",
        ("test_cli.py::test_comments_are_no_commands",),
    ),
    Mutant(
        "template-not-quoted",
        "A line with a quote or a semicolon runs as part of the command.",
        "return encode_text(shlex.quote(decode_text(part)))",
        "return encode_text(decode_text(part))",
        ("test_print.py::test_whatever_a_line_holds_is_one_word_for_the_shell",),
    ),
    Mutant(
        "template-takes-the-shells-braces",
        "${1} of the shell is replaced by a field.",
        'rb"(?<!\\$)\\{',
        'rb"\\{',
        ("test_print.py::test_what_is_no_replacement_string_stays",),
    ),
    Mutant(
        "extension-of-a-folder",
        "{.} cuts a path at the dot of a folder.",
        'rb"\\.[^/.]*\\Z"',
        'rb"\\.[^.]*\\Z"',
        ("test_print.py::test_parts_of_paths_are_those_of_gnu_parallel[dir.d/file-dir.d/file file dir.d file]",),
    ),
    Mutant(
        "query-may-write",
        "--query can make or change files by ATTACH.",
        "return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH else sqlite3.SQLITE_OK",
        "return sqlite3.SQLITE_OK",
        ("test_sources.py::test_a_query_that_cannot_be_run_is_exit_2_and_changes_nothing",),
    ),
    Mutant(
        "rest-of-a-source-lost",
        "After a stop, what was read and not begun is missing from --failed.",
        "        yield from reversed(self._items)\n",
        "",
        ("test_failed_option.py::test_of_a_stream_what_was_read_is_there",),
    ),
    Mutant(
        "read-error-unsaid",
        "A file that could only be read in part looks as if it had been done.",
        'self.problem = f"reading the tasks stopped: {error.strerror}"',
        "pass",
        ("test_cli.py::test_a_source_that_fails_while_it_is_read_is_said_in_a_line",),
    ),
    # Values, payloads and errors.
    Mutant(
        "nested-types-not-checked",
        "A numpy number in a list arrives as eight bytes.",
        "whole[id(part)] = ATOMS.issuperset(map(type, inner))",
        "whole[id(part)] = True",
        ("test_values.py::test_what_is_not_plain_data_is_refused_at_any_depth[<lambda>0-list]",),
    ),
    Mutant(
        "arrays-of-objects-sent",
        "A numpy array of objects arrives as the addresses of objects.",
        'if view.ndim and "O" not in view.format',
        "if view.ndim",
        ("test_values.py::test_numpy_scalars_are_refused_and_arrays_are_bytes",),
    ),
    Mutant(
        "undecodable-bytes-replaced",
        "Names of files that are not UTF-8 are changed on their way.",
        'return data.decode("utf-8", "surrogateescape")',
        'return data.decode("utf-8", "replace")',
        ("test_cli.py::test_str_functions_get_undecodable_bytes_by_surrogateescape",),
    ),
    Mutant(
        "any-pair-names-a-function",
        "A payload that is a pair with a callable in front is taken for a function and its payload.",
        "(callable(item[0]) and item[0] == self._function)",
        "callable(item[0])",
        ("test_supervisor.py::test_with_one_function_an_item_is_a_payload_or_a_pair",),
    ),
    Mutant(
        "errors-without-end",
        "An error of a megabyte fills results and screen.",
        '(f"{name}: {text}" if text else name)[:ERROR_LENGTH]',
        '(f"{name}: {text}" if text else name)',
        ("test_supervisor.py::test_a_long_error_is_kept_in_part",),
    ),
    Mutant(
        "tracebacks-without-end",
        "A traceback of a deep recursion fills the results.",
        "    if rest > 0:\n",
        "    if False:\n",
        ("test_values.py::test_a_long_traceback_loses_its_middle",),
    ),
    Mutant(
        "codec-of-text",
        "What json makes, which is text, is read as bytes.",
        "loads(decode_text(data) if kind == CODED_TEXT else data)",
        "loads(data)",
        ("test_values.py::test_a_codec_that_makes_text",),
    ),
    Mutant(
        "structure-of-another-function",
        "A value arrives as another Structure than the function returned.",
        "return STRUCTURE + structures.index(type(value)), bytes(value)",
        "return STRUCTURE, bytes(value)",
        ("test_supervisor.py::test_structures_travel_in_slots_and_out_of_line",),
    ),
    Mutant(
        "values-of-mixed-lengths-cut-alike",
        "Values of different lengths are cut in the wrong places.",
        "if size and stop == ends[-1] and ends == list(range(begin + size, stop + 1, size)):",
        "if size and stop == ends[-1]:",
        ("test_supervisor.py::test_values_of_several_lengths_are_cut_where_they_end",),
    ),
    Mutant(
        "values-after-many-lost",
        "Of a batch of equal values, those after the first sixty-four are lost or mixed up.",
        'struct.unpack_from(f"{size}s" * min(ROWS, count - start), data, start * size)',
        'struct.unpack_from(f"{size}s" * min(ROWS, count - start), data, 0)',
        ("test_supervisor.py::test_values_of_several_lengths_are_cut_where_they_end",),
    ),
    Mutant(
        "stamps-ignored",
        "seconds is the mean of a batch, also for a task that took long.",
        "        if bytes(self._stamp_bytes[quick]) == self._zeros[quick]:\n",
        "        if True:\n",
        ("test_supervisor.py::test_the_seconds_of_a_slow_task_are_not_shared_with_its_batch",),
    ),
    # Results, --resume and --failed.
    Mutant(
        "resume-leaves-out-failures",
        "--resume does not try again what had failed.",
        '        if status == "ok":\n            self.done[digest] += 1',
        "        if True:\n            self.done[digest] += 1",
        ("test_results.py::test_what_was_not_ok_is_done_again_and_its_old_record_is_kept",),
    ),
    Mutant(
        "resume-ignores-the-function",
        "--resume leaves out a task because another function was done for the same payload.",
        'hashlib.blake2b(encode_text(function) + b"\\0" + payload, digest_size=16)',
        "hashlib.blake2b(payload, digest_size=16)",
        ("test_cli.py::test_resume_leaves_out_what_is_ok_by_function_and_payload",),
    ),
    Mutant(
        "resume-leaves-out-duplicates",
        "--resume leaves out both of two equal tasks, of which one was done.",
        "        self.done[digest] -= 1\n",
        "",
        ("test_results.py::test_duplicates_are_left_out_as_often_as_they_are_recorded",),
    ),
    Mutant(
        "torn-tail-kept",
        "The rest of a torn record stays behind the new ones, and spoils the file.",
        "            self._file.truncate()\n",
        "            pass\n",
        ("test_results.py::test_a_last_record_torn_at_any_byte_is_cut_off[out.jsonl-plain]",),
    ),
    Mutant(
        "anything-torn",
        "--resume cuts off lines that somebody else has written.",
        "return self.START.startswith(lines[0][: len(self.START)]) and not whole",
        "return True",
        ("test_results.py::test_a_last_line_that_no_kill_has_left_is_not_cut_off",),
    ),
    Mutant(
        "results-emptied-by-the-check",
        "--resume finds an empty file, since it was opened to see whether it can be written.",
        'open(path, "ab") as file:\n                    info',
        'open(path, "wb") as file:\n                    info',
        ("test_cli.py::test_resume_leaves_out_what_is_ok_by_function_and_payload",),
    ),
    Mutant(
        "results-at-the-end",
        "A run that is killed has lost the results of its last seconds.",
        "if self.results is not None and not self.results.save() and",
        "if self.results is not None and self.results.problem and",
        ("test_results.py::test_results_are_there_while_the_run_goes_on",),
        hang=True,
    ),
    Mutant(
        "full-disk-goes-on",
        "A run goes on for hours though its results cannot be kept.",
        "            supervisor.cancel()  # what cannot be kept need not be done\n",
        "            pass\n",
        ("test_results.py::test_when_the_disk_is_full_it_stops_says_how_to_go_on_and_resume_does",),
    ),
    Mutant(
        "uncommitted-rows",
        "A reader of the database sees no results while the run goes on, and a kill loses them.",
        "    def flush(self) -> None:\n        self._file.commit()",
        "    def flush(self) -> None:\n        pass",
        ("test_results.py::test_results_are_there_while_the_run_goes_on[out.sqlite]",),
        hang=True,
    ),
    Mutant(
        "long-fields-of-csv",
        "--resume cannot read a CSV file with a long value.",
        "        csv.field_size_limit(sys.maxsize)\n",
        "",
        ("test_results.py::test_long_payloads_are_known_to_resume[out.csv]",),
    ),
    Mutant(
        "tasks-written-over",
        "--results with the name of the tasks writes over them.",
        '            uses[info.st_dev, info.st_ino] = "TASKS"\n',
        "            pass\n",
        ("test_results.py::test_the_file_of_tasks_is_not_written_over",),
    ),
    Mutant(
        "failed-changes-permissions",
        "--failed makes a private file one that all can read.",
        "        if os.path.exists(self._target):\n",
        "        if False:\n",
        ("test_failed_option.py::test_it_may_be_the_input_and_is_empty_when_all_are_ok",),
    ),
    Mutant(
        "failed-after-an-interrupt",
        "After three Ctrl-C, --failed holds a part of the tasks, in place of the file with all of them.",
        'self.failed.problem = "the run was interrupted before every task had an outcome"',
        "pass",
        ("test_failed_option.py::test_an_interrupt_leaves_the_file_alone",),
    ),
    Mutant(
        "failed-of-a-torn-input",
        "--failed holds a part of the tasks if the input could not be read to its end.",
        "failed.problem = failed.problem or self.source.problem",
        "pass",
        ("test_failed_option.py::test_tasks_that_could_be_read_in_part_leave_the_file_alone",),
    ),
    Mutant(
        "failed-leaves-its-part",
        "A run that is stopped leaves a half-written file beside that of --failed.",
        "            os.unlink(self._beside)\n",
        "            pass\n",
        ("test_failed_option.py::test_tasks_that_could_be_read_in_part_leave_the_file_alone",),
    ),
    Mutant(
        "failed-is-another-file",
        "--failed with the name of the results writes over them.",
        "        if self.options.failed is not None and os.path.isfile(self.options.failed):\n            info",
        "        if False:\n            info",
        ("test_failed_option.py::test_bad_usage_is_one_line_and_starts_nothing[arguments5-words5]",),
    ),
    # Printing.
    Mutant(
        "printed-order-without-back-pressure",
        "With -k a slow task lets the output of all others pile up in memory.",
        "        self._source.held = len(self._early)\n",
        "",
        ("test_print.py::test_reading_ahead_stops_while_results_wait_for_an_earlier_one",),
    ),
    Mutant(
        "values-without-line-ends",
        "Values run together on one line.",
        'return text if text.endswith(b"\\n") else text + b"\\n"',
        "return text",
        ("test_print.py::test_values_get_a_line_end_and_plain_data_is_json",),
    ),
    Mutant(
        "tag-before-the-first-line",
        "--tag marks only the first line of what a task prints.",
        '.replace(b"\\n", b"\\n" + tag) + end',
        " + end",
        ("test_print.py::test_each_line_has_its_task_before_it",),
    ),
    Mutant(
        "head-is-a-problem",
        "`| head` makes a run complain.",
        "if error.errno not in (errno.EPIPE, errno.EAGAIN):",
        "if True:",
        ("test_print.py::test_a_reader_that_closes_early_ends_the_printing_and_not_the_work[head -n 1-arguments0]",),
    ),
    Mutant(
        "values-when-there-are-many",
        "A pipe gets values only when there are many of them.",
        "        if self.printer is not None:\n            self.printer.flush()\n        while self.signals:",
        "        while self.signals:",
        ("test_print.py::test_a_pipe_gets_values_soon",),
    ),
    Mutant(
        "failed-output-dropped",
        "With --shell the output of a command that failed is not printed.",
        "Failure(output.failure, value=output)",
        "Failure(output.failure)",
        ("test_print.py::test_output_is_the_value_whether_or_not_the_command_succeeded",),
    ),
    Mutant(
        "late-output-dropped",
        "The last words of a command are lost.",
        "until = time.monotonic() + LINGER_SECONDS",
        "until = time.monotonic()",
        ("test_print.py::test_what_comes_right_behind_the_end_of_a_command_is_not_lost",),
    ),
    Mutant(
        "values-under-the-screen",
        "Values are drawn over by the screen.",
        "        if outlet.waiting and os.isatty(outlet.descriptor):\n",
        "        if False:\n",
        ("test_print.py::test_values_on_a_terminal_stay_beside_a_screen_that_is_wanted",),
    ),
    # Signals, and what is left behind.
    Mutant(
        "stopped-orphans-stay",
        "A worker that is stopped when its supervisor is killed stays for ever.",
        "    _continue_without_parent()\n    signal.set_wakeup_fd(-1)\n",
        "    signal.set_wakeup_fd(-1)\n",
        ("test_host.py::test_a_worker_is_continued_when_its_parent_ends",),
    ),
    Mutant(
        "fork-server-kept-alive",
        "The fork server waits for ever for a worker that is stopped.",
        "    release_fork_server()\n    queue",
        "    queue",
        ("test_host.py::test_a_worker_that_is_stopped_when_its_supervisor_is_killed_ends_too[forkserver]",),
    ),
    Mutant(
        "orphans-stay",
        "Workers outlive a supervisor that was killed while they had a long task.",
        '        threading.Thread(target=watch, name="shmqueue-watch", daemon=True).start()\n',
        "",
        ("test_endings.py::test_the_supervisor_is_killed[fork-hang]",),
        hang=True,
    ),
    Mutant(
        "sent-again-once",
        "SIGTERM while the program forks is lost if the program then waits in a system call.",
        "        while not self.heard and signal.getsignal(self._number) == self._handler:\n",
        "        for _ in range(1):\n",
        ("test_host.py::test_a_signal_while_the_program_forks_is_heard_whatever_the_program_does_next",),
        hang=True,
    ),
    Mutant(
        "repeat-after-heard",
        "A program that ends after SIGTERM gets a second one in the middle of its clean-up.",
        "        self.heard = True\n        self.join()\n",
        "        self.heard = True\n",
        ("test_host.py::test_a_signal_that_is_heard_is_not_sent_again",),
    ),
    Mutant(
        "child-acts-for-its-parent",
        "A program that forks in the middle of a run loses tasks when its child leaves.",
        "        return os.getpid() != self._owner\n",
        "        return False\n",
        ("test_host.py::test_a_child_that_is_forked_in_the_middle_of_a_run_takes_nothing_from_it[results.close()]",),
        hang=True,
    ),
    Mutant(
        "workers-take-ctrl-c",
        "Ctrl-C makes every task in hand fail.",
        "    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for",
        "    # Ctrl-C is for",
        ("test_supervisor.py::test_a_worker_does_not_hear_ctrl_c[spawn]",),
    ),
    Mutant(
        "handlers-stay",
        "After the last Supervisor is closed, SIGTERM still runs its handler.",
        "        if not self._open:\n            old, new = new, old\n",
        "",
        (
            "test_cli.py::test_after_main_signals_are_handled_as_before",
            "test_supervisor.py::test_the_first_of_two_supervisors_to_close_leaves_the_other_its_signals",
        ),
    ),
    Mutant(
        "children-inherit-handlers",
        "A multiprocessing.Pool beside an open Supervisor hangs.",
        "                self.put_back(number, ours)\n            self.exit_on_signals()\n",
        "                self.put_back(number, ours)\n",
        ("test_host.py::test_a_forked_child_handles_signals_as_the_program_did",),
    ),
    Mutant(
        "forked-children-clean-up",
        "A child that the program forks removes the segment and kills the workers.",
        "        if os.getpid() != owner:  # a child that the user forked\n",
        "        if False:\n",
        ("test_host.py::test_a_forked_child_that_leaves_the_block_ends_nothing",),
    ),
    Mutant(
        "files-beside-stay",
        "Files of large values stay in shared memory after the run.",
        "for file in [*beside, path]:",
        "for file in [path]:",
        ("test_layout.py::test_every_view_is_released_and_the_files_beside_go_too",),
    ),
    Mutant(
        "children-of-dead-workers-stay",
        "What a task has started goes on after its worker has died.",
        "            process.signal_group(signal.SIGKILL)\n            self.poll",
        "            self.poll",
        ("test_endings.py::test_processes_that_functions_started_end_with_the_run[fork-worker killed-ordinary]",),
    ),
    Mutant(
        "strays-stay",
        "What a task has started in a session of its own goes on after the run.",
        "                resources.callback(end_strays, self._queue.name)\n",
        "",
        ("test_endings.py::test_processes_that_functions_started_end_with_the_run[fork-normal-session]",),
    ),
    Mutant(
        "no-sweep",
        "What killed runs have left fills shared memory.",
        "        sweep()\n        most = ",
        "        most = ",
        ("test_endings.py::test_each_start_sweeps",),
    ),
    Mutant(
        "signals-to-a-stranger",
        "A signal goes to another process that got the pid of a worker.",
        "        return found in (0, self.born) or self.born == 0\n",
        "        return True\n",
        ("test_host.py::test_no_signal_goes_to_a_process_that_got_the_pid_of_a_worker[fork-True]",),
    ),
    Mutant(
        "pipes-of-a-failed-start",
        "Each worker that cannot be started costs two descriptors.",
        "            close_launch_pipes(error)\n",
        "",
        ("test_host.py::test_too_few_processes",),
    ),
    Mutant(
        "pidfds-kept",
        "Each worker that is replaced costs a descriptor.",
        "            is_readable(self.pidfd.fileno(), None)\n            self.close_pidfd()\n",
        "            is_readable(self.pidfd.fileno(), None)\n"
        "            os.dup(self.pidfd.fileno())\n            self.close_pidfd()\n",
        ("test_host.py::test_no_descriptor_is_left_and_no_worker_has_those_of_another",),
    ),
    Mutant(
        "standard-input-of-functions",
        "A function that reads standard input takes the tasks of the run.",
        "    os.dup2(null, 0)\n",
        "",
        ("test_cli.py::test_what_functions_start_does_not_read_the_tasks",),
    ),
    Mutant(
        "ctrl-z-leaves-workers-running",
        "After Ctrl-Z the workers go on.",
        "            process.signal_group(signal.SIGSTOP)\n",
        "            pass\n",
        ("test_endings.py::test_command_ctrl_z_stops_the_workers_too_and_they_go_on[fork]",),
        hang=True,
    ),
    Mutant(
        "second-ctrl-c-ignored",
        "A second Ctrl-C does not end tasks that hang.",
        "            self.supervisor.abort()\n",
        "            self.supervisor.cancel()\n",
        ("test_endings.py::test_command_ctrl_c_twice_ends_what_hangs[False]",),
        hang=True,
    ),
    Mutant(
        "same-pid-later",
        "The segment of a dead run stays if a later process got its supervisor's pid.",
        "(header.magic != MAGIC or header.owner_start == start)",
        "True",
        ("test_endings.py::test_clean_knows_a_later_process_with_the_same_pid",),
    ),
    # The screen.
    Mutant(
        "hostile-text-drawn",
        "The text of a task can command the terminal.",
        'return "".join(c if c.isprintable() else "�" for c in text)',
        "return text",
        ("test_render.py::test_hostile_text_is_replaced[size0-title-escape]",),
    ),
    Mutant(
        "terminal-not-left",
        "After the run the terminal has no cursor and shows the alternate screen.",
        "            self.write(self.LEAVE)\n",
        "            pass\n",
        ("test_screen.py::test_endings[interrupt]",),
    ),
    Mutant(
        "drawn-in-the-background",
        "A run in the background draws over the shell.",
        "        if not in_foreground(2):\n            return\n",
        "",
        ("test_screen.py::test_ctrl_z_and_bg_goes_on_in_the_background",),
    ),
    Mutant(
        "keys-not-given-back",
        "After the run the terminal shows nothing of what is typed.",
        "                termios.tcsetattr(0, termios.TCSADRAIN, self._before)\n",
        "                pass\n",
        ("test_screen.py::test_q_while_paused",),
    ),
    Mutant(
        "ctrl-z-keeps-the-screen",
        "After Ctrl-Z the shell writes into the alternate screen.",
        "        self.keys.leave()\n        self.progress.close()\n        self.supervisor.suspend()",
        "        self.keys.leave()\n        self.supervisor.suspend()",
        ("test_screen.py::test_ctrl_z_and_fg",),
        hang=True,
    ),
    Mutant(
        "lines-wider-than-the-screen",
        "On a narrow terminal lines wrap, and the screen scrolls.",
        'return [(" " + printable(line))[:width].rstrip() for line in lines[:height]]',
        'return [(" " + printable(line)).rstrip() for line in lines[:height]]',
        ("test_render.py::test_failures_leave_room_for_the_workers",),
    ),
    Mutant(
        "watch-does-not-leave",
        "--watch leaves the terminal as it was while it drew.",
        "    finally:\n        screen.close()\n",
        "    finally:\n        pass\n",
        ("test_screen.py::test_watching_ends_with_the_run",),
    ),
    Mutant(
        "frames-as-fast-as-can-be",
        "The screen takes more time than the tasks.",
        "    SECONDS = 0.1\n    ENTER",
        "    SECONDS = 0.0\n    ENTER",
        ("test_screen.py::test_a_frame_is_one_write_and_there_are_at_most_ten_a_second",),
    ),
    # The command line.
    Mutant(
        "exit-0-after-failures",
        "A script goes on though tasks have failed.",
        ' or summary["ok"] < sum(summary[name] for name in OUTCOMES))',
        ")",
        ("test_cli.py::test_outcomes_and_the_summary",),
    ),
    Mutant(
        "exit-code-of-a-signal",
        "A script cannot tell that a run was stopped.",
        "            return 128 + self.stopped_by\n",
        "            return 1\n",
        ("test_endings.py::test_command_signal[15-143-fork]",),
    ),
    Mutant(
        "exit-code-of-bad-usage",
        "A script cannot tell bad usage from failed tasks.",
        'say(printable(f"shmqueue: {error}"), sys.stderr)\n        return 2',
        'say(printable(f"shmqueue: {error}"), sys.stderr)\n        return 1',
        ("test_cli.py::test_bad_usage_is_one_line_and_exit_2[-TASKS --help]",),
    ),
    Mutant(
        "exit-0-after-lost-results",
        "A script goes on though results were lost.",
        "return int(bool(problems or failure or cut_off) or",
        "return int(bool(failure or cut_off) or",
        (
            "test_cli.py::test_a_full_disk_is_said_with_how_to_go_on",
            "test_results.py::test_a_summary_on_a_full_disk_is_said",
        ),
    ),
    Mutant(
        "exit-0-after-a-cut-output",
        "A script goes on though its output is not complete.",
        "return int(bool(problems or failure or cut_off) or",
        "return int(bool(problems or failure) or",
        ("test_print.py::test_a_reader_that_closes_early_ends_the_printing_and_not_the_work[head -n 1-arguments0]",),
    ),
    Mutant(
        "halt-one-late",
        "--halt 1 does not stop at the first failure.",
        "if bad == self.options.halt:",
        "if bad - 1 == self.options.halt:",
        ("test_cli.py::test_halt_stops_at_its_number",),
    ),
    Mutant(
        "clean-says-nothing",
        "--clean does not say what it has removed.",
        'say(removed or "nothing to remove", sys.stdout)',
        '""',
        ("test_endings.py::test_clean_says_what_it_has_removed",),
    ),
    Mutant(
        "clean-removes-nothing",
        "--clean leaves what it says it has removed.",
        "                remove_segment(path)\n                removed.append(name)",
        "                removed.append(name)",
        ("test_endings.py::test_clean_says_what_it_has_removed",),
    ),
    Mutant(
        "option-without-effect",
        "An option of the command line does nothing.",
        "for option in OPTIONS if option.shared}",
        'for option in OPTIONS if option.shared and option.name != "grace"}',
        ("test_failed_option.py::test_grace_interrupts_a_task_that_waits",),
    ),
    Mutant(
        "exit-code-1-of-a-command",
        "A shell command that exits with 1 is ok.",
        "    if code:\n        complaint",
        "    if code > 1:\n        complaint",
        ("test_cli.py::test_shell_gives_the_output_and_fails_with_the_exit_code",),
    ),
    Mutant(
        "imported-functions-callable",
        "A line of a file can name a function that the module only imports.",
        "== (module.__name__, name)",
        "!= ()",
        ("test_cli.py::test_only_public_functions_of_the_module_itself_may_be_named[which]",),
    ),
    Mutant(
        "closed-streams-not-filled",
        "Results go into the segment if the program was started without standard streams.",
        "            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)",
        "            pass",
        ("test_cli.py::test_main_fills_the_numbers_of_closed_streams",),
    ),
    Mutant(
        "unknown-option-ignored",
        "A misspelt option is ignored.",
        "            if unknown:\n",
        "            if False:\n",
        ("test_cli.py::test_bad_usage_is_one_line_and_exit_2[tasks more-more]",),
    ),
    Mutant(
        "dry-run-without-errors",
        "--dry-run says that all is well though a line names no function.",
        "                bad = True\n",
        "",
        ("test_failed_option.py::test_a_dry_run_says_what_could_not_run",),
    ),
    # Between a program and its Supervisor.
    Mutant(
        "signal-in-a-turn",
        "A program that cancels its run in a signal handler waits for ever.",
        "        outer, self._in_turn = self._in_turn, True\n        try:\n            yield\n",
        "        outer = self._in_turn\n        try:\n            yield\n",
        ("test_supervisor.py::test_a_signal_handler_of_the_program_can_end_a_run_at_any_moment",),
        hang=True,
    ),
    Mutant(
        "what-was-asked-forgotten",
        "A signal that comes in the middle of a turn cancels nothing.",
        "            self._in_turn = outer\n        self._do_what_was_asked()\n",
        "            self._in_turn = outer\n",
        ("test_supervisor.py::test_a_signal_handler_of_the_program_can_end_a_run_at_any_moment",),
        hang=True,
    ),
    Mutant(
        "yielded-tasks-vanish",
        "If an iterable raises, the tasks before are never run.",
        "            self.error = error\n        self.exhausted = True\n",
        "            self.error = error\n            taken.clear()\n        self.exhausted = True\n",
        ("test_supervisor.py::test_an_exception_in_the_users_iterable_is_raised_and_the_supervisor_goes_on",),
    ),
    Mutant(
        "iterables-error-swallowed",
        "An iterable that raises looks as if it had ended.",
        "                    raise error\n",
        "                    pass\n",
        ("test_supervisor.py::test_an_exception_in_the_users_iterable_is_raised_and_the_supervisor_goes_on",),
    ),
    Mutant(
        "other-text",
        "Names of files that are not UTF-8 can arrive as other names.",
        "        return data if decode_text(data) == text else None\n",
        "        return data\n",
        ("test_supervisor.py::test_any_text_arrives_as_it_is",),
    ),
    Mutant(
        "input-written-over",
        "`shmqueue - --results same.jsonl < same.jsonl` empties the tasks.",
        'os.stat(0 if self.options.tasks == "-" else self.options.tasks)',
        "os.stat(self.options.tasks)",
        ("test_results.py::test_the_file_of_tasks_is_not_written_over",),
    ),
    Mutant(
        "impatient-results",
        "A run with --results - into a pipe that nobody reads can only be killed.",
        "            self.patient = False\n",
        "",
        ("test_print.py::test_a_run_can_be_ended_while_its_reader_takes_nothing",),
        hang=True,
    ),
    Mutant(
        "rest-of-a-line",
        "The screen shows the end of another task's error.",
        'f"\\x1b[K{line}"',
        'f"{line}"',
        ("test_screen.py::test_nothing_is_left_of_the_frame_before_by_characters_that_take_no_column",),
    ),
    Mutant(
        "commands-ignore-sigint",
        "A command that waits for SIGINT waits for ever.",
        "    signal.signal(signal.SIGINT, lambda *_: None)  #",
        "    signal.signal(signal.SIGINT, signal.SIG_IGN)  #",
        ("test_print.py::test_a_command_hears_signals_as_in_a_shell",),
    ),
    # Executor, and running without workers.
    Mutant(
        "executor-waits-for-itself",
        "A callback that shuts its Executor down hangs the program.",
        "        if wait and threading.current_thread() is self._thread:\n",
        "        if False:\n",
        ("test_executor.py::test_a_callback_cannot_wait_for_the_end_of_its_own_executor",),
        hang=True,
    ),
    Mutant(
        "executor-carries-away",
        "A call that could be cancelled cannot, since the Supervisor has it already.",
        "ahead = min(AHEAD_CALLS, int(AHEAD_SECONDS / max(self._seconds, 1e-9)))",
        "ahead = AHEAD_CALLS",
        ("test_executor.py::test_a_call_that_has_not_begun_can_be_cancelled",),
    ),
    Mutant(
        "executor-without-retries",
        "Executor(retries=) does nothing.",
        "        elif call.attempts <= self._retries:\n",
        "        elif False:\n",
        ("test_executor.py::test_retries",),
    ),
    Mutant(
        "executor-forgets-waiting-calls",
        "If an Executor breaks, calls that wait never end.",
        "for call in (*self._given.values(), *self._waiting):",
        "for call in self._given.values():",
        ("test_executor.py::test_a_failing_initializer_breaks_the_executor[fork]",),
        hang=True,
    ),
    Mutant(
        "executor-ends-with-a-forked-child",
        "A child that leaves the block of an Executor waits for ever.",
        "        if os.getpid() != self._owner:\n            return\n",
        "",
        ("test_executor.py::test_a_forked_child_that_leaves_the_block",),
        hang=True,
    ),
    Mutant(
        "executor-keeps-output",
        "What calls print is lost.",
        "            sys.stdout.flush()\n            sys.stderr.flush()\n",
        "            pass\n",
        ("test_executor.py::test_workers_print_where_this_process_prints",),
    ),
    Mutant(
        "executor-breaks-on-odd-errors",
        "An exception that cannot be read again breaks the whole Executor.",
        "        unpickled(data)\n",
        "",
        ("test_executor.py::test_what_cannot_be_pickled_or_read_fails_one_future",),
    ),
    Mutant(
        "executor-gives-up-at-exit",
        "Calls that a script has submitted are dropped when it ends.",
        'calls.end("interpreter shutdown", abort=getattr(sys, "last_type", None) is KeyboardInterrupt, wait=True)',
        'calls.end("interpreter shutdown", abort=True, wait=True)',
        ("test_executor.py::test_calls_are_finished_when_the_interpreter_exits",),
    ),
    Mutant(
        "inline-swallows-ctrl-c",
        "With workers=0 Ctrl-C is a failed task, and the run goes on.",
        "        except KeyboardInterrupt:\n            raise\n"
        "        except BaseException as error:\n            value",
        "        except BaseException as error:\n            value",
        ("test_without_workers.py::test_ctrl_c_in_a_function_goes_through_to_the_caller",),
    ),
    Mutant(
        "inline-values-as-they-are",
        "With workers=0 a value passes that fails with workers.",
        "                value = decode_value(*encode_value(value, structures, codec), structures, codec)\n",
        "                pass\n",
        ("test_without_workers.py::test_values_travel_as_from_a_worker",),
    ),
    Mutant(
        "inline-takes-a-timeout",
        "workers=0 accepts a timeout that it cannot keep.",
        "            refuse_without_workers(timeout=timeout, max_rss=max_rss, log=log)\n",
        "",
        ("test_without_workers.py::test_what_needs_a_process_is_refused",),
    ),
    # The strategies.
    Mutant(
        "slot-state-done-before-the-end",
        "Slots are written over before their tasks are claimed.",
        "super()._fill_half(worker, span, places)\n",
        "super()._fill_half(worker, span, places)\n        self._set(worker, *span, DONE)\n",
        ("test_races.py::test_the_supervisor_comes_at_any_line_of_a_claim[slot_state-harvest-tasks]",),
        "variants/slot_state.py",
    ),
    Mutant(
        "slot-state-recovery-without-done",
        "The slots of a dead worker are never free again.",
        "self._set(worker, freed, max(0, head - freed), DONE)",
        "pass",
        ("test_races.py::test_a_worker_dies_at_any_line_of_a_claim[slot_state-tasks]",),
        "variants/slot_state.py",
    ),
    Mutant(
        "slot-state-no-second-look",
        "A worker sleeps beside tasks.",
        "claim = self._try_to_claim(worker, limit)  # what",
        "pass  # what",
        ("test_races.py::test_the_supervisor_comes_at_any_line_of_a_claim[slot_state-push-nothing there]",),
        "variants/slot_state.py",
    ),
    Mutant(
        "slot-state-drain-ignores-claims",
        "A task is run by two workers.",
        "while words[lane + CLAIMING] and",
        "while False and",
        ("test_races.py::test_the_supervisor_comes_at_any_line_of_a_claim[slot_state-drain-tasks]",),
        "variants/slot_state.py",
    ),
    Mutant(
        "slot-state-claim-ignores-drains",
        "A task is run by two workers.",
        "if self.words[self.lanes[worker] + SHUT]:",
        "if False:",
        ("test_races.py::test_a_worker_claims_at_any_line_of_what_the_supervisor_does[slot_state-drain-tasks]",),
        "variants/slot_state.py",
    ),
    Mutant(
        "slot-state-stays-shut",
        "A worker from which tasks were taken back claims nothing any more.",
        "        self.words[self.lanes[worker] + SHUT] = 0\n",
        "        pass\n",
        ("test_races.py::test_the_supervisor_comes_at_any_line_of_a_claim[slot_state-drain-tasks]",),
        "variants/slot_state.py",
    ),
    Mutant(
        "worker-lanes-harvest-unlocked",
        "An outcome is read before it is written.",
        "                self._shut(worker)\n                words[status + shmqueue.HARVESTED] = count\n",
        "                words[status + shmqueue.HARVESTED] = count\n",
        (
            "test_races.py::test_the_supervisor_comes_at_any_line_of_a_claim"
            "[worker_lanes-harvest-two batches unharvested]",
        ),
        "variants/worker_lanes.py",
    ),
    Mutant(
        "worker-lanes-stopped-in-a-lock",
        "A worker that somebody has stopped inside its lock blocks the supervisor.",
        "            self.stuck(self._lock[worker], worker, shmqueue.system.monotonic() - since)\n",
        "            pass\n",
        ("test_contract.py::test_a_worker_that_is_stopped_inside_a_claim_is_continued[worker_lanes]",),
        "variants/worker_lanes.py",
        hang=True,
    ),
    Mutant(
        "lanes-claiming-for-ever",
        "A worker that died in a claim counts as claiming, and nothing is taken back from its successor.",
        "        words[lane + CLAIMING] = 0\n",
        "",
        ("test_races.py::test_a_worker_dies_at_any_line_of_a_claim[worker_lanes-tasks]",),
        "variants/dealt.py",
    ),
    Mutant(
        "lanes-dealt-to-the-dead",
        "Tasks are dealt to a worker that is dead.",
        "        words[self.status[worker] + shmqueue.PID] = 0  # until",
        "        pass  # until",
        ("test_races.py::test_nothing_is_dealt_to_a_dead_worker",),
        "variants/dealt.py",
    ),
    Mutant(
        "lanes-half-made-batch-kept",
        "After a death in a claim, tasks are run twice.",
        "min(words[half.end], words[lane + LANE_CLAIMED])",
        "words[half.end]",
        ("test_contract.py::test_a_worker_is_killed_in_the_critical_section[slot_state-before the commit-quiet]",),
        "variants/dealt.py",
    ),
    Mutant(
        "semaphore-tokens-after-the-push",
        "A worker sleeps beside tasks.",
        "        self._filled.post(len(tasks.data))\n        return super().push(tasks)\n",
        "        places = super().push(tasks)\n        self._filled.post(len(tasks.data))\n        return places\n",
        ("test_races.py::test_a_worker_claims_at_any_line_of_what_the_supervisor_does[semaphore-push-nothing there]",),
        "variants/semaphore.py",
    ),
    Mutant(
        "semaphore-slots-lost",
        "The ring has room for fewer tasks after each claim, and for none in the end.",
        "            self._free.post(count)\n            self._filled.post(tokens",
        "            self._filled.post(tokens",
        ("test_races.py::test_the_supervisor_comes_at_any_line_of_a_claim[semaphore-push-tasks]",),
        "variants/semaphore.py",
    ),
    Mutant(
        "single-lock-kept",
        "After a death inside the lock nobody gets it any more.",
        "        self.prepare(context)\n        for process in living:",
        "        for process in living:",
        ("test_contract.py::test_a_worker_is_killed_in_the_critical_section[single_lock-in the copy-quiet]",),
        "variants/single_lock.py",
        hang=True,
    ),
    Mutant(
        "robust-mutex-not-consistent",
        "After two deaths inside the lock nobody gets it any more.",
        "return int(quick.pthread_mutex_consistent(self._at))",
        "return 0",
        ("test_contract.py::test_none_is_refused_on_a_usual_machine",),
        "variants/robust_mutex.py",
    ),
    # Dask: a chunk has one reply, and nodes come to an end.
    Mutant(
        "dask-missing-is-success",
        "Without Dask a script goes on as if its tasks were done.",
        'pip install distributed", file=sys.stderr)\n        return 2\n',
        'pip install distributed", file=sys.stderr)\n        return 0\n',
        ("test_dask.py::test_without_dask",),
        DASK,
    ),
    Mutant(
        "dask-rest-of-a-chunk-lost",
        "Tasks that a dead process had not begun are never done.",
        "        self._back.extend(rest.values())\n",
        "",
        ("test_dask.py::test_supervisors_that_die_on_all_nodes_end_the_run",),
        DASK,
    ),
    Mutant(
        "dask-slow-chunk-kept",
        "One slow machine holds up a run: it keeps the tasks that others could do.",
        "self._close(load, now - load.came > LIMIT_SECONDS)",
        "self._close(load, False)",
        ("test_dask.py::test_a_slow_chunk_gives_back_what_it_has_not_begun",),
        DASK,
        hang=True,
    ),
    Mutant(
        "dask-chunk-of-dead-nodes-lost",
        "A task that ends every node is in no results.",
        'yield from self._end(chunk.tasks, "crashed", "KilledWorker: every node that had it died")',
        "pass",
        ("test_dask.py::test_a_task_that_kills_every_node_that_has_it_is_crashed",),
        DASK,
    ),
    Mutant(
        "dask-retries-not-counted",
        "A task that always fails goes round for ever.",
        "attempts += self._spent.pop(tsk_id, 0)\n            if",
        "self._spent.pop(tsk_id, 0)\n            if",
        ("test_dask.py::test_every_kind_of_outcome",),
        DASK,
        hang=True,
    ),
    Mutant(
        "dask-lost-tasks-cancelled",
        "Tasks that the lost scheduler's nodes may have run look as if they had not begun.",
        'yield from self._end(chunk.tasks, "crashed" if self._failure else "cancelled", text)',
        'yield from self._end(chunk.tasks, "cancelled", text)',
        ("test_dask.py::test_the_scheduler_dies_and_resume_goes_on",),
        DASK,
    ),
    Mutant(
        "dask-ctrl-c-kills-the-node",
        "Ctrl-C kills the node of a LocalCluster, instead of letting it finish what is in hand.",
        "handler = signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "handler = signal.getsignal(signal.SIGINT)",
        ("test_dask.py::test_ctrl_c_at_a_cluster_of_its_own",),
        DASK,
    ),
    Mutant(
        "dask-ctrl-c-without-nodes",
        "After Ctrl-C a run waits for ever for nodes that are gone.",
        "elif self._empty_at - self._nodes_at > self._wait_seconds:",
        "elif self._empty_at - self._nodes_at > self._wait_seconds and not self.cancelled:",
        ("test_dask.py::test_the_last_node_dies_after_ctrl_c",),
        DASK,
        hang=True,
    ),
    Mutant(
        "dask-late-look",
        "A run on a busy machine ends as if there were no nodes.",
        "elif self._empty_at - self._nodes_at > self._wait_seconds:",
        "elif now - self._nodes_at > self._wait_seconds:",
        ("test_dask.py::test_nodes_that_were_not_counted_for_a_while_are_not_taken_for_gone",),
        DASK,
    ),
    Mutant(
        "dask-killed-client-unnoticed",
        "Nodes go on for half a minute and more after the run was killed.",
        'if finish == "released" and key in self._waiting:',
        "if False:",
        ("test_dask.py::test_the_client_is_killed",),
        DASK,
        hang=True,
    ),
    Mutant(
        "dask-journals-kept",
        "Each chunk leaves files on its node, until the disk is full.",
        "            self._waiting.pop(key, None)\n            remove_journal(chunk.journal)\n",
        "            self._waiting.pop(key, None)\n",
        ("test_dask.py::test_every_kind_of_outcome",),
        DASK,
    ),
    Mutant(
        "dask-journal-overwritten",
        "A worker comes back to a chunk, and forgets which of its tasks ended.",
        "os.O_WRONLY | os.O_CREAT | os.O_APPEND)",
        "os.O_WRONLY | os.O_CREAT | os.O_TRUNC)",
        ("test_dask.py::test_a_worker_that_comes_back_to_a_chunk_keeps_its_records",),
        DASK,
    ),
    Mutant(
        "dask-two-outcomes",
        "After the death of a node's process, a task that ended has a second outcome.",
        "if (states[at] or not ended) and at not in outcomes]",
        "if states[at] or not ended]",
        ("test_dask.py::test_the_journals_of_a_dead_process_say_what_became_of_each_task",),
        DASK,
    ),
    Mutant(
        "dask-none-is-crashed",
        "After the death of a node's process, tasks that had returned None are crashed.",
        'outcomes.setdefault(at, (at, "ok", None, None, 1, None, 0.0))',
        "pass",
        ("test_dask.py::test_the_journals_of_a_dead_process_say_what_became_of_each_task",),
        DASK,
    ),
    Mutant(
        "dask-taken-back-and-begun",
        "A worker begins a task that another node has got meanwhile.",
        "        if not info.st_nlink:\n",
        "        if False:\n",
        ("test_dask.py::test_no_task_begins_in_a_chunk_that_was_taken_back",),
        DASK,
    ),
)


class Outcome(NamedTuple):
    """How some tests ended. failed: their messages, by id. skipped: ids. seconds: of each test, by id."""

    code: int | None  # of pytest; None if it had to be ended
    failed: dict[str, str]
    skipped: list[str]
    seconds: dict[str, float]
    output: str


def make_copy(folder, mutant=None):
    """Copy the project into `folder`, with one mistake in it."""
    shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
    if mutant is not None:
        path = folder / mutant.file
        path.write_text(mistaken_text(mutant), encoding="utf-8")


def mistaken_text(mutant):
    """Return the text of a mutant's file with the mistake. Raises ValueError if the row does not apply."""
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    count = text.count(mutant.old)
    if count != 1:
        raise ValueError(f"{mutant.name}: its old text is {count} times in {mutant.file}, and must be there once")
    return text.replace(mutant.old, mutant.new)


def path_of(test):
    """Return a test's id with the folder of its file."""
    (path,) = (ROOT / "tests").glob(f"*/{test.partition('::')[0]}")
    return f"tests/{path.parent.name}/{test}"


def run_tests(folder, tests, limit, *options):
    """Run tests of the copy in `folder` for `limit` seconds at most. Nothing of them is left afterwards."""
    report, output = folder.with_suffix(".xml"), folder.with_suffix(".out")
    temporary = folder.with_suffix(".tmp")
    temporary.mkdir()
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += [*options, *map(path_of, tests)]
    with open(output, "wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, MARK: mark, "TMPDIR": str(temporary)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        code = None
        ends = time.monotonic() + limit
        try:
            while code is None and time.monotonic() < ends and not interrupted.is_set():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(0.5)
        finally:
            end_processes(process.pid, mark)
            process.wait()
    shmqueue.sweep()  # what dead supervisors left, and nothing else
    remove_lone_files()
    return read_outcome(code, report, output.read_text(errors="replace"))


def remove_lone_files():
    """Remove files beside segments that are gone, if their supervisors are dead: a mistake can leave these alone."""
    folder = pathlib.Path(shmqueue.shared_directory())
    for path in folder.glob(f"{shmqueue.PREFIX}*-*.*"):
        segment = path.name.partition(".")[0]
        if not (folder / segment).exists() and not os.path.exists(f"/proc/{segment.split('-')[1]}"):
            path.unlink(missing_ok=True)


def end_processes(session, mark):
    """Kill the processes of a session, and those with this mark in their environment, until there are none.

    A resource tracker of multiprocessing ends when its users have ended, and removes what they have left in shared
    memory. So it is killed only if it stays for ten seconds.
    """
    deadline = time.monotonic() + 10
    while found := processes_in(session, f"{MARK}={mark}"):
        for pid in found:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"resource_tracker" not in command or time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def read_outcome(code, report, output):
    failed, skipped, seconds = {}, [], {}
    cases = []
    with contextlib.suppress(OSError, ElementTree.ParseError):  # pytest was ended before it wrote it
        cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314
    for case in cases:
        test = f"{case.get('classname', '').rpartition('.')[2]}.py::{case.get('name')}"
        seconds[test] = seconds.get(test, 0.0) + float(case.get("time", 0))
        for part in case:
            if part.tag in ("failure", "error"):
                failed[test] = part.get("message") or ""
            elif part.tag == "skipped":
                skipped.append(test)
    return Outcome(code, failed, skipped, seconds, output)


def judge(mutant, outcome):
    """Return what became of a mistake, in a word or two, and more about it."""
    asserted = [test for test, message in outcome.failed.items() if not any(word in message for word in WAITED)]
    if asserted and outcome.code == 1:
        return "caught", asserted[0]
    if outcome.code is None or (outcome.failed and outcome.code == 1):
        return "caught" if mutant.hang else "timed out", ", ".join(outcome.failed) or "ended from outside"
    if outcome.code == 0:
        return "survived", ", ".join(mutant.tests)
    return "broken", outcome.output[-2000:]


def seconds_of(tests, seconds):
    """Return how long tests took that are named with or without parameters."""
    return sum(
        time for test, time in seconds.items() if {test, test.partition("[")[0], test.partition("::")[0]} & set(tests)
    )


def run_mutant(mutant, folder, usual):
    """Make a mistake, and run its tests. Return (what became of it, more about it, seconds)."""
    began = time.monotonic()
    make_copy(folder, mutant)
    spare = SPARE_SECONDS * (3 if mutant.file == DASK else 1)  # each run has to start a cluster of its own
    limit = spare + PATIENCE * seconds_of(mutant.tests, usual)
    found = judge(mutant, run_tests(folder, mutant.tests, limit, "-x"))
    shutil.rmtree(folder)
    return *found, time.monotonic() - began


def run_unchanged(mutants, folder, jobs):
    """Run the tests of all mutants on an unchanged copy. Return how long each takes. Exits if they do not all pass."""
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    make_copy(folder)
    outcome = run_tests(folder, tests, 3600.0, "-n", str(jobs))
    if not outcome.seconds:  # run by several processes, pytest does not say which test is not there
        shutil.rmtree(folder.with_suffix(".tmp"))
        outcome = run_tests(folder, tests, 3600.0, "--collect-only")
    bad = [*outcome.failed, *(f"{test} (skipped)" for test in outcome.skipped)]
    if bad or outcome.code != 0:
        sys.exit("\n".join([outcome.output[-6000:], "On the unchanged project these do not pass:", *bad]))
    return outcome.seconds


def main():
    parser = argparse.ArgumentParser(description="Make mistakes on purpose, and see that the tests catch them.")
    parser.add_argument("names", metavar="NAME", nargs="*", help="only these mistakes")
    parser.add_argument("--jobs", type=int, default=2, help="mistakes at a time (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="say what there is, and exit")
    options = parser.parse_args()
    unknown = set(options.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no such mistake: {', '.join(sorted(unknown))}; --list names them")
    chosen = [mutant for mutant in MUTANTS if not options.names or mutant.name in options.names]
    if options.list:
        print("\n".join(f"{mutant.name:<36} {mutant.why}" for mutant in chosen))
        return 0
    try:
        for mutant in chosen:
            mistaken_text(mutant)
    except ValueError as error:
        parser.error(str(error))
    began = time.monotonic()
    rows = {mutant.name: ("left out", "pip install distributed", 0.0) for mutant in chosen if lacks_dask(mutant)}
    if possible := [mutant for mutant in chosen if mutant.name not in rows]:
        rows |= run_all(possible, options.jobs)
    return report(chosen, rows, time.monotonic() - began)


def lacks_dask(mutant):
    """Return True if the tests of a mutant would be skipped here."""
    return mutant.file == DASK and importlib.util.find_spec("distributed") is None


def run_all(mutants, jobs):
    """Make these mistakes. Print what becomes of each. Return (what became of it, more about it, seconds) by name."""
    began = time.monotonic()
    rows = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as name, ThreadPoolExecutor(jobs) as pool:
        folder = pathlib.Path(name)
        usual = run_unchanged(mutants, folder / "unchanged", jobs)
        print(f"{len(usual)} tests pass on the unchanged project in {time.monotonic() - began:.0f} s", flush=True)
        runs = {pool.submit(run_mutant, mutant, folder / str(at), usual): mutant for at, mutant in enumerate(mutants)}
        try:
            for done in as_completed(runs):
                rows[runs[done].name] = verdict, about, seconds = done.result()
                print(f"{verdict:<9} {seconds:5.1f} s  {runs[done].name}", flush=True)
                if verdict != "caught":
                    print(about, flush=True)
        except BaseException:
            interrupted.set()
            pool.shutdown(cancel_futures=True)
            raise
    return rows


def report(mutants, rows, seconds):
    """Print the table. Return the exit code."""
    print()
    for mutant in mutants:
        verdict, about, took = rows[mutant.name]
        print(f"{mutant.name:<36} {verdict:<9} {took:5.1f} s  {about.partition(chr(10))[0]}")
    bad = [mutant for mutant in mutants if rows[mutant.name][0] != "caught"]
    for mutant in bad:
        print(f"not caught: {mutant.name}: {mutant.why} ({rows[mutant.name][0]})")
    print(f"{len(mutants) - len(bad)} of {len(mutants)} mistakes are caught; {seconds:.0f} s")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
