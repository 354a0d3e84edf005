"""From shards to a 4-step student. Importing this room needs neither ray nor a decoder of wild video."""
