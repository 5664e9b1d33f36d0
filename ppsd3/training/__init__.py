"""Rectified flow's objectives, and one loop that trains and resumes."""
