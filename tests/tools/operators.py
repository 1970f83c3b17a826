"""The mistakes that can be made in a file, out of its syntax tree; mutants.py makes them.

A mistake deletes a statement, negates a condition or drops a part of one, moves a constant or a comparison by one,
swaps two arguments, drops a call, or returns something else.
"""

import ast
import collections
import functools
import re
import subprocess
from typing import NamedTuple

PRODUCT = ("shmqueue.py", "variants/*.py")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BY_ONE = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}
UNORDERED = ("min", "max", "isinstance", "suppress")  # the order of their arguments does not matter, or is an error
CASTS = ("int", "bool")  # mostly for the checker of types: without one all is as it was


class Mistake(NamedTuple):
    """Between two places of a file stands something else. Tests that reach one of `lines` may notice."""

    file: str
    scope: str
    line: int
    start: int
    stop: int
    new: str
    what: str
    lines: tuple[int, ...]

    def text(self, source):
        return source[: self.start] + self.new.encode() + source[self.stop :]

    def __str__(self):
        return f"{self.file}:{self.line} {self.scope}: {self.what}"


class Maker:
    """The mistakes that can be made in a file."""

    def __init__(self, file, source):
        self.file = file
        self.source = source
        self.tree = ast.parse(source)
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self.found = []
        self._uses = collections.defaultdict(set)
        for node in ast.walk(self.tree):
            if name := getattr(node, "id", None) or getattr(node, "attr", None):
                self._uses[name].add(node.lineno)
        self._block(self.tree.body, [], None)

    def _place(self, node):
        start = self._starts[node.lineno - 1] + node.col_offset
        return start, self._starts[node.end_lineno - 1] + node.end_col_offset

    def _text(self, node):
        start, stop = self._place(node)
        return self.source[start:stop].decode()

    def _block(self, body, scope, function):
        for statement in body:
            if is_docstring(statement) or isinstance(statement, (ast.Import, ast.ImportFrom)):
                continue
            if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
                inner = statement if isinstance(statement, FUNCTIONS) else function
                self._block(statement.body, [*scope, statement.name], inner)
                continue
            make = functools.partial(self._make, ".".join(scope), function, statement)
            if function is not None and can_go(statement, function):
                make(statement, "pass", "deleted")
            for field, value in ast.iter_fields(statement):
                if field == "annotation":
                    continue
                for part in value if isinstance(value, list) else [value]:
                    if isinstance(part, ast.stmt):
                        self._block([part], scope, function)
                    elif isinstance(part, (ast.excepthandler, ast.match_case)):
                        self._block(part.body, scope, function)
                    elif isinstance(part, ast.AST) and not isinstance(statement, ast.Raise):
                        self._expression(part, make)
            self._statement(statement, make)

    def _statement(self, statement, make):
        """Mistakes that a statement makes possible, beside those in its expressions."""
        if isinstance(statement, (ast.If, ast.While)):
            self._condition(statement.test, make)
        elif isinstance(statement, ast.Return) and statement.value is not None:
            value = statement.value
            if isinstance(value, (ast.Compare, ast.BoolOp)) or is_not(value):
                make(value, "True", "returns True")
                make(value, "False", "returns False")
            elif not isinstance(value, ast.Constant):
                make(value, "None", "returns None")

    def _condition(self, test, make):
        if not isinstance(test, ast.Constant):
            make(test, f"not ({self._text(test)})", "negated")

    def _expression(self, node, make):
        if isinstance(node, ast.JoinedStr):
            return
        if isinstance(node, ast.IfExp):
            self._condition(node.test, make)
        elif isinstance(node, ast.comprehension):
            for test in node.ifs:
                self._condition(test, make)
        elif isinstance(node, ast.BoolOp):
            word = " and " if isinstance(node.op, ast.And) else " or "
            for part in node.values:
                others = word.join(f"({self._text(other)})" for other in node.values if other is not part)
                make(node, f"({others})", f"without `{brief(self._text(part))}`")
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in BY_ONE and len(node.ops) == 1:
            right, sign = node.comparators[0], BY_ONE[type(node.ops[0])]
            make(node, f"({self._text(node.left)}) {sign} ({self._text(right)})", f"compared by {sign}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
            other = not node.value if isinstance(node.value, bool) else node.value + 1
            make(node, repr(other), f"{other} for {node.value}")
        elif isinstance(node, ast.Call):
            self._call(node, make)
        for child in ast.iter_child_nodes(node):
            self._expression(child, make)

    def _call(self, node, make):
        name = getattr(node.func, "id", None)
        called = name or getattr(node.func, "attr", None)
        first, second = (*node.args[:2], None, None)[:2]
        if isinstance(first, ast.Starred):
            return
        if second is not None and not isinstance(second, ast.Starred) and called not in UNORDERED:
            (start, left), (right, stop) = self._place(first), self._place(second)
            new = self._text(second) + self.source[left:right].decode() + self._text(first)
            make((start, stop), new, f"swapped `{brief(self._text(first))}` and `{brief(self._text(second))}`")
        if name is not None and name not in CASTS and first is not None:
            make(node, f"({self._text(first)})", f"without {name}()")
        elif isinstance(node.func, ast.Attribute) and not isinstance(node.func.value, (ast.Name, ast.Attribute)):
            make(node, f"({self._text(node.func.value)})", f"without .{node.func.attr}()")

    def _make(self, scope, function, statement, node, new, what):
        start, stop = node if isinstance(node, tuple) else self._place(node)
        if (start, stop) == self._place(statement) and new != "pass":
            return  # a call that is a statement is deleted, not dropped
        if function is None:  # what stands in a class or a module matters where its name is used
            lines = set().union(*(self._uses[name] for name in names_bound(statement))) - {statement.lineno}
        else:
            compound = getattr(statement, "body", None)
            lines = range(statement.lineno, (compound[0].lineno if compound else statement.end_lineno + 1))
            lines = lines or (statement.lineno,)
        line = self.source[:start].count(b"\n") + 1
        shown = f"{what} in `{brief(self._text(statement).partition(chr(10))[0])}`"
        self.found.append(Mistake(self.file, scope, line, start, stop, new, shown, tuple(sorted(lines))))


def brief(text):
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:59]}…"


def is_docstring(statement):
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def is_not(node):
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def names_bound(statement):
    """Return the names that a statement of a class or a module gives a value."""
    targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
    return [node.id for target in targets if target for node in ast.walk(target) if is_bound(node)]


def is_bound(node):
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def can_go(statement, function):
    """Return True if to delete a statement is a mistake of its own, and not a name without a value."""
    if isinstance(statement, (ast.If, ast.While, ast.For)):
        return not statement.orelse
    if isinstance(statement, (ast.Expr, ast.AugAssign, ast.Delete, ast.Raise, ast.Continue, ast.Break)):
        return True
    if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or function.name == "__init__":
        return False
    bound = collections.Counter(node.id for node in ast.walk(function) if is_bound(node))
    return all(bound[name] > 1 for name in names_bound(statement))


def sources(root):
    """Return the bytes of each file of the product."""
    paths = sorted(path for pattern in PRODUCT for path in root.glob(pattern))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def changed_lines(root, commit):
    """Return the set of the lines of each file that differ from a commit."""
    command = ["git", "diff", "--unified=0", "--relative", commit, "--", *PRODUCT]
    text = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    lines, file = collections.defaultdict(set), None
    for line in text.splitlines():
        if line.startswith("+++ "):
            file = line[4:].removeprefix("b/")
        elif match := re.match(r"@@ -\S+ \+(\d+)(?:,(\d+))? @@", line):
            first = int(match[1])
            lines[file].update(range(first, first + int(match[2] or 1)))
    return lines


def choose(root, names, commit):
    """Return the mistakes of these classes and functions, or of the lines that differ from the commit."""
    found = [mistake for file, source in sources(root).items() for mistake in Maker(file, source).found]
    if names:
        return [m for m in found if any(f"{m.scope}.".startswith(f"{name}.") for name in names)]
    lines = changed_lines(root, commit)
    return [mistake for mistake in found if mistake.line in lines[mistake.file]]
