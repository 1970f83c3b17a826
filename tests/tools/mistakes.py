"""Deliberate mistakes in the product's own code, for tests that show what they would catch.

    class CommitsFirst(SharedTaskQueue):
        claim = mistaken(SharedTaskQueue.claim, move(store("CLAIMED"), before=call("_fill_half")))

    queue = made(CommitsFirst)

A mistake names a function, and in it a place: a statement, a condition, or a part of one. A place is described by the
names that stand there, not by its text. It is an error if no place of the function fits, or more than one.

Places: store, call, branch, part; `first` and `last` of two.
Changes: drop, move, put, never, without, more, less.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

BRANCHES = (ast.If, ast.While, ast.IfExp)


class Place(NamedTuple):
    """what: for messages. fits: whether a node is meant. part: a name in that part of the node which is meant."""

    what: str
    fits: Callable[[ast.AST], bool]
    part: str = ""
    of_two: int | None = None


def names_in(node: ast.AST) -> set[str]:
    """Return the names of variables, attributes and constants in the code of a node."""
    return {name for each in ast.walk(node) if (name := getattr(each, "id", None) or getattr(each, "attr", None))}


def store(name: str, value: object = None) -> Place:
    """The assignment to what has this name: a variable, an attribute, or a word at an index with the name.

    value: a name in what is assigned, or a number that is all of it.
    """

    def fits(node: ast.AST) -> bool:
        if not isinstance(node, (ast.Assign, ast.AugAssign)):
            return False
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if not any(name in names_in(target) for target in targets):
            return False
        number = isinstance(node.value, ast.Constant) and node.value.value == value
        return value is None or number or value in names_in(node.value)

    return Place(f"store({name!r}, {value!r})", fits)


def call(name: str, *others: str) -> Place:
    """The statement that is a call of what has this name, or assigns what the call returns. others: names in it."""

    def fits(node: ast.AST) -> bool:
        value = node.value if isinstance(node, (ast.Expr, ast.Assign)) else None
        called = names_in(value.func) if isinstance(value, ast.Call) else set()
        return name in called and names_in(value).issuperset(others)

    return Place(f"call{(name, *others)}", fits)


def branch(*names: str, but: tuple[str, ...] = ()) -> Place:
    """The `if` or `while` whose condition has all of these names, and none of those."""

    def fits(node: ast.AST) -> bool:
        found = names_in(node.test) if isinstance(node, BRANCHES) else set()
        return found.issuperset(names) and bool(found) and found.isdisjoint(but)

    return Place(f"branch{names}", fits)


def part(name: str, beside: str = "") -> Place:
    """The part of an `and` or `or` that has this name. beside: a name in another part."""

    def fits(node: ast.AST) -> bool:
        return isinstance(node, ast.BoolOp) and any(name in names_in(value) for value in node.values)

    def both(node: ast.AST) -> bool:
        return fits(node) and (not beside or beside in names_in(node))

    return Place(f"part({name!r}, {beside!r})", both, part=name)


def first(place: Place) -> Place:
    """The first of two such places."""
    return place._replace(of_two=0)


def last(place: Place) -> Place:
    """The second of two such places."""
    return place._replace(of_two=1)


class Function:
    """The syntax of a function, in which mistakes are made."""

    def __init__(self, tree: ast.FunctionDef) -> None:
        self.tree = tree

    def find(self, place: Place) -> ast.AST:
        """Return the node that is meant."""
        found = sorted(filter(place.fits, ast.walk(self.tree)), key=lambda node: (node.lineno, node.col_offset))
        count = 1 if place.of_two is None else 2
        if len(found) != count:
            raise ValueError(f"{self.tree.name} has {len(found)} of {place.what}, and must have {count}")
        return found[place.of_two or 0]

    def replace(self, old: ast.AST, *new: ast.AST) -> None:
        """Put other nodes in the place of a node."""
        for node in ast.walk(self.tree):
            for field, value in ast.iter_fields(node):
                if value is old:
                    setattr(node, field, *new)
                    return
                if isinstance(value, list) and any(each is old for each in value):
                    at = next(at for at, each in enumerate(value) if each is old)
                    value[at : at + 1] = new
                    return
        raise AssertionError(f"{ast.dump(old)} is not there")


Change = Callable[[Function], None]


def drop(place: Place) -> Change:
    """Leave out a statement."""
    return lambda function: function.replace(function.find(place), ast.Pass())


def put(code: str, *, before: Place | None = None, after: Place | None = None) -> Change:
    """Put statements before or after another."""
    return lambda function: insert(function, ast.parse(code).body, before, after)


def move(place: Place, *, before: Place | None = None, after: Place | None = None) -> Change:
    """Move a statement before or after another."""

    def change(function: Function) -> None:
        statement, goal = function.find(place), function.find(before or after)
        function.replace(statement, ast.Pass())
        function.replace(goal, *([statement, goal] if before else [goal, statement]))

    return change


def insert(function: Function, body: list[ast.stmt], before: Place | None, after: Place | None) -> None:
    goal = function.find(before or after)
    function.replace(goal, *([*body, goal] if before else [goal, *body]))


def never(place: Place) -> Change:
    """Make a condition false."""
    return lambda function: setattr(function.find(place), "test", ast.Constant(False))


def without(place: Place) -> Change:
    """Leave out a part of a condition."""

    def change(function: Function) -> None:
        whole = function.find(place)
        left = [value for value in whole.values if place.part not in names_in(value)]
        if len(left) + 1 != len(whole.values):
            raise ValueError(f"{function.tree.name} has {place.what}, but not in one part of several")
        function.replace(whole, left[0] if len(left) == 1 else ast.BoolOp(whole.op, left))

    return change


def more(place: Place, by: int = 1) -> Change:
    """Add one to each number in a statement, or in a part of a condition."""

    def change(function: Function) -> None:
        node = function.find(place)
        if isinstance(node, ast.BoolOp):
            (node,) = [value for value in node.values if place.part in names_in(value)]
        numbers = [each for each in ast.walk(node) if isinstance(each, ast.Constant) and type(each.value) is int]
        if not numbers:
            raise ValueError(f"{function.tree.name} has no number in {place.what}")
        for number in numbers:
            number.value += by

    return change


def less(place: Place) -> Change:
    return more(place, by=-1)


class Mistaken:
    """A function of the product with mistakes in it. It uses no `super()`."""

    def __init__(self, function: types.FunctionType, changes: tuple[Change, ...]) -> None:
        self.function = function
        self.changes = changes

    def make(self) -> types.FunctionType:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(self.function))).body
        make(tree, self.changes)
        found: dict[str, types.FunctionType] = {}
        place = vars(sys.modules[self.function.__module__])
        exec(compile(ast.Module([tree], []), "<mistaken>", "exec"), place, found)  # noqa: S102
        return found[self.function.__name__]


def mistaken(function: types.FunctionType, *changes: Change) -> Mistaken:
    """Return what `made` makes of a function. So a file of tests can be imported whatever the product looks like."""
    return Mistaken(function, changes)


def made(kind: type) -> type:
    """Make the mistaken functions of a class."""
    for name, value in list(vars(kind).items()):
        if isinstance(value, Mistaken):
            setattr(kind, name, value.make())
    return kind


def make(tree: ast.FunctionDef, changes: tuple[Change, ...]) -> None:
    before = ast.dump(tree)
    for change in changes:
        change(Function(tree))
        ast.fix_missing_locations(tree)
    if ast.dump(tree) == before:
        raise ValueError(f"{tree.name} is as it was")


def mistaken_strategy(strategy: type, function: types.FunctionType, *changes: Change) -> type:
    """Return a strategy of variants/ made anew, with mistakes in a function of its module or of worker_lanes."""
    modules = {}
    for name in dict.fromkeys(("variants.worker_lanes", strategy.__module__)):
        path = Path(importlib.import_module(name).__file__)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if name == function.__module__:
            make(find_function(tree, function.__qualname__), changes)
        modules[name] = types.ModuleType(name)
        modules[name].__file__, modules[name].__package__ = f"{path}, mistaken", "variants"
        with mock.patch.dict(sys.modules, modules):
            exec(compile(tree, f"<{name}>", "exec"), vars(modules[name]))  # noqa: S102
    found = getattr(modules[strategy.__module__], strategy.__name__)
    return type("Mistaken", (found,), {"refusal": classmethod(lambda cls: "")})


def find_function(tree: ast.Module, qualname: str) -> ast.FunctionDef:
    node: ast.AST = tree
    for name in qualname.split("."):
        (node,) = [each for each in node.body if getattr(each, "name", None) == name]
    return node
