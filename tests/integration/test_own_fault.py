"""Tests that a clip that we wrote and cannot read back has its own code, exit status 1, and no blame of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import program
import pytest
import small_videos

# Clips encoded by the decoder's process lose their end, as with a defect of the encoder.
SITECUSTOMIZE = """
import sys

if "pipeline.video.sandbox_child" in sys.orig_argv:
    from pipeline.stages import sandboxed

    encode_clip = sandboxed.encode_clip
    sandboxed.encode_clip = lambda *arguments: encode_clip(*arguments)[:-100]
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_defect_of_ours_ends_with_status_1(vdot: Any, recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    video = small_videos.write(tmp_path / "good.mp4", 1)
    out = program.Out(tmp_path / "out")
    environment = {"PYTHONPATH": str(tmp_path)}
    process = vdot("ingest", video, "--out", out.url, "--recipe", recipe(), "--cpus", 1, env=environment)
    assert process.returncode == 1, process.stderr
    assert "1 failed by a defect of vdot-data, not of your files" in process.stderr
    (clip,) = out.clips().values()
    assert (clip["status"], clip["code"], clip["stage"]) == ("failed", "ENCODE_ERROR", "decode")
    explained = vdot("explain", out.url, clip["clip_id"]).stdout
    assert "a defect of ours: please report it" in explained
    assert "fetch it again" not in explained
