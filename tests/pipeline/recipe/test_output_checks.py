"""Tests that a failed measurement has a code, and that annotators and filters return what they declare."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from annotators.base import Annotation, ClipInput, Signal
from pipeline.errors import ClipError, ErrorCode
from pipeline.recipe import output_checks

FRAMES = np.zeros((5, 16, 16, 3), np.uint8)
KINDS = {
    "n": Signal("count", "n", "int"),
    "x": Signal("px", "x"),
    "s": Signal("", "s", "str"),
    "b": Signal("", "b", "bool"),
}
GOOD = {"n": 1, "x": 0.5, "s": "still", "b": True}


class Owner:
    """Returns the test's values, as an annotator and as a filter."""

    name, version, weights, signals = "owner", "1", (), KINDS

    def __init__(self, values: Any, tracks: Any = None, declared: tuple[str, ...] = ()) -> None:
        self.values, self.made_tracks, self.tracks = values, tracks or {}, declared

    def __call__(self, frames: Any, fps: float) -> Any:
        if isinstance(self.values, Exception):
            raise self.values
        return self.values


def annotate(owner: Any) -> Any:
    values = owner.values
    owner.values = values if isinstance(values, Exception) else Annotation(tracks=owner.made_tracks, signals=values)
    return output_checks.annotate(owner, ClipInput(FRAMES, 16.0)).signals


def measure(owner: Any) -> Any:
    return output_checks.measure(owner, FRAMES, 16.0)


@pytest.mark.parametrize("check", [annotate, measure])
def test_numbers_of_numpy_become_those_of_python(check: Any) -> None:
    values = {"n": np.int64(1), "x": np.float32(0.5), "s": np.str_("still"), "b": np.bool_(True)}
    signals = check(Owner(values))
    assert signals == GOOD
    assert {type(value) for value in signals.values()} == {int, float, str, bool}
    assert check(Owner(dict.fromkeys(KINDS))) == dict.fromkeys(KINDS), "none: does not apply"
    assert check(Owner(GOOD | {"x": 2})) == GOOD | {"x": 2}


@pytest.mark.parametrize("check", [annotate, measure])
@pytest.mark.parametrize(
    "wrong",
    [
        {"x": float("nan")},
        {"x": np.float32("inf")},
        {"x": True},
        {"x": "0.5"},
        {"n": 1.5},
        {"n": np.True_},
        {"s": 3},
        {"b": 1},
        {"x": np.zeros(2)},
        {"more": 1},
    ],
)
def test_a_value_that_breaks_the_promise_is_a_failure(check: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ClipError) as caught:
        check(Owner(GOOD | wrong))
    assert caught.value.code == ErrorCode.ANNOTATOR_ERROR
    assert "owner gave" in caught.value.detail


def test_a_missing_signal_is_a_failure() -> None:
    with pytest.raises(ClipError, match="declares"):
        measure(Owner({"n": 1}))


def test_a_filter_that_raises_is_named() -> None:
    with pytest.raises(ClipError) as caught:
        measure(Owner(ValueError("no corners")))
    assert caught.value.code == ErrorCode.ANNOTATOR_ERROR
    assert "owner: ValueError: no corners" in caught.value.detail


@pytest.mark.parametrize(
    "track", [np.zeros((4, 16, 16, 3), np.uint8), np.zeros((5, 16, 16, 3), np.float32), np.zeros((5, 16, 16), np.uint8)]
)
def test_a_track_that_is_not_aligned_is_a_failure(track: Any) -> None:
    with pytest.raises(ClipError, match="the clip is uint8"):
        annotate(Owner(GOOD, {"mask": track}, ("mask",)))
    with pytest.raises(ClipError, match="gave the tracks"):
        annotate(Owner(GOOD, {"mask": FRAMES}))
    assert annotate(Owner(GOOD, {"mask": FRAMES}, ("mask",))) == GOOD


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pictures": {"mask": [FRAMES[0]]}}, "gave the pictures"),
        ({"pictures": {"ref": [FRAMES[0, :, :, 0]]}}, "not uint8 RGB"),
        ({"pictures": {"ref": [FRAMES[0].astype(np.float32)]}}, "not uint8 RGB"),
        ({"pictures": {"ref": [FRAMES[0, :0]]}}, "not uint8 RGB"),
        ({"files": {}}, r"gave the files \[\], and declares \['owner.bin'\]"),
        ({"files": {"owner.bin": b"1", "more.bin": b"2"}}, "gave the files"),
        ({"files": {"owner.bin": "text"}}, "gave str for the file owner.bin, or nothing in it, not bytes"),
        ({"files": {"owner.bin": b""}}, "or nothing in it"),
        ({"caption": None}, "gave None for a caption"),
        ({"caption": " "}, "gave . . for a caption"),
    ],
)
def test_pictures_files_and_captions_are_what_was_declared(changes: dict[str, Any], message: str) -> None:
    class Describer:
        name, version, weights, signals, tracks = "teller", "1", (), {}, ()
        pictures, caption, files = ("ref",), True, ("owner.bin",)

        def __init__(self, changes: dict[str, Any]) -> None:
            pictures = {"ref": [FRAMES[0], FRAMES[0, :3, :5]]}
            self.values = {"pictures": pictures, "caption": "a dog", "files": {"owner.bin": b"1"}} | changes

        def __call__(self, frames: Any, fps: float) -> Annotation:
            return Annotation(**self.values)

    good: Any = Describer({})
    assert output_checks.annotate(good, ClipInput(FRAMES, 16.0)).caption == "a dog"
    bad: Any = Describer(changes)
    with pytest.raises(ClipError, match=message):
        output_checks.annotate(bad, ClipInput(FRAMES, 16.0))


def test_a_caption_that_was_not_declared_is_a_failure() -> None:
    class Chatty(Owner):
        def __call__(self, frames: Any, fps: float) -> Annotation:
            return Annotation(signals=GOOD, caption="a dog")  # type: ignore[arg-type]

    owner: Any = Chatty(None)
    with pytest.raises(ClipError, match="gave a caption"):
        output_checks.annotate(owner, ClipInput(FRAMES, 16.0))
