"""The `vdot-data` program."""
