"""Benchmarks of ppsd3 against other ways to run the same model, for ``ppsd3 bench``.

A :class:`~.benches.Bench` is a workload of one size (a denoising step at 512x512), a
:class:`~.sides.base.Side` one way to run it (ppsd3 without a compiler, diffusers compiled, OpenVINO). :mod:`.runner`
gives each side its own process and runs them in turn; :mod:`.results` and :mod:`.report` evaluate and print the
results.
"""
