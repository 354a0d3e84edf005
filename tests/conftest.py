"""Fixtures that several rooms share."""

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

# How long an example takes is a matter of what else the machine does.
settings.register_profile("vdot", deadline=None)
settings.load_profile("vdot")
# A shell ignores Ctrl-C in what it starts in the background, and programs hand that down to what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole programs first, each minutes long: what comes last is short, so that no worker waits long for another."""
    items.sort(key=lambda item: "tests/integration/" not in item.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before anything is made for a test, see whether there is time for it."""
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
    """The same for a module that skips itself whole."""
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
        before = {name: dict(options) for name, options in fsspec.config.conf.items()}
        fsspec.config.set_conf_env(fsspec.config.conf)
        yield server
        fsspec.config.conf.clear()
        fsspec.config.conf.update(before)
