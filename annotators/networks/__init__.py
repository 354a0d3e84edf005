"""Running of networks, and the network that classifies and embeds pictures."""
