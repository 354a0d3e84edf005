"""Stored formats, written and read back: catalog rows, shards, clips, condition tracks, embeddings and strict YAML."""
