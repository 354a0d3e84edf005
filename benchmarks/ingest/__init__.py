"""Ingest measured: its speed, its memory, its verdicts, and what kills and damage do to it."""
