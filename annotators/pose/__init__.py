"""Body keypoints: detection, smoothing and drawing."""
