"""Where bytes lie: folders of any store, atomic writes and locks."""
