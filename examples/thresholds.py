"""Change a threshold and see which clips it costs, without running a model again.

    python examples/thresholds.py                         # after `make demo`
    python examples/thresholds.py OUT --signal noise --rule 'noisy: noise > {}'

Judges all clips by the rule at five levels of a signal, from its least to its greatest value, and prints what is kept
at each; then the clips that the middle level rejects and the dataset's own rules keep; then what would come back
without the rule that rejects most. Nothing in the dataset changes.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np

import vdot_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", default="demo/out")
    parser.add_argument("--signal", default="sharpness")
    parser.add_argument("--rule", default="blurred: coalesce(sharpness, 1) < {}", help="{} is where the level goes")
    arguments = parser.parse_args()
    dataset = vdot_data.open(arguments.out)

    columns = ["clip_id", arguments.signal]
    clips = dataset.clips(f"{arguments.signal} IS NOT NULL", columns=columns).to_pylist()
    levels = np.quantile([clip[arguments.signal] for clip in clips], [0, 0.25, 0.5, 0.75, 1])
    for level in levels:
        # The first true rule is the reason, so a clip may be rejected by another one already.
        selection = dataset.select(rules=[arguments.rule.format(level)])
        verdicts = ", ".join(f"{count} {status}" for status, count in selection.verdicts.items())
        print(f"{arguments.rule.format(round(level, 4))}: {verdicts}; {selection.seconds:.0f} s of video are kept")

    # The same condition as a filter on the table gives the clips themselves.
    predicate = arguments.rule.format(levels[2]).partition(":")[2]
    print(f"\nkept today, and not at {levels[2]:.4f}:")
    for clip in dataset.clips(["status = 'kept'", predicate], columns=columns).to_pylist():
        print(f"  {clip['clip_id'][:8]} {arguments.signal} {clip[arguments.signal]:.4f}")

    reasons = Counter(dataset.clips("status = 'rejected'", columns=["rule"])["rule"].to_pylist())
    for rule, count in reasons.most_common(1):
        verdicts = dataset.select(rules=[f"{rule}:"]).verdicts
        print(f"\nwithout the rule {rule}, which rejects {count}: {verdicts}")
        print("  what is pending has not been annotated; `vdot-data ingest` with such a recipe does just that")


if __name__ == "__main__":
    main()
