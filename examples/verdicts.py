"""Ingest a folder of videos, then ask what became of every file and every clip.

    python examples/verdicts.py                           # after `make demo`: all is done already, so it only looks
    python examples/verdicts.py VIDEOS OUT                # your own, by the default recipe
    python examples/verdicts.py VIDEOS OUT --recipe FILE

Prints a line for each file, the number of clips for each verdict with its reason, what is known of the first kept clip,
and the explanation of one rejected clip and of one failed file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path

import vdot_data

# Beside this interpreter, so that it is there even if the environment is not activated.
VDOT_DATA = Path(sys.executable).with_name("vdot-data")
DEMO = ["demo/videos", "demo/out", "--recipe", "demo/recipe.yaml"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos")
    parser.add_argument("out")
    parser.add_argument("--recipe")
    arguments = parser.parse_args(sys.argv[1:] or DEMO)
    recipe = ["--recipe", arguments.recipe] if arguments.recipe else []
    # Run it as often as you like: what is there already is not done again.
    subprocess.run([VDOT_DATA, "ingest", arguments.videos, "--out", arguments.out, *recipe], check=True)

    dataset = vdot_data.open(arguments.out)
    for source in dataset.sources().to_pylist():
        print(f"{Path(source['source_uri']).name:24} {source['status']:8} {source['code'] or ''}")

    clips = dataset.clips(columns=["clip_id", "status", "rule", "code"]).to_pylist()
    print()
    for (status, reason), count in Counter((clip["status"], clip["rule"] or clip["code"]) for clip in clips).items():
        print(f"{count:4} clips {status} {reason or ''}")

    kept = [clip["clip_id"] for clip in clips if clip["status"] == "kept"]
    if kept:
        sample = dataset.read(kept[0])
        print(f"\n{kept[0]}: {sample.caption}\n  frames {sample.frames().shape}, tracks {', '.join(sample.tracks)}")

    rejected = [clip["clip_id"] for clip in clips if clip["status"] == "rejected"][:1]
    failed = [source["source_uri"] for source in dataset.sources().to_pylist() if source["status"] == "failed"][:1]
    for name in rejected + failed:
        verdict = dataset.explain(name)["verdict"]
        print(
            f"\n{Path(name).name} is {verdict['status']}: {verdict['rule'] or verdict['code']}\n  {verdict['detail']}"
        )
        if verdict["advice"]:
            print(f"  {verdict['advice']}")


if __name__ == "__main__":
    main()
