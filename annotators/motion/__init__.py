"""Optical flow, and maps warped along it."""
