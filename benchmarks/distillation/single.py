"""One process by itself, and files that are either whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from training.parallel import World


class Alone(World):
    """A world of one process that needs no group of processes, so that signals can be asked for their means."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(0, 1, device)

    def gathered(self, value: Any) -> list[Any]:
        """What this process has."""
        return [value]

    def wait(self) -> None:
        """There is nobody to wait for."""


def write(file: Path, content: Any) -> None:
    """JSON that is whole as soon as it is there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(file)
