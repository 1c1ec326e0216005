"""`python -m rlspeech` is the `rlspeech` command."""

import sys

from rlspeech.cli import main

if __name__ == "__main__":
    sys.exit(main())
