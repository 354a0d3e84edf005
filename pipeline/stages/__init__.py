"""The steps of a run: cut, annotate, embed and pack."""
