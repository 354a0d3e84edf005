"""Reads and updates the expected outcome of every real clip: `tests/data/expected_outcomes.csv`, a row per source.

`python tests/helpers/outcomes.py`, run in the repository's root, ingests every clip that this machine has or can fetch
and updates their rows; rows of other clips stay unchanged. With a folder as argument the dataset is kept there, and an
interrupted one is resumed. Read the diff before you commit it: each changed line is a video that users would keep or
lose.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import program
import real_clips

TABLE = Path(__file__).parents[1] / "data/expected_outcomes.csv"

# The default recipe without the annotators that no rule needs: the same verdicts in a third of the time. A rule that
# names a signal of another annotator is refused before the run begins.
RECIPE = "stages: [[text, flow]]\ntasks: {}\n"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a source and of its clips.

    `sha256`: the first 12 digits of the file's. `source`: its status, and its rule or code if it was not cut.
    `frames`: of all its clips. `rejected`, `failed`: the number of clips by rule or code ("still 1; too_dark 2").
    """

    file: str
    sha256: str
    source: str
    clips: int
    frames: int
    kept: int
    rejected: str
    failed: str


def expected() -> dict[str, Outcome]:
    """File name -> row of the table."""
    with TABLE.open(newline="") as lines:
        rows = [
            Outcome(**row | {name: int(row[name]) for name in ("clips", "frames", "kept")})
            for row in csv.DictReader(lines)
        ]
    return {row.file: row for row in rows}


def measure(files: Iterable[Path], folder: Path, timeout: float = 3600) -> dict[str, Outcome]:
    """File name -> outcome of these clips, each ingested once by the installed program; `folder` holds the dataset."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    command = [program.VDOT, "ingest", *files, "--out", folder / "out", "--recipe", recipe, "--json"]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, timeout=timeout)
    out = program.Out(folder / "out")
    clips = list(out.clips().values())
    return {
        name: _build_outcome(name, source, [clip for clip in clips if clip["source_uri"] == source["source_uri"]])
        for name, source in out.sources().items()
    }


def _build_outcome(name: str, source: dict[str, Any], clips: list[dict[str, Any]]) -> Outcome:
    return Outcome(
        file=name,
        sha256=source["source_hash"][:12],
        source=" ".join(filter(None, (source["status"], source["rule"], source["code"]))),
        clips=len(clips),
        frames=sum(clip["frames"] for clip in clips),
        kept=sum(clip["status"] == "kept" for clip in clips),
        rejected=_count_reasons(clip["rule"] for clip in clips if clip["status"] == "rejected"),
        failed=_count_reasons(clip["code"] or "PENDING" for clip in clips if clip["status"] in {"failed", "pending"}),
    )


def _count_reasons(reasons: Iterable[str]) -> str:
    return "; ".join(f"{reason} {count}" for reason, count in sorted(Counter(reasons).items()))


def write(folder: Path | None) -> None:
    """Measure all clips, in `folder` if it is given, and update the table."""
    rows = expected() if TABLE.is_file() else {}
    with tempfile.TemporaryDirectory(prefix="vdot-outcomes-") as temporary:
        folder = folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows |= measure(real_clips.available().values(), folder)
    with TABLE.open("w", newline="") as lines:
        table = csv.DictWriter(lines, [field.name for field in fields(Outcome)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(row) for _, row in sorted(rows.items()))


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
