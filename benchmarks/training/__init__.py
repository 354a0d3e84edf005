"""Measures training steps."""
