"""From a mixture's shards to micro-batches; imports no torch."""
