"""What each set is asked to do: one real command of each program that it brings, a refusal of each that it does not."""

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
    """What the commands work on, made by the developers' environment when it is first asked for."""

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
        """A recipe for it that needs no weights."""
        file = self._folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(small_videos.RECIPE | {"filters": _FILTERS}))
        return file

    @cached_property
    def lesson(self) -> Path:
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
        return self._stack.enter_context(_served(self._folder))


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Says nothing: the matrix prints a line for each set."""


def core(here: Installation, materials: Materials) -> None:
    """Reads a dataset in every way, and says of all else which extra it needs."""
    dataset, page = materials.dataset, here.folder / "page.html"
    clip = small_dataset.identity("a0")
    here.run("vdot-data", "verify", dataset)
    here.run("vdot-data", "explain", dataset, "a.mp4")
    here.run("vdot-data", "select", dataset, "--rule", "too_dark: luma < 30")
    here.run("vdot-data", "weights", "--list")
    for command in (("report", dataset), ("view", dataset, clip)):
        here.run("vdot-data", *command, "--html", page)
        if "data:video/mp4" not in page.read_text():
            raise MatrixError(f"{command[0]} wrote a page without films")
        page.unlink()
    here.run("vdot-bench", "curate", "--clips", 2000)
    for command in (("ingest", materials.video, "--out", "out"), ("plan", materials.video), ("dedup", dataset)):
        here.refused("vdot-data", *command, words="pip install 'vdot-data[ingest]'")
    for store, extra in (("s3", "s3"), ("gs", "gcs"), ("https", "http")):
        here.refused("vdot-data", "verify", f"{store}://nowhere/out", words=f"pip install 'vdot-data[{extra}]'")
    here.refused("vdot-train", "plan", "teach.yaml", words="pip install 'vdot-data[train]'")
    here.refused("vdot-bench", "ot", words="pip install 'vdot-data[bench]'")


def ingest(here: Installation, materials: Materials) -> None:
    """Ingests a video and checks the dataset."""
    out = here.folder / "out"
    options = ("--recipe", materials.recipe, "--cpus", 1, "--json")
    clips = json.loads(here.run("vdot-data", "ingest", materials.video, "--out", out, *options))["clips"]
    if clips != {"kept": {"": 2}}:
        raise MatrixError(f"two clips were to be kept: {clips}")
    here.run("vdot-data", "verify", out)
    here.refused("vdot-train", "plan", "teach.yaml", words="pip install 'vdot-data[train]'")


def train(here: Installation, materials: Materials) -> None:
    """Estimates a run's memory, and does a step of it."""
    here.run("vdot-train", "plan", materials.lesson, "--teach")
    here.run("vdot-train", "teach", materials.lesson, "--out", here.folder / "run")
    here.run("vdot-train", "export", here.folder / "run", "--out", here.folder / "export")
    here.refused("vdot-data", "plan", materials.video, words="pip install 'vdot-data[ingest]'")


def bench(here: Installation, materials: Materials) -> None:
    """Does the smallest measurements of each side."""
    size = ("--frames", 2, "--height", 4, "--width", 4, "--repeat", 1)
    json.loads(here.run("vdot-bench", "ot", *size))
    json.loads(here.run("vdot-bench", "duplicates", "--clips", 1000))


def s3(here: Installation, materials: Materials) -> None:
    """Checks a dataset in a bucket."""
    url = f"{materials.bucket.url}/{materials.dataset.name}"
    here.run("vdot-data", "verify", url, "--workers", 1, env=materials.bucket.env)


def gcs(here: Installation, materials: Materials) -> None:
    """Asks a server, which says of every bucket that it has none."""
    reach = {"FSSPEC_GCS": json.dumps({"token": "anon", "endpoint_url": materials.web})}
    # Else it asks of what kind the bucket is by gRPC, for a minute.
    reach["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    here.refused("vdot-data", "verify", "gs://bucket/out", words="is not a dataset", env=reach)


def http(here: Installation, materials: Materials) -> None:
    """Asks a web server, which lists no sizes."""
    here.refused("vdot-data", "verify", f"{materials.web}/{materials.dataset.name}", words="is on a web server")


CHECKS: dict[str, Callable[[Installation, Materials], None]] = {
    "core": core,
    "ingest": ingest,
    "train": train,
    "bench": bench,
    "s3": s3,
    "gcs": gcs,
    "http": http,
}
