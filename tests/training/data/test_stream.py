"""The stream: the same steps for any ranks, workers and stops; correct pixels, members and captions."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_mixture
from small_dataset import identity
from small_mixture import STEPS, run, seen

from pipeline.errors import RunError, UsageError
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.clip_encode import encode_png
from pipeline.formats.conditions import build_condition, make_generator
from pipeline.mixture.mixture import Step
from training.data.stream import Stream


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 3), (4, 1), (4, 0)])
def test_any_ranks_and_workers_see_the_same_steps(
    shared_mixture: Path, reference_batches: list[tuple[Any, ...]], world: int, workers: int
) -> None:
    assert run(shared_mixture, world, workers, STEPS) == reference_batches
    assert [batch[0] for batch in reference_batches] == list(range(4 * STEPS))


@pytest.mark.parametrize("seed", range(4))
def test_a_run_goes_on_from_its_state_with_other_ranks_and_workers(
    shared_mixture: Path, reference_batches: list[tuple[Any, ...]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    stop = int(rng.integers(1, STEPS))
    stream = Stream(str(shared_mixture), workers=int(rng.integers(0, 2)))
    before = [seen(batch) for step in islice(stream, stop) for batch in step]
    state = json.loads(json.dumps(stream.state_dict()))
    stream.close()
    assert state == {"mixture": stream.mixture.hash, "split": "train", "position": 4 * stop}
    after = run(shared_mixture, int(rng.choice([1, 2, 4])), int(rng.integers(0, 3)), STEPS - stop, state)
    assert before + after == reference_batches


def test_a_step_may_be_left_before_its_end_and_the_state_may_be_set_back(
    shared_mixture: Path, reference_batches: list[tuple[Any, ...]]
) -> None:
    stream = Stream(str(shared_mixture), workers=2)
    # Workers prefetch the following micro-batches, which must not replace any other.
    for number, step in enumerate(islice(stream, 10)):
        batch = next(iter(step))
        assert (len(step), seen(batch)) == (4, reference_batches[4 * number])
    stream.load_state_dict({"mixture": stream.mixture.hash, "split": "train", "position": 8})
    assert [seen(batch) for step in islice(stream, 3) for batch in step] == reference_batches[8:20]
    stream.close()


def test_batches_of_several_clips(shared_mixture: Path, tmp_path: Path) -> None:
    # Two clips of the larger shape, more of the smaller one.
    several = small_mixture.make(tmp_path, step=Step(2, 100))
    batches = run_of(several, 0)
    assert batches == run_of(several, 2)
    sizes = {(batch[1].frames, batch[1].references): len(batch[2]) for batch in batches}
    assert sizes[9, 0] == 100 // (3 * 3 * 4)
    assert sizes[5, 2] == 100 // (4 * 2 * 3)
    for batch in batches:
        assert all(shape[0] == len(batch[2]) for shape, _ in batch[5].values())


def run_of(mixture: Path, workers: int) -> list[tuple[Any, ...]]:
    stream = Stream(str(mixture), workers=workers)
    batches = [seen(batch) for step in islice(stream, 20) for batch in step]
    stream.close()
    return batches


@pytest.mark.parametrize(("frames", "workers"), [(None, 0), (5, 0), (7, 1)])
def test_pixels_are_those_of_the_task(frames: int | None, workers: int, shared_mixture: Path) -> None:
    tasks = set()
    stream = Stream(str(shared_mixture), frames=frames, workers=workers)
    numbers = {identity(f"s{number}"): number for number in range(12)}
    for step in islice(stream, STEPS):
        for batch in step:
            (key,), bucket = batch.keys, batch.bucket
            stored = small_mixture.members(numbers[key])
            tasks.add(bucket.task)
            # Conditions are made for the requested frames, not cut from those of the whole clip.
            clip = decode_clip(stored["mp4"])[:frames]
            assert bucket.frames == step.bucket.frames == len(clip)
            assert (np.moveaxis(batch.arrays["clip"][0], 0, -1) == clip).all()
            expected = build_condition(
                small_mixture.PARTS[bucket.task],
                clip,
                {name: partial(first, stored[f"{name}.mp4"], frames) for name in ("pose", "mask")},
                [np.zeros((1, 1, 3), np.uint8)],
                make_generator(0, batch.passes[0], key, bucket.task),
            )
            assert ("video" in batch.arrays) == (expected.video is not None)
            if expected.video is not None:
                assert (np.moveaxis(batch.arrays["video"][0], 0, -1) == expected.video).all()
            assert ("mask" in batch.arrays) == (expected.mask is not None)
            if expected.mask is not None:
                assert (batch.arrays["mask"][0, 0] == expected.mask).all()
            (item,) = batch.items
            assert (
                len(item)
                == bucket.references
                == (expected.references != ()) * small_mixture.SHAPES[numbers[key] % 2][3]
            )
            for name, picture in item.items():
                index = int(name.removeprefix("reference."))
                assert encode_png(picture) == stored[f"ref.{index}.png"]
            assert batch.captions in ((f"clip {numbers[key]}",), ("",))
    stream.close()
    assert tasks == {*small_mixture.PARTS}


def first(mp4: bytes, frames: int | None) -> Any:
    return decode_clip(mp4)[:frames]


def test_captions_are_left_out_as_often_as_the_mixture_says(shared_mixture: Path) -> None:
    stream = Stream(str(shared_mixture), form="members")
    captions = [caption for step in islice(stream, 100) for batch in step for caption in batch.captions]
    assert captions.count("") / len(captions) == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize("workers", [0, 2])
def test_members_are_as_they_are_stored(shared_mixture: Path, workers: int) -> None:
    numbers = {identity(f"s{number}"): number for number in range(12)}
    stream = Stream(str(shared_mixture), form="members", workers=workers)
    for step in islice(stream, 6):
        for batch in step:
            members = {name: data.tobytes() for name, data in batch.items[0].items()}
            assert members == small_mixture.members(numbers[batch.keys[0]])
    stream.close()


def test_a_batch_is_its_own_for_as_long_as_it_is_held(
    shared_mixture: Path, reference_batches: list[tuple[Any, ...]]
) -> None:
    stream = Stream(str(shared_mixture), workers=2)
    held = [batch for step in islice(stream, STEPS) for batch in step]
    assert [seen(batch) for batch in held] == reference_batches
    # An array outlives its batch, and a view outlives its array.
    view = held[5].arrays["clip"][0, 1]
    before = view.copy()
    del held
    for step in islice(stream, STEPS):
        for batch in step:
            batch.arrays["clip"][...] = 0
    assert (view == before).all()
    stream.close()


def test_workers_go_ahead_within_bounds(shared_mixture: Path) -> None:
    stream = Stream(str(shared_mixture), workers=2)
    max_pending = 0
    for step in islice(stream, STEPS):
        for _ in step:
            # A trainer that is slower than its workers.
            time.sleep(0.01)
            assert stream._worker_pool is not None
            max_pending = max(max_pending, len(stream._worker_pool._work), len(stream._worker_pool._done))
    stream.close()
    # Small batches: at most sixteen for each worker.
    assert 0 < max_pending <= 32


def test_what_does_not_fit_is_said(shared_mixture: Path, private_mixture: Path) -> None:
    ours = {"mixture": Stream(str(shared_mixture)).mixture.hash, "split": "train"}
    for arguments, sentence in (
        ({"form": "latent"}, "form 'latent' of split 'train': there are"),
        ({"state": {**ours, "split": "held_out", "position": 4}}, "of the split 'held_out'"),
        ({"rank": 0, "world": 3}, "3 ranks do not divide the 4 micro-batches"),
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
        ({"workers": -1}, "workers must be 0 or more"),
        ({"state": {"mixture": "0123", "split": "train", "position": 4}}, "the state belongs to mixture 0123"),
        ({"state": {}}, "is not a stream state"),
        ({"state": [4]}, "is not a stream state"),
        (
            {"state": {"mixture": Stream(str(shared_mixture)).mixture.hash, "split": "train", "position": 3}},
            "no step .* begins at position 3",
        ),
        (
            {"state": {"mixture": Stream(str(shared_mixture)).mixture.hash, "split": "train", "position": "4"}},
            "begins at position '4'",
        ),
    ):
        with pytest.raises(UsageError, match=sentence):
            Stream(str(shared_mixture), **arguments)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is not a mixture"):
        Stream(str(shared_mixture.parent))
    with pytest.raises(UsageError, match="no clip in its split 'held_out'"):
        Stream(str(shared_mixture), split="held_out")


def test_ranks_follow_from_the_environment_of_torchrun(shared_mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert [batch.position for step in islice(Stream(str(shared_mixture)), 2) for batch in step] == [3, 7]


LIGHT = """
import sys

class Only:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[2:]:
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Only())
from training.data.stream import Stream

stream = Stream(sys.argv[1], workers=1)
for _, step in zip(range(3), stream):
    for batch in step:
        print(batch.position, batch.arrays["clip"].shape)
"""


def test_a_trainer_needs_nothing_of_the_data_side(shared_mixture: Path) -> None:
    heavy = ["ray", "decord", "cv2", "duckdb", "pydantic", "pandas", "yaml", "rich", "torch", "webdataset", "diffusers"]
    arguments = [
        sys.executable,
        "-c",
        LIGHT,
        str(shared_mixture),
        *heavy,
        "transformers",
        "onnxruntime",
        "annotators",
        "filters",
    ]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 12


def test_an_edited_mixture_is_refused(private_mixture: Path) -> None:
    file = private_mixture / "mixture.json"
    for change in ({"seed": 99}, {"caption_dropout": 7}, {"step": {"micro_batches": 2, "tokens": None}}):
        original = file.read_text()
        file.write_text(json.dumps(json.loads(original) | change))
        with pytest.raises(UsageError, match=r"its hash is .*it was edited"):
            Stream(str(private_mixture))
        file.write_text(original)
    Stream(private_mixture)


def test_a_dataset_that_is_not_mounted_is_no_damage(private_mixture: Path) -> None:
    data = private_mixture.parent / "data"
    data.rename(private_mixture.parent / "elsewhere")
    stream = Stream(private_mixture)
    with pytest.raises(RunError, match=r"the dataset .* is not there: mount it"):
        next(iter(next(iter(stream))))
    assert not stream.damaged


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"world": 2}, "both rank and world"),
        ({"rank": 2, "world": 2}, "rank 2 of 2: ranks count from 0 to 1"),
        ({"rank": 0, "world": 3}, "3 ranks do not divide the 4 micro-batches"),
        ({"cache": "/proc/nope"}, "the cache /proc/nope cannot be made"),
        ({"cache": "c", "cache_gb": float("inf")}, "cache_gb is inf"),
        ({"cache": "c", "cache_gb": 0}, "cache_gb is 0"),
        ({"frames": 0}, "the first 0 frames"),
        ({"frames": 5, "form": "members"}, "of pixels alone"),
    ],
)
def test_arguments_that_cannot_be_are_named(arguments: dict[str, Any], message: str, shared_mixture: Path) -> None:
    with pytest.raises(UsageError, match=message):
        Stream(shared_mixture, **arguments)


def test_members_may_be_changed_whoever_read_them(shared_mixture: Path) -> None:
    stream = Stream(shared_mixture, form="members", workers=1)
    for step in islice(stream, 3):
        for batch in step:
            assert all(member.flags.writeable for item in batch.items for member in item.values())
    stream.close()
