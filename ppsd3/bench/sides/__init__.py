"""The ways to run a bench, one module for each framework."""
