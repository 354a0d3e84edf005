"""Annotators: frames in; tracks, signals and captions out. One file each."""
