"""The table of patients' shares with doctors as the system has it, with the constraints that it needs.

``grants`` says which column plays which part, for ``ShareGrants`` (``shares.py``) and for the doctor.
"""

from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import DateTime, Index, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import GrantMapping


class Base(DeclarativeBase):
    """The application's metadata."""

    type_annotation_map = {str: Text(), datetime: DateTime(timezone=True)}  # noqa: RUF012  # SQLAlchemy's way


class PatientDoctorConnection(Base):
    """Store one access that a patient gives: first a token, then a doctor's access after it is redeemed.

    A row is one grant, not one pair: the same patient may give the same doctor access any number of times.
    """

    __tablename__ = "patient_doctor_connections"
    __table_args__ = (UniqueConstraint("access_token", name="patient_doctor_connections_access_token_key"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    patient_id: Mapped[UUID]
    doctor_id: Mapped[UUID | None]  # null until the token is redeemed
    access_token: Mapped[str]
    token_expires_at: Mapped[datetime]
    is_active: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime]


one_active_per_pair = Index(
    "patient_doctor_connections_one_active",
    PatientDoctorConnection.patient_id,
    PatientDoctorConnection.doctor_id,
    unique=True,
    postgresql_where=PatientDoctorConnection.is_active,
    sqlite_where=PatientDoctorConnection.is_active,
)
"""Optional index: at most one active access at a time. Ended access and unredeemed tokens do not count."""

grants = GrantMapping(
    PatientDoctorConnection,
    one_active_per_pair=True,
    grantor_id=PatientDoctorConnection.patient_id,
    grantee_id=PatientDoctorConnection.doctor_id,
    token=PatientDoctorConnection.access_token,  # in plain text, as this table has always held it
    expires_at=PatientDoctorConnection.token_expires_at,
    active=PatientDoctorConnection.is_active,
)
"""The mapping of the table for accountlink."""
