"""The tables of a dataset: what is kept, why, and what a new run may build on."""
