"""``python -m bluelib.cli``: the command line without the ``blue`` on the path."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
