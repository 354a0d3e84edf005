"""How networks are run, and the one that turns pictures into words and vectors."""
