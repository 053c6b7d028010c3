"""How production came to refuse a patient who shares with the same doctor again: a key on the pair.

The columns are those of ``models.py``. The key takes the pair for the grant: it allows each pair once, for ever.
"""

from typing import Final

import sqlalchemy as sa

from examples.sharing.models import Base

PAIR_KEY: Final = "patient_doctor_connections_patient_id_doctor_id_key"

first_release: Final = sa.MetaData()
"""The key of the first migration. SQLite cannot drop a constraint, so there it is an index of that name."""

_table: Final = Base.metadata.tables["patient_doctor_connections"].to_metadata(first_release)
_table.indexes.clear()
_table.append_constraint(sa.UniqueConstraint("patient_id", "doctor_id", name=PAIR_KEY).ddl_if(dialect="postgresql"))
sa.Index(PAIR_KEY, _table.c.patient_id, _table.c.doctor_id, unique=True).ddl_if(dialect="sqlite")
