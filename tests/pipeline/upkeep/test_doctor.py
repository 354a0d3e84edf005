"""Tests that `doctor` finds faults of a machine, a dataset or a node, and gives advice."""

from __future__ import annotations

import io
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.cli.tables import summary_table
from pipeline.engine.cluster import collect_node_facts
from pipeline.ingest.commands import Summary
from pipeline.recipe import registry
from pipeline.upkeep import doctor as module
from pipeline.upkeep.checks import Check, CheckStatus, make_table
from pipeline.upkeep.cluster_checks import compare_nodes
from pipeline.upkeep.doctor import doctor


def find_check(checks: list[Check], name: str) -> Check:
    """The first check of this name."""
    return next(check for check in checks if check.name == name)


def test_this_machine() -> None:
    checks = doctor()
    for name in ("python", "av", "ray", "h264 decoder", "av1 decoder", "h264 encoder"):
        assert find_check(checks, name).status == "ok"
    assert all(check.advice for check in checks if check.status != "ok")


def test_old_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "ray":
            raise metadata.PackageNotFoundError(name)
        return "13.9.1" if name == "av" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    checks = doctor()
    assert find_check(checks, "ray").found == "is not installed"
    assert find_check(checks, "av").status == "fail"
    assert find_check(checks, "av").found.startswith("13.9.1; at least ")


def test_missing_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DECODERS", {"av1": ["no such codec"]})
    monkeypatch.setattr(module, "ENCODER", "no such codec")
    checks = doctor()
    assert find_check(checks, "av1 decoder").status == "warn"
    assert find_check(checks, "h264 encoder").status == "fail"


def test_missing_and_damaged_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VDOT_WEIGHTS", str(tmp_path))
    name = "mediapipe-pose-detection"
    weight = registry.collect_weights()[name]
    assert find_check(doctor(), name).advice == "run `vdot-data weights`"
    (tmp_path / f"{name}.tflite").write_bytes(b"something else")
    assert "damaged" in find_check(doctor(), name).found
    result = CliRunner().invoke(app, ["weights", "--list"])
    assert result.exit_code == 0
    assert name in result.stdout
    assert weight.sha256 in result.stdout


def test_little_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "SCRATCH", 1e18)
    monkeypatch.setenv("VDOT_SCRATCH", str(tmp_path))
    check = find_check(doctor(), f"free space in {tmp_path}")
    assert (check.status, check.advice) == ("warn", "point VDOT_SCRATCH to a larger disk")


def test_a_dataset(dataset: Any) -> None:
    texts = [check.found for check in doctor(dataset.url) if check.name == f"OUT {dataset.url}"]
    assert "catalog of 7 parts: 1 failed, 3 kept, 1 pending, 1 rejected" in texts
    assert any(text.startswith("grid fps=16.0 frames=9") for text in texts)


def test_a_damaged_and_an_unwritable_dataset(dataset: Any, tmp_path: Path) -> None:
    Path(dataset.url, "catalog/000000000003.parquet").write_bytes(b"")
    result = CliRunner().invoke(app, ["doctor", dataset.url, "--json"])
    assert result.exit_code == 1
    failed = [
        check for check in json.loads(result.stdout) if check["name"].startswith("OUT") and check["status"] == "fail"
    ]
    assert "cannot be read" in failed[0]["found"]
    (tmp_path / "file").write_bytes(b"")
    assert any(check.status == "fail" for check in doctor(str(tmp_path / "file")))


def test_an_out_that_is_empty_and_one_that_is_not_there(tmp_path: Path) -> None:
    assert "the catalog is empty" in [check.found for check in doctor(str(tmp_path))]
    check = find_check(doctor(str(tmp_path / "new")), f"OUT {tmp_path / 'new'}")
    assert (check.status, check.found) == ("warn", "does not exist")
    assert not (tmp_path / "new").exists(), "`doctor` creates nothing"


def test_what_looks_like_markup_is_printed_as_it_is() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(make_table([Check("OUT /a[b]", CheckStatus.FAIL, "[red]", "pip install 'vdot-data[ingest]'")]))
    console.print(summary_table(Summary("/a[b]", "base", "r", {"kept": {"": 1}}, {}, {}, 1.0, 1.0)))
    text = console.export_text()
    assert "OUT /a[b]" in text
    assert "[red]" in text
    assert "vdot-data[ingest]" in text
    assert "/a[b] (base)" in text


def test_nodes_that_differ() -> None:
    facts = collect_node_facts()
    different = facts | {"host": "n2", "av": "1.0"}
    checks = list(compare_nodes([facts, different], {"n3": "no such module"}))
    assert [check.status for check in checks] == ["fail", "ok", "fail"]
    assert checks[2].found == f"av 1.0 (here {facts['av']})"


def test_a_cluster_that_is_not_there() -> None:
    checks = doctor(address="127.0.0.1:1")
    assert checks[-1].name == "cluster 127.0.0.1:1"
    assert checks[-1].status == "fail"
