"""Storage: folders on a disk or in an object store, atomic writes and locks."""
