"""One module for each kind of input: ``Kind(directory)`` writes sound inputs there once, ``case(rng, place)`` makes a
:class:`fuzz.case.Case` out of one of them, whose files are in ``place``."""
