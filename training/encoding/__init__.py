"""Encoding of pixels, text and masks into the inputs of a VACE model."""
