"""Errors, files, the hub, random numbers, CPU threads: what needs no layer of Paddle."""
