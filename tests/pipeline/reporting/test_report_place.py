"""Tests where the report goes: into OUT, from where `forget` takes it, or where an option says."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import small_dataset
import vectors
from small_dataset import identity
from typer.testing import CliRunner

from pipeline.catalog.catalog import Catalog
from pipeline.catalog.cleanup import sweep
from pipeline.catalog.erase import REPORT, finish_forgetting
from pipeline.cli.main import app
from pipeline.curation.dedup import dedup
from pipeline.errors import RunError, UsageError
from pipeline.reporting import report as reporting
from pipeline.reporting.clip_page import view
from pipeline.reporting.report import report
from pipeline.storage.atomic import temporary_name
from pipeline.storage.object_store import StorageError
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


def test_without_a_report_forget_speaks_of_pages_elsewhere_only(dataset: Any, tmp_path: Path) -> None:
    report(dataset.url, tmp_path / "page.html")
    summary = forget(dataset.url, identity("b1"))
    assert not summary.report
    assert "report.html" not in format_summary(summary)
    assert "pages that `report` or `view` wrote to other places" in format_summary(summary)


@pytest.mark.parametrize("name", ["page.html", "pages/report.html", "link.html"])
def test_no_page_of_another_name_goes_into_out(dataset: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "out/pages").mkdir()
    file = tmp_path / "out" / name
    if name == "link.html":
        file = tmp_path / name
        file.symlink_to(tmp_path / "out/page.html")
    with pytest.raises(UsageError, match="inside the dataset"):
        report(dataset.url, file)
    with pytest.raises(UsageError, match="inside the dataset"):
        view(dataset.url, identity("a0"), file)
    assert not file.exists()


def test_naming_the_report_in_out_is_the_default(dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(dataset.url)
    assert report(dataset.url, Path(REPORT)) == report(dataset.url)
    assert report(dataset.url, tmp_path / "out/../out" / REPORT).file == str(tmp_path / "out" / REPORT)
    assert forget(dataset.url, identity("a0")).report
    assert not dataset.out.exists(REPORT)


def test_an_interrupted_forget_is_finished_with_the_report(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report(dataset.url)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.upkeep.forget.finish_forgetting", lambda _: None)
        forget(dataset.url, identity("a0"))
    assert dataset.out.exists(REPORT)
    finish_forgetting(Catalog(dataset.out, dataset.scratch))
    assert not dataset.out.exists(REPORT)


@pytest.mark.parametrize("moment", ["before the first check", "after the first check"])
@pytest.mark.parametrize("place", ["out", "elsewhere"])
def test_a_clip_that_is_forgotten_meanwhile(
    dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, moment: str
) -> None:
    file = None if place == "out" else tmp_path / "page.html"
    if file:
        file.write_text("of last week")
    check, calls = reporting._check_forgotten, itertools.count()

    def forget_and_check(catalog: Catalog) -> None:
        actions = [lambda: forget(dataset.url, identity("a0")), lambda: check(catalog)]
        if next(calls):
            check(catalog)
        else:
            for action in actions if moment.startswith("before") else reversed(actions):
                action()

    monkeypatch.setattr(reporting, "_check_forgotten", forget_and_check)
    with pytest.raises(RunError, match="forgotten while the report was made"):
        report(dataset.url, file)
    assert not dataset.out.exists(REPORT)
    if file:
        assert file.exists() == moment.startswith("before"), "nothing is written once it is known"


@pytest.mark.parametrize("place", ["out", "elsewhere"])
def test_a_page_that_cannot_be_checked_is_not_kept(
    dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    file = None if place == "out" else tmp_path / "page.html"
    page = file or Path(dataset.url, REPORT)
    connect = Catalog.connect

    def fail_after_the_write(catalog: Catalog, *arguments: Any, **options: Any) -> Any:
        if page.exists():
            raise StorageError("the store is away")
        return connect(catalog, *arguments, **options)

    monkeypatch.setattr(Catalog, "connect", fail_after_the_write)
    with pytest.raises(StorageError):
        report(dataset.url, file)
    assert not page.exists()


class Killed(BaseException):
    """Simulates SIGKILL: nothing catches it."""


def write_outdated_page(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill a report between the write and the check, after a clip was forgotten."""
    with monkeypatch.context() as patch:
        patch.setattr(reporting, "_remove_page", lambda *_: None)
        check, calls = reporting._check_forgotten, itertools.count()

        def forget_or_die(catalog: Catalog) -> None:
            if next(calls):
                raise Killed
            check(catalog)
            forget(dataset.url, identity("a0"))

        patch.setattr(reporting, "_check_forgotten", forget_or_die)
        with pytest.raises(Killed):
            report(dataset.url)
    assert identity("a0") in dataset.out.read(REPORT).decode()


@pytest.mark.parametrize("run", ["forget", pytest.param("dedup", marks=pytest.mark.long)])
def test_the_page_of_a_killed_report_goes_with_the_next_run(
    dataset: Any, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    vectors.embed(dataset, {"a2": (1.0, 0.0), "b0": (0.0, 1.0)})
    write_outdated_page(dataset, monkeypatch)
    if run == "forget":
        forget(dataset.url, identity("b1"))
    else:
        dedup(dataset.url)
    assert not dataset.out.exists(REPORT)


def test_a_page_made_after_the_last_forget_stays(dataset: Any) -> None:
    forget(dataset.url, identity("a0"))
    report(dataset.url)
    finish_forgetting(Catalog(dataset.out, dataset.scratch))
    assert dataset.out.exists(REPORT)


def test_an_older_report_leaves_the_page_of_a_newer_one(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check, calls = reporting._check_forgotten, itertools.count()

    def forget_and_report_again(catalog: Catalog) -> None:
        if next(calls) == 1:
            forget(dataset.url, identity("a0"))
            report(dataset.url)
        check(catalog)

    monkeypatch.setattr(reporting, "_check_forgotten", forget_and_report_again)
    with pytest.raises(RunError, match="forgotten while the report was made"):
        report(dataset.url)
    assert dataset.out.exists(REPORT)
    assert identity("a0") not in dataset.out.read(REPORT).decode()


def test_a_sweep_while_the_page_is_written(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, calls = os.fsync, itertools.count()

    def commit_and_sweep(file: int) -> None:
        sync(file)
        if next(calls) == 0:
            unfinished = {entry.name for entry in dataset.out.list_files(temporary=True)}
            dataset.commit(dataset.source("e", "same"))
            committed_at = dataset.catalog.committed_at()
            for name in unfinished:
                os.utime(Path(dataset.url, name), (committed_at - 1, committed_at - 1))
            assert unfinished <= {*sweep(dataset.catalog)}
            assert unfinished

    monkeypatch.setattr(reporting, "_check_folder", lambda _: None)
    monkeypatch.setattr("pipeline.storage.atomic.os.fsync", commit_and_sweep)
    assert report(dataset.url).clips == 6
    assert next(calls) > 3
    assert identity("a0") in dataset.out.read(REPORT).decode()


def test_verify_finds_a_report_that_outlived_its_clip(dataset: Any) -> None:
    report(dataset.url)
    page = dataset.out.read(REPORT)
    forget(dataset.url, identity("a0"))
    dataset.out.put(REPORT, page)
    (problem,) = verify(dataset.url, 1).problems
    assert problem.text.startswith(f"report report.html: shows the forgotten clip {identity('a0')};")


def test_forget_removes_what_a_report_wrote_while_it_committed(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinished = Path(dataset.url, temporary_name())
    commit = Catalog.commit

    def write_and_commit(catalog: Catalog, rows: pa.Table) -> int:
        unfinished.write_bytes(b"half of a report")
        return commit(catalog, rows)

    monkeypatch.setattr(Catalog, "commit", write_and_commit)
    forget(dataset.url, identity("a0"))
    assert not unfinished.exists()


def test_forget_removes_what_a_killed_writer_left(dataset: Any) -> None:
    unfinished = Path(dataset.url, temporary_name())
    unfinished.write_bytes(b"half of a report")
    forget(dataset.url, identity("a0"))
    assert not unfinished.exists()
