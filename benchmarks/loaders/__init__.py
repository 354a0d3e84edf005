"""Our stream beside other loaders."""
