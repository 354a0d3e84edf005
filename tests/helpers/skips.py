"""Where CI runs, a test that is skipped is a test that fails, unless its reason is one of these."""

from __future__ import annotations

import os
import re
import time

import pytest

OUT_OF_TIME = "the time of this run was up before"

ALLOWED: dict[str, str] = {
    r"clip \S+ is not shipped by any package; it lies in \.\./shared/clips": (
        "Clips that may not be shipped lie beside the authors' checkouts; those of packages are fetched everywhere."
    ),
    r"cannot mount a file system here": "Containers without CAP_SYS_ADMIN cannot, and a full disk needs a small one.",
    OUT_OF_TIME: "The long tests run as far as CI's time reaches; each that does not is named.",
}
"""Reason, a regular expression -> why it is no fault of the machine that CI prepares."""

# When a run ends, in seconds since 1970: `.ci/run` sets it for the long tests.
_END = "VDOT_TESTS_END"


def in_ci() -> bool:
    """Whether this is the machine that must skip nothing."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def skip_if_out_of_time(name: str) -> None:
    """Skips a test that would begin after the end that is set for the run."""
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
            f"{report.nodeid} was skipped, and CI skips nothing but what tests/helpers/skips.py names: {reason}"
        )
