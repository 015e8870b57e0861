"""python -m skill_speech is skill-speech."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
