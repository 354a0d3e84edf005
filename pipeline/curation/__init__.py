"""Selections, mixtures and duplicates, from the catalog alone."""
