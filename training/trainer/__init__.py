"""The loop of a run, its methods, checkpoints and metrics."""
