"""`python -m pipeline` is `mta-prep`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # first would come the current folder, and its names before those of packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import main

if __name__ == "__main__":
    main()
