"""Compares our stream with other loaders."""
