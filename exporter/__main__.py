"""`python -m exporter` is the command `tgi-probe`."""

import sys

from exporter.cli import main

if __name__ == "__main__":
    sys.exit(main())
