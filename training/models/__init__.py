"""The networks of a run: found, loaded, put together and named."""
