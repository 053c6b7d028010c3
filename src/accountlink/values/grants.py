"""Define the outcomes of the calls of :class:`~accountlink.ShareGrants`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from accountlink.values.outcomes import NoTruth, sealed
from accountlink.values.secrecy import Concealed


@sealed
@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """A snapshot of one stored grant. Fields whose column is not mapped are ``None``.

    It contains no token and no credentials, so that it can be sent to the grantee unchanged.

    Attributes:
        id: The grant's own id.
        grantor_id: The user who gives access.
        grantee_id: The user who has it; ``None`` as long as nobody has redeemed the token.
        link_id: The id of the linked account that the grant is about, or ``None`` if it is about none.
        expires_at: The moment when the token and the access expire, aware.
        created_at: When it was issued, aware. One use of a token for several users is made when that user redeems it.
        redeemed_at: When it was redeemed, aware.
        ended_at: When it was ended before it expired, or marked as expired; aware.
    """

    id: Any
    grantor_id: Any = field(repr=False)
    grantee_id: Any = field(default=None, repr=False)
    link_id: Any = None
    expires_at: datetime
    created_at: datetime | None = None
    redeemed_at: datetime | None = None
    ended_at: datetime | None = None


class _WithToken(NoTruth):
    """Keep the token outside the dataclass fields, and so out of ``repr``, ``asdict``, pickles and encoders."""

    __slots__ = ("_token",)
    _token: Concealed[str]

    @property
    def token(self) -> str:
        """The token itself. It is stored nowhere and no later call returns it, so hand it on now.

        Raises:
            AttributeError: The grant is a copy from a pickle, which does not contain the token.
        """
        return self._token.reveal()


@sealed
@dataclass(frozen=True, kw_only=True, slots=True)
class IssuedGrant(_WithToken):
    """Report a grant that nobody has redeemed yet, with its ``token``, which no later call returns.

    Attributes:
        id: The grant's own id, by which its grantor can revoke it.
        grantor_id: The user who gives access.
        link_id: The id of the linked account that the grant is about, or ``None`` if it is about none.
        expires_at: The moment when the token and the access expire, aware.
        max_uses: The number of users who can redeem the token.
    """

    code: ClassVar[str] = "grant_issued"
    id: Any
    grantor_id: Any = field(repr=False)
    link_id: Any = None
    expires_at: datetime
    max_uses: int = 1


def issued_with(token: Concealed[str], issued: IssuedGrant) -> IssuedGrant:
    """Return an issued grant with its token set."""
    object.__setattr__(issued, "_token", token)
    return issued


@sealed
@dataclass(frozen=True, kw_only=True, slots=True)
class Granted(NoTruth):
    """Report that this call redeemed the token, and that the user has the access.

    Attributes:
        grant: The grant, as it is now.
    """

    code: ClassVar[str] = "granted"
    grant: Grant


@sealed
@dataclass(frozen=True, kw_only=True, slots=True)
class AlreadyGranted(NoTruth):
    """Report that the user redeemed this token before and still has the access. Nothing was written.

    Attributes:
        grant: The grant, as it is.
    """

    code: ClassVar[str] = "already_granted"
    grant: Grant


@sealed
@dataclass(frozen=True, kw_only=True, slots=True)
class Revoked(NoTruth):
    """Report that the grant has ended, by this call or by an earlier one.

    Attributes:
        grant: The grant, as it is now.
    """

    code: ClassVar[str] = "revoked"
    grant: Grant
