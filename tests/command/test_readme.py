"""The examples of README and docs/: each one is run as it is shown.

Each heading has a folder of its own with shmqueue.py and all Python files that the documents show. A console block has
commands and what they write. A command starts with `$ ` and goes on after a backslash. What differs from run to run or
from machine to machine is left out of the comparison: times, rates, numbers of workers, paths. Two programs that the
examples use may be missing: then `sqlite3` and `curl` are a few lines of Python. `tqdm` and Pillow are some lines of
Python in any case: the bar of the one is different each time, and the other is large. A block of the language `sh` is
not run.
"""

import inspect
import operator
import os
import re
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

import pytest

import shmqueue
from shmqueue import make_parser
from tests.helpers import HANG, ROOT, SCRIPT, document, section, wait_until

DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]

# The commands that show results as they finish, so that the order of their lines means nothing.
UNORDERED = {"python3 boxes.py"}

STAND_INS = {
    "sqlite3": """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as database:
    for statement in sys.argv[2].split(";"):
        for row in database.execute(statement):
            print(*row, sep="|")
""",
    "curl": """
import sys, urllib.error, urllib.request
_, options, url, _, target = sys.argv
try:
    with urllib.request.urlopen(url) as answer, open(target, "wb") as file:
        file.write(answer.read())
except urllib.error.URLError:
    sys.exit(37)
""",
}
MODULES = {
    "tqdm.py": "def tqdm(iterable, total):\n    assert total\n    return iterable\n",
    "PIL.py": """
class Image:
    def __init__(self, path):
        with open(path, "rb") as file:
            _, size, _, self.pixels = file.read().split(b"\\n", 3)
        self.width, self.height = map(int, size.split())

    @classmethod
    def open(cls, path):
        return cls(path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def thumbnail(self, size):
        step = max(self.width // size[0], self.height // size[1])
        rows = [self.pixels[y * self.width : (y + 1) * self.width : step] for y in range(0, self.height, step)]
        self.width, self.height, self.pixels = len(rows[0]), len(rows), b"".join(rows)

    def save(self, path):
        with open(path, "wb") as file:
            file.write(b"P5\\n%d %d\\n255\\n" % (self.width, self.height) + self.pixels)
""",
}


class Block(NamedTuple):
    document: str
    heading: str
    language: str
    text: str


class Command(NamedTuple):
    """A command of a console block, and what the block says that it writes."""

    text: str
    output: list[str]


def code_blocks(name):
    blocks = []
    heading = ""
    parts = re.split(r"^```(.*)\n((?:.*\n)*?)```$", document(name), flags=re.MULTILINE)
    for prose, language, text in zip(parts[::3], parts[1::3], parts[2::3]):
        heading = (re.findall(r"^#+ (.*)$", prose, re.MULTILINE) or [heading])[-1]
        blocks.append(Block(name, heading, language, text))
    return blocks


def commands(block):
    found = []
    for line in block.text.replace(" \\\n", " ").splitlines():
        if line.startswith("$ "):
            found.append(Command(line[2:], []))
        else:
            found[-1].output.append(line)
    return found


BLOCKS = [block for name in DOCUMENTS for block in code_blocks(name)]
PROGRAMS = [(re.match(r"# (\w+\.py)\n", block.text)[1], block.text) for block in BLOCKS if block.language == "python"]
FILES = dict(PROGRAMS)
HEADINGS = list(dict.fromkeys(block.heading for block in BLOCKS if block.language == "console"))

CHANGES = [
    (r"\d+\.\d+ s\b", "_ s"),
    (r"[\d,]+ tasks/s", "_ tasks/s"),
    (r"\b\d+ workers?\b", "_ workers"),
    (r'"worker": \d+', '"worker": _'),
    (r'"(seconds|started)": [\d.e-]+', r'"\1": _'),
    (r'File ".*/', 'File "'),
]
# The marks below a line of code differ between Pythons. The other two depend on how long the run took.
LEFT_OUT = re.compile(r" *[~^]+|workers: busy .*|shmqueue: [\d,]+( of [\d,]+)? tasks done, .*")


def comparable(lines):
    """Return the lines without what differs from run to run."""
    lines = [line for line in lines if not LEFT_OUT.fullmatch(line)]
    for pattern, replacement in CHANGES:
        lines = [re.sub(pattern, replacement, line) for line in lines]
    return lines


class Shell:
    """Runs commands in the folder of one heading."""

    def __init__(self, folder):
        self.folder = folder / "here"
        self.folder.mkdir()
        self._programs = folder / "programs"
        self._programs.mkdir()
        self._add_program("python3", f'exec "{sys.executable}" "$@"')
        for name, text in STAND_INS.items():
            if shutil.which(name) is None:
                self.add_stand_in(name, text)

    def _add_program(self, name, text):
        path = self._programs / name
        path.write_text("#!/bin/sh\n" + text + "\n")
        path.chmod(0o755)

    def add_stand_in(self, name, text):
        path = self._programs / f"stand_in_for_{name}.py"
        path.write_text(text)
        self._add_program(name, f'exec "{sys.executable}" "{path}" "$@"')

    def run(self, command):
        """Run a command. Return the lines that it wrote to both streams."""
        path = f"{self._programs}:{os.environ['PATH']}"
        process = subprocess.Popen(
            ["/bin/sh", "-c", command.text],
            cwd=self.folder,
            env={**os.environ, "PATH": path, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        keys = command.output[: command.output[:1] == ["^C"]]
        try:
            if keys:
                self._press_ctrl_c(process, command.text)
            written = process.communicate(timeout=HANG / 2)[0]
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        return keys + written.decode().splitlines()

    def _press_ctrl_c(self, process, text):
        """Interrupt the command as a terminal does, as soon as it has a result."""
        results = self.folder / re.search(r"--results (\S+)", text)[1]
        assert wait_until(lambda: results.exists() and results.stat().st_size > 0)
        os.killpg(process.pid, signal.SIGINT)


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


def test_each_heading_with_examples_stands_once():
    assert len(HEADINGS) == len({(block.document, block.heading) for block in BLOCKS if block.language == "console"})


def test_each_python_example_is_a_file_that_a_command_runs():
    assert len(FILES) == len(PROGRAMS), "each has a name of its own"
    text = "\n".join(block.text for block in BLOCKS if block.language == "console")
    for name in FILES:
        assert name in text


def test_each_block_is_an_example_or_is_not_to_be_run():
    assert {block.language for block in BLOCKS} <= {"python", "console", "sh", ""}, "without a language: a drawing"
    assert {command.text for block in BLOCKS if block.language == "console" for command in commands(block)} > UNORDERED


def anchors(name):
    """The headings of a document, as links name them."""
    text = re.sub(r"^```.*?^```$", "", document(name), flags=re.MULTILINE | re.DOTALL)
    return [re.sub(r"[^\w -]", "", line).replace(" ", "-").lower() for line in re.findall(r"^#+ (.*)$", text, re.M)]


@pytest.mark.parametrize("name", [*DOCUMENTS, "CONTRIBUTING.md", "tests/README.md", "variants/README.md"])
def test_each_link_leads_somewhere(name):
    for link in re.findall(r"\]\((?!http)(.*?)\)", document(name)):
        path, _, anchor = link.partition("#")
        target = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
        assert (ROOT / target).exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_names_in_contributing_are_there():
    names = re.findall(r"`([A-Z]\w+(?:\.\w+)?)`", document("CONTRIBUTING.md"))
    assert "Run.step" in names
    for name in names:
        assert operator.attrgetter(name)(shmqueue)


def run_examples(heading, shell):
    """Run the console blocks under a heading, and compare what they write with what is shown."""
    for name, text in {**FILES, **MODULES}.items():
        (shell.folder / name).write_text(text)
    for block in BLOCKS:
        if block.heading == heading and block.language == "console":
            for command in commands(block):
                written, shown = comparable(shell.run(command)), comparable(command.output)
                if command.text in UNORDERED:
                    written.sort()
                    shown.sort()
                assert written == shown, command.text


def test_the_sample_in_a_clone(shell):
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, shell.folder)
    run_examples("Try it", shell)


@pytest.mark.parametrize("heading", [heading for heading in HEADINGS if heading != "Try it"])
def test_the_examples_of(heading, shell):
    shutil.copy(SCRIPT, shell.folder)
    run_examples(heading, shell)


@pytest.mark.once
@pytest.mark.parametrize("name", STAND_INS)
def test_the_stand_in_of_a_program_does_what_the_program_does(name, shell):
    shutil.copy(SCRIPT, shell.folder)
    shell.add_stand_in(name, STAND_INS[name])
    (heading,) = {block.heading for block in BLOCKS if re.search(rf"^\$.*\b{name} ", block.text, re.MULTILINE)}
    run_examples(heading, shell)


# The tables of what becomes what.


def here(heading):
    """Return the code in the right column of the first table of a section."""
    text = section("docs/coming-from.md", heading)
    rows = text.partition("\n| there | here |\n")[2].partition("\n\n")[0].splitlines()[1:]
    cells = [re.split(r"(?<!\\)\|", row)[2].replace("\\|", "|") for row in rows]
    return [code for cell in cells for code in re.findall("`(.*?)`", cell)]


@pytest.mark.once
def test_the_commands_that_replace_xargs_and_parallel_run(shell):
    shutil.copy(SCRIPT, shell.folder)
    (shell.folder / "files.txt").write_text("a b.log\nc.log\n")
    (shell.folder / "commands.txt").write_text("true\ntrue\n")
    ran = 0
    for code in here("Coming from xargs and GNU parallel"):
        if "shmqueue.py" in code:
            for name in ("a b.log", "c.log"):
                (shell.folder / name).write_text("text")
            *_, summary = shell.run(Command(code.replace("…", "'test {}'"), []))
            assert re.match(r"([23]) tasks: \1 ok, ", summary), code
            ran += 1
    assert ran
    names = {f"{name}.log{end}" for name in ("a b", "c") for end in ("", ".bak", ".gz")}
    assert {path.name for path in shell.folder.glob("*.log*")} == names


def test_the_options_that_replace_those_of_parallel_are_there():
    options = make_parser()._option_string_actions
    for code in here("Coming from xargs and GNU parallel"):
        if "gzip" not in code:
            assert set(re.findall(r"(?<=[ `])--?[a-z][\w-]*", f" {code}")) <= {*options, "-name"}


def test_the_names_that_replace_those_of_pools_are_there():
    objects = {"shmqueue": shmqueue, "supervisor": shmqueue.Supervisor, "executor": shmqueue.Executor}
    options = inspect.signature(shmqueue.Supervisor).parameters
    for code in here("Coming from Pool, ProcessPoolExecutor, joblib"):
        for owner, name in re.findall(r"\b(shmqueue|supervisor|executor)\.(\w+)", code):
            assert hasattr(objects[owner], name)
        assert set(re.findall(r"(\w+)=", code)) <= {*options, "y"}
