"""``python -m tests.fuzz [KIND [SEED [CASE]]] [--cases N]``: all kinds, one, or one case with all that it says."""

import argparse
import json
import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).parents[1])]

from fuzz import runner
from fuzz.case import KINDS


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kind", nargs="?", help=f"one or several of {','.join(KINDS)} (default: all)")
    parser.add_argument("seed", nargs="?", default="0")
    parser.add_argument("case", nargs="?", type=int, help="this one alone (default: all of them)")
    parser.add_argument("--cases", type=int, default=300, help="of each kind (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default: %(default)s)")
    arguments = parser.parse_args()
    kinds = arguments.kind.split(",") if arguments.kind else KINDS
    if arguments.case is not None:
        _, faults = runner.fuzz(kinds, arguments.seed, 1, arguments.case, lambda _, verdict: print(json.dumps(verdict, indent=1)))
        return 1 if faults else 0
    counts, faults = runner.fuzz(kinds, arguments.seed, arguments.cases, arguments.first)
    print(runner.describe(faults))
    for kind, count in counts.items():
        print(f"{kind:20} {dict(count)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
