"""Work spread over a Ray cluster; Ray is imported here and nowhere else."""
