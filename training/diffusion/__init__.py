"""Noise, its schedule, and where the random numbers come from."""
