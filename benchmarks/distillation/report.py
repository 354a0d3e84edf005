"""What a folder of results says: means and intervals of every arm, differences of arms, and the rules' verdicts.

Bootstrap: each replicate draws sources, each with all conditions that were cut from it, the same ones for all arms, and
seeds. Replicates are moved so that their mean is the measured value, as drawing with replacement makes some distances
larger than they are.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.distillation.arms import SEARCH
from benchmarks.distillation.judge import PRIMARY
from benchmarks.distillation.single import write

_DRAWS = 4000
# Every pair whose difference is told: what is added, and what it is added to.
PAIRS = (("B", "A"), ("C", "A"), ("C", "B"), ("D", "A"), ("D", "B"), ("D", "C"), ("D", "N"), ("N", "A"), ("E", "A"),
         ("F", "E"), ("F", "C"), ("G", "F"), *((one, other) for one in SEARCH for other in "AB"))  # fmt: skip
# Columns of the table, and how they are called there.
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
    """Write `report.json` and `report.md` into the folder of a study, and give what the first holds."""
    arms = _grouped(out / "arms", "arm")
    references = _grouped(out / "references", "title")
    found: dict[str, Any] = {
        "study": json.loads((out / "study.json").read_text()),
        "machine": machine,
        "codec": json.loads((out / "codec.json").read_text()),
        "teacher": json.loads((out / "teacher" / "training.json").read_text()),
        "references": {title: _row(runs) for title, runs in references.items()},
        "arms": {letter: {"title": runs[0]["title"], **_row(runs)} for letter, runs in arms.items()},
        "differences": {
            f"{one} - {other}": {name: _difference(arms[one], arms[other], name) for name in runs_metrics(arms[one])}
            for one, other in PAIRS
            if one in arms and other in arms
        },
        "time": _times(arms),
        "signals": {letter: _signals(runs) for letter, runs in arms.items()},
    }
    found["verdicts"] = verdicts(found["differences"])
    write(out / "report.json", found)
    (out / "report.md").write_text(table(found))
    return found


def verdicts(differences: dict[str, dict[str, Interval]]) -> dict[str, bool]:
    """Who beats whom in the primary metric, by the rules in the README."""

    def beats(one: str, other: str) -> bool:
        told = differences.get(f"{one} - {other}")
        return told is not None and told[PRIMARY]["high"] < 0

    both = ("C", "D", *(one for one in SEARCH if f"{one} - A" in differences))
    return {
        "B beats A": beats("B", "A"),
        **{f"{one} beats A, and B": beats(one, "A") and beats(one, "B") for one in both},
        "E beats A": beats("E", "A"),
        "F beats E, and C beats B": beats("F", "E") and beats("C", "B"),
        "G beats F": beats("G", "F"),
    }


def table(found: dict[str, Any]) -> str:
    """The same as Markdown."""
    study, codec = found["study"], found["codec"]
    names = [name for name in COLUMNS if any(name in row["metrics"] for row in found["arms"].values())]
    seeds = max((len(row["seeds"]) for row in found["arms"].values()), default=0)
    first = (
        f"Clips: {codec['clips']}; codec {codec['psnr_test']} dB on held-out clips; size {study['size']}; "
        f"{study['test']} conditions, {seeds} seeds, {study['updates']} updates of the student. Mean, 95 % interval."
    )
    lines = [
        first,
        "",
        "| | " + " | ".join(COLUMNS[name] for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    rows = [(title, row) for title, row in found["references"].items()]
    rows += [(f"{letter}: {row['title']}", row) for letter, row in found["arms"].items()]
    lines += [f"| {title} | " + " | ".join(_cell(row["metrics"].get(name), name) for name in names) + " |"
              for title, row in rows]  # fmt: skip
    lines += ["", "| difference | " + " | ".join(COLUMNS[name] for name in names) + " |",
              "|---" * (len(names) + 1) + "|"]  # fmt: skip
    lines += [f"| {pair} | " + " | ".join(_cell(told.get(name), name) for name in names) + " |"
              for pair, told in found["differences"].items()]  # fmt: skip
    lines += [
        "",
        "| arm | s an update | updates in the time of the fastest | measured at | primary ×1000 then |",
        "|---" * 5 + "|",
    ]
    for letter, told in found["time"].items():
        then = 1000 * told["primary_then"]
        cells = f"{told['s_per_update']:.3f} | {told['updates_possible']} | {told['update_then']} | {then:.3g}"
        lines.append(f"| {letter} | {cells} |")
    lines += ["", *(f"* {what}: {'yes' if so else 'no'}" for what, so in found["verdicts"].items())]
    return "\n".join(lines) + "\n"


def runs_metrics(runs: list[dict[str, Any]]) -> list[str]:
    """The metrics that all runs have."""
    return [name for name in runs[0]["metrics"] if all(name in run["metrics"] for run in runs)]


def interval(values: NDArray[np.float64], replicates: NDArray[np.float64]) -> Interval:
    """Mean and 95 % interval from values [seeds] and replicates [seeds, r], over conditions and over seeds."""
    draw = np.random.default_rng(0)
    chosen = draw.integers(len(values), size=(_DRAWS, len(values)))
    column = draw.integers(replicates.shape[1], size=_DRAWS)
    centred = replicates - replicates.mean(axis=1, keepdims=True) + values[:, None]
    drawn = centred[chosen, column[:, None]].mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {name: float(f"{value:.5g}") for name, value in (("mean", values.mean()), ("low", low), ("high", high))}


def _grouped(folder: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    """The results in a folder, by what they are of and then by seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        found.setdefault(result[name], []).append(result)
    return {key: sorted(runs, key=lambda run: int(run["seed"])) for key, runs in found.items()}


def _row(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "seeds": [run["seed"] for run in runs],
        "metrics": {name: interval(*_values(runs, name)) for name in runs_metrics(runs)},
        "each": {name: [run["metrics"][name] for run in runs] for name in runs_metrics(runs)},
    }


def _values(runs: list[dict[str, Any]], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.array([run["metrics"][name] for run in runs]), np.array([run["replicates"][name] for run in runs])


def _difference(ones: list[dict[str, Any]], others: list[dict[str, Any]], name: str) -> Interval:
    """Of the seeds that both have."""
    common = {run["seed"] for run in ones} & {run["seed"] for run in others}
    pair = [_values([run for run in runs if run["seed"] in common], name) for runs in (ones, others)]
    return interval(pair[0][0] - pair[1][0], pair[0][1] - pair[1][1])


def _times(arms: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Seconds of an update, how many of them an arm has in the time that the fastest one took for all of its own, and
    the measurement that is nearest to that."""
    each = {letter: statistics.median(run["s_per_update"] for run in runs) for letter, runs in arms.items()}
    found = {}
    for letter, runs in arms.items():
        marks = [mark["update"] for mark in runs[0]["marks"]]
        room = marks[-1] * min(each.values()) / each[letter]
        at = min(range(len(marks)), key=lambda index: abs(marks[index] - room))
        then = [run["marks"][at]["metrics"] for run in runs]
        found[letter] = {
            "s_per_update": round(each[letter], 4),
            "updates_possible": round(room, 1),
            "update_then": marks[at],
            "primary_then": statistics.mean(metrics[PRIMARY] for metrics in then),
            "metrics_then": {name: statistics.mean(m[name] for m in then) for name in then[0]},
        }
    return found


def _signals(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Means over seeds of what the loop said of itself in its last quarter."""
    names = set.intersection(*(set(run["signals"]) for run in runs))
    return {name: float(f"{statistics.mean(run['signals'][name] for run in runs):.5g}") for name in sorted(names)}


def _cell(told: Interval | None, name: str) -> str:
    if told is None:
        return "-"
    by = 1000 if "mmd" in name else 1
    return f"{told['mean'] * by:.3g} [{told['low'] * by:.3g}, {told['high'] * by:.3g}]"
