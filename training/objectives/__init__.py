"""What the student and its critics are trained by: one file for each objective."""
