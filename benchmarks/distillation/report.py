"""Summarizes a folder of results: means and intervals of every arm, differences of arms, and the rules' verdicts.

Bootstrap: each replicate draws sources, each with all conditions that were cut from it, the same for all arms, and
seeds. Replicates are shifted so that their mean is the measured value, because drawing with replacement makes some
distances larger than they are.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.distillation.arms import SEARCH
from benchmarks.distillation.evaluator import PRIMARY
from benchmarks.distillation.json_files import write_json

_DRAWS = 4000
# Every pair whose difference is reported: the arm, and the arm that it is compared with.
PAIRS = (("B", "A"), ("C", "A"), ("C", "B"), ("D", "A"), ("D", "B"), ("D", "C"), ("D", "N"), ("N", "A"), ("E", "A"),
         ("F", "E"), ("F", "C"), ("G", "F"), *((arm, baseline) for arm in SEARCH for baseline in "AB"))  # fmt: skip
# Metric -> its column heading.
COLUMNS = {
    PRIMARY: "MMD² features ×1000 (primary)",
    "teacher/features/sliced": "SW2 features",
    "teacher/latent/mmd_rbf": "MMD² latents ×1000",
    "teacher/latent/sliced": "SW2 latents",
    "held_out/features/mmd_rbf": "MMD² features ×1000, held out",
    "track_error": "track error (of 255)",
    "track_overlap": "track overlap",
    "kept_psnr": "kept PSNR (dB)",
    "diversity": "diversity",
    "saturation": "saturation",
    "steadiness": "steadiness",
}
Interval = dict[str, Any]


def write_report(out: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """Write `report.json` and `report.md` into the folder of a study, and return the content of `report.json`."""
    arms = _load_results(out / "arms", "arm")
    references = _load_results(out / "references", "title")
    report: dict[str, Any] = {
        "study": json.loads((out / "study.json").read_text()),
        "machine": machine,
        "codec": json.loads((out / "codec.json").read_text()),
        "teacher": json.loads((out / "teacher" / "training.json").read_text()),
        "references": {title: _summarize(runs) for title, runs in references.items()},
        "arms": {letter: {"title": runs[0]["title"], **_summarize(runs)} for letter, runs in arms.items()},
        "differences": {
            f"{arm} - {baseline}": {
                name: _compare(arms[arm], arms[baseline], name) for name in common_metrics(arms[arm])
            }
            for arm, baseline in PAIRS
            if arm in arms and baseline in arms
        },
        "time": _compare_times(arms),
        "signals": {letter: _average_signals(runs) for letter, runs in arms.items()},
    }
    report["verdicts"] = verdicts(report["differences"])
    write_json(out / "report.json", report)
    (out / "report.md").write_text(format_table(report))
    return report


def verdicts(differences: dict[str, dict[str, Interval]]) -> dict[str, bool]:
    """Which arm beats which in the primary metric, by the rules in the README."""

    def beats(arm: str, baseline: str) -> bool:
        intervals = differences.get(f"{arm} - {baseline}")
        return intervals is not None and intervals[PRIMARY]["high"] < 0

    challengers = ("C", "D", *(arm for arm in SEARCH if f"{arm} - A" in differences))
    return {
        "B beats A": beats("B", "A"),
        **{f"{arm} beats A, and B": beats(arm, "A") and beats(arm, "B") for arm in challengers},
        "E beats A": beats("E", "A"),
        "F beats E, and C beats B": beats("F", "E") and beats("C", "B"),
        "G beats F": beats("G", "F"),
    }


def format_table(report: dict[str, Any]) -> str:
    """A report as Markdown."""
    study, codec = report["study"], report["codec"]
    names = [name for name in COLUMNS if any(name in row["metrics"] for row in report["arms"].values())]
    seeds = max((len(row["seeds"]) for row in report["arms"].values()), default=0)
    summary = (
        f"Clips: {codec['clips']}; codec {codec['psnr_test']} dB on held-out clips; size {study['size']}; "
        f"{study['test']} conditions, {seeds} seeds, {study['updates']} updates of the student. Mean, 95 % interval."
    )
    lines = [
        summary,
        "",
        "| | " + " | ".join(COLUMNS[name] for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    rows = [(title, row) for title, row in report["references"].items()]
    rows += [(f"{letter}: {row['title']}", row) for letter, row in report["arms"].items()]
    lines += [f"| {title} | " + " | ".join(_format_cell(row["metrics"].get(name), name) for name in names) + " |"
              for title, row in rows]  # fmt: skip
    lines += ["", "| difference | " + " | ".join(COLUMNS[name] for name in names) + " |",
              "|---" * (len(names) + 1) + "|"]  # fmt: skip
    lines += [f"| {pair} | " + " | ".join(_format_cell(metrics.get(name), name) for name in names) + " |"
              for pair, metrics in report["differences"].items()]  # fmt: skip
    lines += [
        "",
        "| arm | s an update | updates in the time of the fastest | measured at | primary ×1000 then |",
        "|---" * 5 + "|",
    ]
    for letter, time in report["time"].items():
        primary = 1000 * time["primary_then"]
        cells = f"{time['s_per_update']:.3f} | {time['updates_possible']} | {time['update_then']} | {primary:.3g}"
        lines.append(f"| {letter} | {cells} |")
    lines += ["", *(f"* {claim}: {'yes' if holds else 'no'}" for claim, holds in report["verdicts"].items())]
    return "\n".join(lines) + "\n"


def common_metrics(runs: list[dict[str, Any]]) -> list[str]:
    """The metrics that all runs have."""
    return [name for name in runs[0]["metrics"] if all(name in run["metrics"] for run in runs)]


def interval(values: NDArray[np.float64], replicates: NDArray[np.float64]) -> Interval:
    """Mean and 95 % interval from values [seeds] and replicates [seeds, r], over conditions and over seeds."""
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(values), size=(_DRAWS, len(values)))
    column = rng.integers(replicates.shape[1], size=_DRAWS)
    centred = replicates - replicates.mean(axis=1, keepdims=True) + values[:, None]
    drawn = centred[chosen, column[:, None]].mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {name: float(f"{value:.5g}") for name, value in (("mean", values.mean()), ("low", low), ("high", high))}


def _load_results(folder: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    """The results in a folder, grouped by their field `name` and sorted by seed."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        groups.setdefault(result[name], []).append(result)
    return {key: sorted(runs, key=lambda run: int(run["seed"])) for key, runs in groups.items()}


def _summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "seeds": [run["seed"] for run in runs],
        "metrics": {name: interval(*_values(runs, name)) for name in common_metrics(runs)},
        "each": {name: [run["metrics"][name] for run in runs] for name in common_metrics(runs)},
    }


def _values(runs: list[dict[str, Any]], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.array([run["metrics"][name] for run in runs]), np.array([run["replicates"][name] for run in runs])


def _compare(arm_runs: list[dict[str, Any]], baseline_runs: list[dict[str, Any]], name: str) -> Interval:
    """The difference in a metric over the seeds that both have."""
    common = {run["seed"] for run in arm_runs} & {run["seed"] for run in baseline_runs}
    pair = [_values([run for run in runs if run["seed"] in common], name) for runs in (arm_runs, baseline_runs)]
    return interval(pair[0][0] - pair[1][0], pair[0][1] - pair[1][1])


def _compare_times(arms: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Seconds per update, the updates possible in the time that the fastest arm took for all of its own, and the
    measurement nearest to that number of updates."""
    medians = {letter: statistics.median(run["s_per_update"] for run in runs) for letter, runs in arms.items()}
    times = {}
    for letter, runs in arms.items():
        marks = [mark["update"] for mark in runs[0]["marks"]]
        possible = marks[-1] * min(medians.values()) / medians[letter]
        index = min(range(len(marks)), key=lambda number: abs(marks[number] - possible))
        measurements = [run["marks"][index]["metrics"] for run in runs]
        times[letter] = {
            "s_per_update": round(medians[letter], 4),
            "updates_possible": round(possible, 1),
            "update_then": marks[index],
            "primary_then": statistics.mean(metrics[PRIMARY] for metrics in measurements),
            "metrics_then": {
                name: statistics.mean(metrics[name] for metrics in measurements) for name in measurements[0]
            },
        }
    return times


def _average_signals(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Means over seeds of the training loop's signals in its last quarter."""
    names = set.intersection(*(set(run["signals"]) for run in runs))
    return {name: float(f"{statistics.mean(run['signals'][name] for run in runs):.5g}") for name in sorted(names)}


def _format_cell(value: Interval | None, name: str) -> str:
    if value is None:
        return "-"
    factor = 1000 if "mmd" in name else 1
    return f"{value['mean'] * factor:.3g} [{value['low'] * factor:.3g}, {value['high'] * factor:.3g}]"
