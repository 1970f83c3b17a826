"""Run one measurement in this process: `python -m benchmarks.child MODULE:FUNCTION ARGUMENTS_AS_JSON`."""

from __future__ import annotations

import importlib
import json
import sys

from benchmarks.harness import MISSING, RESULT, WRONG
from benchmarks.jobs import WrongError


def main(where: str, arguments: str) -> int:
    module, _, name = where.partition(":")
    try:
        result = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    except WrongError as error:
        print(error, file=sys.stderr)
        return WRONG
    except ImportError as error:
        print(f"not installed ({error.name})", file=sys.stderr)
        return MISSING
    print(RESULT + json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
