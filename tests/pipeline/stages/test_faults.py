"""Whatever goes wrong inside any annotator or filter is a failure with its code, and never a score.

Faults are injected into the real ones, wherever they stand: at a line of their own code, a few of them for each.
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
from pipeline.recipe import output_checks, registry
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.recipe import parse
from pipeline.stages import annotate
from pipeline.stages.item import Item

FPS = 16.0
ANNOTATORS, FILTERS = (sorted(registry.find_registered(group)) for group in ("annotators", "filters"))
FAULTS = {ValueError: ErrorCode.ANNOTATOR_ERROR, MemoryError: ErrorCode.OUT_OF_MEMORY}


@pytest.fixture(scope="module", autouse=True)
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Latents are made by a model that the user names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VDOT_MODEL", str(tiny_model.write(tmp_path_factory.mktemp("model"))))
        yield


def clip() -> Frames:
    """A picture that moves over a still one."""
    rng = np.random.default_rng(7)
    behind = rng.integers(60, 190, (12, 16, 3)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
    frames = np.stack([behind] * 17)
    for number, frame in enumerate(frames):
        frame[30:62, 20 + number : 52 + number] = (220, 40, 30)
    return frames


FRAMES = clip()


def given_to(name: str) -> tuple[list[str], dict[str, Any], dict[str, bytes]]:
    """For one annotator: those that must come before it, and signals and tracks such as theirs."""
    signals = registry.collect_signals(ANNOTATORS, FILTERS)
    sample = {"int": 1, "float": 0.5, "str": "still", "bool": True}
    needed = registry.needs(registry.load_annotator(name))
    values = {one: sample[signals[one].kind] for one in needed if one in signals}
    tracks = {f"{one}.mp4": encode_clip(FRAMES, FPS) for one in needed if one not in signals}
    makers = {registry.find_maker(one) for one in needed} & {*ANNOTATORS}
    before = [earlier for maker in sorted(makers) for earlier in (*given_to(maker)[0], maker)]
    return list(dict.fromkeys(before)), values, tracks


class Fault:
    """Raises at the nth line that runs in the file of a class, inside its call."""

    def __init__(self, owner: type, at: int, error: type[Exception]) -> None:
        self._file, self._left, self._error = inspect.getfile(owner), at, error
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
            if self.lines == self._left:
                sys.settrace(None)
                raise self._error("injected")
        return self._trace


def lines_of(owner: type, call: Callable[[], object]) -> int:
    """How many lines of its own file a call runs."""
    with Fault(owner, -1, ValueError) as fault:
        call()
    return fault.lines


def places(count: int) -> list[int]:
    """Lines from the first to the last."""
    return sorted({1, 2, count // 3, count // 2, count - 1, count} & set(range(1, count + 1)))


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_that_fails_gives_no_score(name: str) -> None:
    owner = registry.load_filter(name)
    one = real_clips.loaded(owner)
    count = lines_of(owner, lambda: output_checks.measure(one, FRAMES, FPS))
    assert count
    for error, code in FAULTS.items():
        for at in places(count):
            with Fault(owner, at, error), pytest.raises(ClipError) as caught:
                output_checks.measure(one, FRAMES, FPS)
            assert caught.value.code == code, f"line {at} of {count}"
            assert name in caught.value.detail
            assert "injected" in caught.value.detail


# A quarter to half a minute each. Masked latents are made by what makes latents, 26 times over: for the same lines.
LONG = ("latents", "subjects")
NAMES = [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in ANNOTATORS]


@pytest.mark.parametrize("name", [name for name in NAMES if name.values != ("masked_latents",)])
def test_an_annotator_that_fails_makes_a_failed_clip(name: str) -> None:
    owner = registry.load_annotator(name)
    before, values, tracks = given_to(name)
    stages = [before, [name]] if before else [[name]]
    recipe = parse(yaml.safe_dump({"filters": FILTERS, "stages": stages, "rules": {}, "tasks": {}}), "of this test")
    number = len(stages) - 1
    blueprint = Blueprint.for_ingest(recipe, ()).with_weights()
    stage = real_clips.loaded(lambda: annotate.AnnotateStage(blueprint, number, FirstAttempts()))

    def annotated() -> Item:
        record = {
            "clip_id": "0" * 32, "fps": FPS, "frames": len(FRAMES), "width": 128, "height": 96, "start_s": 0.0,
            "end_s": 1.0, "source_hash": "1" * 64, "stages_done": number,
        }  # fmt: skip
        item = Item(record | values, tracks | {"mp4": encode_clip(FRAMES, FPS)})
        assert stage.annotate(item)
        return item

    whole = annotated()
    assert whole.record["status"] == "kept", whole.record
    assert owner.signals.keys() <= whole.record.keys()
    for error, code in FAULTS.items():
        for at in places(lines_of(owner, annotated)):
            with Fault(owner, at, error):
                item = annotated()
            assert (item.record["status"], item.record["code"]) == ("failed", code), f"line {at}"
            assert item.record["stage"] == name
            assert not item.members
            assert not owner.signals.keys() & item.record.keys(), "a score of a failed measurement"
