"""`python -m pipeline` is `mta-prep`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
