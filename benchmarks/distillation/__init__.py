"""Compares the objectives of distillation at a size that can be repeated: arms, seeds, metrics without weights."""
