"""What each objective of distillation does at a size that can be repeated: arms, seeds, metrics without weights."""
