"""Mixtures of datasets, and the order in which trainers meet their clips."""
