"""Tests which signals disable each of the default recipe's tasks, and that a composite needs all of its parts."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.recipe import default_text, parse

DEFAULT = parse(default_text(), "default.yaml")
RULES = Blueprint.for_ingest(DEFAULT, ()).rules()
COMPOSITES = {name: parts for name, parts in DEFAULT.tasks.items() if not isinstance(parts, str)}
# A man who walks through a park, five seconds long.
GOOD: dict[str, Any] = {
    "duration": 5.0, "bars": 0.0, "blurred_sides": 0.0, "overlay_area": 0.0, "overlay_edge": 0.0, "motion": 2.0,
    "scribble_density": 0.02, "pose_coverage": 1.0, "pose_jitter": 0.2, "subjects": 1, "subject_coverage": 1.0,
    "subject_area": 0.2, "subject_stability": 0.9, "ref_pictures": 1, "tag_score": 0.1,
    "caption_method": "template", "depth_method": "depth-anything-v2-small",
}  # fmt: skip


def list_tasks(**changes: Any) -> set[str]:
    return set(RULES.tasks(GOOD | changes))


def test_a_good_clip_teaches_everything() -> None:
    assert list_tasks() == DEFAULT.tasks.keys()
    assert len(COMPOSITES) >= 8


@pytest.mark.parametrize(
    ("task", "fault"),
    [
        ("pose", {"pose_coverage": 0.5}),
        ("reference", {"ref_pictures": 0}),
        ("pose", {"pose_jitter": 5.0}),
        ("flow", {"motion": 0.1}),
        ("scribble", {"scribble_density": 0.0}),
        ("depth", {"depth_method": "heuristic"}),
        ("outpaint", {"bars": 0.1}),
        ("outpaint", {"blurred_sides": 0.3}),
        ("outpaint", {"overlay_edge": 0.001}),
        ("extension", {"duration": 2.1}),
        ("reference", {"subjects": 3}),
        ("reference", {"subject_coverage": 0.5}),
        ("reference", {"subject_area": 0.9}),
        ("reference", {"subject_area": 0.001}),
        ("reference", {"subject_stability": 0.2}),
        ("reference", {"subjects": 0, "subject_coverage": 0.0, "subject_area": 0.0, "subject_stability": None}),
    ],
)
def test_a_bad_track_takes_its_task_and_the_composites_with_it(task: str, fault: dict[str, Any]) -> None:
    lost = DEFAULT.tasks.keys() - list_tasks(**fault)
    assert lost == {task} | {name for name, parts in COMPOSITES.items() if task in parts}


def test_words_in_the_middle_do_not_hinder_outpainting() -> None:
    assert "outpaint" in list_tasks(overlay_area=0.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: [b]}", "'b' is not one"),
        ("{pose: 'true', both: [pose, flw], flow: 'true'}", "'flw' is not one; did you mean 'flow'"),
        ("{pose: 'true', both: [pose], three: [both]}", "'both' is not one"),
        ("{pose: []}", r"must be a predicate .* or a list of tasks"),
        ("{pose: true}", "the task 'pose' must be a predicate .in quotes, if it is true or false."),
        ("{pose: 3}", "found 3"),
        ("[pose]", "expected keys and values"),
    ],
)
def test_a_composite_is_made_of_tasks(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(f"tasks: {text}", "x.yaml")


@pytest.mark.parametrize(
    ("signals", "fit"),
    [
        ({"pose_coverage": 0.1, "tag_score": 0.1}, False),
        ({"pose_coverage": 0.1, "tag_score": 0.6}, True),
        ({"pose_coverage": 0.1, "tag_score": 0.1, "caption_method": "some-captioner"}, True),
    ],
)
def test_a_template_teaches_text_where_it_names_something(signals: dict[str, Any], fit: bool) -> None:
    assert ("text" in list_tasks(**signals)) == fit
