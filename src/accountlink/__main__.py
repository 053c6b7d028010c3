"""Start the command line by ``python -m accountlink``."""

from accountlink.cli.app import main

if __name__ == "__main__":
    main()
