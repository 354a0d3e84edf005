"""A tiny student from the shards of the demonstration."""
