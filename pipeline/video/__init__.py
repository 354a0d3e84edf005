"""Decodes untrusted video files into frames at the right times, in a sandbox."""
