"""Mixtures of datasets, and the order in which trainers read their clips."""
