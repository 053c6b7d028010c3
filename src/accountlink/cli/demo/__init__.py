"""``accountlink demo``: two people and their provider accounts. Start reading at ``backend.py``.

``backend.py`` is what an application writes, ``models.py`` its tables, ``page/`` its page. ``providers.py`` pretends to
be the providers. ``site.py`` serves both on this machine; ``panels.py``, ``sealed.py``, ``tokens.py``, ``worker.py``,
``statements.py`` and ``broken.py`` are what the page shows beside the user's own accounts. ``stage.py`` sets up the
backend, one provider and two browsers in one process, and ``story.py`` tells and checks the story of ``--once`` on it.
"""
