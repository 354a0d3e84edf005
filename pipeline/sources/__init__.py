"""Expands what users name (folders, globs, manifests, URLs) and fetches it as local source files."""
