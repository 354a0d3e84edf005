"""The networks of a run: located, loaded, assembled, and their weight names."""
