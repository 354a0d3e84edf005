"""Tests that an annotator gets the tracks and signals of others as trainers see them, in any stage or layer."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import pytest
import real_clips
import yaml
from attempts import FirstAttempts

from annotators.base import Annotation, Frames, Sample
from annotators.subjects import Subjects
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.clip_encode import encode_clip, encode_png
from pipeline.formats.records import ClipRecord
from pipeline.recipe import registry
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.recipe import Recipe, parse
from pipeline.stages import sandboxed
from pipeline.stages.annotate import AnnotateStage
from pipeline.stages.item import ClipItem

FPS = 16.0


@pytest.fixture(autouse=True)
def require_weights() -> None:
    real_clips.load(Subjects)


def build_recipe(*stages: list[str]) -> Recipe:
    filters = sorted({*registry.find_registered("filters")} - {"unsafe", "brisque"})
    text = yaml.safe_dump({"filters": filters, "stages": [list(stage) for stage in stages], "rules": {}, "tasks": {}})
    return parse(text, "of this test")


def clip() -> bytes:
    rng = np.random.default_rng(5)
    background = rng.integers(60, 190, (12, 20, 3)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
    frames = np.stack([background] * 9)
    for number, frame in enumerate(frames):
        frame[20:80, 20 + 4 * number : 80 + 4 * number] = (220, 40, 30)
    return encode_clip(frames, FPS)


def build_item(**members: bytes) -> ClipItem:
    record: ClipRecord = {
        "clip_id": "0" * 32, "fps": FPS, "frames": 9, "width": 160, "height": 96, "start_s": 0.0, "end_s": 0.5,
        "source_uri": "/videos/a.mp4", "source_hash": "1" * 64,
    }  # fmt: skip
    stored = {name.replace("_", "."): data for name, data in members.items()}
    return ClipItem(record, members={"mp4": clip()} | stored)


def run_stage(blueprint: Blueprint, item: ClipItem, number: int = 0) -> None:
    assert [*AnnotateStage(blueprint, number, FirstAttempts()).annotate([item])] == [item]


def annotate(recipe: Recipe) -> ClipItem:
    """A clip annotated by every stage of a recipe."""
    sample = build_item()
    sample.signals |= sandboxed.measure(decode_clip(sample.members["mp4"]), FPS, recipe.filters)
    blueprint = Blueprint.for_ingest(recipe, ())
    for number in range(len(blueprint.stages)):
        run_stage(blueprint, sample, number)
    assert sample.record["status"] == "kept", sample.record
    return sample


@pytest.mark.long
def test_one_stage_or_three_make_the_same_sample() -> None:
    together = annotate(build_recipe(["pose", "subjects", "depth_heuristic"]))
    separate = annotate(build_recipe(["pose"], ["subjects"], ["depth_heuristic"]))
    assert together.members == separate.members
    assert {"pose.mp4", "mask.mp4", "depth.mp4", "ref.0.png", "json", "mp4"} == set(together.members)
    assert decode_clip(together.members["depth.mp4"]).shape == (9, 96, 160, 3)


def test_a_layer_builds_on_the_stored_sample_and_adds_only_its_own() -> None:
    full_recipe = build_recipe(["pose", "subjects", "depth_heuristic"])
    stored, layered = annotate(full_recipe).members, build_recipe(["pose", "subjects"])
    base = {name: data for name, data in stored.items() if name != "depth.mp4"}
    sample = build_item()
    sample.members = dict(base)
    run_stage(Blueprint.for_layer(layered, "depth_heuristic"), sample)
    assert sample.record["status"] == "kept", sample.record
    assert set(sample.members) == {"depth.mp4", "depth_heuristic.json"}
    assert sample.members["depth.mp4"] == stored["depth.mp4"]
    assert json.loads(sample.members["depth_heuristic.json"])["signals"] == {"depth_method": "heuristic"}


def test_signals_of_the_stored_sample_are_there_for_a_layer() -> None:
    stored_recipe = build_recipe(["text", "faces", "flow", "pose", "tags"])
    base = annotate(stored_recipe).members
    sample = build_item()
    sample.members = dict(base)
    run_stage(Blueprint.for_layer(stored_recipe, "caption_template"), sample)
    assert sample.record["status"] == "kept", sample.record
    assert set(sample.members) == {"caption_template.txt", "caption_template.json"}
    assert sample.record["caption"] == sample.members["caption_template.txt"].decode()
    assert sample.record["caption"].startswith("A")


def test_a_layer_may_make_pictures() -> None:
    stored_recipe = build_recipe(["pose"])
    sample = build_item()
    sample.members = dict(annotate(stored_recipe).members)
    run_stage(Blueprint.for_layer(stored_recipe, "subjects"), sample)
    assert set(sample.members) == {"mask.mp4", "ref.0.png", "subjects.json"}
    assert sample.signals["ref_pictures"] == 1


class Filer:
    """Writes its sample's tracks to a file, and records the sample."""

    name, version, tracks, weights, files, sample = "filer", "1", (), (), ("filer.bin",), True
    signals: ClassVar[dict[str, Any]] = {}
    samples: ClassVar[list[Sample]] = []

    def __call__(self, frames: Frames, fps: float, *, sample: Sample) -> Annotation:
        Filer.samples.append(sample)
        return Annotation(files={"filer.bin": repr(sorted(sample.tracks)).encode()})


@pytest.fixture
def filer(monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    """Register `Filer`; returns the samples that it gets."""
    find_annotator = registry.load_annotator
    monkeypatch.setattr(registry, "load_annotator", lambda name: Filer if name == "filer" else find_annotator(name))
    monkeypatch.setattr(Filer, "samples", [])
    return Filer.samples


def test_an_annotator_may_take_the_whole_sample_and_make_a_file(filer: list[Sample]) -> None:
    stored_recipe = build_recipe(["text", "faces", "flow", "pose", "tags", "subjects"], ["caption_template"])
    base = annotate(stored_recipe).members
    sample = build_item()
    sample.members = base | {f"ref.{number}.png": base["ref.0.png"] for number in range(1, 11)}
    sample.members["ref.10.png"] = encode_png(np.zeros((2, 3, 3), np.uint8))
    run_stage(Blueprint.for_layer(stored_recipe, "filer"), sample)
    assert sample.record["status"] == "kept", sample.record
    assert set(sample.members) == {"filer.bin", "filer.json"}
    assert sample.members["filer.bin"] == b"['flow', 'mask', 'pose']"
    (filed,) = filer
    assert filed.clip_id == sample.record["clip_id"]
    np.testing.assert_array_equal(filed.tracks["pose"](), decode_clip(base["pose.mp4"]))
    assert filed.caption == base["txt"].decode()
    assert [picture.shape for picture in filed.pictures["ref"]][-2:] == [filed.pictures["ref"][0].shape, (2, 3, 3)]


def test_in_a_recipe_it_takes_what_earlier_stages_made(filer: list[Sample]) -> None:
    members = annotate(build_recipe(["scribble"], ["filer"])).members
    assert members["filer.bin"] == b"['scribble']"
    assert {"mp4", "scribble.mp4", "filer.bin", "json"} == set(members)
    assert filer[0].caption is None
    assert not filer[0].pictures


def test_a_manifest_column_is_no_track() -> None:
    sample = build_item()
    sample.manifest = {"mask": "yes", "pose_coverage": "no"}
    sample.signals |= sandboxed.measure(decode_clip(sample.members["mp4"]), FPS, ("luma",))
    blueprint = Blueprint.for_ingest(build_recipe(["pose", "subjects", "depth_heuristic"]), ())
    run_stage(blueprint, sample)
    assert sample.record["status"] == "kept", sample.record


def test_a_layer_is_as_old_as_what_it_was_made_from() -> None:
    stored_recipe = build_recipe(["pose", "subjects"])
    versions = {
        entry["name"]: entry["version"] for entry in Blueprint.for_layer(stored_recipe, "depth_heuristic").lineage
    }
    assert versions == {
        annotator.name: annotator.version
        for annotator in map(registry.load_annotator, ("pose", "subjects", "depth_heuristic"))
    }
    assert [entry["name"] for entry in Blueprint.for_layer(stored_recipe, "faces").lineage] == ["faces"]


def test_a_stored_sample_that_lacks_what_is_needed_fails() -> None:
    sample = build_item(json=b"{}")
    blueprint = Blueprint.for_layer(build_recipe(["pose", "subjects"]), "depth_heuristic")
    run_stage(blueprint, sample)
    assert (sample.record["status"], sample.record["code"]) == ("failed", "ANNOTATOR_ERROR")
    assert "depth_heuristic needs 'mask'" in sample.record["detail"]


def test_a_clip_that_cannot_be_read_back_is_our_fault_and_a_stored_one_is_damage() -> None:
    stored_recipe = build_recipe(["pose"])
    fresh = build_item()
    fresh.members["mp4"] = fresh.members["mp4"][:-100]
    run_stage(Blueprint.for_ingest(stored_recipe, ()), fresh)
    assert (fresh.record["status"], fresh.record["code"]) == ("failed", "ENCODE_ERROR")
    stored = build_item()
    stored.members["mp4"] = stored.members["mp4"][:-100]
    run_stage(Blueprint.for_layer(build_recipe(["pose"]), "flow"), stored)
    assert (stored.record["status"], stored.record["code"]) == ("failed", "CLIP_DAMAGED")
