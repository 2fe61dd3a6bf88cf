"""`python -m dblr_fast` is the command `dblr-fast`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
