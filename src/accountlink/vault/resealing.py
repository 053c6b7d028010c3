"""Decide which texts of a row are to be sealed anew, and seal them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from accountlink.errors import CredentialsUnreadable
from accountlink.vault.contents import AccessToken, RefreshToken
from accountlink.vault.envelope import FORMAT, BoundTo, Envelope, new_grant_id, open_envelope, read
from accountlink.vault.keys import VaultKey
from accountlink.vault.sealed_rows import Begins, SealedRow
from accountlink.vault.sealing import Sealing
from accountlink.vault.vault import Plaintext

Contents = AccessToken | RefreshToken
Found = Envelope | Contents | CredentialsUnreadable
_KINDS: Final[Mapping[str, type[Any]]] = {kind.role: kind for kind in (AccessToken, RefreshToken)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Resealed:
    """Hold a row with what is to be written into it.

    Attributes:
        row: The row as it was read.
        texts: The new texts, by role; empty if nothing is to be written.
        reason: Why a text of the row cannot be sealed; ``None`` if each can.
    """

    row: SealedRow
    texts: Mapping[str, str] = field(repr=False)
    reason: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """Hold a row with those of its texts that are to be sealed.

    Attributes:
        row: The row as it was read.
        found: The envelopes to open, the contents to seal, and the errors of texts that cannot be read, by role.
    """

    row: SealedRow
    found: Mapping[str, Found] = field(repr=False)

    @property
    def key_ids(self) -> Iterator[str]:
        """The ids of the keys that open the envelopes."""
        return (found.key_id for found in self.found.values() if isinstance(found, Envelope))

    def sealed(
        self, sealing: Sealing, keys: Mapping[str, VaultKey | None], limits: Mapping[str, int | None]
    ) -> Resealed:
        """Seal the texts. Tokens in plain text begin one grant together; those in envelopes keep theirs.

        Args:
            sealing: Seals with the newest key.
            keys: The keys that open the envelopes, by their ids; ``None`` for one that does not exist any more.
            limits: How many characters each column takes, by role; ``None`` for any number.
        """
        bound_to = self.row.bound_to
        if bound_to is None:
            return Resealed(row=self.row, texts={}, reason="no_account" if self.found else None)
        texts: dict[str, str] = {}
        reason, minted = None, new_grant_id()
        for role, found in self.found.items():
            opened = _opened(found, role, keys, bound_to)
            if isinstance(opened, CredentialsUnreadable):
                reason = reason or opened.reason
                continue
            grant_id = found.grant_id if isinstance(found, Envelope) else minted
            text = sealing.again(opened, grant_id=grant_id, bound_to=bound_to)
            limit = limits[role]
            if limit is None or len(text) <= limit:
                texts[role] = text
            else:
                reason = reason or "too_long"
        return Resealed(row=self.row, texts=texts, reason=reason)


def _opened(
    found: Found, role: str, keys: Mapping[str, VaultKey | None], bound_to: BoundTo
) -> Contents | CredentialsUnreadable:
    """Return what is to be sealed, or the error of a text that cannot be read."""
    if not isinstance(found, Envelope):
        return found
    key = keys[found.key_id]
    if key is None:
        return CredentialsUnreadable(role=role, reason="unknown_key", key_id=found.key_id)
    try:
        contents: Contents = open_envelope(found, _KINDS[role], key=key, bound_to=bound_to)
    except CredentialsUnreadable as error:
        return error.with_traceback(None)
    return contents


# -- what is to be sealed ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Task:
    """Tell texts that are to be sealed from others.

    Attributes:
        begins: Builds the condition in SQL for the newest key's id. It may find too many texts, and never too few.
        decide: Decides in Python, by a text, the class of its column's contents and the newest key's id: what is to be
            sealed, or ``None``.
        with_pending: Whether pending credentials may have such texts.
    """

    begins: Callable[[str], Begins]
    decide: Callable[[str | None, type[Any], str], Found | None]
    with_pending: bool

    def found_in(self, row: SealedRow, *, newest: str) -> Due:
        """Return a row with those of its texts that are to be sealed.

        Args:
            row: The row.
            newest: The newest key's id.
        """
        decided = {role: self.decide(text, _KINDS[role], newest) for role, text in row.texts.items()}
        return Due(row=row, found={role: found for role, found in decided.items() if found is not None})


def _if_plain(text: str | None, kind: type[Any], _newest: str) -> Found | None:
    """Return the contents of plain text, or its error if it has a character that envelopes refuse."""
    found: Found | None = read(text, kind, plaintext=Plaintext.READ)
    if isinstance(found, CredentialsUnreadable):
        return found if found.reason == "plain_text" else None
    return None if isinstance(found, Envelope) else found


def _if_older(text: str | None, kind: type[Any], newest: str) -> Found | None:
    """Return an envelope of another key, or the error of a text that only begins as one."""
    found: Found | None = read(text, kind, plaintext=Plaintext.REFUSE)
    if isinstance(found, CredentialsUnreadable):
        return None if found.reason == "plain_text" else found
    return found if isinstance(found, Envelope) and found.key_id != newest else None


PLAIN_TEXT: Final = Task(
    begins=lambda _: lambda is_first: sa.not_(sa.or_(is_first(f"{FORMAT}."), is_first(""))),
    decide=_if_plain,
    with_pending=False,
)
"""Seals plain text: every text that is not empty, and does not begin as an envelope does."""
OLDER_KEY: Final = Task(
    begins=lambda newest: lambda is_first: sa.and_(is_first("al"), sa.not_(is_first(f"{FORMAT}.{newest}."))),
    decide=_if_older,
    with_pending=True,
)
"""Seals envelopes of other keys than the newest."""
