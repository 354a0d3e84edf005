"""The objectives that train the student and its critics, one file each."""
