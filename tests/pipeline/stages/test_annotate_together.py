"""Tests annotators that take several clips in one call: the same results, and nobody fails for another's fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from attempts import FirstAttempts

from annotators.base import Annotation, Annotator, ClipInput, Frames, Signal
from pipeline.attempts import Permission
from pipeline.engine.coordinator import Coordinator
from pipeline.errors import UsageError
from pipeline.formats.clip_encode import encode_clip
from pipeline.recipe import registry
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.recipe import parse
from pipeline.stages.annotate import AnnotateStage
from pipeline.stages.item import ClipItem

RECIPE = parse("filters: []\nstages: [[single, together]]\nrules: {bright: level > 150}\ntasks: {}", "of this test")


class Together(Annotator):
    """Measures the mean level of up to three clips at once; cannot do a clip whose level is near 90."""

    name, version, clips_per_call = "together", "1", 3
    signals: ClassVar[dict[str, Signal]] = {"mean": Signal("0..255", "mean level")}
    calls: ClassVar[list[int]] = []

    def __call__(self, frames: Frames, fps: float) -> Annotation:
        (annotation,) = self._measure([frames])
        return annotation

    def annotate_clips(self, clips: Sequence[ClipInput]) -> Sequence[Annotation]:
        return self._measure([clip.frames for clip in clips])

    def _measure(self, clips: list[Frames]) -> list[Annotation]:
        Together.calls.append(len(clips))
        levels = [float(frames.mean()) for frames in clips]
        if any(abs(level - 90) < 5 for level in levels):
            raise ValueError("the level is near 90")
        return [Annotation(signals={"mean": level}) for level in levels]


class Single(Annotator):
    """Measures one clip at a time, before `Together`."""

    name, version = "single", "1"
    signals: ClassVar[dict[str, Signal]] = {"level": Signal("0..255", "mean level")}

    def __call__(self, frames: Frames, fps: float) -> Annotation:
        return Annotation(signals={"level": float(frames.mean())})


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Register both annotators; returns the number of clips in each call of `Together`."""
    owners: dict[str, Any] = {"together": Together, "single": Single}
    monkeypatch.setattr(registry, "load_annotator", owners.__getitem__)
    monkeypatch.setattr(Together, "calls", [])
    return Together.calls


def build_item(level: int, number: int = 0) -> ClipItem:
    frames = np.full((5, 32, 48, 3), level, np.uint8)
    return ClipItem(
        {
            "clip_id": f"{number:032x}", "fps": 16.0, "frames": 5, "width": 48, "height": 32, "start_s": 0.0,
            "end_s": 1.0, "source_uri": "/videos/a.mp4", "source_hash": "1" * 64,
        },
        members={"mp4": encode_clip(frames, 16.0)},
    )  # fmt: skip


def annotate(levels: Sequence[int], attempts: Any = None) -> list[ClipItem]:
    items = [build_item(level, number) for number, level in enumerate(levels)]
    stage = AnnotateStage(Blueprint.for_ingest(RECIPE, ()), 0, attempts or FirstAttempts())
    return [*stage.annotate(items)]


def test_as_many_clips_as_it_takes_come_in_one_call(calls: list[int]) -> None:
    items = annotate([10, 30, 50, 70])
    assert calls == [3, 1]
    assert [item.record["status"] for item in items] == ["kept"] * 4
    assert [round(float(str(item.signals["mean"])), -1) for item in items] == [10, 30, 50, 70]
    together = {item.record["clip_id"]: (item.signals, item.members) for item in items}
    for number, level in enumerate([10, 30, 50, 70]):
        (alone,) = AnnotateStage(Blueprint.for_ingest(RECIPE, ()), 0, FirstAttempts()).annotate(
            [build_item(level, number)]
        )
        assert (alone.signals, alone.members) == together[alone.record["clip_id"]]


def test_a_clip_that_is_rejected_before_is_not_in_the_call(calls: list[int]) -> None:
    items = annotate([10, 200, 30])
    assert calls == [2]
    assert [item.record["status"] for item in items] == ["kept", "rejected", "kept"]


def test_only_the_clip_at_fault_fails(calls: list[int]) -> None:
    items = annotate([10, 90, 30])
    assert calls == [3, 1, 1, 1]
    assert [item.record["status"] for item in items] == ["kept", "failed", "kept"]
    assert (items[1].record["code"], items[1].record["stage"]) == ("ANNOTATOR_ERROR", "together")
    assert "the level is near 90" in items[1].record["detail"]
    assert items[1].members == {}


def test_a_wrong_number_of_annotations_fails_the_clips_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Together, "annotate_clips", lambda self, clips: [Annotation(signals={"mean": 1.0})])
    items = annotate([10, 30])
    assert [item.record["detail"] for item in items] == ["together gave 1 annotations for 2 clips"] * 2


def test_damage_of_one_clip_is_its_own(calls: list[int]) -> None:
    items = [build_item(10), build_item(30, 1)]
    items[0].members["mp4"] = items[0].members["mp4"][:-100]
    results = [*AnnotateStage(Blueprint.for_ingest(RECIPE, ()), 0, FirstAttempts()).annotate(items)]
    assert [result.record["status"] for result in results] == ["failed", "kept"]
    assert calls == [1]


class Killed(BaseException):
    """The end of a worker, which no boundary catches."""


@pytest.mark.parametrize("max_deaths", [1, 3])
@pytest.mark.parametrize("poisoned", range(4))
def test_a_clip_that_kills_workers_takes_no_other_along(
    poisoned: int, max_deaths: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ray gives the same clips to the next worker, until all are through."""
    levels = [10, 30, 50, 70]

    def kill(self: Any, frames: Frames, fps: float) -> Annotation:
        if abs(float(frames.mean()) - levels[poisoned]) < 5:
            raise Killed
        return Annotation(signals={"level": 1.0})

    monkeypatch.setattr(Single, "__call__", kill)
    attempts = Coordinator(str(tmp_path / "contents.sqlite"), max_deaths)
    for deaths in range(10):
        try:
            items = annotate(levels, attempts)
            break
        except Killed:
            # Once together with the others, then alone.
            assert deaths <= max_deaths
    assert Counter(item.record["status"] for item in items) == {"kept": 3, "failed": 1}
    (failed,) = (item for item in items if item.record["status"] == "failed")
    assert (failed.record["clip_id"], failed.record["code"]) == (f"{poisoned:032x}", "WORKER_DIED")


def test_a_run_that_stops_begins_no_more(calls: list[int]) -> None:
    class Stopping(FirstAttempts):
        def begin(self, unit: str, together: bool = False) -> Permission:
            return Permission.STOP if unit.endswith("1") else Permission.GO

    assert [item.record["clip_id"][-1] for item in annotate([10, 30, 50], Stopping())] == ["0", "2"]


@pytest.mark.parametrize("count", [0, -1, 2.0, "3"])
def test_a_count_that_is_none_is_refused(count: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(registry.find_registered("annotators")["scribble"].load(), "clips_per_call", count)
    with pytest.raises(UsageError, match="clips_per_call"):
        registry.load_annotator("scribble")
