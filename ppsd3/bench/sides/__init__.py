"""The ways of doing a bench's work, one module for each framework; only :mod:`.base` is imported by the others."""
