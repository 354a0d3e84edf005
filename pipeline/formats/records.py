"""Rows of the catalog, and what is nested in them, as typed dictionaries; `schema.COLUMNS` explains the columns."""

from __future__ import annotations

from typing import TypedDict


class WeightColumns(TypedDict):
    """The weights of a lineage entry, joined with "+" where there are several."""

    weights_id: str | None
    weights_sha256: str | None
    weights_licence: str | None


class LineageEntry(WeightColumns):
    """What made some of a clip's values: an annotator, a filter or the network of `dedup`."""

    name: str
    version: str
