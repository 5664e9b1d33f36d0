"""Seeded hostile input: what is given to ppsd3 is used, or refused by an error of its own that names what is wrong.

A *kind* (``kinds/``) makes cases from a ``random.Random`` and runs them; ``worker.py`` runs cases in a process under
limits and gives a verdict on each; ``runner.py`` watches that process from outside. Case N of kind K under seed S is
always the same: ``python -m tests.fuzz K S N`` runs it alone. docs/security.md says what is promised.
"""
