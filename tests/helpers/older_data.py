"""What an older version wrote, copied to where a test may change it.

`tests/data/c9140ab` was made by the commit of that name: an ingest of `videos` by `recipe.yaml` (one is cut short),
the layer flow, the selection lined, a mixture of it, and a run of two steps on a tiny model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

DATA = Path(__file__).parents[1] / "data/c9140ab"


def copy(folder: Path) -> Path:
    """Copy it all into `folder`, which the mixture then names as the place of its dataset."""
    shutil.copytree(DATA, folder, dirs_exist_ok=True)
    file = folder / "mixture/mixture.json"
    mixture = json.loads(file.read_text())
    mixture["datasets"]["small"]["url"] = str(folder / "dataset")
    file.write_text(json.dumps(mixture))
    return folder
