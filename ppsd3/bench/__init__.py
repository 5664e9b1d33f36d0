"""Benchmarks of ppsd3 beside the other ways of running the same model: what ``ppsd3 bench`` runs.

A :class:`~.benches.Bench` is a piece of work at one size (a denoising step at 512x512), a
:class:`~.sides.base.Side` one way of doing it (ppsd3 without a compiler, diffusers compiled, OpenVINO). :mod:`.runner`
gives each side a process of its own and lets them work in turn; :mod:`.results` and :mod:`.report` say what came out.
"""
