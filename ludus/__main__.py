"""`python -m ludus` is the command line `ludus`."""

import sys

from ludus.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
