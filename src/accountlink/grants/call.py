"""Check the arguments of a sharing call before any SQL, and convert them to what the columns take."""

from __future__ import annotations

import secrets as randomness
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from hashlib import sha256
from typing import Any, Final

from accountlink.errors import AccountLinkError, AccountNotFound, ConfigurationError, GrantRejected
from accountlink.grants.mapping import GrantMapping
from accountlink.linking.call import FrozenCall, Occasion
from accountlink.tables.arguments import check_span
from accountlink.tables.exact import Spelling
from accountlink.tables.idtype import IdType
from accountlink.tables.rows import MappedTable
from accountlink.values.base64url import encoded
from accountlink.values.secrecy import Concealed, ConcealedText, Parameters
from accountlink.values.text import storable

TOKEN_BYTES: Final = 32
"""The random bytes of a token: 256 bits."""
TOKEN_LENGTH: Final = 43
"""The characters of a token in URL-safe base64 without padding, and of its SHA-256 in that form."""
MAX_TOKEN: Final = 4096
"""The most characters of a token, also in a table that held tokens before accountlink."""
MAX_USES: Final = 2**31 - 1
_NO_TEXT: Final = b"\xff"
"""A byte that no text has in UTF-8. Hashed bytes that begin with it have the hash of no token."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GrantCall(FrozenCall):
    """Hold the values that one call brings to the table of grants, each as its column takes it.

    Attributes:
        grantor_id: The user who gives access.
        grantee_id: The user who redeems.
        grant_id: The id of the one grant that the call names, if it names one.
        link_id: The linked account that the grant is about.
        token: The token, or its hash, by role.
        use_hash: The hash by which this user's use of the token is found, in the library's own table.
        max_uses: How many users can redeem the token.
        expires_in: How long a new grant lasts, where the database's clock decides.
        now: The present moment by role, where the application's clock decides.
        ends: When a new grant ends by role, where the application's clock decides.
        functions: The results of the application's onupdate functions, by the names of their parameters.
        defaults: Calls the application's default functions, once for all attempts, and returns their results by the
            names of their parameters.
        occasion: The facts of the call's event, where there is an outbox.
        lock_timeout: How long a statement waits for a lock, as PostgreSQL's setting has it; ``None`` leaves that alone.
    """

    grantor_id: Any = None
    grantee_id: Any = None
    grant_id: Any = None
    link_id: Any = None
    token: Mapping[str, str] = field(default_factory=dict)
    use_hash: str | None = None
    max_uses: int | None = None
    expires_in: timedelta | None = None
    now: Mapping[str, Any] = field(default_factory=dict)
    ends: Mapping[str, Any] = field(default_factory=dict)
    functions: Mapping[str, Any] = field(default_factory=dict)
    defaults: Callable[[], Mapping[str, Any]] = dict
    occasion: Occasion | None = None
    lock_timeout: str | None = None

    @cached_property
    def parameters(self) -> Parameters:
        """The parameters of every statement of the call."""
        single = {
            "al_grantor_id": self.grantor_id,
            "al_grantee_id": self.grantee_id,
            "al_grantee_id_as_grantor_id": self.grantee_id,
            "al_id": self.grant_id,
            "al_link_id": self.link_id,
            "al_use_hash": self.use_hash,
            "al_max_uses": self.max_uses,
            "al_expires_in": self.expires_in,
            "al_lock_timeout": self.lock_timeout,
        }
        bound = Parameters((name, value) for name, value in single.items() if value is not None)
        if self.link_id is not None:
            bound.update(al_shared_link=self.link_id, al_shared_owner=self.grantor_id)
        if self.occasion is not None:
            bound.update(self.occasion.parameters())
        bound.update((f"al_{role}", value) for role, value in self.token.items())
        bound.update((f"al_now_{role}", value) for role, value in self.now.items())
        bound.update((f"al_ends_{role}", value) for role, value in self.ends.items())
        bound.update(self.functions)
        return bound


class GrantCalls:
    """Build the calls to one table of grants, from checked arguments.

    Args:
        mapping: The columns of the table, by role.
        table: The table.
        owner: The type of the ids of users who own links, if grants are about links.
    """

    def __init__(self, mapping: GrantMapping, table: MappedTable, *, owner: IdType | None) -> None:
        self._mapping = mapping
        self._columns = mapping.columns
        self._table = table
        self._owner = owner
        self._spelling = Spelling(mapping, mapping.token_role)

    # -- the calls ----------------------------------------------------------------------------------------------------

    def issue(
        self, token: Concealed[str], *, grantor_id: object, link_id: object, expires_in: object, max_uses: object
    ) -> GrantCall:
        """Build the call that issues a grant.

        Raises:
            AccountNotFound: The grantor can have no link of this id.
            ConfigurationError: A call that the table cannot serve.
        """
        grantor_id = self._checked("grantor_id", grantor_id)
        check_span("expires_in", expires_in)
        if isinstance(max_uses, bool) or not isinstance(max_uses, int) or not 1 <= max_uses <= MAX_USES:
            raise ConfigurationError(f"max_uses= takes a whole number from 1 to {MAX_USES}.")
        if max_uses > 1 and not self._mapping.is_own:
            raise ConfigurationError(
                f"{self._mapping.name!r} has one row per token, which serves max_uses=1 only. Issue a token for each "
                "user, or use the library's own table: ShareGrants(grants_table(Base.metadata))."
            )
        if link_id is not None:
            link_id = self._checked_link(link_id)
            if self._owner is not None and not self._owner.holds(grantor_id):
                raise AccountNotFound
        made = self._of_token(token.reveal(), made=True)
        return made.changed(grantor_id=grantor_id, link_id=link_id, max_uses=max_uses)

    def redeem(self, token: Concealed[object], *, grantee_id: object) -> GrantCall:
        """Build the call that redeems a token. A text that cannot be a token is looked up too, and is not found.

        Raises:
            ConfigurationError: A user id of the wrong type.
        """
        grantee_id = self._checked("grantee_id", grantee_id)
        return self._presented(token, user=grantee_id).changed(grantee_id=grantee_id)

    def revoke(self, *, grantor_id: object, grant_id: object, token: Concealed[object] | None) -> GrantCall:
        """Build the call that ends a grant, named by its id or by its token.

        Raises:
            ConfigurationError: Neither or both were given, or an id of the wrong type.
            GrantRejected: No grant can have the id.
        """
        grantor_id = self._checked("grantor_id", grantor_id)
        if (grant_id is None) == (token is None):
            raise ConfigurationError("revoke() needs a grant_id or a token, and not both.")
        if token is not None:
            return self._presented(token).changed(grantor_id=grantor_id)
        grant_id = self._checked("id", grant_id, what="grant_id", outside=GrantRejected)
        return GrantCall(grantor_id=grantor_id, grant_id=grant_id)

    def active(self, *, grantor_id: object, grantee_id: object, link_id: object) -> GrantCall:
        """Build the call that lists the grants that give access.

        Raises:
            ConfigurationError: None of the three was given, or an id of the wrong type.
        """
        if grantor_id is None and grantee_id is None and link_id is None:
            raise ConfigurationError("active() needs a grantor_id, a grantee_id or a link_id.")
        if grantor_id is not None:
            grantor_id = self._checked("grantor_id", grantor_id)
        if grantee_id is not None:
            grantee_id = self._checked("grantee_id", grantee_id)
        if link_id is not None:
            link_id = self._checked_link(link_id)
        return GrantCall(grantor_id=grantor_id, grantee_id=grantee_id, link_id=link_id)

    # -- what they bring ----------------------------------------------------------------------------------------------

    def _checked(
        self, role: str, value: object, *, what: str | None = None, outside: type[AccountLinkError] | None = None
    ) -> Any:
        return self._table.checked_id(role, value, what=what or role, outside=outside)

    def _checked_link(self, link_id: object) -> Any:
        if "link_id" not in self._columns:
            raise ConfigurationError(
                f"{self._mapping.name!r} has no 'link_id' column mapped. Make the table with grants_table(..., "
                "link_id=Connection.id), map link_id=..., or pass no link_id."
            )
        return self._checked("link_id", link_id, outside=AccountNotFound)

    def _presented(self, token: Concealed[object], *, user: object = None) -> GrantCall:
        """Return a call that looks a token up; a value that cannot be a token is replaced by a random one."""
        text = token.reveal()
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_TOKEN or not storable(text):
            text = randomness.token_urlsafe(TOKEN_BYTES)
        found = self._of_token(text, user=user)
        if not self._spelling.keeps(found.token[self._mapping.token_role]):
            return self._of_token(randomness.token_urlsafe(TOKEN_BYTES), user=user)
        return found

    def _of_token(self, text: str, *, user: object = None, made: bool = False) -> GrantCall:
        """Return a call with a token in the form in which it is stored and looked up."""
        role = self._mapping.token_role
        digest = sha256(text.encode()).digest()
        stored = ConcealedText(text if role == "token" else encoded(digest))
        if made and not self._spelling.keeps(stored):
            raise ConfigurationError(
                f"{self._columns[role].name!r} of {self._mapping.name!r} has a type that changes the text it is "
                "given, and a token, or its hash, is compared byte by byte. Use a type that keeps it as it is."
            )
        use: str | None = None
        if user is not None and self._mapping.is_own:
            known = self._table.id_type("grantee_id").stored(user)
            whose = str(known).encode("utf-8", "surrogatepass")
            use = ConcealedText(encoded(sha256(_NO_TEXT + digest + whose).digest()))
        return GrantCall(token={role: stored}, use_hash=use)
