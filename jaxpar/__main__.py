"""The command line, as `python -m jaxpar`."""

import sys

from jaxpar.cli import main

if __name__ == "__main__":
    sys.exit(main())
