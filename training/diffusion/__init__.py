"""Noise, schedules and seeded random numbers."""
