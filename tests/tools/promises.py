"""What README and the docstring of shmqueue.py promise, word for word, and the tests that show it.

`statements` reads the sentences and the rows of tables that must be listed here. So a promise that is changed or added
fails test_promises.py until somebody has looked which test shows it.
"""

import re

import shmqueue
from tests.helpers import ROOT

# The sections of README that are listed. The others show examples, which test_readme.py runs, figures, which
# benchmarks/ measures, and other programs. Of the first one only the reasons to come are listed.
REASONS = "Coming from Pool, ProcessPoolExecutor, joblib"
SECTIONS = [
    "shmqueue", "A minute's example", "What a failure tells", REASONS, "… debug a function?",
    "… await a call, or use futures?", "… add tasks while others run?", "… give each worker something to begin with?",
    "Go on after Ctrl-C", "What is guaranteed", "How it works", "Library", "Command line", "Limits",
]  # fmt: skip
DOCSTRING = "If a worker is killed, on any line"  # the section of the docstring that is listed
TABLES_OF_FIGURES = {"What is guaranteed"}


def statements():
    """Return every sentence and every row that must be listed, each on one line."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / "README.md").read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    _, *parts = re.split(r"^#+ (.*)$", text, flags=re.MULTILINE)
    found = []
    for heading, section in zip(parts[::2], parts[1::2]):
        if heading in SECTIONS:
            if heading == REASONS:
                section = section[section.index("| what hurts there") :]
            found += _sentences(re.sub(r"^[|!].*\n", "", section, flags=re.MULTILINE))
            if heading not in TABLES_OF_FIGURES:
                found += _rows(section)
    section = (shmqueue.__doc__ or "").partition(f"\n{DOCSTRING}\n")[2].partition("\n\n")[0]
    found += [" ".join(row.split()) for row in re.split(r"\n(?=  \S|\S)", section)[1:]]
    return found


def _sentences(text):
    for block in re.split(r"\n\s*\n|\n(?=- |\d\. )", text):
        words = re.sub(r"^(- |\d\. )", "", " ".join(block.split()))
        yield from filter(None, re.split(r"(?:(?<=[.?])|(?<=\.\)))\s+(?=[A-Z`*\[(]|bytearrays|shmqueue)", words))


def _rows(text):
    """Yield the rows of tables, less their heads."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        yield from table.splitlines()[2:]


# The tests: `file::name` is test_file.py::name, in a folder of tests/.
PROMISES = {
    "`shmqueue.py` puts many small tasks through several processes and loses none of them.": [
        "soak::test_nothing_is_lost_when_workers_are_killed_and_stopped",
        "supervisor::test_exactly_one_outcome_per_task",
    ],
    "It is one Python file without dependencies.": [
        "supervisor::test_it_works_without_psutil",
        "imports::test_an_import_loads_nothing_that_only_some_need",
        "promises::test_one_file_needs_nothing_but_the_standard_library",
    ],
    "Copy it into your repository and call it, or run it on a file of tasks or commands.": [
        "supervisor::test_a_copy_inside_another_package_works",
        "contract::test_a_copy_in_another_package_works",
    ],
    "Tasks travel through a ring of fixed slots in shared memory, so nothing is pickled on the way.": [
        "values::test_nothing_is_pickled_without_a_codec",
        "layout::test_slots_give_back_what_was_written",
    ],
    "If a worker process is killed, at any instruction, the others go on.": [
        "kill_at_store::test_a_kill_at_any_store_loses_nothing",
        "explorer::test_no_schedule_goes_wrong",
        "contract::test_a_worker_is_killed_in_the_critical_section",
    ],
    "The task in its hand is reported, and another worker runs the rest of its batch.": [
        "supervisor::test_a_function_that_misbehaves_has_its_own_outcome",
        "halt::test_a_worker_killed_after_a_halt_is_charged_for_the_task_in_hand_alone",
    ],
    "A live screen shows what each worker does.": ["screen::test_what_the_screen_says_of_the_workers"],
    "The function is an ordinary top-level function of one argument.": ["supervisor::test_every_start_method"],
    "Payloads and values are plain data: numbers, text, bytes, None, and tuples, lists, dicts and sets of these.": [
        "values::test_plain_data_as_payloads_and_values_of_a_run"
    ],
    "The order of results as they finish may differ from run to run.": [
        "halt::test_results_do_not_wait_for_a_long_task_of_the_same_worker"
    ],
    "The command line calls functions, too.": ["cli::test_handlers_by_file_and_by_module"],
    "With `--call`, each whole line is the payload of one function.": ["cli::test_call_gives_each_line_whole"],
    "The annotation `str` makes text of the line; without it the function receives bytes.": [
        "supervisor::test_a_function_gets_what_its_annotation_says_and_its_value_keeps_its_type",
        "cli::test_str_functions_get_undecodable_bytes_by_surrogateescape",
    ],
    "With `--handlers`, the first word of a line names the function.": [
        "cli::test_handlers_by_file_and_by_module",
        "cli::test_any_function_and_payload_on_a_line_comes_back",
    ],
    "With `--shell`, each line is a shell command.": ["cli::test_shell_gives_the_output_and_fails_with_the_exit_code"],
    "`-` reads standard input and starts each line as it comes.": [
        "cli::test_a_pipe_is_streamed",
        "cli::test_a_terminal_is_streamed",
    ],
    "Your own script can have this command line for its functions:": [
        "cli::test_main_over_functions_of_a_script",
        "readme::test_the_examples_of",
    ],
    (
        "A result has the traceback as the interpreter would print it, with causes and notes, and without"
        " the frames of shmqueue."
    ): [
        "values::test_a_traceback_is_what_the_interpreter_prints",
        "values::test_notes_and_groups_are_in_the_traceback",
    ],
    "`TaskError` shows it as well.": ["values::test_a_task_error_shows_the_traceback_and_can_be_pickled"],
    "The summary of the command line ends such a line with the last frame, as `(words.py:8 in shout)` above.": [
        "values::test_the_summary_names_the_last_frame"
    ],
    (
        "| `multiprocessing.Pool` waits for ever if a worker is killed "
        "([cpython#96062](https://github.com/python/cpython/issues/96062)) | that task is `crashed`, the "
        "others go on |"
    ): ["contract::test_workers_killed_at_random", "supervisor::test_a_function_that_misbehaves_has_its_own_outcome"],
    (
        "| a process that is killed while it holds a `multiprocessing.Lock` blocks the others "
        "([cpython#88304](https://github.com/python/cpython/issues/88304)) | the kernel releases the "
        "lock, and the next holder repairs |"
    ): ["contract::test_a_worker_is_killed_in_the_critical_section"],
    (
        "| `chunksize`: 1 is slow for short tasks; large chunks leave processors idle if tasks are uneven"
        " | tasks that wait behind a slow one are taken back for an idle worker |"
    ): ["contract::test_nothing_waits_behind_slow_tasks_while_a_worker_is_idle"],
    (
        "| `Pool.imap` reads the whole input ahead, unless a new Python's `buffersize` is given "
        "([cpython#101586](https://github.com/python/cpython/issues/101586)) | reading stops while the "
        "ring is full |"
    ): ["supervisor::test_an_endless_iterable_is_read_a_bounded_way_ahead"],
    (
        "| SIGBUS when `/dev/shm` is small, as in containers "
        "([cpython#114390](https://github.com/python/cpython/issues/114390)) | memory is reserved before "
        "it is used; if there is too little, a clear error says so |"
    ): [
        "endings::test_no_room_for_the_segment_is_a_clear_error",
        "supervisor::test_too_little_shared_memory_is_a_clear_error",
        "endings::test_values_and_payloads_in_little_memory_go_through_or_say_why_not",
    ],
    (
        "| leaked shared memory ([cpython#82300](https://github.com/python/cpython/issues/82300)), and "
        "children that outlive a killed parent "
        "([cpython#111873](https://github.com/python/cpython/issues/111873)) | workers end within a "
        "second; the next start removes the memory |"
    ): ["endings::test_the_supervisor_is_killed", "endings::test_clean_removes_what_dead_runs_left"],
    "With `workers=0` the functions run in your own process, one after the other, with the same results.": [
        "without_workers::test_functions_run_in_this_process_and_nothing_is_made",
        "without_workers::test_results_are_the_same_as_with_a_worker",
        "without_workers::test_input_is_read_task_by_task",
    ],
    "`print` prints, `breakpoint()` stops in the function, and profilers and coverage see it.": [
        "without_workers::test_functions_run_in_this_process_and_nothing_is_made",
        "readme::test_the_examples_of",
    ],
    "Leave out `timeout`, `max_rss` and `log`, which need a worker process.": [
        "without_workers::test_what_needs_a_process_is_refused"
    ],
    "`shmqueue.Executor` is a `concurrent.futures.Executor`.": ["executor::test_the_standard_librarys_tests"],
    "It calls any function with any arguments that pickle, from any thread.": [
        "executor::test_any_callable_with_any_arguments",
        "executor::test_as_completed_in_two_threads",
    ],
    (
        "Use it where you would use `ProcessPoolExecutor`: with asyncio, `as_completed`, or a library "
        "that takes an executor."
    ): ["executor::test_asyncio", "executor::test_as_completed_in_two_threads", "executor::test_a_progress_bar"],
    "What a function raises is raised by `future.result()`, with the traceback of the worker as its cause.": [
        "executor::test_an_exception_arrives_as_itself_with_the_text_of_its_traceback"
    ],
    "`timeout=` ends a call that takes too long, and `retries=` makes a call again.": [
        "executor::test_a_call_that_takes_too_long_fails_alone",
        "executor::test_retries",
    ],
    "Submit while you read `results()`.": ["readme::test_the_examples_of"],
    "It ends when nothing is outstanding.": ["supervisor::test_submitted_tasks_come_back_from_results"],
    "The initializer is called first in each worker.": ["supervisor::test_the_initializer_runs_first_in_every_worker"],
    "`functools.partial` gives it arguments.": [
        "executor::test_initializer_with_arguments",
        "readme::test_the_examples_of",
    ],
    "The first Ctrl-C lets the tasks in hand finish and cancels the rest.": [
        "endings::test_command_ctrl_c_once_finishes_what_is_in_hand",
        "print::test_ctrl_c_prints_what_had_begun",
    ],
    "`--resume` leaves out what the results file holds as ok.": [
        "cli::test_resume_leaves_out_what_is_ok_by_function_and_payload",
        "results::test_what_was_not_ok_is_done_again_and_its_old_record_is_kept",
    ],
    "It knows a task by its function and payload, not by its line number.": [
        "results::test_resume_by_content_of_call_shell_and_query",
        "results::test_functions_whose_long_names_begin_alike_are_told_apart",
        "formats::test_whatever_is_written_can_be_read_and_is_known_to_resume",
    ],
    "It works after a kill as well, because results are written several times a second.": [
        "results::test_resume_after_kill_9_of_everything_at_random_instants",
        "cli::test_results_in_a_file_come_while_the_run_goes_on",
    ],
    "What is done again gets a second row: the last row of a task counts.": [
        "results::test_what_was_not_ok_is_done_again_and_its_old_record_is_kept"
    ],
    "Without `--resume`, the file of results is replaced.": ["results::test_results_are_replaced_without_resume"],
    (
        "**Every task gets exactly one outcome**: `ok`, `failed`, `timeout`, `crashed` or `cancelled`, "
        "whichever processes are killed."
    ): [
        "soak::test_nothing_is_lost_when_workers_are_killed_and_stopped",
        "contract::test_workers_killed_stopped_and_halted_at_random",
        "kill_at_store::test_a_kill_at_any_store_loses_nothing",
        "ledger::TestLedger",
        "supervisor::test_exactly_one_outcome_per_task",
    ],
    "**A task is started at most once.** With `retries=N` it is started at most N + 1 times.": [
        "supervisor::test_a_task_that_is_never_ok_is_started_once_and_again_for_each_retry",
        "contract::test_workers_killed_at_random",
        "explorer::test_no_schedule_goes_wrong",
    ],
    "The death of a worker counts as an attempt of the one task in its hand, and of no other.": [
        "supervisor::test_a_function_that_misbehaves_has_its_own_outcome",
        "kill_at_store::test_a_kill_at_any_store_loses_nothing",
        "halt::test_nobody_is_charged_in_a_batch_that_its_worker_has_left",
        "halt::test_a_worker_killed_after_a_halt_is_charged_for_the_task_in_hand_alone",
        "contract::test_retries",
        "ledger::TestLedger",
    ],
    "**No death blocks the others**, at any instruction, even inside the lock.": [
        "contract::test_a_worker_is_killed_in_the_critical_section",
        "contract::test_a_worker_is_killed_at_each_store",
        "endings::test_a_worker_stopped_while_it_holds_the_lock_does_not_hold_up_the_run",
    ],
    "**Nothing is left behind**: no process, no shared memory, no lock file and no warning.": [
        "endings::test_library_normal",
        "endings::test_command_normal",
        "leaks::test_nothing_is_left_of_a_thousand_supervisors",
    ],
    "This holds after a normal end, an exception, Ctrl-C, SIGTERM, SIGHUP and the SIGKILL of a worker.": [
        "endings::test_library_normal",
        "endings::test_library_exception_in_the_consumer",
        "endings::test_library_ctrl_c",
        "endings::test_library_signal",
        "endings::test_library_a_worker_is_killed",
        "endings::test_command_signal",
        "endings::test_command_a_worker_is_killed",
    ],
    (
        "If the supervisor itself gets SIGKILL, its workers end within a second, and the next start (or "
        "`--clean`) removes its memory."
    ): [
        "promises::test_a_segment_that_a_signal_left_is_removed_by_the_next_start",
        "endings::test_the_supervisor_is_killed",
        "endings::test_the_whole_group_is_killed",
        "endings::test_the_supervisor_is_killed_while_a_worker_is_stopped",
        "endings::test_clean_removes_what_dead_runs_left",
        "host::test_a_worker_that_is_stopped_when_its_supervisor_is_killed_ends_too",
    ],
    "**Memory does not grow with the number of tasks**, neither in the supervisor nor in the workers.": [
        "leaks::test_memory_does_not_grow_with_the_tasks_of_a_supervisor",
        "sources::test_memory_does_not_grow_with_the_rows_of_a_query",
        "sources::test_memory_does_not_grow_with_the_lines_of_a_file_or_pipe",
    ],
    "Input is read only while there is room, also if results are wanted in input order.": [
        "supervisor::test_an_endless_iterable_is_read_a_bounded_way_ahead",
        "supervisor::test_in_order_a_slow_task_does_not_let_the_rest_run_away",
        "leaks::test_memory_of_results_that_wait_for_a_slow_task_is_bounded",
        "print::test_reading_ahead_stops_while_results_wait_for_an_earlier_one",
    ],
    (
        "**Nothing waits that could run.** While a worker is idle, no task that has not begun stays "
        "behind a slow one for longer than 20 ms."
    ): [
        "contract::test_nothing_waits_behind_slow_tasks_while_a_worker_is_idle",
        "halt::test_long_tasks_behind_short_ones_are_begun_side_by_side",
        "halt::test_one_long_task_first_keeps_nothing_back",
        "halt::test_long_tasks_anywhere_keep_nothing_back",
    ],
    "A result arrives within 100 ms of its task's end, whatever the worker does next.": [
        "contract::test_results_before_a_slow_task_are_delivered_while_it_runs",
        "halt::test_results_do_not_wait_for_a_long_task_of_the_same_worker",
    ],
    (
        "**Your program does not notice.** None of our signal handlers stays behind, and processes that "
        "others fork inherit none."
    ): [
        "leaks::test_nothing_is_left_of_a_thousand_supervisors",
        "host::test_a_forked_child_handles_signals_as_the_program_did",
        "host::test_a_child_that_is_forked_while_signals_are_held",
        "supervisor::test_the_first_of_two_supervisors_to_close_leaves_the_other_its_signals",
        "cli::test_after_main_signals_are_handled_as_before",
    ],
    "Pools, threads and other Supervisors in the same process work as usual.": [
        "host::test_two_hundred_pools_beside_an_open_supervisor",
        "supervisor::test_supervisors_in_several_threads_do_not_disturb_each_other",
        "host::test_a_program_that_takes_the_exit_status_of_our_workers",
    ],
    "**The terminal is as it was before.**": [
        "screen::test_endings",
        "screen::test_the_quit_signal_leaves_the_terminal_as_it_was",
        "endings::test_command_ctrl_c_once_finishes_what_is_in_hand",
    ],
    "**Push.** The supervisor is your own process.": [
        "supervisor::test_two_runs_of_one_supervisor_can_be_read_in_turns"
    ],
    "It writes tasks into free slots of the ring, then moves one counter.": [
        "explorer::test_a_mistake_is_found",
        "layout::test_the_ring_is_a_queue_whatever_the_order_of_pushes_and_claims",
    ],
    "While the ring is full, it stops reading your input.": [
        "supervisor::test_an_endless_iterable_is_read_a_bounded_way_ahead",
        "supervisor::test_submit_blocks_while_the_ring_is_full",
    ],
    "**Claim and run.** A worker claims a batch: it copies tasks from the ring to its own lane.": [
        "layout::test_the_ring_is_a_queue_whatever_the_order_of_pushes_and_claims",
        "own_strategy::test_the_supervisor_comes_at_any_line_of_a_claim",
    ],
    "It runs them one by one.": ["supervisor::test_exactly_one_outcome_per_task"],
    "It appends each value to its log, then stores where the value ends.": [
        "layout::test_a_half_tells_what_is_finished",
        "explorer::test_a_mistake_is_found",
    ],
    "That one store makes the task finished.": [
        "kill_at_store::test_a_kill_at_any_store_loses_nothing",
        "contract::test_a_worker_is_killed_at_each_store",
    ],
    "So after a death the memory shows which tasks are finished, which one was in hand, and which never began.": [
        "kill_at_store::test_a_kill_at_any_store_loses_nothing",
        "halt::test_a_worker_killed_after_a_halt_is_charged_for_the_task_in_hand_alone",
    ],
    "Batches size themselves: they are large while tasks are short, and small while tasks are long.": [
        "promises::test_batches_are_large_while_tasks_are_short_and_small_while_they_are_long"
    ],
    "**Harvest.** The supervisor reads the logs and gives you results.": [
        "supervisor::test_map_yields_values_in_input_order"
    ],
    "It replaces dead workers.": ["contract::test_workers_are_killed_and_replaced_without_a_pause"],
    "It counts an attempt for the task that was in hand.": ["contract::test_retries", "ledger::TestLedger"],
    "Tasks that never began go back into the ring.": [
        "halt::test_a_worker_killed_after_a_halt_is_charged_for_the_task_in_hand_alone",
        "ledger::TestLedger",
    ],
    "**Halt.** A batch can turn out slow while another worker is idle, or while results wait.": [
        "halt::test_a_halt_takes_back_what_has_not_begun"
    ],
    (
        "Then the supervisor stops the worker for a fraction of a millisecond, takes back the tasks that "
        "have not begun, and lets the worker continue."
    ): ["halt::test_a_halt_takes_back_what_has_not_begun", "halt::test_a_halt_brings_what_is_finished"],
    "Cancelling, pausing and timeouts use the same halt.": [
        "contract::test_cancelled_tasks_never_run",
        "contract::test_a_pause_takes_back_what_has_not_begun",
        "halt::test_a_timeout_kills_only_the_task_that_timed_out",
    ],
    "One lock guards the counters.": ["explorer::test_a_mistake_is_found"],
    "It is a file lock (`fcntl.lockf`), so the kernel releases it when its holder dies.": [
        "contract::test_a_worker_is_killed_in_the_critical_section"
    ],
    "The next holder sees that the last one did not finish, and undoes the unfinished claim.": [
        "contract::test_a_worker_is_killed_in_the_critical_section",
        "contract::test_a_worker_is_killed_at_each_store",
    ],
    "A worker with nothing to do sleeps on a pipe.": [
        "promises::test_a_worker_with_nothing_to_do_sleeps",
        "contract::test_who_sleeps_is_woken",
    ],
    "The docstring of `shmqueue.py` describes the memory byte by byte.": [
        "layout::test_the_length_is_kept_where_the_docstring_says"
    ],
    (
        "[variants](variants/README.md) holds five other ways to synchronize, each in one short file: a "
        "plain `multiprocessing.Lock`, a robust mutex, semaphores, a state byte for each slot, and a lane"
        " for each worker."
    ): ["contract::test_each_says_what_it_is"],
    "All pass the same test suite.": [
        "contract::test_values_come_in_order_and_results_once",
        "contract::test_workers_killed_at_random",
    ],
    "If you close an iterator of `run` or `map` early, tasks that have not begun are cancelled.": [
        "supervisor::test_an_iterator_closed_early_cancels_what_has_not_begun",
        "contract::test_a_run_after_one_that_was_closed_early",
    ],
    (
        "If your iterable of tasks raises an exception, the results of what it had yielded come first, "
        "and then the exception."
    ): ["supervisor::test_an_exception_in_the_users_iterable_is_raised_and_the_supervisor_goes_on"],
    "One thread at a time may use a Supervisor, and a second one gets an error.": [
        "supervisor::test_a_second_thread_is_told_so_and_disturbs_nothing"
    ],
    "Your signal handlers may call `cancel()` and `abort()` at any moment, and `pause(bool)` while it is open.": [
        "supervisor::test_a_signal_handler_of_the_program_can_end_a_run_at_any_moment"
    ],
    (
        "A `TaskResult` has the fields `tsk_id`, `function` (its name), `payload`, `status`, `value`, "
        "`error`, `attempts`, `worker`, `seconds`, `traceback` and `started` (seconds since 1970)."
    ): [
        "promises::test_the_fields_of_a_result_are_those_of_readme",
        "supervisor::test_a_result_says_all_about_its_task",
    ],
    "A `TaskError` has it as `result`.": ["supervisor::test_task_error_carries_the_result"],
    'In a worker, `os.environ["SHMQUEUE_WORKER"]` is its index.': ["retries::test_a_function_knows_its_worker"],
    (
        "**Payloads and values** are `bytes`, `str`, a `ctypes.Structure`, or plain data: `None`, `bool`,"
        " `int`, `float`, `complex`, `tuple`, `list`, `dict`, `set`, `frozenset`, nested as you like."
    ): [
        "values::test_plain_data_arrives_as_it_is",
        "values::test_plain_data_as_payloads_and_values_of_a_run",
        "values::test_what_a_function_is_given",
        "supervisor::test_structures_travel_in_slots_and_out_of_line",
    ],
    (
        "A bytearray, memoryview or array, also one of numpy, becomes plain bytes, as payload and as "
        "value: its shape and type are lost."
    ): ["values::test_what_a_function_is_given", "values::test_numpy_scalars_are_refused_and_arrays_are_bytes"],
    "So does a Structure that no annotation names.": ["values::test_what_a_function_is_given"],
    "Any other type makes the task `failed`, and the error names the type.": [
        "values::test_a_payload_or_value_that_is_not_plain_fails_alone",
        "supervisor::test_what_cannot_travel_is_a_failed_task_that_says_so",
    ],
    "This holds for subclasses as well, such as an IntEnum, a namedtuple or `numpy.float64`.": [
        "values::test_what_is_not_plain_data_is_refused_at_any_depth",
        "values::test_numpy_scalars_are_refused_and_arrays_are_bytes",
    ],
    "With `codec=pickle` such objects travel, too.": [
        "values::test_a_codec_takes_what_is_neither_bytes_nor_text",
        "values::test_the_usual_codecs",
    ],
    "The annotation of a function's first parameter says what it receives:": ["values::test_what_a_function_is_given"],
    "Plain data arrives as it is.": ["values::test_plain_data_arrives_as_it_is"],
    "A value may be a Structure if an annotation names it.": [
        "supervisor::test_structures_travel_in_slots_and_out_of_line",
        "supervisor::test_what_cannot_travel_is_a_failed_task_that_says_so",
    ],
    "With one function, a tuple is a payload like any other.": [
        "supervisor::test_with_one_function_an_item_is_a_payload_or_a_pair"
    ],
    "Only `(function, payload)` with that function itself as its first element is taken apart.": [
        "supervisor::test_with_one_function_an_item_is_a_payload_or_a_pair"
    ],
    "With several functions every item is such a pair, of a function or its name and a payload.": [
        "supervisor::test_pairs_may_be_tuples_with_names",
        "supervisor::test_an_item_that_is_no_task_fails_alone",
    ],
    (
        "`Executor(max_workers=None, mp_context=None, initializer=None, initargs=(), *, "
        "max_tasks_per_child=None, timeout=None, retries=0)` has the methods of ProcessPoolExecutor."
    ): ["promises::test_the_signature_of_executor_is_that_of_readme", "executor::test_the_standard_librarys_tests"],
    (
        "| `run(tasks)` | results as they finish; an item is `(function, payload)`, or a payload if there"
        " is only one function; never raises for a task |"
    ): [
        "supervisor::test_exactly_one_outcome_per_task",
        "supervisor::test_with_one_function_an_item_is_a_payload_or_a_pair",
    ],
    "| `map(function, payloads)` | values in input order; raises `TaskError` at the first task that is not ok |": [
        "supervisor::test_map_yields_values_in_input_order",
        "supervisor::test_map_yields_what_comes_before_the_error_and_cancels_the_rest",
    ],
    "| `submit(function, payload)` | adds one task and returns its `tsk_id`; blocks while the ring is full |": [
        "supervisor::test_submitted_tasks_come_back_from_results",
        "supervisor::test_submit_blocks_while_the_ring_is_full",
    ],
    "| `results()` | results of submitted tasks, until none is outstanding |": [
        "supervisor::test_submitted_tasks_come_back_from_results"
    ],
    "| `cancel(tsk_id)` | cancels this task; True if it had not begun, and never will |": [
        "retries::test_one_task_is_cancelled_wherever_it_is",
        "retries::test_a_task_in_hand_is_not_cancelled",
    ],
    "| `stats()`, `name` | counts, time and workers as a dict; the name of the shared memory |": [
        "supervisor::test_stats_count_outcomes_and_workers",
        "supervisor::test_the_name_is_that_of_the_segment_and_goes_with_it",
    ],
    (
        "| `cancel()`, `pause(bool)`, `abort()`, `close()` | start no more tasks; start none for now; "
        "kill what runs; finish and close |"
    ): [
        "supervisor::test_cancel_ends_every_run_with_an_outcome_for_each_task",
        "contract::test_a_pause_takes_back_what_has_not_begun",
        "supervisor::test_what_is_submitted_after_an_abort_is_cancelled",
        "supervisor::test_close_finishes_what_was_submitted",
    ],
    "| `workers` | the processors this process may use | processes; 0: the functions run in this process |": [
        "supervisor::test_the_default_is_one_worker_for_each_processor_this_process_may_use",
        "without_workers::test_functions_run_in_this_process_and_nothing_is_made",
    ],
    "| `num_slots`, `slot_size` | 16384, 128 | tasks that the ring holds; bytes of a slot |": [
        "supervisor::test_a_ring_smaller_than_the_tasks",
        "supervisor::test_sizes_at_the_edges_of_every_slot",
    ],
    "| `batch` | sized by itself | tasks that a worker claims at once |": [
        "contract::test_values_come_in_order_and_results_once",
        "layout::test_a_worker_claims_no_more_than_its_share",
    ],
    "| `timeout` | none | seconds that a task may run |": [
        "supervisor::test_a_task_that_never_returns_times_out",
        "supervisor::test_a_timeout_is_for_each_task_and_not_for_the_batch",
    ],
    "| `grace` | 0.0 | seconds between SIGTERM and SIGKILL for a task that ran too long |": [
        "retries::test_a_task_that_ends_in_its_grace_is_a_timeout",
        "retries::test_a_task_that_ignores_sigterm_is_killed_after_its_grace",
        "retries::test_without_a_grace_there_is_no_sigterm",
    ],
    "| `retries` | 0 | how often a task that is not ok is started again |": [
        "supervisor::test_a_task_that_is_never_ok_is_started_once_and_again_for_each_retry",
        "supervisor::test_retries_end_with_the_first_that_is_ok",
    ],
    "| `retry_delay` | 0.0 | seconds before the second attempt, doubled for each further one, 60 at most |": [
        "retries::test_pauses_double_up_to_a_minute",
        "retries::test_tasks_that_wait_for_a_retry_hold_up_nothing",
    ],
    '| `retry_on` | `("failed", "timeout", "crashed")` | the statuses that are tried again |': [
        "retries::test_only_these_statuses_are_tried_again"
    ],
    (
        "| `max_rss`, `max_tasks` | none | bytes of memory (needs psutil), or tasks, after which a worker"
        " is replaced; above `max_rss` for a second, it is killed with its task |"
    ): [
        "supervisor::test_a_worker_that_grows_past_max_rss_is_replaced_and_loses_nothing",
        "supervisor::test_a_worker_is_replaced_after_max_tasks",
        "supervisor::test_a_task_that_stays_above_max_rss_ends_with_its_worker",
    ],
    "| `initializer` | none | called first in every worker |": [
        "supervisor::test_the_initializer_runs_first_in_every_worker"
    ],
    (
        "| `codec` | none | an object with `dumps` and `loads`, such as the module `pickle`, for payloads"
        " and values that are not bytes or text |"
    ): ["values::test_the_usual_codecs", "values::test_what_is_no_codec_is_refused"],
    (
        "| `screen`, `log` | `False`, none | draw on the error stream; a file for what functions print, "
        "also on the error stream (`/dev/stderr` shows it at once), which is dropped otherwise |"
    ): [
        "supervisor::test_what_functions_print_goes_to_the_log_line_by_line",
        "screen::test_sizes",
        "results::test_the_log_may_be_the_error_stream",
    ],
    (
        "| `start_method` | `fork` if the process has one thread (threads of C libraries count), else "
        "`forkserver` | `fork`, `spawn` or `forkserver` |"
    ): [
        "supervisor::test_every_start_method",
        "host::test_a_program_with_native_threads_is_not_forked_unless_they_came_later",
    ],
    "| `queue` | `SharedTaskQueue` | the class that synchronizes |": [
        "contract::test_values_come_in_order_and_results_once"
    ],
    "| none | bytes | str |": ["values::test_what_a_function_is_given"],
    "| `bytes` | bytes | bytes (UTF-8) |": ["values::test_what_a_function_is_given"],
    "| `str` | str (UTF-8; other bytes by surrogateescape) | str |": ["values::test_what_a_function_is_given"],
    "| `int`, `float` | a number; what is no number is a failed task | the same |": [
        "values::test_what_a_function_is_given",
        "values::test_what_is_no_number_is_a_failed_task",
    ],
    "| a `ctypes.Structure` | this Structure | this Structure |": [
        "values::test_what_a_function_is_given",
        "supervisor::test_structures_travel_in_slots_and_out_of_line",
    ],
    "TASKS is a file with one task a line, or `-` for standard input.": [
        "cli::test_outcomes_and_the_summary",
        "cli::test_redirected_standard_input_and_an_empty_one",
    ],
    "A line is `FUNCTION PAYLOAD`.": ["formats::test_any_line_is_a_task_or_says_which_line_it_is"],
    "Blank lines are skipped, and so are lines that start with `#`, but not with `--call` and `--command`.": [
        "formats::test_any_line_is_a_task_or_says_which_line_it_is",
        "formats::test_whole_lines_are_payloads",
        "cli::test_call_gives_each_line_whole",
    ],
    "Only a newline ends a line.": [
        "cli::test_lines_end_at_newlines_and_bytes_are_kept",
        "cli::test_any_file_is_read_as_its_lines",
    ],
    "The bytes of a line reach the function unchanged.": [
        "cli::test_lines_end_at_newlines_and_bytes_are_kept",
        "results::test_any_bytes_come_back_from_every_form_and_are_known_to_resume",
    ],
    (
        "In the folder of `shmqueue.py`, `python3 -m shmqueue TASKS` is the same and starts sooner: "
        "Python keeps the compiled code of a module, while it compiles a script at each start."
    ): ["promises::test_the_module_can_be_run_by_its_name"],
    "Exit code: 0, all tasks were ok; 1, some were not; 2, bad usage or input; 128 + n, stopped by signal n.": [
        "cli::test_outcomes_and_the_summary",
        "cli::test_bad_usage_is_one_line_and_exit_2",
        "endings::test_command_normal",
        "endings::test_command_signal",
    ],
    "One Ctrl-C lets the tasks in hand finish and cancels the rest.": [
        "endings::test_command_ctrl_c_once_finishes_what_is_in_hand"
    ],
    "A second Ctrl-C stops at once.": ["endings::test_command_ctrl_c_twice_ends_what_hangs"],
    "Ctrl-Z and `fg` work.": [
        "screen::test_ctrl_z_and_fg",
        "endings::test_command_ctrl_z_stops_the_workers_too_and_they_go_on",
    ],
    "While a run draws its screen, `p` pauses it, and `q` finishes the tasks that have begun and quits.": [
        "screen::test_p_pauses_and_goes_on",
        "screen::test_q_finishes_what_is_begun",
    ],
    "Commands find the worker's index in `SHMQUEUE_WORKER` and the task's number in `SHMQUEUE_TASK`.": [
        "print::test_task_and_worker_are_in_the_environment"
    ],
    "In results files plain data is JSON; what JSON does not know, such as a set, is there as Python writes it.": [
        "formats::test_whatever_is_written_can_be_read_and_is_known_to_resume",
        "values::test_results_files_have_plain_data_tracebacks_and_times",
    ],
    (
        "| (none of the next four) | lines may name the built-in `echo TEXT`, `sleep SECONDS`, `sha256 "
        "PATH` and `noop` |"
    ): ["cli::test_outcomes_and_the_summary", "cli::test_the_sample_in_the_repository_names_only_functions_there_are"],
    "| `--handlers MODULE_OR_FILE.py` | lines may name its public functions, as `def` names them |": [
        "cli::test_what_cannot_be_sent_by_its_name_cannot_be_named",
        "cli::test_handlers_by_file_and_by_module",
        "cli::test_only_public_functions_of_the_module_itself_may_be_named",
    ],
    "| `--call MODULE_OR_FILE.py:FUNCTION` | each whole line is the payload of this function |": [
        "cli::test_call_gives_each_line_whole"
    ],
    (
        "| `--shell` | each whole line is a command of `/bin/sh`; its output is the value; a non-zero "
        "exit code is a failure |"
    ): ["cli::test_shell_gives_the_output_and_fails_with_the_exit_code"],
    (
        "| `--command TEMPLATE` | each whole line fills a shell command: `{}` the line, `{1}` `{2}` … its"
        " fields, `{.}` without extension, `{/}` base name, `{//}` folder, `{/.}` base name without "
        "extension, `{#}` the task's number, `{%}` the worker's; each is quoted for the shell. Without "
        "any, the line is appended |"
    ): [
        "print::test_output_is_that_of_gnu_parallel",
        "print::test_whatever_a_line_holds_is_one_word_for_the_shell",
        "print::test_numbers_of_the_task_and_of_the_worker",
    ],
    "| `--delimiter TEXT` | what separates the fields of a line (`\\t` is a tab); without it, white space |": [
        "print::test_fields"
    ],
    (
        "| `--query SQL` | TASKS is a SQLite file, and the rows are the tasks: one column is a line, two "
        "are function and payload |"
    ): ["cli::test_rows_of_two_columns_are_function_and_payload", "cli::test_rows_of_one_column_are_lines"],
    "| `-w N`, `--workers N` | worker processes |": ["cli::test_workers"],
    (
        "| `--timeout S`, `--grace S` | seconds that a task may run; seconds between SIGTERM and SIGKILL "
        "for one that ran too long |"
    ): ["cli::test_timeout", "failed_option::test_grace_interrupts_a_task_that_waits"],
    (
        "| `--retries N`, `--retry-delay S` | how often a task that is not ok is started again; seconds "
        "before the second attempt, doubled for each further one |"
    ): ["cli::test_retries", "failed_option::test_retry_on_and_retry_delay"],
    "| `--retry-on STATUS,…` | which ones: `failed`, `timeout`, `crashed` |": [
        "failed_option::test_retry_on_and_retry_delay"
    ],
    (
        "| `--max-rss SIZE`, `--max-tasks N` | replace a worker above this memory (`500M`; needs psutil),"
        " or after so many tasks |"
    ): ["cli::test_max_rss", "cli::test_max_tasks", "cli::test_sizes_have_units"],
    "| `--halt N` | stop when N tasks were not ok |": [
        "cli::test_halt_stops_after_so_many_failures_and_cancels_the_rest",
        "cli::test_halt_does_nothing_below_its_number",
    ],
    "| `--slots N`, `--slot-size BYTES`, `--batch N`, `--start-method M` | the queue |": [
        "cli::test_sizes_of_the_queue",
        "cli::test_start_methods",
    ],
    (
        "| `--print`, `--no-print` | write each value to standard output; on by default with `--shell` "
        "and `--command`, there exactly as the command wrote it |"
    ): [
        "print::test_values_get_a_line_end_and_plain_data_is_json",
        "print::test_commands_print_unless_told_otherwise",
        "print::test_without_print_functions_print_nothing",
    ],
    ("| `-k`, `--keep-order`, `--tag` | print in the order of the input; print each line after its task and a tab |"): [
        "print::test_order_is_that_of_the_input_with_failures_in_their_place",
        "print::test_each_line_has_its_task_before_it",
    ],
    (
        "| `--results FILE` | results as they come: `.jsonl`, `.csv` or `.sqlite` (table `results`); `-` "
        "is JSON lines on standard output |"
    ): [
        "results::test_results_are_there_while_the_run_goes_on",
        "results::test_any_bytes_come_back_from_every_form_and_are_known_to_resume",
    ],
    "| `--resume` | leave out the tasks that this file already holds as ok |": [
        "cli::test_resume_leaves_out_what_is_ok_by_function_and_payload",
        "formats::test_values_of_a_run_are_written_and_resumed",
    ],
    (
        "| `--failed FILE` | the tasks that were not ok, as lines that can be given in again; empty if "
        "all were ok; FILE may be TASKS itself |"
    ): [
        "failed_option::test_what_was_not_ok_can_be_given_in_again",
        "failed_option::test_it_may_be_the_input_and_is_empty_when_all_are_ok",
    ],
    "| `--dry-run` | write what would run, and start nothing |": [
        "failed_option::test_a_dry_run_writes_the_tasks_and_starts_nothing"
    ],
    "| `--summary FILE` | the summary as JSON, too |": ["results::test_the_summary_as_json"],
    "| `--log FILE` | a file for what the functions print, which is dropped otherwise |": [
        "cli::test_log_holds_what_functions_print",
        "cli::test_without_log_what_functions_print_is_dropped",
    ],
    (
        "| `--screen auto\\|on\\|off` | `auto`: the screen if the error stream is a terminal and values are"
        " not printed to one, else a plain line every few seconds; `NO_COLOR=1` turns its colours off |"
    ): [
        "cli::test_screen_auto_draws_on_a_terminal_only",
        "cli::test_screen_auto_draws_nothing_without_a_terminal",
        "print::test_values_on_a_terminal_keep_the_screen_away",
        "screen::test_without_a_terminal_a_plain_line_is_written_now_and_then",
        "screen::test_colours_are_those_of_the_terminal",
    ],
    (
        "| `--watch [NAME]` | the screen of a run in another terminal; without NAME, of the only live "
        "run; the first number in a name is the run's process |"
    ): [
        "screen::test_watching_shows_the_run_and_leaves_it_as_it_is",
        "screen::test_watch_without_a_name_needs_one_run",
        "supervisor::test_the_name_is_that_of_the_segment_and_goes_with_it",
    ],
    "| `--clean` | remove what dead runs left behind, and exit |": [
        "cli::test_clean_removes_what_a_killed_run_left_and_nothing_of_a_living_one",
        "endings::test_clean_removes_what_dead_runs_left",
    ],
    "| `--help`, `--version` | |": ["cli::test_version_and_help"],
    "A payload of up to 119 bytes travels in its slot if slots have 128 bytes (`slot_size` may be up to 65,536).": [
        "promises::test_the_sizes_in_limits",
        "supervisor::test_sizes_at_the_edges_of_every_slot",
    ],
    "Longer payloads lie beside the ring in shared memory, up to 32 MiB of them at a time.": [
        "promises::test_the_sizes_in_limits",
        "supervisor::test_more_bytes_out_of_line_than_may_wait_at_once",
    ],
    "Values lie in a log.": ["promises::test_the_sizes_in_limits"],
    (
        "A value larger than the log (128 KiB with the defaults) goes through a file in `/dev/shm`, and "
        "so does a payload above 16 MiB."
    ): ["promises::test_values_and_payloads_that_go_through_files"],
    "The ring takes shared memory as long as the Supervisor exists: about 3 MB with two workers and the defaults.": [
        "promises::test_the_sizes_in_limits"
    ],
    "A task whose payload or value finds no room is `failed`.": [
        "endings::test_values_and_payloads_in_little_memory_go_through_or_say_why_not"
    ],
    "Under `spawn` and `forkserver`, workers import your script again.": [
        "start::test_a_guarded_script_works",
        "start::test_other_functions_need_no_main_module",
    ],
    'Functions must be at the top level of a module, and the script needs `if __name__ == "__main__":`.': [
        "start::test_a_script_without_a_guard_gets_one_error"
    ],
    (
        "In a notebook, put functions into a file of their own and import it, or name "
        '`start_method="fork"` (an Executor takes `mp_context=multiprocessing.get_context("fork")`).'
    ): [
        "start::test_a_function_of_a_main_module_that_is_no_file_gets_one_error",
        "start::test_without_a_start_method_a_program_on_standard_input_works",
        "start::test_a_call_of_an_executor_that_needs_a_lost_main_module_fails_with_a_remedy",
    ],
    "If your program has a thread, as numpy and tqdm start some, workers are not forked unless you ask for it.": [
        "host::test_a_program_with_native_threads_is_not_forked_unless_they_came_later"
    ],
    "An initializer that fails in every worker ends the run with `WorkersFailedError`.": [
        "supervisor::test_an_initializer_that_always_fails_ends_the_run_with_its_error"
    ],
    "Only one thread may use a Supervisor.": ["supervisor::test_a_second_thread_is_told_so_and_disturbs_nothing"],
    "Several threads may have one each, and an Executor may be used from any thread.": [
        "supervisor::test_supervisors_in_several_threads_do_not_disturb_each_other",
        "executor::test_as_completed_in_two_threads",
    ],
    "In a child that your program forks, a Supervisor of the parent raises RuntimeError.": [
        "host::test_a_child_that_is_forked_in_the_middle_of_a_run_takes_nothing_from_it"
    ],
    (
        "Outside the main thread a Supervisor cannot catch SIGTERM and SIGHUP, so after these signals its"
        " segment stays until the next start."
    ): ["promises::test_a_segment_that_a_signal_left_is_removed_by_the_next_start"],
    "With `retries`, a function may run twice for one task, the first time only in part.": [
        "supervisor::test_a_task_that_is_never_ok_is_started_once_and_again_for_each_retry"
    ],
    "A timeout or a crash ends the whole worker process.": [
        "promises::test_what_a_function_kept_is_lost_when_its_worker_ends"
    ],
    "What the function kept in global variables is lost.": [
        "promises::test_what_a_function_kept_is_lost_when_its_worker_ends"
    ],
    "A worker may be stopped for a moment with SIGSTOP, so that its tasks can be taken back.": [
        "halt::test_a_halt_takes_back_what_has_not_begun"
    ],
    "If your program has a handler for SIGCHLD, the handler runs twice for each stop.": [
        "host::test_the_programs_handler_of_sigchld_is_not_disturbed_when_workers_are_stopped"
    ],
    "Python code in a worker does not notice the stop.": [
        "promises::test_python_code_does_not_notice_that_its_worker_is_stopped"
    ],
    "If your program ignores SIGCHLD, or waits for any child, a crashed task cannot say how its worker ended.": [
        "host::test_a_program_that_takes_the_exit_status_of_our_workers"
    ],
    "A process that a function started is ended with its worker.": [
        "supervisor::test_processes_that_a_function_started_end_with_the_run",
        "endings::test_processes_that_functions_started_end_with_the_run",
    ],
    "If it made a session of its own, it is ended at the end of the run.": [
        "endings::test_processes_that_functions_started_end_with_the_run"
    ],
    "Another process of the same user can write into the shared memory and spoil data.": [
        "endings::test_flipped_bits_are_a_clear_error_or_nothing"
    ],
    (
        "It cannot make the queue run code, because nothing is unpickled, unless you use `codec=pickle` or an Executor."
    ): ["values::test_nothing_is_pickled_without_a_codec", "values::test_code_is_neither_sent_nor_read"],
    "in claim, before the commit repaired by the next holder: the tasks are still in the ring": [
        "contract::test_a_worker_is_killed_in_the_critical_section",
        "contract::test_a_worker_is_killed_at_each_store",
    ],
    (
        "in a batch the tasks with their `ends` are finished. The next one was in hand. It is charged: "
        "this counts as one of its attempts. The later ones never began; they are pushed again"
    ): ["kill_at_store::test_a_kill_at_any_store_loses_nothing", "contract::test_a_worker_is_killed_at_each_store"],
    "after its last task nothing is in hand, and no task is charged": [
        "explorer::test_no_schedule_goes_wrong",
        "halt::test_nobody_is_charged_in_a_batch_that_its_worker_has_left",
    ],
    "while it is halted as in a batch: only tasks after the one in hand were taken back": [
        "halt::test_a_worker_killed_after_a_halt_is_charged_for_the_task_in_hand_alone",
        "halt::test_somebody_else_interferes_with_a_halt",
    ],
    "If the supervisor is killed, workers see their pipe close and leave; the next start removes the segment.": [
        "promises::test_a_segment_that_a_signal_left_is_removed_by_the_next_start",
        "endings::test_the_supervisor_is_killed",
        "endings::test_the_whole_group_is_killed",
    ],
}

# What tells how to read on, what to do, or how another program does it.
INFORMS = [
    "It needs Python 3.10 or later on Linux or macOS.",
    "It is tested on Linux.",
    "Ten minutes take you to the end of [How it works](#how-it-works).",
    "All options are under [Library](#library) and [Command line](#command-line).",
    "Copy `shmqueue.py` beside your own code.",
    "The file has two parts: the library, then, behind one banner, the command line and the screen.",
    "If your program only calls the library, you may delete everything below the banner.",
    "A task is a function and a payload.",
    "The package `shmqueue` on PyPI is a different project by someone else.",
    "Copy this `shmqueue`; do not install that one.",
    "A call of an Executor costs more than a task of a Supervisor, because it is pickled and has a future.",
    "(This holds on Linux, while your program reads results, and while your iterable of tasks does not wait: for "
    "tasks that come slowly, use `submit`.",
    "A changed `--command` is not noticed.",
    "Payloads and values on their way take more, as said above.",
    "In a container, look at the size of `/dev/shm`.",
    "Then a start takes longer.",
    'Keep one Supervisor for many calls, or name `start_method="fork"`.',
    "Elsewhere it may take longer.)",
    "Forty thousand tasks of a millisecond on four workers, while SIGKILL hits a random worker every quarter "
    "of a second (`python -m benchmarks.storm` makes this table):",
    "The figures differ from run to run, because the kills come at random times.",
    "`tox -e compare` prints what each costs.",
    "`python3 shmqueue.py TASKS [options]`.",
    "The function must allow for that.",
    "C code in a function sees EINTR from calls that the system does not restart after a stop, such as `epoll_wait`.",
    "It is not found if it was forked without executing a program, and left its process group.",
]
