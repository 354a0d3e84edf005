"""Checks before a run what could stop it: on this machine, in OUT, and on every node of a cluster."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

import av
import duckdb

from annotators.weights import MissingWeights, path
from pipeline.catalog.catalog import Catalog, values
from pipeline.catalog.predicates import IS_BASE, STORED_RECIPE_QUERY
from pipeline.errors import RunError, UsageError
from pipeline.recipe import recipe, registry
from pipeline.storage.folder import Folder
from pipeline.storage.object_store import StorageError
from pipeline.storage.scratch import Scratch
from pipeline.upkeep.checks import Check, CheckStatus

PYTHON = (3, 11)
# The extras that a run needs; others are for training and for stores that may not be in use.
EXTRAS = {"", "ingest"}
# Name -> decoders, any of which will do.
DECODERS = {"h264": ["h264"], "hevc": ["hevc"], "vp9": ["vp9", "libvpx-vp9"], "av1": ["libdav1d", "av1"]}
ENCODER = "libx264"
# Two workers of 1.7 GB (see `engine.CORE_MEMORY`); Ray and its object store take the rest.
MEMORY = 4e9
SHM = 1e9
# A source is fetched to scratch before it is cut, one per worker.
SCRATCH = 10e9
FREE = 10e9


def doctor(out: str | None = None, address: str | None = None) -> list[Check]:
    """Run every check of this machine, and those of OUT and of the Ray cluster at `address` if they are not None."""
    checks = [*_check_packages(), *_check_codecs(), *_check_weights(), *_check_machine()]
    if out is not None:
        checks += _check_dataset(out)
    if address is not None:
        from pipeline.upkeep.cluster_checks import check_cluster

        checks += check_cluster(address)
    return checks


def list_weights(in_full: bool) -> Iterator[str]:
    """A line with the name and licence of every weight; in full, also its source, its checksum, and its path or what is
    wrong with it."""
    for weight in registry.collect_weights().values():
        yield f"{weight.id}: {weight.licence}"
        if in_full:
            try:
                location = str(path(weight))
            except MissingWeights as error:
                location = str(error)
            yield from (f"  {weight.source}", f"  sha256 {weight.sha256}", f"  {location}")


def _parse_version(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _check_packages() -> Iterator[Check]:
    version_info = sys.version_info[:3]
    status = CheckStatus.OK if version_info >= PYTHON else CheckStatus.FAIL
    yield Check(
        "python", status, platform.python_version(), "" if status == CheckStatus.OK else "install Python 3.11 or newer"
    )
    for line in metadata.requires("vdot-data") or []:
        extra = re.search(r"extra == ['\"](\w+)['\"]", line)
        requirement = re.match(r"([\w.-]+)(?:\[.*?\])?(?:>=([\w.]+))?", line)
        assert requirement is not None
        name, minimum = requirement[1], requirement[2] or "0"
        if (extra[1] if extra else "") not in EXTRAS or name == "vdot-data":
            continue
        install = "pip install 'vdot-data[ingest]'"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, CheckStatus.FAIL, "is not installed", install)
            continue
        if _parse_version(version) >= _parse_version(minimum):
            yield Check(name, CheckStatus.OK, version)
        else:
            yield Check(name, CheckStatus.FAIL, f"{version}; at least {minimum} is needed", install)


def _check_codecs() -> Iterator[Check]:
    for name, codecs in DECODERS.items():
        decoder = next((codec for codec in codecs if _has_codec(codec, "r")), None)
        advice = "" if decoder else f"sources in {name} will fail; install a PyAV wheel from PyPI (`pip install av`)"
        yield Check(f"{name} decoder", CheckStatus.OK if decoder else CheckStatus.WARN, decoder or "is missing", advice)
    available = _has_codec(ENCODER, "w")
    advice = "" if available else "clips cannot be written; install a PyAV wheel from PyPI (`pip install av`)"
    yield Check(
        "h264 encoder",
        CheckStatus.OK if available else CheckStatus.FAIL,
        ENCODER if available else "is missing",
        advice,
    )


def _has_codec(name: str, mode: Literal["r", "w"]) -> bool:
    try:
        av.codec.Codec(name, mode)
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def _check_weights() -> Iterator[Check]:
    try:
        weights = registry.collect_weights()
    except UsageError as error:
        yield Check("annotators", CheckStatus.FAIL, str(error), "fix or remove the package that registers it")
        return
    for weight in weights.values():
        try:
            yield Check(weight.id, CheckStatus.OK, str(path(weight)))
        except MissingWeights as error:
            yield Check(weight.id, CheckStatus.FAIL, str(error), "run `vdot-data weights`")


def _check_machine() -> Iterator[Check]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Check("cores", CheckStatus.OK, str(os.cpu_count()))
    yield _check_amount("memory", memory, MEMORY, "expect one worker at most: a smaller grid or a larger machine helps")
    shm = Path("/dev/shm")  # noqa: S108 (Linux's shared memory, where Ray puts its store)
    if shm.is_dir():
        advice = "Ray falls back to slow files: in Docker, give --shm-size=2g"
        yield _check_amount("free shared memory", shutil.disk_usage(shm).free, SHM, advice)
    scratch = Path(os.environ.get("VDOT_SCRATCH") or tempfile.gettempdir())
    if scratch.is_dir():
        advice = "point VDOT_SCRATCH to a larger disk"
        yield _check_amount(f"free space in {scratch}", shutil.disk_usage(scratch).free, SCRATCH, advice)
    else:
        yield Check(f"free space in {scratch}", CheckStatus.WARN, "does not exist yet", "the first run makes it")


def _check_amount(name: str, amount: float, needed: float, advice: str) -> Check:
    enough = amount >= needed
    return Check(
        name, CheckStatus.OK if enough else CheckStatus.WARN, f"{amount / 1e9:.1f} GB", "" if enough else advice
    )


def _check_dataset(out: str) -> Iterator[Check]:
    name, advice = f"OUT {out}", "choose another OUT"
    try:
        folder = Folder(out)
        if folder.local is not None and not folder.local.exists():
            yield Check(
                name, CheckStatus.WARN, "does not exist", "`vdot-data ingest` makes it; check the name if it should"
            )
            return
        advice = "let this user write there, or choose another OUT"
        folder.check_writable()
        advice = "`vdot-data verify` says what is damaged"
        yield Check(name, CheckStatus.OK, "can be written to")
        if folder.local is not None:
            yield _check_amount(
                f"free space in {out}",
                shutil.disk_usage(folder.local).free,
                FREE,
                "free some space, or choose another OUT",
            )
        with Scratch() as scratch:
            catalog = Catalog(folder, scratch.path)
            con = catalog.connect()
            texts = values(con, STORED_RECIPE_QUERY)
            status_rows = values(con, f"SELECT status, count(*) AS n FROM clips WHERE {IS_BASE} GROUP BY ALL")
        if not texts:
            yield Check(name, CheckStatus.OK, "the catalog is empty")
            return
        counts = ", ".join(
            f"{row['n']} {row['status']}" for row in sorted(status_rows, key=lambda row: str(row["status"]))
        )
        yield Check(name, CheckStatus.OK, f"catalog of {catalog.sequence} parts: {counts or 'no clips'}")
        yield Check(name, CheckStatus.OK, recipe.parse(texts[0]["recipe"], f"stored in {out}").geometry)
    except (RunError, UsageError, StorageError, ValueError, duckdb.Error) as error:
        yield Check(name, CheckStatus.FAIL, str(error), advice)
