"""What people see of a dataset: reports, explanations and pages."""
