"""What was trained, as files that other tools load and as videos."""
