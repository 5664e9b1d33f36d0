"""Errors, files, the hub, random numbers, CPU threads, types: what does not depend on Paddle's layers."""
