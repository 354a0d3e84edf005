"""Fixtures and hooks for all tests."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec.config
import pytest
import s3_server
import skips
from hypothesis import settings

# How long an example takes depends on the machine's other work.
settings.register_profile("vdot", deadline=None)
settings.load_profile("vdot")
# A shell ignores Ctrl-C in programs that it starts in the background, and their child processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests of complete programs, which take minutes, first: then no worker waits long for another at the end."""
    items.sort(key=lambda item: "tests/integration/" not in item.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check that there is time for a test before its fixtures are set up."""
    skips.skip_if_out_of_time(item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test fails; see `skips.py`."""
    report = yield
    if skips.in_ci():
        skips.refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself."""
    report = yield
    if skips.in_ci():
        skips.refuse(report)
    return report


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3-compatible server, quiet until `s3.faults(0.1)`; the environment of this process points to it.

    The parts: `endpoint`, `bucket`, `url` (s3://bucket), `env` for subprocesses, `faults(rate, kinds)`.
    """
    with _s3(monkeypatch) as server:
        yield server


@pytest.fixture(scope="module")
def module_s3() -> Iterator[Any]:
    """The same for all tests of a file."""
    with pytest.MonkeyPatch.context() as monkeypatch, _s3(monkeypatch) as server:
        yield server


@contextmanager
def _s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with s3_server.serve() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        saved_config = {name: dict(options) for name, options in fsspec.config.conf.items()}
        fsspec.config.set_conf_env(fsspec.config.conf)
        yield server
        fsspec.config.conf.clear()
        fsspec.config.conf.update(saved_config)
