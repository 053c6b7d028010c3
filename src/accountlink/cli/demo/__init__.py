"""``accountlink demo``: a story of two people and one provider account. Start reading at ``backend.py``.

``backend.py`` is what an application writes, ``models.py`` its tables, ``stage.py`` sets up the backend, the
provider and two browsers in one process, ``story.py`` tells and checks. ``broken.py`` shows four tables that stopped
users, and how the doctor repairs them.
"""
