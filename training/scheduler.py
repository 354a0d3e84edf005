"""The address of `StoredSteps` in the model cards of earlier exports; use `from training import StoredSteps`."""

from training.sampling.diffusers_scheduler import StoredSteps

__all__ = ["StoredSteps"]
