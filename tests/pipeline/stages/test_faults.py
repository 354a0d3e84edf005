"""Tests that any fault inside an annotator or filter is a failure with a code, and never a score.

Faults are injected into the real ones, at a few lines of the code of each.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import real_clips
import tiny_model
import yaml
from attempts import FirstAttempts

from annotators.base import Frames
from pipeline.errors import ClipError, ErrorCode
from pipeline.formats.clip_encode import encode_clip
from pipeline.formats.records import ClipRecord
from pipeline.recipe import output_checks, registry
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.recipe import parse
from pipeline.stages import annotate
from pipeline.stages.item import ClipItem

FPS = 16.0
ANNOTATORS, FILTERS = (sorted(registry.find_registered(group)) for group in ("annotators", "filters"))
FAULTS = {ValueError: ErrorCode.ANNOTATOR_ERROR, MemoryError: ErrorCode.OUT_OF_MEMORY}


@pytest.fixture(scope="module", autouse=True)
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set the model of the user that makes latents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VDOT_MODEL", str(tiny_model.write(tmp_path_factory.mktemp("model"))))
        yield


def clip() -> Frames:
    """A picture that moves over a still one."""
    rng = np.random.default_rng(7)
    background = rng.integers(60, 190, (12, 16, 3)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
    frames = np.stack([background] * 17)
    for number, frame in enumerate(frames):
        frame[30:62, 20 + number : 52 + number] = (220, 40, 30)
    return frames


FRAMES = clip()


def inputs_of(name: str) -> tuple[list[str], dict[str, Any], dict[str, bytes]]:
    """For one annotator: those that must come before it, and signals and tracks like theirs."""
    signals = registry.collect_signals(ANNOTATORS, FILTERS)
    sample = {"int": 1, "float": 0.5, "str": "still", "bool": True}
    needed = registry.declare(registry.load_annotator(name)).needs
    values = {need: sample[signals[need].kind] for need in needed if need in signals}
    tracks = {f"{need}.mp4": encode_clip(FRAMES, FPS) for need in needed if need not in signals}
    makers = {registry.find_maker(need) for need in needed} & {*ANNOTATORS}
    earlier_names = [earlier_name for maker in sorted(makers) for earlier_name in (*inputs_of(maker)[0], maker)]
    return list(dict.fromkeys(earlier_names)), values, tracks


class Fault:
    """Raises an error at the nth executed line in the file of a class."""

    def __init__(self, owner: type, line: int, error: type[Exception]) -> None:
        self._file, self._line, self._error = inspect.getfile(owner), line, error
        self.lines = 0

    def __enter__(self) -> Fault:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != self._file:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self._line:
                sys.settrace(None)
                raise self._error("injected")
        return self._trace


def count_lines(owner: type, call: Callable[[], object]) -> int:
    """The number of lines of the class's file that a call executes."""
    with Fault(owner, -1, ValueError) as fault:
        call()
    return fault.lines


def choose_lines(count: int) -> list[int]:
    """Lines from the first to the last."""
    return sorted({1, 2, count // 3, count // 2, count - 1, count} & set(range(1, count + 1)))


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_that_fails_gives_no_score(name: str) -> None:
    owner = registry.load_filter(name)
    filter_ = real_clips.load(owner)
    count = count_lines(owner, lambda: output_checks.measure(filter_, FRAMES, FPS))
    assert count
    for error, code in FAULTS.items():
        for line in choose_lines(count):
            with Fault(owner, line, error), pytest.raises(ClipError) as caught:
                output_checks.measure(filter_, FRAMES, FPS)
            assert caught.value.code == code, f"line {line} of {count}"
            assert name in caught.value.detail
            assert "injected" in caught.value.detail


# These take 15 to 30 seconds each. Masked latents call latents 26 times, which are the same lines.
LONG = ("latents", "subjects")
NAMES = [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in ANNOTATORS]


@pytest.mark.parametrize("name", [name for name in NAMES if name.values != ("masked_latents",)])
def test_an_annotator_that_fails_makes_a_failed_clip(name: str) -> None:
    owner = registry.load_annotator(name)
    earlier_names, values, tracks = inputs_of(name)
    stages = [earlier_names, [name]] if earlier_names else [[name]]
    recipe = parse(yaml.safe_dump({"filters": FILTERS, "stages": stages, "rules": {}, "tasks": {}}), "of this test")
    number = len(stages) - 1
    blueprint = Blueprint.for_ingest(recipe, ()).with_weights()
    stage = real_clips.load(lambda: annotate.AnnotateStage(blueprint, number, FirstAttempts()))

    def annotate_clip() -> ClipItem:
        record: ClipRecord = {
            "clip_id": "0" * 32, "fps": FPS, "frames": len(FRAMES), "width": 128, "height": 96, "start_s": 0.0,
            "end_s": 1.0, "source_uri": "/videos/a.mp4", "source_hash": "1" * 64,
        }  # fmt: skip
        members = tracks | {"mp4": encode_clip(FRAMES, FPS)}
        item = ClipItem(record, signals=dict(values), members=members, stages_done=number)
        assert [*stage.annotate([item])] == [item]
        return item

    intact = annotate_clip()
    assert intact.record["status"] == "kept", intact.record
    assert owner.signals.keys() <= intact.signals.keys()
    for error, code in FAULTS.items():
        for line in choose_lines(count_lines(owner, annotate_clip)):
            with Fault(owner, line, error):
                item = annotate_clip()
            assert (item.record["status"], item.record["code"]) == ("failed", code), f"line {line}"
            assert item.record["stage"] == name
            assert not item.members
            assert not owner.signals.keys() & item.signals.keys(), "a score of a failed measurement"
