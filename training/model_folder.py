"""The address of `fingerprints` in version 0.1, kept for compatibility; it is now in `training.models.folder`."""

from training.models.folder import fingerprints

__all__ = ["fingerprints"]
