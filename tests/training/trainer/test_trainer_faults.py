"""Trainers that are stopped, killed or misconfigured: one sentence, and an intact last checkpoint."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import program
import pytest
import tiny_model
import torch
from small_mixture import make
from tiny_run import DISTILL, TEACH, equal, logged, stored, train

from pipeline.errors import RunError, UsageError
from pipeline.mixture.mixture import read_all, write
from pipeline.storage.folder import Folder
from pipeline.storage.lock import hold_lock
from training import commands
from training.export import trained_model
from training.trainer import distill, metrics

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.long
def test_going_on_before_the_newest_is_refused(config: Any, tmp_path: Path) -> None:
    train("teach", config(TEACH), tmp_path / "run")
    with pytest.raises(UsageError, match="holds step-0000004, after step 2"):
        train("teach", config(TEACH, steps=6), tmp_path / "run", str(tmp_path / "run/checkpoints/step-0000002"))
    train("teach", config(TEACH, steps=3), tmp_path / "other", str(tmp_path / "run/checkpoints/step-0000002"))
    # Nothing is left to do.
    train("teach", config(TEACH, steps=3), tmp_path / "run", "latest")
    assert {file.name for file in (tmp_path / "run/checkpoints").iterdir()} == {"step-0000002", "step-0000004"}


@pytest.mark.long
def test_a_checkpoint_that_was_cut_short_is_named(
    config: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train("teach", config(TEACH), tmp_path / "run")
    (shard,) = (tmp_path / "run/checkpoints/step-0000004").glob("*.safetensors")
    os.truncate(shard, shard.stat().st_size // 2)
    caplog.clear()
    with pytest.raises(UsageError, match=r"step-0000004 cannot be read.*remove its folder to"):
        train("teach", config(TEACH, steps=6), tmp_path / "run", "latest")
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    shutil.rmtree(shard.parent)
    train("teach", config(TEACH, steps=6), tmp_path / "run", "latest")


@pytest.mark.long
def test_a_checkpoint_that_is_no_longer_whole_is_not_passed_over(config: Any, tmp_path: Path) -> None:
    train("teach", config(TEACH, steps=2), tmp_path / "run")
    (tmp_path / "run/checkpoints/step-0000002/checkpoint.json").unlink()
    # A manual copy is not a checkpoint of the run.
    (tmp_path / "run/checkpoints/step-0000002.bak").mkdir()
    for resume in ("latest", None):
        with pytest.raises(UsageError, match=r"step-0000002 has lost its checkpoint\.json"):
            train("teach", config(TEACH), tmp_path / "run", resume)


def test_another_base_is_refused(model: Path, config: Any, tmp_path: Path) -> None:
    changes = {"lora_rank": 4}
    train("distill", config(DISTILL, model=changes, steps=2), tmp_path / "run")
    other_model = tiny_model.write(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match="holds another transformer than"):
        train("distill", config(DISTILL, model=changes | {"folder": str(other_model)}), tmp_path / "run", "latest")
    shutil.rmtree(other_model / "transformer")
    shutil.copytree(model / "transformer", other_model / "transformer")
    with pytest.raises(UsageError, match="holds another vae than"):
        train("distill", config(DISTILL, model=changes | {"folder": str(other_model)}), tmp_path / "run", "latest")


def test_a_run_that_is_there_is_not_begun_again(config: Any, tmp_path: Path) -> None:
    train("teach", config(TEACH, steps=2), tmp_path / "run")
    with pytest.raises(UsageError, match=r"holds a run already .step-0000002.: --resume latest"):
        train("teach", config(TEACH), tmp_path / "run")
    with pytest.raises(UsageError, match="is of `teach`, and this is `distill`"):
        train("distill", config(DISTILL), tmp_path / "run", "latest")
    with pytest.raises(UsageError, match="lastest is not a checkpoint: a run resumes from `latest`"):
        train("teach", config(TEACH), tmp_path / "run", "lastest")
    with pytest.raises(UsageError, match=r"is not a checkpoint: it has no checkpoint\.json"):
        train("teach", config(TEACH), tmp_path / "run", str(tmp_path))
    changed = config(TEACH | {"optimizer": {"lr": 5e-3}})
    with pytest.raises(UsageError, match=r"optimizer\.lr: 0\.001, now 0\.005"):
        train("teach", changed, tmp_path / "run", "latest")


def test_a_checkpoint_is_gone_on_from_with_other_settings_in_another_folder(
    config: Any, mixture: Path, tmp_path: Path
) -> None:
    train("teach", config(TEACH, steps=2), tmp_path / "run")
    checkpoint = tmp_path / "run/checkpoints/step-0000002"
    changed, out = config(TEACH | {"optimizer": {"lr": 5e-4}}), tmp_path / "other"
    with pytest.raises(UsageError, match=r"now 0\.0005\): --resume .*step-0000002 with another folder for --out"):
        train("teach", changed, tmp_path / "run", str(checkpoint))
    train("teach", changed, out, str(checkpoint))
    assert [entry["step"] for entry in logged(out)] == [3, 4]
    # From then on that run can be resumed as usual.
    train("teach", config(TEACH | {"optimizer": {"lr": 5e-4}}, steps=5), out, "latest")
    metadata = trained_model.load(out, torch.device("cpu")).metadata
    assert metadata is not None
    assert [(entry.step, entry.config["optimizer"]["lr"]) for entry in metadata.earlier] == [(2, 1e-3)]
    commands.export(out, tmp_path / "model")
    assert "; others until step 2." in (tmp_path / "model/README.md").read_text()
    with pytest.raises(UsageError, match=r"it holds updates of student, and this run|is of `teach`"):
        train("distill", config(DISTILL), tmp_path / "third", str(checkpoint))


def test_adapters_of_another_rank_are_another_run(config: Any, tmp_path: Path) -> None:
    train("distill", config(DISTILL, model={"lora_rank": 4}, steps=2), tmp_path / "run")
    checkpoint = str(tmp_path / "run/checkpoints/step-0000002")
    for rank, message in ((None, "in full"), (8, "with LoRA of rank 8")):
        for out, resume in (("run", "latest"), ("other", checkpoint)):
            with pytest.raises(
                UsageError, match=f"with LoRA of rank 4, and this run {message}: start over, without --resume"
            ):
                train("distill", config(DISTILL, model={"lora_rank": rank}), tmp_path / out, resume)


def test_a_checkpoint_under_another_name_or_without_weights_is_named(config: Any, tmp_path: Path) -> None:
    train("teach", config(TEACH, steps=2), tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    (folder / "step-0000002").rename(folder / "step-0000009")
    for steps in (2, 4):
        with pytest.raises(
            UsageError, match=r"step-0000009 is a damaged checkpoint: .* is of step 2: give the folder its"
        ):
            train("teach", config(TEACH, steps=steps), tmp_path / "run", "latest")
    (folder / "step-0000009").rename(folder / "step-0000002")
    (shard,) = (folder / "step-0000002").glob("*.safetensors")
    shard.unlink()
    with pytest.raises(UsageError, match=r"step-0000002 has lost its weights; remove its folder"):
        train("teach", config(TEACH), tmp_path / "run", "latest")


def test_a_mixture_may_move_and_be_taken_over_from(config: Any, mixture: Path, tmp_path: Path) -> None:
    train("teach", config(TEACH, steps=2), tmp_path / "run")
    shutil.copytree(mixture, tmp_path / "moved")
    train("teach", config(TEACH, steps=3, data={"mixture": str(tmp_path / "moved")}), tmp_path / "run", "latest")
    original, table = read_all(str(mixture))
    for position, fits in ((4, False), (6, True)):
        after = replace(original, seed=original.seed + 1, begins=replace(original.begins, position=position))
        write(after, table, str(tmp_path / f"after-{position}"))
        changed = config(TEACH, data={"mixture": str(tmp_path / f"after-{position}")})
        if fits:
            train("teach", changed, tmp_path / "run", "latest")
        else:
            with pytest.raises(UsageError, match=r"the state belongs to mixture .*--after"):
                train("teach", changed, tmp_path / "run", "latest")


def test_a_full_disk_is_named_where_the_log_meets_it(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    train("teach", config(TEACH, steps=2), tmp_path / "run")
    monkeypatch.setattr(metrics.Log, "write", full)
    with pytest.raises(
        RunError, match=r"the log of step 3: .*No space left.*step-0000002 is complete\. .*--resume latest"
    ):
        train("teach", config(TEACH), tmp_path / "run", "latest")


def test_a_schedule_that_does_not_match_the_checkpoint_is_refused(config: Any, tmp_path: Path) -> None:
    train("distill", config(DISTILL, steps=2), tmp_path / "run")
    with pytest.raises(UsageError, match=r"4 steps at shift 5 \(1000, 937\.5.*this run 4 steps at shift 8 \(1000, 960"):
        train("distill", config(DISTILL, schedule={"shift": 8}), tmp_path / "run", "latest")
    file = tmp_path / "run/checkpoints/step-0000002/checkpoint.json"
    metadata = json.loads(file.read_text())
    for change in ({"shift": 8.0}, {"steps": 2}):
        metadata["config"]["schedule"] |= change
        file.write_text(json.dumps(metadata))
        with pytest.raises(UsageError, match=r"step-0000002 contradicts itself: .*937\.5.*'s . steps at shift 8"):
            trained_model.load(tmp_path / "run", torch.device("cpu"))


def test_a_folder_is_one_runs_alone(config: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with hold_lock(Folder(str(tmp_path / "run"))), pytest.raises(RunError, match="another run is writing to"):
        train("teach", config(TEACH), tmp_path / "run")
    with pytest.raises(UsageError, match=r"config\.yaml cannot be the folder of a run"):
        train("teach", config(TEACH), config(TEACH))


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("pipeline.storage.lock.fcntl.flock", none)
    with hold_lock(Folder(str(tmp_path))):
        pass
    assert "has no locks (No locks available)" in caplog.text


def test_clips_too_short_for_the_size_are_named_at_once(config: Any, tmp_path: Path) -> None:
    size = {"frames": 13, "height": 32, "width": 32}
    with pytest.raises(UsageError, match=r"clips of \d frames .*`data\.size` wants 13"):
        train("teach", config(TEACH, data={"size": size}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_samples_that_a_kill_prevented_are_made_when_it_goes_on(config: Any, tmp_path: Path) -> None:
    file = config(TEACH, evaluation={"every": 2, "clips": 1}, data={"mixture": str(make(tmp_path, 6, held=2))})
    train("teach", file, tmp_path / "run")
    first, last = (tmp_path / f"run/samples/step-000000{step}.mp4" for step in (2, 4))
    film = last.read_bytes()
    last.unlink()
    written = first.stat().st_mtime_ns
    train("teach", file, tmp_path / "run", "latest")
    assert last.read_bytes() == film
    assert first.stat().st_mtime_ns == written


@pytest.mark.long
def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train("distill", config(DISTILL, steps=2), tmp_path / "run")
    before = stored(tmp_path / "run", 2)
    monkeypatch.setattr(distill, "target_velocity", lambda clean, noise: noise * torch.nan)
    with pytest.raises(RunError, match=r"step 3 .*the fake score's loss is not finite.*step-0000002 is complete"):
        train("distill", config(DISTILL), tmp_path / "run", "latest")
    equal(stored(tmp_path / "run", 2), before)
    monkeypatch.undo()
    train("distill", config(DISTILL), tmp_path / "run", "latest")


@pytest.mark.long
def test_a_full_disk_keeps_the_last_checkpoint(config: Any, tmp_path: Path) -> None:
    with program.mounted(tmp_path / "small", "size=9m") as small:
        with pytest.raises(
            RunError, match=r"the checkpoint of step \d+ cannot be written .*No space.*last one is step"
        ):
            train("distill", config(DISTILL, steps=40, saves={"every": 1, "keep": 40}), small / "run")
        last = max((small / "run/checkpoints").glob("step-*"))
        assert not list((small / "run/checkpoints").glob(".*"))
        assert stored(small / "run", int(last.name[5:]))


def test_an_edited_checkpoint_is_refused_in_one_sentence(config: Any, tmp_path: Path) -> None:
    train("teach", config(TEACH, steps=2), tmp_path / "run")
    checkpoint = tmp_path / "run/checkpoints/step-0000002"
    metadata = json.loads((checkpoint / "checkpoint.json").read_text())
    for changes, message in (
        ({"step": None}, "step: expected a whole number"),
        ({"config": []}, "config: expected keys and values"),
        ({"base": {}}, "holds another transformer than"),
        ({"base": {"vae": None}}, "base.vae: expected a text"),
        ({"stream": {}}, "stream.mixture: Field required"),
        ({"updates": {}}, "does not fit: it holds updates of nothing, and this run makes student"),
        ({"updates": {"student": -1}}, "updates.student: "),
        ({"format": None}, "has format None, and this version reads 3"),
    ):
        (checkpoint / "checkpoint.json").write_text(json.dumps(metadata | changes))
        with pytest.raises(UsageError, match=message):
            train("teach", config(TEACH), tmp_path / "run", "latest")
    (checkpoint / "checkpoint.json").write_text(json.dumps(metadata))
    (shard,) = checkpoint.glob("*.safetensors")
    for header in (b"{}garbage", b'{"a": {"dtype": "F32"}}', b"[1, 2, 3]", b"\xff" * 20, b"{}"):
        shard.write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(UsageError, match=r"step-0000002 (cannot be read|is of another model)"):
            train("teach", config(TEACH), tmp_path / "run", "latest")


def test_latents_that_are_not_there_are_named(config: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no latents that fit this model: store them .*form: pixels"):
        train("teach", config(TEACH, data={"form": "latents"}), tmp_path / "run")


def test_sigterm_ends_with_a_checkpoint(config: Any, tmp_path: Path) -> None:
    file = config(TEACH, steps=100_000, saves={"every": 100_000})
    job = subprocess.Popen(
        [sys.executable, "-m", "training.cli", "teach", str(file), "--out", str(tmp_path / "run")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300"},
    )
    log = tmp_path / "run/log.jsonl"
    program.poll(lambda: (log.is_file() and log.read_text()) or job.poll() is not None, 300, "a first step")
    job.send_signal(signal.SIGTERM)
    stderr = job.communicate(timeout=300)[1]
    assert job.returncode == 1
    assert "stopped on request at step" in stderr
    assert "Traceback" not in stderr
    (checkpoint,) = (tmp_path / "run/checkpoints").glob("step-*")
    assert int(checkpoint.name[5:]) == len(log.read_text().splitlines())


@pytest.mark.long
def test_the_log_of_a_run_that_was_killed_goes_on(config: Any, tmp_path: Path) -> None:
    train("teach", config(TEACH), tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-0000004")
    with (tmp_path / "run/log.jsonl").open("a") as file:
        file.write('{"step": 5, "cut sho')
    train("teach", config(TEACH), tmp_path / "run", "latest")
    assert [entry["step"] for entry in logged(tmp_path / "run")] == [1, 2, 3, 4]
