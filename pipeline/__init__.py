"""From raw videos to committed shards: sources, shots, the Ray plan, the ledger and the command line."""

from importlib import metadata


def version() -> str:
    """The installed version of vdot-data."""
    return metadata.version("vdot-data")
