"""Writes the files of a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.storage.atomic import write_file


def write_json(file: Path, content: Any) -> None:
    """Write JSON; the file appears complete or not at all."""
    write_file(file, f"{json.dumps(content, indent=1)}\n".encode())
