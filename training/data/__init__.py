"""The stream, from a mixture's shards to micro-batches. Does not import torch."""
