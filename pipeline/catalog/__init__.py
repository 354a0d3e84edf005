"""The dataset's tables: what is kept, why, and what a new run may build on."""
