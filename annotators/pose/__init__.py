"""Body keypoints: found, smoothed and drawn."""
