"""Upkeep of datasets: verify, repair and forget; and checks of the machine."""
