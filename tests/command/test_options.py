"""The tables of options and limits agree with Supervisor's signature, the command line and docs/, as names do."""

import inspect
import itertools
import re

import pytest

import shmqueue
from shmqueue import LIMITS
from tests.helpers import document

SIGNATURE = {
    parameter.name: parameter
    for parameter in inspect.signature(shmqueue.Supervisor).parameters.values()
    if parameter.kind is parameter.KEYWORD_ONLY
}
NUMBERS = {name: limits for name, limits in LIMITS.items() if name != "halt"}
bounded = pytest.mark.parametrize(("name", "limits"), NUMBERS.items(), ids=NUMBERS)
ACTIONS = {action.dest: action for action in shmqueue.make_parser()._actions if action.dest not in ("help", "version")}
OPTIONS = [action for name, action in ACTIONS.items() if name != "tasks"]
LIBRARY = document("docs/library.md")
COMMAND_LINE = document("docs/command-line.md")


def named(actions):
    return pytest.mark.parametrize("option", actions, ids=lambda action: action.dest)


def table(text, first):
    """The rows of the table in a document that begins with this word, each a list of its cells."""
    rows = text.partition(f"\n| {first} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


# Supervisor.


def test_every_number_of_a_supervisor_has_its_limits():
    numbers = [name for name, parameter in SIGNATURE.items() if re.match("int|float", str(parameter.annotation))]
    assert sorted(numbers) == sorted(NUMBERS)


@bounded
def test_an_argument_is_annotated_as_its_limits_say(name, limits):
    optional = " | None" if SIGNATURE[name].default is None else ""
    by_function = " | Mapping[Any, float | None]" * (name == "timeout")
    assert SIGNATURE[name].annotation == type(limits[0]).__name__ + by_function + optional


@bounded
def test_a_number_is_checked_against_its_limits(name, limits):
    low, high = limits
    for value in (low, high):
        shmqueue.check_number(name, value, limits)
    for value in (low - 1, high * 2, -high):
        with pytest.raises(ValueError, match=f"{name}=.*: must be from "):
            shmqueue.check_limits({name: value})
    wrong = ["1", True, low * 1j]
    if SIGNATURE[name].default is not None:
        wrong.append(None)
    if isinstance(low, int):
        wrong.append(low + 0.5)
    for value in wrong:
        with pytest.raises(TypeError, match=f"{name}=.*: must be a "):
            shmqueue.check_limits({name: value})


@bounded
def test_supervisor_refuses_what_is_out_of_the_limits(name, limits):
    with pytest.raises(ValueError, match=f"{name}=-1: must be from "):
        shmqueue.Supervisor([len], **{name: -1})


def test_what_may_be_absent_is_not_checked():
    shmqueue.check_limits({name: parameter.default for name, parameter in SIGNATURE.items()})


# The command line.


@named([action for name, action in ACTIONS.items() if name in SIGNATURE and name != "screen"])
def test_an_option_has_the_name_the_default_and_the_type_of_the_argument(option):
    parameter = SIGNATURE[option.dest]
    assert option.default == parameter.default
    assert shmqueue.flag(option.dest) in option.option_strings
    if option.dest in LIMITS and option.type in (int, float):
        assert parameter.annotation.removesuffix(" | None") == option.type.__name__


def read(*arguments):
    return vars(shmqueue.make_parser().parse_args(["-", *arguments]))


def samples(option):
    """What can be written for a value, and what it means."""
    if option.choices:
        return {word: word for word in option.choices}
    text = {int: "3", float: "0.5", shmqueue.size: "2K", shmqueue.seconds: "0.5"}.get(option.type, "failed")
    return {text: (option.type or str)(text)}


@named([option for option in OPTIONS if option.nargs == 0])
def test_a_switch_takes_no_value(option):
    assert read(shmqueue.flag(option.dest)) == {**read(), option.dest: True}
    with pytest.raises(shmqueue.UsageError, match=shmqueue.flag(option.dest)):
        read(f"{shmqueue.flag(option.dest)}=1")


@named([option for option in OPTIONS if option.nargs != 0])
def test_a_value_is_read(option):
    name = shmqueue.flag(option.dest)
    for text, value in samples(option).items():
        assert read(name, text) == read(f"{name}={text}") == {**read(), option.dest: value}
    if option.choices or option.dest in LIMITS:
        with pytest.raises(shmqueue.UsageError, match=name):
            read(name, "no such word")
    if option.nargs == "?":
        assert read(name)[option.dest] == ""
    else:
        with pytest.raises(shmqueue.UsageError, match=name):
            read(name)


@pytest.mark.parametrize("names", [("handlers", "call", "shell", "command"), ("print", "no_print")])
def test_options_that_exclude_each_other_are_refused(names):
    for pair in itertools.combinations(names, 2):
        arguments = [[shmqueue.flag(name), "a"][: 1 + (ACTIONS[name].nargs != 0)] for name in pair]
        with pytest.raises(shmqueue.UsageError, match="not allowed with"):
            read(*itertools.chain(*arguments))


@pytest.mark.parametrize(("name", "other"), shmqueue.NEEDS.items())
def test_an_option_without_the_one_that_it_needs_is_refused(name, other):
    value = {"retry_delay": "1", "grace": "1"}.get(name, "failed")
    arguments = [shmqueue.flag(name), value][: 1 + (ACTIONS[name].nargs != 0)]
    with pytest.raises(shmqueue.UsageError, match=f"{shmqueue.flag(name)}: needs {shmqueue.flag(other)}"):
        shmqueue.check_options(shmqueue.make_parser().parse_args(["-", *arguments]))


@pytest.mark.parametrize("name", LIMITS)
def test_the_command_line_refuses_what_is_out_of_the_limits(name):
    options = shmqueue.make_parser().parse_args(["-", f"{shmqueue.flag(name)}=-1"])
    with pytest.raises(shmqueue.UsageError, match=f"{shmqueue.flag(name)} -1.*: must be from "):
        shmqueue.check_options(options)


# The documents.


@pytest.mark.parametrize("name", SIGNATURE)
def test_docs_have_each_option_of_a_supervisor_with_its_default(name):
    default = SIGNATURE[name].default
    rows = [(cells[0], cells[1]) for cells in table(LIBRARY, "option") if f"`{name}`" in cells[0]]
    ((names, defaults),) = rows
    if default is not None:
        position = re.findall(r"`(\w+)`", names).index(name)
        assert re.split(r", (?![^(]*\))", defaults)[position].strip("`").replace('"', "'") == str(default)


def test_docs_have_no_option_of_a_supervisor_that_is_not_there():
    names = [name for cells in table(LIBRARY, "option") for name in re.findall(r"`(\w+)`", cells[0])]
    assert sorted(names) == sorted(SIGNATURE)


@named(OPTIONS)
def test_docs_have_each_option_of_the_command_line_with_its_value(option):
    text = " ".join(cells[0] for cells in table(COMMAND_LINE, "option"))
    value = option.metavar or r"\|".join(option.choices or ())
    if option.nargs == "?":
        value = f"[{value}]"
    for name in option.option_strings:
        assert f"`{name} {value}".rstrip() + "`" in text


def test_docs_have_no_option_of_the_command_line_that_is_not_there():
    flags = [flag for cells in table(COMMAND_LINE, "option") for flag in re.findall(r"`(--[\w-]+)", cells[0])]
    assert sorted(flags) == sorted([*(shmqueue.flag(option.dest) for option in OPTIONS), "--help", "--version"])


def test_docs_have_each_field_of_a_result():
    assert [name for name in shmqueue.TaskResult._fields if f"`{name}`" not in LIBRARY] == []


def test_the_signature_of_executor_is_that_of_docs():
    (shown,) = re.findall(r"`Executor(\(max_workers=.*?\))`", LIBRARY, re.DOTALL)
    parameters = inspect.signature(shmqueue.Executor).parameters.values()
    without_types = [parameter.replace(annotation=parameter.empty) for parameter in parameters]
    assert str(inspect.Signature(without_types)) == " ".join(shown.split())
