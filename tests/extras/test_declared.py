"""Tests that the package and the table of installations declare everything that each installation imports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import installations

from pipeline.extras import MODULES, suggest_install


def find_undeclared() -> Iterator[str]:
    all_declared = set().union(*map(installations.declared, installations.extras()))
    for module, file in installations.modules().items():
        owner = installations.owner(module)
        for name, at_once in installations.imports(file):
            allowed = installations.declared(owner) if at_once else all_declared
            if not installations.providers(name) & allowed:
                yield f"{module} ({owner}) imports {name}, which {'its set' if at_once else 'every extra'} leaves out"


def test_a_module_imports_only_what_its_set_declares() -> None:
    assert sorted(find_undeclared()) == []


def test_the_table_names_modules_that_exist() -> None:
    existing = installations.modules()
    names = [name for names in installations.OWNS.values() for name in names]
    assert [name for name in names if name not in existing] == []
    assert len(names) == len(set(names))


def test_every_extra_is_a_set_or_an_environment_of_its_own() -> None:
    # This test runs in dev; docs brings no module of ours; the packages in `loaders` pin an older numpy than the
    # tested set has.
    assert {*installations.OWNS} == {installations.CORE, *installations.extras()} - {"dev", "docs", "loaders"}


def test_the_advice_names_the_extras_that_declare_a_package() -> None:
    for extra in {*installations.OWNS} - {installations.CORE}:
        declared = installations.declared(extra) - installations.declared(installations.CORE)
        advised = {name for name, extras in MODULES.items() if extra in extras}
        assert set().union(*map(installations.providers, advised)) == declared, extra
    for name, extras in MODULES.items():
        sentence = suggest_install(ModuleNotFoundError(name=f"{name}.part"), "train")
        assert sentence is not None
        assert "'vdot-data[train]'" in sentence if "train" in extras else f"[{extras[0]}]" in sentence


def test_an_import_that_no_extra_mends_gets_no_advice() -> None:
    assert suggest_install(ModuleNotFoundError(name="pipeline.nothing")) is None
    assert suggest_install(ImportError("cannot import name 'x'")) is None


_ALONE = """
import importlib, sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
for module in {modules}:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        print(f"{{module}} needs {{error.name}}")
"""


def test_the_core_imports_its_modules_where_no_extra_is_installed() -> None:
    code = _ALONE.format(absent=set(MODULES), modules=installations.importable(installations.CORE))
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=installations.ROOT)
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout == ""
