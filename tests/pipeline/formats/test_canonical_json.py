"""The canonical text of a value, on which stored hashes depend."""

from __future__ import annotations

from pipeline.formats.canonical_json import canonical_json


def test_the_order_of_keys_does_not_matter() -> None:
    first = {"seed": 7, "step": {"tokens": None, "micro_batches": 8}, "shares": [["films", "2/3"]]}
    second = {"shares": (("films", "2/3"),), "step": {"micro_batches": 8, "tokens": None}, "seed": 7}
    assert canonical_json(first) == canonical_json(second)


def test_the_text_never_changes() -> None:
    text = canonical_json({"b": [1, 0.02, None, True], "a": "é"})
    assert text == '{"a": "\\u00e9", "b": [1, 0.02, null, true]}'
