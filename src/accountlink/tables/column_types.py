"""Decide which type of column can play which part, and in which form it takes a value.

One table, ``_FORMS``, serves links and grants. A column is judged by the values that it takes from Python. A
``TypeDecorator`` that only names the type behind it counts as that type. A ``TypeDecorator`` that converts values is
tried with an example in each form of the part. The first form that comes back unchanged is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from accountlink.tables.rows import Form, as_it_is, aware, listed, naive, read_moment, read_scopes, seconds
from accountlink.tables.type_layers import (
    POSTGRESQL,
    SQLITE,
    Type,
    layer_works,
    loaded,
    plain_types,
    python_type,
    resolved,
    stored,
    works_on_values,
)
from accountlink.values.credentials import join_scopes


class Part(Enum):
    """Name the kind of value that a column holds, in the words of an error."""

    ID = "holds a row's own id"
    USER = "holds ids of users: whole numbers, texts or UUIDs"
    SLUG = "names a provider, by a text or by an enumeration"
    COMPARED = "holds a text that is compared"
    TEXT = "holds a text"
    SECRET = "holds an OAuth token, which is a text"  # noqa: S105  # no password
    TOKEN = "holds a grant's token or its hash, which is a text"  # noqa: S105  # no password
    MOMENT = "holds a moment"
    CLOCKED = "holds a moment that the database's own clock may write"
    SCOPES = "holds scopes, as one text or as a list of texts"
    NUMBER = "is a whole number that statements count up"
    FLAG = "is a flag that statements test for being true"


LINK_PARTS: Final[Mapping[str, Part]] = {
    "id": Part.ID,
    "user_id": Part.USER,
    "provider": Part.SLUG,
    **dict.fromkeys(("account_id", "email_key", "reason"), Part.COMPARED),
    "email": Part.TEXT,
    **dict.fromkeys(("access_token", "refresh_token"), Part.SECRET),
    **dict.fromkeys(("expires_at", "created_at", "updated_at", "deleted_at"), Part.MOMENT),
    "scopes": Part.SCOPES,
    "active": Part.FLAG,
    "version": Part.NUMBER,
}
GRANT_PARTS: Final[Mapping[str, Part]] = {
    **dict.fromkeys(("id", "link_id", "issued_id"), Part.ID),
    **dict.fromkeys(("grantor_id", "grantee_id"), Part.USER),
    **dict.fromkeys(("token_hash", "token"), Part.TOKEN),
    **dict.fromkeys(("expires_at", "created_at", "updated_at", "redeemed_at", "ended_at"), Part.CLOCKED),
    **dict.fromkeys(("link_version", "max_uses", "uses"), Part.NUMBER),
    "active": Part.FLAG,
}


# -- the forms --------------------------------------------------------------------------------------------------------


def as_member(slug: str) -> str:
    """Leave a slug unchanged, because :func:`accountlink.tables.slugs.slugs_of` finds the member of the enumeration."""
    return slug


# -- the table --------------------------------------------------------------------------------------------------------

Row = tuple[type[Type], tuple[Form, ...]]
_ENUM: Final[Row] = (sa.Enum, ())
"""An enumeration takes no text but its own."""
_CHAR: Final[tuple[Row, ...]] = ((sa.CHAR, ()), (sa.NCHAR, ()))
"""``CHAR`` fills a text up with blanks: they are left out where a text is compared, and come back elsewhere."""
_UNKNOWN: Final[Row] = (sa.types.NullType, (as_it_is,))
"""Types that SQLAlchemy does not know are accepted for parts whose values are sent unchanged."""
_TEXT: Final[tuple[Row, ...]] = ((sa.String, (as_it_is,)), _UNKNOWN)
_ID: Final[tuple[Row, ...]] = (
    _ENUM,
    *_TEXT,
    (sa.Integer, (as_it_is,)),
    (sa.Uuid, (as_it_is,)),
    (sa.types.UserDefinedType, (as_it_is,)),
)
_MOMENT: Final[tuple[Row, ...]] = ((sa.SmallInteger, ()), (sa.Integer, (seconds,)), (sa.DateTime, (aware, naive)))
_FORMS: Final[Mapping[Part, tuple[Row, ...]]] = {
    Part.ID: (*_ID, *((kind, (as_it_is,)) for kind in (sa.Numeric, sa.LargeBinary, sa.Date, sa.DateTime))),
    Part.USER: _ID,
    Part.SLUG: ((sa.Enum, (as_member,)), *_TEXT),
    Part.COMPARED: (_ENUM, *_TEXT),
    Part.TEXT: (_ENUM, *_CHAR, *_TEXT),
    Part.SECRET: (_ENUM, *_CHAR, *_TEXT),
    Part.TOKEN: (_ENUM, *_TEXT),
    Part.MOMENT: _MOMENT,
    Part.CLOCKED: _MOMENT,
    Part.SCOPES: (_ENUM, (sa.JSON, (listed,)), (sa.ARRAY, (listed,)), (sa.String, (join_scopes,))),
    Part.NUMBER: ((sa.Integer, (as_it_is,)),),
    Part.FLAG: ((sa.Boolean, (as_it_is,)),),
}
"""The forms in which a type takes the values of a part. The first class that a type is of decides; no form: refused."""
_MOMENT_REMEDY: Final = "sa.DateTime(timezone=True), or sa.BigInteger for seconds since 1970"
REMEDIES: Final[Mapping[Part, str]] = {
    Part.ID: "sa.BigInteger, sa.Uuid or sa.Text",
    Part.USER: "sa.BigInteger, sa.Uuid or sa.Text",
    Part.SLUG: "sa.String or sa.Text",
    Part.COMPARED: "sa.String or sa.Text",
    Part.TEXT: "sa.String or sa.Text",
    Part.SECRET: "sa.Text",
    Part.TOKEN: "sa.String or sa.Text",
    Part.MOMENT: _MOMENT_REMEDY,
    Part.CLOCKED: _MOMENT_REMEDY,
    Part.SCOPES: "sa.Text, sa.JSON or an ARRAY of sa.Text, in one form on every database",
    Part.NUMBER: "sa.BigInteger",
    Part.FLAG: "sa.Boolean, which on SQLite is a column of 0 and 1",
}
"""The types that an error suggests for a part."""
_MOMENT_EXAMPLE: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
_EXAMPLES: Final[Mapping[Part, tuple[Any, ...]]] = {
    Part.SLUG: ("acme",),
    Part.COMPARED: ("ann+1@example.com",),
    Part.TEXT: ("ann+1@example.com",),
    Part.TOKEN: ("Zm9v-YmFy_" * 4 + "abc",),
    Part.MOMENT: (_MOMENT_EXAMPLE,),
    Part.CLOCKED: (_MOMENT_EXAMPLE,),
    Part.SCOPES: (frozenset({"read", "write.all"}),),
    Part.NUMBER: (1, 41),
    Part.FLAG: (True, False),
}
"""The examples with which a type that converts values is tried; a part without examples accepts the type."""
_COMPARED: Final = (Part.SLUG, Part.COMPARED, Part.TOKEN)
"""The parts whose texts are compared: a text that comes back changed is refused by the call that brings it."""
_READERS: Final[Mapping[Part, Form]] = {
    Part.MOMENT: read_moment,
    Part.CLOCKED: read_moment,
    Part.SCOPES: read_scopes,
}


def moment_forms(parts: Mapping[str, Part], columns: Mapping[str, sa.Column[Any]]) -> dict[str, Form]:
    """Return how each column that holds a moment takes one, by role."""
    return {
        role: form_of(part, columns[role].type) or aware  # a mapping has refused what takes none
        for role, part in parts.items()
        if part in (Part.MOMENT, Part.CLOCKED) and role in columns
    }


def form_of(part: Part, kind: Type) -> Form | None:
    """Return the function that writes a part's values in this type on every database, or ``None`` if there is none."""
    if part in (Part.ID, Part.USER) and not works_on_values(kind) and len({*map(python_type, plain_types(kind))}) > 1:
        return None  # an id is one value in Python, whatever database it is for
    forms = [_taken(part, layers, dialect) for dialect, layers in resolved(kind)]
    return next((form for form in forms[0] if all(form in others for others in forms)), None) if forms else None


def _taken(part: Part, layers: list[Type], dialect: sa.Dialect) -> tuple[Form, ...]:
    """Return the forms that one database takes, the best first."""
    plain = layers[-1]
    if any(isinstance(layer, sa.PickleType) for layer in layers):
        return ()  # one text has several pickles, and a pickle is not a text
    if not isinstance(plain, sa.String) and any(isinstance(layer, postgresql.DOMAIN) for layer in layers):
        return ()  # SQLAlchemy writes no cast for its values, and asyncpg sends values without a cast as texts
    if any(layer_works(layer) for layer in layers):
        return _returned(part, layers, dialect)
    forms = next((forms for known, forms in _FORMS[part] if isinstance(plain, known)), ())
    if isinstance(plain, sa.DateTime) and dialect is POSTGRESQL and aware in forms:
        # An aware moment needs a column that keeps its zone, or PostgreSQL converts it by the session's time zone.
        return tuple(form for form in forms if form is (aware if plain.timezone else naive))
    if isinstance(plain, sa.ARRAY) and form_of(Part.TEXT, plain.item_type) is None:
        return ()
    if isinstance(plain, sa.Enum) and plain.enum_class is None and all(text == text.lower() for text in plain.enums):
        return (*forms, *([as_it_is] if forms else []))  # its texts are the slugs themselves
    return forms


# -- types of the application's own -----------------------------------------------------------------------------------


def _returned(part: Part, layers: list[Type], dialect: sa.Dialect) -> tuple[Form, ...]:
    """Return the forms in which a type of the application's own takes the examples and gives them back unchanged."""
    if part not in _EXAMPLES:
        return (as_it_is,)
    forms = dict.fromkeys(form for _, forms in _FORMS[part] for form in forms if form is not as_member)
    return tuple(form for form in forms if all(_returns(part, form, each, layers, dialect) for each in _EXAMPLES[part]))


def _returns(part: Part, form: Form, example: Any, layers: list[Type], dialect: sa.Dialect) -> bool:
    read = _READERS.get(part, as_it_is)
    try:
        written = stored(form(example), layers, dialect)
        if part in _COMPARED:  # a compared value must have one written form, a text
            return isinstance(layers[-1], sa.String) and bool(written == stored(form(example), layers, dialect))
        fits = _fits(part, example, written, layers[-1], dialect)
        return fits and bool(read(loaded(written, layers, dialect)) == example)
    except (ValueError, LookupError):  # it takes a few texts only, and a call with another one is refused
        return part in _COMPARED
    except Exception:  # noqa: BLE001  # an application's own code: whatever it raises, it does not take this form
        return False


def _fits(part: Part, example: Any, written: Any, plain: Type, dialect: sa.Dialect) -> bool:
    """Say whether the type behind the application's type accepts what that made of an example."""
    if part in (Part.NUMBER, Part.FLAG, Part.CLOCKED):  # SQL writes and compares these beside Python
        return any(written == form(example) for form in _taken(part, [plain], dialect))
    if isinstance(plain, sa.DateTime) and isinstance(written, datetime):
        return dialect is SQLITE or plain.timezone is (written.tzinfo is not None)
    return not isinstance(plain, (sa.String, sa.ARRAY)) or isinstance(written, plain.python_type)
