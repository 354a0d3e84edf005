"""Importing the packages changes nothing in a process: its programs configure it when they start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What other packages do when they are imported is theirs: their imports at the top of our modules run first.
SCRIPT = """
import ast, importlib, json, logging, os, signal, sys, threading, warnings
from pathlib import Path

PACKAGES = ("vdot_data", "pipeline", "annotators", "filters", "training", "benchmarks")
root = Path(sys.argv[1])
files = [file for package in PACKAGES for file in sorted((root / package).rglob("*.py"))]

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
            if all(name.partition(".")[0] not in PACKAGES for name in names):
                exec(compile(ast.Module([node], []), "imports", "exec"), {})
        elif isinstance(node, ast.Try):
            run_imports(node.body)

for file in files:
    run_imports(ast.parse(file.read_text()).body)
before = state()
for file in files:
    parts = file.relative_to(root).with_suffix("").parts
    importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
after = state()
changes = {name: [before[name], after[name]] for name in before if before[name] != after[name]}
loaded = sorted({name.partition(".")[0] for name in sys.modules} & {"ray", "tensorboard"})
print(json.dumps({"modules": len(files), "changes": changes, "loaded": loaded}))
"""


def test_importing_every_module_changes_nothing() -> None:
    command = [sys.executable, "-c", SCRIPT, str(ROOT)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert result["modules"] > 200
    assert result["changes"] == {}
    # The engine and the trainer load these when they start.
    assert result["loaded"] == []
