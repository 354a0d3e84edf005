"""The training loop, its methods, checkpoints and metrics."""
