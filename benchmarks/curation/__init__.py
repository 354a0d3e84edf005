"""Selections and duplicates measured on generated catalogs."""
