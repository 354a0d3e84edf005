"""From noise to clean latents, in a few steps or many."""
