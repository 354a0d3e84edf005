"""Sampling, from noise to clean latents, in few steps or many."""
