"""Datasets kept sound: verified, mended, forgotten in part; and the machine checked."""
