"""Use an annotator and a filter of your own, from a package that registers them: examples/extension.

    pip install examples/extension
    python examples/own_annotator.py                      # after `make demo`
    python examples/own_annotator.py VIDEOS OUT

Ingests the videos by a recipe with the filter `saturation` and a rule on it, and adds the annotator `frame_change` as a
layer to the clips that are kept. Prints both signals of each clip, and the shape of the new track.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import vdot_data

VDOT_DATA = Path(sys.executable).with_name("vdot-data")
RECIPE = """\
grid: {fps: 16, frames: 81, min_frames: 17, area: 399360, multiple: 16}
shots: adaptive                       # hard cuts only, and no network
filters: [duration, luma, saturation]
stages: [[scribble]]
rules:
  colourless: saturation < 0.05
tasks:
  scribble: scribble_density > 0.002
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="?", default="demo/videos/bikes.mp4")
    parser.add_argument("out", nargs="?", default="demo/own_annotator")
    arguments = parser.parse_args()
    if "frame_change" not in entry_points(group="vdot_data.annotators").names:
        sys.exit("the package is not installed: pip install examples/extension")

    recipe = Path(f"{arguments.out}.yaml")
    recipe.write_text(RECIPE)
    commands = (
        ["ingest", arguments.videos, "--out", arguments.out, "--recipe", recipe],
        ["annotate", arguments.out, "--with", "frame_change"],
    )
    for command in commands:
        subprocess.run([VDOT_DATA, *command], check=True)

    dataset = vdot_data.open(arguments.out)
    columns = ["clip_id", "status", "rule", "saturation", "change_mean", "layers"]
    clips = dataset.clips(columns=columns).to_pylist()
    for clip in clips:
        change = "" if clip["change_mean"] is None else f", change {clip['change_mean']:.1f}"
        print(f"{clip['clip_id'][:8]} {clip['rule'] or clip['status']}: saturation {clip['saturation']:.2f}{change}")
    kept = [clip["clip_id"] for clip in clips if clip["status"] == "kept"]
    if kept:
        sample = dataset.read(kept[0])
        print(f"{', '.join(sample.tracks)}; change is {sample.frames('change').shape}")


if __name__ == "__main__":
    main()
