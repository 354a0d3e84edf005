"""Where version 0.1 documented `fingerprints`; `training.models.folder` is its address now."""

from training.models.folder import fingerprints

__all__ = ["fingerprints"]
