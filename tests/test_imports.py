"""Importing the packages changes nothing in a process: its programs configure it when they start."""

from __future__ import annotations

import json
import subprocess
import sys

import installations
import pytest

# What other packages do when they are imported is theirs: their imports at the top of our modules run first.
SCRIPT = """
import ast, importlib, json, logging, os, signal, sys, threading, warnings
from pathlib import Path

modules, packages = json.load(sys.stdin)

def state():
    loggers = [logging.root, *(each for each in logging.Logger.manager.loggerDict.values() if hasattr(each, "level"))]
    default = (logging.NOTSET, [], True, False)
    described = {
        each.name: (each.level, [*map(repr, each.handlers)], each.propagate, each.disabled) for each in loggers
    }
    descriptors = Path("/proc/self/fd")
    return {
        "environment": dict(os.environ),
        "warnings": [*map(repr, warnings.filters)],
        "loggers": {name: values for name, values in described.items() if values != default},
        "open files": {name: os.readlink(descriptors / name) for name in os.listdir(descriptors)
                       if (descriptors / name).is_symlink()},
        "streams": [id(sys.stdin), id(sys.stdout), id(sys.stderr)],
        "signals": {int(number): repr(signal.getsignal(number)) for number in signal.valid_signals()},
        "threads": threading.active_count(),
        "hooks": [repr(sys.excepthook), repr(threading.excepthook)],
        "path": [*sys.path],
        "folder": os.getcwd(),
    }

def run_imports(body):
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            if all(name.partition(".")[0] not in packages for name in names):
                exec(compile(ast.Module([node], []), "imports", "exec"), {})
        elif isinstance(node, ast.Try):
            run_imports(node.body)

for file in modules.values():
    run_imports(ast.parse(Path(file).read_text()).body)
before = state()
for name in modules:
    importlib.import_module(name)
after = state()
changes = {name: [before[name], after[name]] for name in before if before[name] != after[name]}
loaded = sorted({name.partition(".")[0] for name in sys.modules} & {"ray", "tensorboard"})
print(json.dumps({"changes": changes, "loaded": loaded}))
"""


@pytest.mark.parametrize("installed", [installations.CORE, pytest.param("bench", marks=pytest.mark.long)])
def test_importing_modules_changes_nothing(installed: str) -> None:
    names = installations.importable(installed)
    files = {name: str(file) for name, file in installations.modules().items() if name in names}
    stdin = json.dumps([files, installations.PACKAGES])
    process = subprocess.run([sys.executable, "-c", SCRIPT], input=stdin, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    # Ray is loaded when an engine starts, and TensorBoard when a trainer does.
    assert json.loads(process.stdout) == {"changes": {}, "loaded": []}
