"""The command line: ``accountlink``, or ``python -m accountlink``. Needs the extra ``accountlink[cli]``."""
