"""How often a call waits for the device."""

import collections

from . import watched_reads

MOST_PER_CALL = 6


def assert_few_reads(draw, per_step=0):
    """``draw(steps)`` reads at most ``per_step`` times in each of its steps, and six times beside that."""
    found = []
    for steps in (4, 8):
        with watched_reads() as places:
            draw(steps)
        found.append(collections.Counter(places))
    growing = {place: count - found[0][place] for place, count in found[1].items() if count > found[0][place]}
    assert sum(growing.values()) <= 4 * per_step, f"reads in four steps: {growing}"
    fixed = {place: max(0, count - growing.get(place, 0)) for place, count in found[0].items()}  # a cache warms up
    assert 1 <= sum(fixed.values()) <= MOST_PER_CALL, f"reads in a call, beside those of steps: {fixed}"
