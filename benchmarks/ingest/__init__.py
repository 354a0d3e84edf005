"""Measures ingest: its speed, its memory, its verdicts, and the effect of kills and damage."""
