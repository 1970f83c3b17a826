"""What a start needs of the program: a guard, and a main module that can be imported again."""

import errno
import os
import sys

import pytest

import shmqueue
from tests.helpers import METHODS, ROOT, usage_error

STARTED_ANEW = ["spawn", "forkserver"]
UNGUARDED = """\
import sys
sys.path.insert(0, {root!r})
import shmqueue

def double(payload: bytes) -> bytes:
    return payload * 2

print(shmqueue.parallel_map(double, [b"a"], workers=2, start_method={method!r}))
"""
INTERACTIVE = """\
import sys
sys.path.insert(0, {root!r})
import shmqueue

def double(payload: bytes) -> bytes:
    return payload * 2

if __name__ == "__main__":
    print(shmqueue.parallel_map({function}, [b"a"], workers=2, start_method={method!r}))
"""


@pytest.mark.promise("L7")
@pytest.mark.parametrize("method", STARTED_ANEW)
def test_a_script_without_a_guard_gets_one_error(cli, method):
    script = cli.file("unguarded.py", UNGUARDED.format(root=str(ROOT), method=method))
    run = cli.run(script=script)
    assert run.code == 1
    error = (
        "Error: the main module starts workers while it is imported, which every new worker does: put what starts them "
        'under `if __name__ == "__main__":`'
    )
    if method == "forkserver" and (3, 13, 8) <= sys.version_info < (3, 15):  # it imports it, too, and ends by that
        assert f"Runtime{error}\n" in run.err
        says = "it has ended, and what it printed says why"
        remedy = shmqueue.REMEDIES[errno.EAGAIN]  # it may also end because it can start no process
        assert run.err.endswith((f"{says}\n", f"{says}{remedy}\n"))
        return
    assert run.err.count("Traceback") == 1
    assert run.err.splitlines()[-1] == f"shmqueue.WorkersFailed{error}"


@pytest.mark.promise("L8")
@pytest.mark.parametrize("method", STARTED_ANEW)
@pytest.mark.parametrize("how", ["-", "-c"])
def test_a_function_of_a_main_module_that_is_no_file_gets_one_error(cli, method, how):
    code = INTERACTIVE.format(root=str(ROOT), method=method, function="double")
    run = cli.run(*([code] if how == "-c" else []), script=how, stdin=code.encode())
    assert run.code == 1
    assert run.err.count("Traceback") == 1
    assert run.err.splitlines()[-1] == (
        f"RuntimeError: start_method={method!r}: every worker imports the main module, and this one (a notebook, "
        "__main__ of a package, python -c or standard input) cannot be imported again: put the functions into a file "
        "and import it, or name start_method='fork'"
    )


@pytest.mark.command_line
@pytest.mark.promise("L7")
@pytest.mark.parametrize("method", METHODS)
def test_other_functions_need_no_main_module(cli, method):
    code = INTERACTIVE.format(root=str(ROOT), method=method, function="shmqueue.echo")
    run = cli.run(code, script="-c")
    assert (run.code, run.out, run.err) == (0, "[b'a']\n", "")


@pytest.mark.promise("L8")
@pytest.mark.parametrize("method", STARTED_ANEW)
def test_a_main_module_whose_file_is_not_there_gets_one_error_for_any_function(cli, method):
    """multiprocessing imports it by its path, whatever the functions are."""
    code = INTERACTIVE.format(root=str(ROOT), method=method, function="bytes")
    for run in (
        cli.run(script="-", stdin=code.encode()),
        cli.run(script=cli.file("gone.py", f"import os\nos.unlink(__file__)\n{code}")),
    ):
        assert run.code == 1
        assert run.err.count("Traceback") == 1
        assert f"RuntimeError: start_method={method!r}: every worker imports the main module, " in run.err


@pytest.mark.promise("L8")
def test_without_a_start_method_a_program_on_standard_input_works(cli):
    code = INTERACTIVE.format(root=str(ROOT), method=None, function="double")
    run = cli.run(script="-", stdin=code.encode())
    assert (run.code, run.out, run.err) == (0, "[b'aa']\n", "")


@pytest.mark.promise("L7")
@pytest.mark.parametrize("method", STARTED_ANEW)
def test_a_guarded_script_works(cli, method):
    code = INTERACTIVE.format(root=str(ROOT), method=method, function="double")
    run = cli.run(script=cli.file("guarded.py", code))
    assert (run.code, run.out, run.err) == (0, "[b'aa']\n", ""), sys.version


@pytest.mark.command_line
@pytest.mark.parametrize("method", STARTED_ANEW)
def test_functions_of_the_main_module_of_a_package(cli, method):
    """multiprocessing does not import it again."""
    (cli.folder / "package").mkdir()
    code = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport shmqueue\n\ndef double(x):\n    return 2 * x\n\n"
    cli.file("package/__main__.py", code + "if __name__ == '__main__':\n    sys.exit(shmqueue.main([double]))\n")
    run = cli.run("package", cli.file("tasks", "double a\n"), "--start-method", method, script="-m")
    assert "__main__ of a package" in usage_error(run)
    assert cli.run("package", cli.file("tasks", "double a\n"), "--start-method", "fork", script="-m").code == 0


LOST = """
import multiprocessing, sys
sys.path.insert(0, {root!r})
import shmqueue

def double(number):
    return 2 * number

with shmqueue.Executor(1, multiprocessing.get_context({method!r})) as executor:
    print(executor.submit(abs, -1).result(), executor.submit(double, 1).exception())
"""


@pytest.mark.promise("L8")
@pytest.mark.parametrize("method", METHODS)
def test_a_call_of_an_executor_that_needs_a_lost_main_module_fails_with_a_remedy(cli, method):
    run = cli.run(LOST.format(root=str(ROOT), method=method), script="-c")
    if method == "fork":
        assert run.out == "1 None\n"
    else:
        assert run.out.startswith("1 every worker imports the main module, and this one (a notebook, ")
        assert run.out.endswith("or give mp_context=multiprocessing.get_context('fork')\n")
    assert run.err == ""


@pytest.mark.parametrize("method", METHODS)
def test_a_folder_for_temporary_files_with_a_long_path(cli, method):
    """The fork server puts a socket into it. Some Pythons take another folder then."""
    folder = cli.folder / ("long" * 30)
    folder.mkdir()
    options = {"env": {**os.environ, "TMPDIR": str(folder)}}
    run = cli.run(cli.file("tasks", "noop\n"), "-w", "1", "--screen", "off", "--start-method", method, **options)
    if method == "forkserver" and run.code != 0:
        assert "; set TMPDIR to a shorter path, " in usage_error(run)
    else:
        assert (run.code, run.err) == (0, "")
    assert os.listdir(folder) == []
