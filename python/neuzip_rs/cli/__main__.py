"""`python -m neuzip_rs.cli` is the `neuzip` command."""

import sys

from neuzip_rs.cli import main

if __name__ == "__main__":
    sys.exit(main())
