"""Optical flow, and maps carried along it."""
