"""Measures selections and duplicates on generated catalogs."""
