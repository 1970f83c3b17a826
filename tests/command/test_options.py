"""The tables of options and limits agree with Supervisor's signature, the command line and README, as names do."""

import inspect
import itertools
import pathlib
import re

import pytest

import shmqueue
from shmqueue import LIMITS, OPTIONS
from tests.helpers import ROOT

SIGNATURE = {
    parameter.name: parameter
    for parameter in inspect.signature(shmqueue.Supervisor).parameters.values()
    if parameter.kind is parameter.KEYWORD_ONLY
}
bounded = pytest.mark.parametrize(("name", "limits"), LIMITS.items(), ids=LIMITS)
README = pathlib.Path(ROOT, "README.md").read_text("utf-8")


def named(options):
    return pytest.mark.parametrize("option", options, ids=lambda option: option.name)


def table(section, first):
    """The rows of the table in a section of README that begins with this word, each a list of its cells."""
    text = README.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    rows = text.partition(f"\n| {first} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


# Supervisor.


def test_supervisor_has_the_limits_and_the_defaults_of_the_shared_options():
    shared = [option for option in OPTIONS if option.shared]
    assert {option.name: SIGNATURE[option.name].default for option in shared} == {
        option.name: option.default for option in shared
    }
    assert LIMITS.keys() <= {option.name for option in shared}


@bounded
def test_an_argument_is_annotated_as_its_limits_say(name, limits):
    optional = " | None" if SIGNATURE[name].default is None else ""
    assert SIGNATURE[name].annotation == type(limits[0]).__name__ + optional


@bounded
def test_a_number_is_checked_against_its_limits(name, limits):
    low, high = limits
    for value in (low, high):
        shmqueue.check_number(name, value, limits)
    for value in (low - 1, high * 2, -high):
        with pytest.raises(ValueError, match=f"{name}=.*: must be from "):
            shmqueue.check_numbers({name: value})
    wrong = ["1", True, low * 1j]
    if SIGNATURE[name].default is not None:
        wrong.append(None)
    if isinstance(low, int):
        wrong.append(low + 0.5)
    for value in wrong:
        with pytest.raises(TypeError, match=f"{name}=.*: must be a "):
            shmqueue.check_numbers({name: value})


@bounded
def test_supervisor_refuses_what_is_out_of_the_limits(name, limits):
    with pytest.raises(ValueError, match=f"{name}=-1: must be from "):
        shmqueue.Supervisor([len], **{name: -1})


def test_what_may_be_absent_is_not_checked():
    shmqueue.check_numbers({name: parameter.default for name, parameter in SIGNATURE.items()})


# The command line.


def test_the_command_line_has_the_options_of_the_table_and_three_more():
    actions = {action.dest: action for action in shmqueue.make_parser()._actions}
    assert set(actions) == {option.name for option in OPTIONS} | {"tasks", "version", "help"}
    assert list(actions)[2:-1] == [option.name for option in OPTIONS], "in this order"


@named(OPTIONS)
def test_an_option_of_the_command_line_is_as_its_row_says(option):
    (action,) = [action for action in shmqueue.make_parser()._actions if action.dest == option.name]
    assert action.default == option.default
    assert action.help == option.help != ""
    assert shmqueue.flag(option.name) in action.option_strings
    assert not option.short or option.short in action.option_strings


def read(*arguments):
    return vars(shmqueue.make_parser().parse_args(["-", *arguments]))


def samples(option):
    """What can be written for a value, and what it means."""
    if isinstance(option.type, tuple):
        return {word: word for word in option.type}
    text = {int: "3", float: "0.5", shmqueue.parse_size: "2K"}.get(option.type, "failed")
    return {text: option.type(text)}


@named([option for option in OPTIONS if option.type is bool])
def test_a_switch_takes_no_value(option):
    assert read(shmqueue.flag(option.name)) == {**read(), option.name: True}
    with pytest.raises(shmqueue.UsageError, match=shmqueue.flag(option.name)):
        read(f"{shmqueue.flag(option.name)}=1")


@named([option for option in OPTIONS if option.type is not bool])
def test_a_value_is_read_as_its_row_says(option):
    name = shmqueue.flag(option.name)
    for text, value in samples(option).items():
        assert read(name, text) == read(f"{name}={text}") == {**read(), option.name: value}
    if option.type is not str and not option.value.startswith("["):
        with pytest.raises(shmqueue.UsageError, match=name):
            read(name, "no such word")
    if option.value.startswith("["):
        assert read(name)[option.name] == ""
    else:
        with pytest.raises(shmqueue.UsageError, match=name):
            read(name)


def test_options_that_exclude_each_other_are_refused():
    alone = [option for option in OPTIONS if option.alone]
    assert len(alone) > 1
    for pair in itertools.combinations(alone, 2):
        arguments = [[shmqueue.flag(option.name), "a"][: 1 + (option.type is not bool)] for option in pair]
        with pytest.raises(shmqueue.UsageError, match="not allowed with"):
            read(*itertools.chain(*arguments))


@pytest.mark.parametrize("name", [*LIMITS, "halt"])
def test_the_command_line_refuses_what_is_out_of_the_limits(name):
    options = shmqueue.make_parser().parse_args(["-", f"{shmqueue.flag(name)}=-1"])
    with pytest.raises(shmqueue.UsageError, match=f"{shmqueue.flag(name)} -1.*: must be from "):
        shmqueue.check_options(options)


# README.


@pytest.mark.parametrize("name", SIGNATURE)
def test_readme_has_each_option_of_a_supervisor_with_its_default(name):
    default = SIGNATURE[name].default
    rows = [(cells[0], cells[1]) for cells in table("Library", "option") if f"`{name}`" in cells[0]]
    ((names, defaults),) = rows
    if default is not None:
        position = re.findall(r"`(\w+)`", names).index(name)
        assert re.split(r", (?![^(]*\))", defaults)[position].strip("`").replace('"', "'") == str(default)


def test_readme_has_no_option_of_a_supervisor_that_is_not_there():
    names = [name for cells in table("Library", "option") for name in re.findall(r"`(\w+)`", cells[0])]
    assert sorted(names) == sorted(SIGNATURE)


@named(OPTIONS)
def test_readme_has_each_option_of_the_command_line_with_its_value(option):
    text = " ".join(cells[0] for cells in table("Command line", "option"))
    value = option.value
    if isinstance(option.type, tuple) and not value:
        value = r"\|".join(option.type)
    assert f"`{shmqueue.flag(option.name)} {value}".rstrip() + "`" in text
    assert not option.short or f"`{option.short} {value}".rstrip() + "`" in text


def test_readme_has_no_option_of_the_command_line_that_is_not_there():
    flags = [flag for cells in table("Command line", "option") for flag in re.findall(r"`(--[\w-]+)", cells[0])]
    assert sorted(flags) == sorted([*(shmqueue.flag(option.name) for option in OPTIONS), "--help", "--version"])


def test_readme_has_each_field_of_a_result():
    section = README.partition("\n## Library\n")[2].partition("\n## ")[0]
    assert [name for name in shmqueue.TaskResult._fields if f"`{name}`" not in section] == []


def test_the_signature_of_executor_is_that_of_readme():
    (shown,) = re.findall(r"`Executor(\(max_workers=.*?\))`", README, re.DOTALL)
    parameters = inspect.signature(shmqueue.Executor).parameters.values()
    without_types = [parameter.replace(annotation=parameter.empty) for parameter in parameters]
    assert str(inspect.Signature(without_types)) == " ".join(shown.split())
