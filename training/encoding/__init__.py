"""Pixels, text and latents as a VACE model is given them."""
