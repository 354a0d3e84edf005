"""Export of trained models, as files for other tools and as videos."""
