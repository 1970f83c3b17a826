"""The library asks the machine by `system` only, or a test that replaces it would see only a part."""

import ast

from tests.helpers import SCRIPT
from tests.tools.cut import library

ASKED = {  # what belongs to System, by the name before the dot; "" for functions of the file
    "time": {"monotonic", "perf_counter", "time", "sleep"},
    "select": {"poll"},
    "os": {"pidfd_open", "dup", "read", "set_blocking", "killpg"},
    "signal": {"pidfd_send_signal"},
    "": {"process_state", "state_and_switches", "read_file", "write_file"},
}
# Where it is asked directly: what System is made of, and a worker whose supervisor is gone.
BY_ITSELF = {"System", "state_and_switches", "end_with_supervisor"}


def asked_directly(node):
    """Return what the code of a node asks of the machine without `system`."""
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name):
            if each.attr in ASKED.get(each.value.id, ()):
                yield f"{each.value.id}.{each.attr}"
        elif isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id in ASKED[""]:
            yield each.func.id


def test_the_library_asks_the_machine_by_one_object():
    tree = ast.parse(library(SCRIPT.read_text("utf-8")))
    found = {getattr(node, "name", ""): list(asked_directly(node)) for node in tree.body}
    assert "time.monotonic" in found["System"]
    assert {name: asked for name, asked in found.items() if asked and name not in BY_ITSELF} == {}
