"""``python -m accountlink`` is the command line too."""

from accountlink.cli.app import main

if __name__ == "__main__":
    main()
