"""`pip install` from a clone gives the module and a command, of one version."""

import importlib.metadata
import os
import shutil
import subprocess
import sys

import pytest

import shmqueue
from tests.helpers import HANG, ROOT


def run(command, folder, **environment):
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANG / 2,
        check=False,
    )


def has_setuptools():
    """Return True if there is a setuptools that pyproject.toml takes."""
    try:
        return int(importlib.metadata.version("setuptools").partition(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.once
@pytest.mark.skipif(not has_setuptools(), reason="needs setuptools 77")
def test_a_clone_can_be_installed(tmp_path):
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("LICENSE", "README.md", "pyproject.toml", "shmqueue.py"):
        shutil.copy(ROOT / name, clone)
    here = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-build-isolation", "--no-deps"]
    installed = run([*pip, "--target", str(here), "."], clone)
    assert installed.returncode == 0, installed.stdout
    (metadata,) = here.glob("shmqueue-*.dist-info")
    assert metadata.name == f"shmqueue-{shmqueue.__version__}.dist-info"
    assert (here / "shmqueue.py").read_bytes() == (ROOT / "shmqueue.py").read_bytes()

    (tmp_path / "tasks.txt").write_text("echo one\n")
    for method in ("fork", "spawn"):
        command = [str(here / "bin" / "shmqueue"), "tasks.txt", "--print", "--start-method", method, "-w", "1"]
        ran = run(command, tmp_path, PYTHONPATH=str(here))
        assert ran.returncode == 0, ran.stdout
        first, *_, last = ran.stdout.splitlines()  # a run of more than a second says how the workers spent it
        assert first == "one"
        assert last.startswith("1 task: 1 ok, ")
