"""The command line; see `lab.corpora`."""

from __future__ import annotations

import argparse

from lab.corpora import SIZES, TASKS, make_corpora
from lab.speech import ENGINES


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description="Write synthetic corpora in the layouts of SUPERB's ten tasks.")
    parser.add_argument("--output", required=True)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--engine", choices=ENGINES, default="espeak", help="who speaks (hibari: lab/hibari.txt)")
    make_corpora(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
