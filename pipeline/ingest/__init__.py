"""A run from sources to shards, and what it will cost."""
