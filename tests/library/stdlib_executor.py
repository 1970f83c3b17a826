"""The standard library's tests of ProcessPoolExecutor, with shmqueue.Executor in its place; see test_executor.py.

`python stdlib_executor.py METHOD CLASS...` runs those classes of tests under a start method, and writes how it went as
JSON on the last line of standard output.
"""

import importlib
import json
import multiprocessing
import pathlib
import sys
import unittest
from concurrent import futures

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import shmqueue

CLASSES = {  # by name: the module of the package that it is in since Python 3.12
    "WaitTests": "test_wait",
    "ProcessPoolExecutorTest": "test_process_pool",  # and ExecutorTest, which it extends
    "AsCompletedTests": "test_as_completed",
    "ProcessPoolShutdownTest": "test_shutdown",  # and ExecutorShutdownTest
    "InitializerMixin": "test_init",
}

BROKEN = "wants a broken pool after one death"
PRIVATE = "reads private attributes: "
BY_NAME = "a script of its own imports the class from concurrent.futures by name"
LEFT_OUT = {
    "test_killed_child": BROKEN,
    "test_python_finalization_error": BROKEN + ", here of a thread that the Executor does not have",
    "test_saturation": PRIVATE + "_processes",
    "test_idle_process_reuse_one": PRIVATE + "_processes",
    "test_idle_process_reuse_multiple": PRIVATE + "_processes",
    "test_max_tasks_per_child": PRIVATE + "_processes",  # except under fork, where it runs
    "test_max_tasks_per_child_defaults_to_spawn_context": PRIVATE + "_mp_context",
    "test_broken_process_pool_traceback": PRIVATE + "_processes",
    "test_processes_terminate": PRIVATE + "_processes",
    "test_context_manager_shutdown": PRIVATE + "_processes",
    "test_del_shutdown": PRIVATE + "_processes, _call_queue and _executor_manager_thread",
    "test_shutdown_gh_132969_case_1": PRIVATE + "_executor_manager_thread",
    "test_shutdown_gh_132969_case_2": PRIVATE + "_executor_manager_thread",
    "test_shutdown_no_wait": PRIVATE + "_processes, _call_queue and _executor_manager_thread",
    "test_interpreter_shutdown": BY_NAME,
    "test_submit_after_interpreter_shutdown": BY_NAME,
    "test_hang_gh83386": BY_NAME,
}


TIMED = {"WaitTests", "ProcessPoolExecutorTest", "AsCompletedTests"}


def load(package, name, method):
    """One of the standard library's classes of tests under a start method.

    Where it is not fork, most of these tests take as long as the workers take to start: two are enough, and not five.
    Those that expect a result within some seconds begin once a worker is there.
    """
    split = hasattr(package, "__path__")
    module = importlib.import_module(f"{package.__name__}.{CLASSES[name]}") if split else package
    short = name.removesuffix("Mixin").removesuffix("Tests").removesuffix("Test")
    case = getattr(module, f"ProcessPool{method.title()}{short}Test")
    if method != "fork":
        case.worker_count = 2
    if name in TIMED:
        set_up = case.setUp
        case.setUp = lambda test: (set_up(test), test.executor.submit(abs, 1).result())
    return case


def main(method, classes):
    futures.ProcessPoolExecutor = shmqueue.Executor
    package = importlib.import_module("test.test_concurrent_futures")
    suite = unittest.TestSuite()
    for name in classes:
        case = load(package, name, method)
        for test in unittest.defaultTestLoader.getTestCaseNames(case):
            if test not in LEFT_OUT or (test, method) == ("test_max_tasks_per_child", "fork"):
                suite.addTest(case(test))
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    multiprocessing.util._cleanup_tests()
    bad = [f"{test}\n{text}" for test, text in (*result.failures, *result.errors)]
    skipped = [f"{test}: {why}" for test, why in result.skipped]
    print()  # these tests print times
    print(json.dumps({"run": result.testsRun, "bad": bad, "skipped": skipped}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or list(CLASSES))
