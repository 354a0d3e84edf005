"""Tests where the report goes: into OUT, from where `forget` takes it, or where an option says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_dataset
from small_dataset import identity
from typer.testing import CliRunner

from pipeline.catalog.catalog import Catalog
from pipeline.catalog.erase import REPORT, finish_forgetting
from pipeline.cli.main import app
from pipeline.errors import RunError
from pipeline.reporting import report as reporting
from pipeline.reporting.report import report
from pipeline.storage.atomic import temporary_name
from pipeline.upkeep.forget import forget, format_summary
from pipeline.upkeep.verify import verify


def test_by_default_it_goes_into_out(dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    answer = CliRunner().invoke(app, ["report", dataset.url, "--json"]).stdout
    page = Path(dataset.url, REPORT)
    assert json.loads(answer) | {"file": str(page), "size": page.stat().st_size} == json.loads(answer)
    assert identity("a0") in page.read_text()
    assert list(Path().iterdir()) == []
    assert not verify(dataset.url, 1).count


def test_an_option_names_another_place(dataset: Any, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", dataset.url, "--html", str(tmp_path / "page.html")])
    assert result.exit_code == 0
    assert identity("a0") in (tmp_path / "page.html").read_text()
    assert not dataset.out.exists(REPORT)


def test_it_goes_into_an_out_that_is_not_on_a_disk(tmp_path: Path) -> None:
    dataset = small_dataset.Dataset(f"memory://{tmp_path}/out", tmp_path / "scratch").fill()
    result = report(dataset.url)
    assert result.file == f"{dataset.out.url}/{REPORT}"
    assert len(dataset.out.read(REPORT)) == result.size
    assert forget(dataset.url, identity("a0")).report
    assert not dataset.out.exists(REPORT)


def test_where_no_dataset_can_be_written_the_error_names_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = small_dataset.Dataset(f"memory://{tmp_path}/out", tmp_path / "scratch").fill()
    monkeypatch.setattr("pipeline.storage.folder.CREATES_IF_ABSENT", set())
    with pytest.raises(RunError, match=r"no atomic create.*`--html FILE`"):
        report(dataset.url)
    assert report(dataset.url, tmp_path / "page.html").clips == 6


def test_forget_takes_the_report_with_it(dataset: Any) -> None:
    report(dataset.url)
    summary = forget(dataset.url, identity("b1"))
    assert not dataset.out.exists(REPORT)
    assert summary.report
    assert "report.html is gone too" in format_summary(summary)


def test_without_a_report_forget_does_not_speak_of_one(dataset: Any) -> None:
    summary = forget(dataset.url, identity("b1"))
    assert not summary.report
    assert "report.html" not in format_summary(summary)


def test_an_interrupted_forget_is_finished_with_the_report(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report(dataset.url)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.upkeep.forget.finish_forgetting", lambda _: None)
        forget(dataset.url, identity("a0"))
    assert dataset.out.exists(REPORT)
    finish_forgetting(Catalog(dataset.out, dataset.scratch))
    assert not dataset.out.exists(REPORT)


@pytest.mark.parametrize("place", ["out", "elsewhere"])
def test_a_clip_that_is_forgotten_meanwhile(
    dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    render = reporting.render

    def forget_and_render(*arguments: Any) -> bytes:
        forget(dataset.url, identity("a0"))
        return render(*arguments)

    monkeypatch.setattr(reporting, "render", forget_and_render)
    file = None if place == "out" else tmp_path / "page.html"
    with pytest.raises(RunError, match="forgotten while the report was made"):
        report(dataset.url, file)
    assert not dataset.out.exists(REPORT)
    assert not (tmp_path / "page.html").exists()


def test_verify_finds_a_report_that_outlived_its_clip(dataset: Any) -> None:
    report(dataset.url)
    page = dataset.out.read(REPORT)
    forget(dataset.url, identity("a0"))
    dataset.out.put(REPORT, page)
    (problem,) = verify(dataset.url, 1).problems
    assert problem.text.startswith(f"report report.html: shows the forgotten clip {identity('a0')};")


def test_forget_removes_what_a_killed_writer_left(dataset: Any) -> None:
    unfinished = Path(dataset.url, temporary_name())
    unfinished.write_bytes(b"half of a report")
    forget(dataset.url, identity("a0"))
    assert not unfinished.exists()
