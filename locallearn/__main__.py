"""`python -m locallearn` is `locallearn`."""

from locallearn.cli import main

if __name__ == "__main__":
    main()
