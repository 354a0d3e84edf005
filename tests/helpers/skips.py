"""Turns skipped tests into failures in CI, unless their reason is on the list."""

from __future__ import annotations

import os
import re
import time

import pytest

OUT_OF_TIME = "the time limit of this run was reached before"

ALLOWED: dict[str, str] = {
    r"clip \S+ is not shipped by any package; it lies in \.\./shared/clips": (
        "Clips that may not be shipped lie beside the authors' checkouts; those in packages are fetched everywhere."
    ),
    r"cannot mount a file system here": "Containers without CAP_SYS_ADMIN cannot, and a full disk needs a small one.",
    OUT_OF_TIME: "The long tests run as long as CI has time; each one that does not run is listed.",
}
"""Reason, a regular expression -> why it is not a fault of CI's machine."""

# When a run ends, in seconds since 1970: `.ci/run` sets it for the long tests.
_END = "VDOT_TESTS_END"


def in_ci() -> bool:
    """Whether this is CI, which must not skip other tests."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def skip_if_out_of_time(name: str) -> None:
    """Skip a test that would begin after the time limit of the run."""
    if time.time() > float(os.environ.get(_END, "inf")):
        pytest.skip(f"{OUT_OF_TIME} {name}")


def refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip for another reason into a failure."""
    if not report.skipped:
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not any(re.match(allowed, reason) for allowed in ALLOWED):
        report.outcome = "failed"
        report.longrepr = (
            f"{report.nodeid} was skipped, but CI allows only the skips listed in tests/helpers/skips.py: {reason}"
        )
