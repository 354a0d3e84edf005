"""Tests that a wrong recipe is refused with a sentence that authors of YAML understand."""

from __future__ import annotations

import pytest

from pipeline.errors import UsageError
from pipeline.recipe.recipe import Recipe, default_text, parse


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("grid: {fsp: 3}", "grid.fsp: there is no such key; did you mean 'fps'?"),
        ("Shots: adaptive", "Shots: there is no such key; did you mean 'shots'?"),
        ("annotators: [flow]", "there are: commit, crop_bars,"),
        ("shots: foo", "shots: must be 'transnetv2' or 'adaptive'"),
        ("rules: [a]", "rules: expected keys and values; found ['a']"),
        ("grid: 3", "grid: expected keys and values; found 3"),
        ("rules: {a: 3}", "rules.a: expected a text"),
        ("filters: luma", "filters: expected a list, as in [a, b]; found 'luma'"),
        ("limits: {pixels: big}", "limits.pixels: expected a whole number; found 'big'"),
        ("commit: {shard_mb: -1}", "commit.shard_mb: must be greater than 0"),
        ("stages: [[flow], [flow]]", "stages: 'flow' is named twice"),
        ("filters: [luma, luma]", "filters: 'luma' is named twice"),
        ("stages: []", "stages: at least one stage is needed"),
        ("rules: {a: luma < 1, a: luma < 2}", "the key 'a' is there twice"),
        ("shots: adaptive\nshots: adaptive", "the key 'shots' is there twice"),
        ("- a", "expected keys and values, found list"),
        ("a: b: c", "is not YAML"),
        ("rules: {a: 2024-13-45}", "is not YAML"),
        ("rules: " + "[" * 3000 + "]" * 3000, "is not YAML"),
    ],
)
def test_a_mistake_is_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, "mine.yaml")
    assert str(caught.value).startswith("recipe mine.yaml")
    assert sentence in str(caught.value)


def test_what_is_left_out_comes_from_the_default_recipe() -> None:
    changed = parse("grid: {frames: 9, min_frames: 9}", "mine.yaml")
    default = parse(default_text(), "default.yaml")
    assert changed.grid.frames == 9
    assert changed.rules == default.rules


def test_the_defaults_of_the_classes_are_those_of_the_default_recipe() -> None:
    # A recipe that sets one key of `commit` gets the others from the class, and one without `commit` from the YAML.
    default = parse(default_text(), "default.yaml")
    optional = {name: field for name, field in Recipe.model_fields.items() if not field.is_required()}
    # A recipe without rules or tasks of its own has those of the YAML.
    by_class = {
        name: field.get_default(call_default_factory=True, validated_data={})
        for name, field in optional.items()
        if name not in ("rules", "tasks")
    }
    assert by_class == {name: getattr(default, name) for name in by_class}
    assert {"grid", "encode", "limits", "commit"} <= set(by_class)


def test_the_order_of_rules_is_part_of_a_recipe() -> None:
    first, second = (
        parse(f"rules: {{{rules}}}", "x") for rules in ("b: luma < 1, a: luma < 2", "a: luma < 2, b: luma < 1")
    )
    assert first.hash != second.hash
    assert list(parse(first.text, "x").rules) == ["b", "a"]
    assert parse(first.text, "x").hash == first.hash
