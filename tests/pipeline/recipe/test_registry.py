"""Tests that another package's annotator is found by name, and refused with a reason if it does not fit."""

from __future__ import annotations

import pickle
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest

from annotators.base import Annotator, Signal, Weight
from annotators.weights import MissingWeights
from pipeline.cli import main
from pipeline.errors import UsageError
from pipeline.recipe import registry
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.recipe import parse
from pipeline.storage.object_store import StorageError


class Good:
    """Fits."""

    name, version, tracks = "good", "1", ()
    signals = {"g": Signal("count", "g")}  # noqa: RUF012
    weights = (Weight("good-net", "https://example.org/net.onnx", "0" * 64, "MIT"),)


class Bare:
    """Lacks nearly everything."""

    name = "bare"


class Twin(Good):
    """Makes a track that another annotator makes too."""

    name, tracks, signals = "twin", ("scribble",), {}


class Crops(Good):
    """Makes pictures, and builds on what others make."""

    name, signals = "crops", {}
    pictures, needs = ("ref",), ("scribble", "g")


class Crops2(Crops):
    """Makes pictures of the same name."""

    name, needs = "crops2", ()


class Filer(Good):
    """Makes a file from the complete sample, with the user's own weights."""

    name, signals, weights, files, sample = "filer", {}, (), ("good.bin",), True
    named: ClassVar[tuple[Weight, ...] | None] = (Weight("mine", "/models/mine", "1" * 64, "MIT"),)

    @classmethod
    def choose(cls) -> tuple[Weight, ...]:
        if cls.named is None:
            raise MissingWeights("Name a model.")
        return cls.named

    def __init__(self, weights: tuple[Weight, ...]) -> None:
        self.chosen_weights = weights


class Filer2(Good):
    """Makes a file of the same name."""

    name, signals, files = "filer2", {}, ("good.bin",)


class Writer(Good):
    """Writes captions."""

    name, signals, caption = "writer", {}, True


class Writer2(Writer):
    """Writes captions too."""

    name = "writer2"


class LocalEntryPoint(EntryPoint):
    """An entry point that finds its class in this module, whatever its name."""

    def load(self) -> Any:
        return globals()[self.value] if self.value in globals() else super().load()


@pytest.fixture(autouse=True)
def entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = {
        "good": "Good",
        "other": "Good",
        "bare": "Bare",
        "twin": "Twin",
        "crops": "Crops",
        "crops2": "Crops2",
        "filer": "Filer",
        "filer2": "Filer2",
        "writer": "Writer",
        "writer2": "Writer2",
        "scribble": "annotators.scribble:Scribble",
        "gone": "no_such_module:X",
        "duplicates": "annotators.scribble:Scribble",
    }
    points = [LocalEntryPoint(name, value, "vdot_data.annotators") for name, value in pairs.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "vdot_data.annotators" else [])


def test_a_misspelt_attribute_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match="Odd declares 'pictues'; did you mean 'pictures'"):
        type("Odd", (Annotator,), {"name": "odd", "version": "1", "pictues": ("ref",)})
    type("Even", (Annotator,), {"name": "even", "version": "1", "threshold": 3, "pictures": ("ref",)})


def test_a_class_with_and_one_without_the_base_class_declare_the_same() -> None:
    attributes = {"name": "x", "version": "1", "signals": {}, "tracks": ("x",), "weights": (), "gpu": True}
    plain, derived = type("Plain", (), attributes), type("Derived", (Annotator,), attributes)
    assert registry.declare(plain) == registry.declare(derived)  # type: ignore[arg-type]
    assert registry.declare(derived).gpu
    assert not registry.declare(derived).needs


def test_one_that_fits() -> None:
    assert registry.load_annotator("good") is Good
    assert registry.build_lineage(["good"], [])[0]["weights_id"] == "good-net"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other", "calls itself 'good'"),
        ("bare", "has no version, signals, tracks, weights"),
        ("gone", "cannot be loaded: ModuleNotFoundError: No module named"),
        ("goood", "did you mean 'good'"),
        ("duplicates", "is the name of a layer"),
    ],
)
def test_one_that_does_not(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        registry.load_annotator(name)


def test_stages_without_annotators_are_refused() -> None:
    for stages in ("[]", "[[]]", "[[scribble], []]"):
        with pytest.raises(UsageError, match="at least one stage is needed"):
            parse(f"stages: {stages}", "x.yaml")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (StorageError("the store is gone"), 1, "the store is gone"),
        (ModuleNotFoundError(name="ray"), 2, "pip install 'vdot-data[ingest]'"),
        (UsageError("no"), 2, "no"),
    ],
)
def test_every_end_is_one_sentence(
    error: Exception, status: int, message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code == status
    assert message in capfd.readouterr().err


def test_two_that_make_one_track_are_refused() -> None:
    with pytest.raises(UsageError, match="'scribble' and 'twin' both make the track 'scribble'"):
        Blueprint.for_ingest(parse("filters: []\nstages: [[scribble], [twin]]\nrules: {}\ntasks: {}", "x"), ())
    with pytest.raises(UsageError, match="both make the track"):
        Blueprint.for_layer(parse("filters: []\nstages: [[scribble]]\nrules: {}\ntasks: {}", "x"), "twin")


def build_blueprint(stages: str) -> Blueprint:
    return Blueprint.for_ingest(parse(f"filters: []\nstages: {stages}\nrules: {{}}\ntasks: {{}}", "x"), ())


def test_what_one_needs_must_come_before_it() -> None:
    build_blueprint("[[scribble, good], [crops]]")
    with pytest.raises(UsageError, match="'crops' needs 'g': put good into the recipe before it"):
        build_blueprint("[[scribble, crops, good]]")
    with pytest.raises(UsageError, match="'crops' needs 'scribble': put scribble into"):
        Blueprint.for_layer(parse("filters: []\nstages: [[good]]\nrules: {}\ntasks: {}", "x"), "crops")


def test_two_that_make_the_same_pictures_or_both_write_are_refused() -> None:
    with pytest.raises(UsageError, match="'crops' and 'crops2' both make the pictures 'ref'"):
        build_blueprint("[[scribble, good, crops, crops2]]")
    with pytest.raises(UsageError, match="'writer' and 'writer2' both write the caption"):
        build_blueprint("[[writer], [writer2]]")
    Blueprint.for_layer(parse("filters: []\nstages: [[writer]]\nrules: {}\ntasks: {}", "x"), "writer2")


def test_two_that_make_the_same_file_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'filer' and 'filer2' both make the file 'good\.bin'"):
        build_blueprint("[[filer, filer2]]")


@pytest.mark.parametrize(
    "name", ["bin", ".bin", "a.mp4", "pose.json", "a.txt", "ref.0.png", "../a.bin", "a/b.bin", "A.bin", "a..b", "é.bin",
             "x" * 57 + ".bin", "a.bin\n", ""],
)  # fmt: skip
def test_a_file_must_be_a_member_like_no_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Filer, "files", ("fine.tar.bin", name))
    with pytest.raises(UsageError, match="its name must be small letters"):
        registry.load_annotator("filer")


def test_the_users_own_weights_are_in_the_lineage_and_reach_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    unequipped = build_blueprint("[[scribble, good, writer], [filer]]")
    assert unequipped.lineage[-1]["weights_sha256"] is None
    equipped = unequipped.with_weights()
    assert equipped.lineage[-1]["weights_sha256"] == "1" * 64
    worker = pickle.loads(pickle.dumps(equipped)).build_annotator("filer")
    assert worker.chosen_weights == Filer.named
    assert "mine" not in registry.collect_weights(["filer"], [])
    monkeypatch.setattr(Filer, "named", None)
    with pytest.raises(UsageError, match=r"Name a model\."):
        unequipped.with_weights()
    # Reading a dataset needs no weights.
    build_blueprint("[[filer]]")
    build_blueprint("[[scribble, good]]").with_weights()
    stored = parse("filters: []\nstages: [[filer]]\nrules: {}\ntasks: {}", "x")
    Blueprint.for_layer(stored, "scribble").with_weights()


def test_a_layer_upon_the_users_weights_is_as_old_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Filer, "tracks", ("g2",))
    monkeypatch.setattr(Crops, "needs", ("g2",))
    layer = Blueprint.for_layer(
        parse("filters: []\nstages: [[filer]]\nrules: {}\ntasks: {}", "x"), "crops"
    ).with_weights()
    assert [(entry["name"], entry["weights_sha256"][0]) for entry in layer.lineage] == [("filer", "1"), ("crops", "0")]
    monkeypatch.setattr(Filer, "weights", Good.weights)
    assert layer.with_weights().lineage[0]["weights_id"] == "good-net+mine"


def test_a_layer_that_takes_the_sample_is_as_old_as_all_that_fills_it() -> None:
    stored = parse("filters: []\nstages: [[scribble, good], [crops, writer]]\nrules: {}\ntasks: {}", "x")
    # All but those that make only signals; those that others build on are included.
    assert [entry["name"] for entry in Blueprint.for_layer(stored, "filer").lineage] == [
        *("scribble", "good", "crops", "writer", "filer")
    ]
    signals = parse("filters: []\nstages: [[scribble, good]]\nrules: {}\ntasks: {}", "x")
    assert [entry["name"] for entry in Blueprint.for_layer(signals, "filer").lineage] == ["scribble", "filer"]
