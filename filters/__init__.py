"""Quality signals measured on a clip's frames, one file per family."""
