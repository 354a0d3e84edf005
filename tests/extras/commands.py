"""Checks what each set can do: a real command of each program that it supports, a refusal of each that it does not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import fsspec
import s3_server
import small_dataset
import small_mixture
import small_videos
import tiny_model
import tiny_run
import yaml
from installation import Installation, MatrixError

from pipeline.mixture.mixture import Step

# Every filter that needs no weights.
_FILTERS = ["black", "borders", "contrast", "luma", "noise", "sharpness", "stillness"]


class Materials:
    """The inputs of the commands, made by the developers' environment on first use."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stack = folder, ExitStack()
        folder.mkdir()

    def __enter__(self) -> Materials:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @cached_property
    def dataset(self) -> Path:
        """A dataset with clips of every verdict, tracks and previews."""
        small_dataset.Dataset(str(self._folder / "dataset"), self._folder / "scratch").fill()
        return self._folder / "dataset"

    @cached_property
    def video(self) -> Path:
        """A video of two shots."""
        return small_videos.write(self._folder / "video.mp4", 1, shots=2)

    @cached_property
    def recipe(self) -> Path:
        """A recipe for the video that needs no weights."""
        file = self._folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(small_videos.RECIPE | {"filters": _FILTERS}))
        return file

    @cached_property
    def teach_config(self) -> Path:
        """A configuration of `vdot-train teach`: one step of a tiny model."""
        (self._folder / "data").mkdir()
        mixture = small_mixture.make(self._folder / "data", 6, step=Step(2))
        settings: dict[str, Any] = {
            "model": {"folder": str(tiny_model.write(self._folder / "tiny")), "dtype": "float32", "text_tokens": 8},
            "data": {"mixture": str(mixture), "form": "pixels", "workers": 0},
        }
        file = self._folder / "teach.yaml"
        file.write_text(yaml.safe_dump(settings | tiny_run.COMMON | tiny_run.TEACH | {"steps": 1}))
        return file

    @cached_property
    def bucket(self) -> s3_server.Server:
        """An S3-compatible server with the dataset in its bucket."""
        server = self._stack.enter_context(s3_server.serve())
        store = fsspec.filesystem("s3", **json.loads(server.env["FSSPEC_S3"]))
        store.put(str(self.dataset), f"{server.bucket}/", recursive=True)
        return server

    @cached_property
    def web(self) -> str:
        """The address of a web server with all files."""
        return self._stack.enter_context(_serve(self._folder))


@contextmanager
def _serve(folder: Path) -> Iterator[str]:
    handler = partial(_QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Write nothing: the matrix prints a line for each set."""


def core(installation: Installation, materials: Materials) -> None:
    """Reads a dataset in every way, and names the extra that everything else needs."""
    dataset, page = materials.dataset, installation.folder / "page.html"
    clip = small_dataset.identity("a0")
    installation.run("vdot-data", "verify", dataset)
    installation.run("vdot-data", "explain", dataset, "a.mp4")
    installation.run("vdot-data", "select", dataset, "--rule", "too_dark: luma < 30")
    installation.run("vdot-data", "weights", "--list")
    for command in (("report", dataset), ("view", dataset, clip)):
        installation.run("vdot-data", *command, "--html", page)
        if "data:video/mp4" not in page.read_text():
            raise MatrixError(f"{command[0]} wrote a page without videos")
        page.unlink()
    installation.run("vdot-bench", "curate", "--clips", 2000)
    for command in (("ingest", materials.video, "--out", "out"), ("plan", materials.video), ("dedup", dataset)):
        installation.expect_refusal("vdot-data", *command, words="pip install 'vdot-data[ingest]'")
    for store, extra in (("s3", "s3"), ("gs", "gcs"), ("https", "http")):
        installation.expect_refusal(
            "vdot-data", "verify", f"{store}://nowhere/out", words=f"pip install 'vdot-data[{extra}]'"
        )
    installation.expect_refusal("vdot-train", "plan", "teach.yaml", words="pip install 'vdot-data[train]'")
    installation.expect_refusal("vdot-bench", "ot", words="pip install 'vdot-data[bench]'")


def ingest(installation: Installation, materials: Materials) -> None:
    """Ingests a video and checks the dataset."""
    out = installation.folder / "out"
    options = ("--recipe", materials.recipe, "--cpus", 1, "--json")
    clips = json.loads(installation.run("vdot-data", "ingest", materials.video, "--out", out, *options))["clips"]
    if clips != {"kept": {"": 2}}:
        raise MatrixError(f"two clips should be kept: {clips}")
    installation.run("vdot-data", "verify", out)
    installation.expect_refusal("vdot-train", "plan", "teach.yaml", words="pip install 'vdot-data[train]'")


def train(installation: Installation, materials: Materials) -> None:
    """Estimates a run's memory, runs one step of it and exports the result."""
    installation.run("vdot-train", "plan", materials.teach_config, "--teach")
    installation.run("vdot-train", "teach", materials.teach_config, "--out", installation.folder / "run")
    installation.run("vdot-train", "export", installation.folder / "run", "--out", installation.folder / "export")
    installation.expect_refusal("vdot-data", "plan", materials.video, words="pip install 'vdot-data[ingest]'")


def bench(installation: Installation, materials: Materials) -> None:
    """Runs the smallest measurements of training and of ingest."""
    size = ("--frames", 2, "--height", 4, "--width", 4, "--repeat", 1)
    json.loads(installation.run("vdot-bench", "ot", *size))
    json.loads(installation.run("vdot-bench", "duplicates", "--clips", 1000))


def s3(installation: Installation, materials: Materials) -> None:
    """Checks a dataset in a bucket."""
    url = f"{materials.bucket.url}/{materials.dataset.name}"
    installation.run("vdot-data", "verify", url, "--workers", 1, env=materials.bucket.env)


def gcs(installation: Installation, materials: Materials) -> None:
    """Checks a dataset on a server without any bucket."""
    reach = {"FSSPEC_GCS": json.dumps({"token": "anon", "endpoint_url": materials.web})}
    # Otherwise it queries the type of the bucket by gRPC, for a minute.
    reach["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    installation.expect_refusal("vdot-data", "verify", "gs://bucket/out", words="is not a dataset", env=reach)


def http(installation: Installation, materials: Materials) -> None:
    """Checks a dataset on a web server, which is refused because it lists no sizes."""
    installation.expect_refusal(
        "vdot-data", "verify", f"{materials.web}/{materials.dataset.name}", words="is on a web server"
    )


CHECKS: dict[str, Callable[[Installation, Materials], None]] = {
    "core": core,
    "ingest": ingest,
    "train": train,
    "bench": bench,
    "s3": s3,
    "gcs": gcs,
    "http": http,
}
