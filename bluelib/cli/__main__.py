"""``python -m bluelib.cli``: the command line where ``blue`` is not on the path."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
