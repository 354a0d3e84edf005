"""A demonstration: a tiny student trained on the shards of `make demo`."""
