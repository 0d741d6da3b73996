"""`python -m zbroker` is `zbroker`."""

from zbroker.cli import main

if __name__ == "__main__":
    main()
