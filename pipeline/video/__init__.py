"""Wild video files as frames at the right time, in a sandbox."""
