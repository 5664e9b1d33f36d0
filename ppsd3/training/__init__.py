"""Training: rectified flow's objective, tasks, and one resumable loop."""
