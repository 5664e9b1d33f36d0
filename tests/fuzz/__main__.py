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
    parser.add_argument("kind", nargs="?", help=f"one of {', '.join(KINDS)}, or several with commas (default: all)")
    parser.add_argument("seed", nargs="?", default="0", help="any word (default: %(default)s)")
    parser.add_argument("case", nargs="?", type=int, help="this one alone (default: the first ones)")
    parser.add_argument("--cases", type=int, default=300, help="how many of each kind (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.case is not None:
        (verdict,) = runner.Worker().run(arguments.kind, arguments.seed, arguments.case, arguments.case + 1)
        print(json.dumps(verdict, indent=1, ensure_ascii=True))
        return verdict["verdict"] not in runner.GOOD
    failed = False
    for kind in arguments.kind.split(",") if arguments.kind else KINDS:
        counts, faults = runner.fuzz(kind, arguments.seed, arguments.cases)
        print(runner.describe(faults).encode("ascii", "backslashreplace").decode())
        print(f"{kind:20} {dict(counts)}", flush=True)
        failed |= bool(faults)
    return failed


if __name__ == "__main__":
    sys.exit(main())
