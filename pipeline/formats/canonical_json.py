"""JSON in one form: what hashes are computed from, and what must be stored as the same bytes."""

from __future__ import annotations

import json
from typing import Any


def canonical_json(value: Any) -> str:
    """The same text for equal values, in whatever order their keys were added.

    Hashes of mixtures and stored latents depend on it: it never changes.
    """
    return json.dumps(value, sort_keys=True)
