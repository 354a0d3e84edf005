"""Tests that the benchmark of a step counts the passes and the operations of the real training loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

from typer.testing import CliRunner

from benchmarks.cli import app
from training.diffusion import seeded_random
from training.diffusion.schedule import Schedule

CONFIG = """
model: {folder: any, dtype: float32, text_tokens: 8, activation_checkpointing: %s%s}
data: {mixture: any}
steps: 10
student_every: 2
gan: null
student: {lr: 1.0e-4}
critic: {lr: 1.0e-4}
"""
SIZE = ["--shape", "tiny", "--frames", "5", "--height", "32", "--width", "48", "--updates", "1"]


def run_step(tmp_path: Path, model_options: str = "", checkpointing: str = "false") -> dict[str, Any]:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG % (checkpointing, model_options))
    result = CliRunner().invoke(app, ["step", str(file), *SIZE], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_passes_and_operations_are_those_of_the_loop(tmp_path: Path) -> None:
    result = run_step(tmp_path)
    # Steps 2 and 3, the first of which updates the student too.
    last_steps = {number: seeded_random.integer(Schedule().steps, 0, "last", number) for number in (2, 3)}
    alone = {"passed": last_steps[3] + 1, "learnt": 1}
    # Besides a rollout without gradients and the fake score's own pass: a rollout whose last pass has gradients, the
    # fake score, and the teacher twice.
    student = {"passed": (last_steps[2] + 1) + last_steps[2] + 3, "learnt": 2}
    forward = result["flop_a_forward_pass"]
    backward = result["flop_a_learnt_pass"]
    assert result["critic_alone"]["useful_flop"] == alone["passed"] * forward + alone["learnt"] * backward
    assert result["with_student"]["useful_flop"] == student["passed"] * forward + student["learnt"] * backward
    # Gradients of inputs and weights take twice as much, but the first layers' inputs need no gradient.
    assert 2.5 < backward / forward < 3
    # By hand, of one block: attention to itself and to text, the feed-forward; the VACE block has two more layers.
    tokens, dim, text, ffn = 2 * 2 * 3, 24, 8, 48
    linear = 2 * tokens * dim * dim
    block = 6 * linear + 2 * 2 * text * dim * dim + 2 * 2 * tokens * dim * ffn
    attention = 4 * tokens * (tokens + text) * dim
    # Patches of latents and context in, of latents out; the embeddings of time and text.
    patches = 2 * tokens * dim * 4 * (16 + 96 + 16)
    embeddings = 2 * dim * (256 + dim + 6 * dim) + 2 * text * dim * (16 + dim)
    assert result["flop_a_forward_pass"] == 3 * (block + attention) + 2 * linear + patches + embeddings
    assert result["transport_s"] > 0


@pytest.mark.long
def test_what_checkpointing_computes_again_is_not_useful(tmp_path: Path) -> None:
    stored, recomputed = (run_step(tmp_path, ", lora_rank: 4", checkpointing) for checkpointing in ("false", "true"))
    assert stored["steps"]["useful_flop"] == recomputed["steps"]["useful_flop"]
    # Weights that are frozen take no gradient.
    assert stored["flop_a_learnt_pass"] < 2.6 * stored["flop_a_forward_pass"]


def test_sizes_that_the_autoencoder_does_not_know_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG % ("true", ""))
    result = CliRunner().invoke(app, ["step", str(file), *SIZE[:2], "--frames", "6"])
    assert "4n + 1" in str(result.exception)
