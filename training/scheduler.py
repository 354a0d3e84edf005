"""Where the model cards of earlier exports find `StoredSteps`; now it is `from training import StoredSteps`."""

from training.sampling.diffusers_scheduler import StoredSteps

__all__ = ["StoredSteps"]
