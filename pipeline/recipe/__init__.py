"""What a run does to its clips: annotators, filters, rules and limits."""
