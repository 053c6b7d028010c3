"""Settles duplicates: of all rows that share a key the newest stays, and keeps what its user would lose.

Nothing of one user ever goes to another: neither a token nor a row that points to a link.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from accountlink.doctor.case import Case
from accountlink.doctor.judge.subject import Need
from accountlink.doctor.repair.idioms import IDIOMS, Idiom
from accountlink.doctor.repair.marking import marks, written
from accountlink.doctor.repair.names import Names, derived
from accountlink.doctor.repair.operations import Step
from accountlink.doctor.schema import Column, ForeignKey, Kind

_LIST: Final = "accountlink_duplicates"


def can_settle(case: Case, need: Need) -> bool:
    """Return whether it is safe to say which of several rows stays, and to do away with the others."""
    return why_not_settled(case, need) is None


def why_not_settled(case: Case, need: Need) -> str | None:
    """Say why duplicates are left to people, and what these can do; ``None`` where a migration settles them."""
    subject, row_id = case.subject, case.subject.roles.get("id")
    if row_id is None or row_id in need.columns or (subject.soft and not (need.live and subject.live_sql)):
        return (
            "No rule says which one is right: decide that, change or delete the others, then run the doctor again; it "
            "makes the key."
        )
    if not any(case.protected(each) for each in subject.needs if each.columns == (row_id,)):
        return (
            f"They could only be told apart by {row_id}, and nothing enforces that it is unique: what is done to one "
            f"row could be done to another. Make {row_id} unique first (the migration does it where no two rows share "
            "one), then run the doctor again."
        )
    if apart := ", ".join(_kept_apart_by(case, need)):
        return (
            f"A unique index keeps such rows apart by {apart}, which the policy does not know: they may be no "
            f"duplicates at all. Put {apart} into the provider's slug, give each a table of its own, or take it out of "
            "the index if it means nothing; then run the doctor again."
        )
    if not subject.newest_by and not _is_numbered(case.table.column(row_id)):
        return (
            f"Which one is the newest cannot be told, as {row_id} does not rise. Map created_at or updated_at, then "
            "run the doctor again."
        )
    return None


def _kept_apart_by(case: Case, need: Need) -> list[str]:
    """Find the application's own columns beside the need's in a unique index; computed ones hold nothing new."""
    keys = [j.reads for j in case.judgements if j.index.valid and set(need.columns) <= j.reads]
    known = {column.name for column in case.table.columns if column.generated is not None}
    known |= {*need.columns, *case.subject.roles.values()}
    return sorted(frozenset().union(*keys) - known)


def _is_numbered(column: Column | None) -> bool:
    return column is not None and column.kind is Kind.INTEGER and column.identity


def is_lowered(case: Case, need: Need) -> bool:
    """Return whether a key compares e-mail addresses of which some are brought into normal form."""
    return case.subject.normal in need.columns and can_lower(case)


def can_lower(case: Case) -> bool:
    """Return whether ``lower()`` brings addresses into normal form, and nothing is in the way of it."""
    column = None if case.subject.normal is None else case.table.column(case.subject.normal)
    writable = bool(case.rows.plain) and column is not None and column.generated is None
    return writable and not has_unsettled_addresses(case)


def has_unsettled_addresses(case: Case) -> bool:
    """Return whether rows would meet in one address that a migration does not settle."""
    found = case.rows.duplicates
    return bool(case.rows.plain) and any(
        case.subject.normal in need.columns and found[need].groups and not can_settle(case, need) for need in found
    )


@dataclass(frozen=True)
class Settling:
    """Write the statements that settle the duplicates of one table."""

    case: Case
    names: Names

    @property
    def _idiom(self) -> Idiom:
        return IDIOMS[self.case.catalogue.dialect]

    def steps(self, needs: Sequence[Need]) -> Iterator[Step]:
        """Settle some needs, in one transaction; addresses are brought into normal form on the way.

        Args:
            needs: Needs whose duplicates can be settled.
        """
        if not self.due(needs):
            return
        yield from self._idiom.hold(self._tables())
        if self.case.table.row_security.enabled:
            why = "Fails, instead of leaving rows out in silence, where row-level security hides rows from this role."
            yield Step(sql="SET LOCAL row_security = off", why=why)
        names = [self.names.quote(name) for name in derived(_LIST, self.case.table.name, ())][: len(needs)]
        for number, need in enumerate(needs):
            yield from self._one(need, names[number], names[:number])
        for name in names:
            yield from self._idiom.clear(name)
        if can_lower(self.case):
            yield self._lower(self.names.live(), "")

    def due(self, needs: Sequence[Need]) -> bool:
        """Return whether there is anything to settle."""
        return bool(needs) or can_lower(self.case)

    def dead_addresses(self) -> Iterator[Step]:
        """Bring the addresses of dead rows into normal form too, when no key counts these any more."""
        condition = self.names.live()
        if condition is not None and can_lower(self.case):
            yield self._lower(f"({condition}) IS NOT TRUE", " Dead rows too, so that they can be restored.")

    def _tables(self) -> list[str]:
        """Return the table, and those whose rows would go with its rows, or keep these from going."""
        deleting = not self.case.subject.soft
        pointing = {self._child(key) for key in self.case.table.referenced_by} if deleting else set()
        return [self.names.table, *sorted(pointing - {self.names.table})]

    def _child(self, key: ForeignKey) -> str:
        return self.names.elsewhere(key.schema, key.table)

    # -- one need -----------------------------------------------------------------------------------------------------

    def _one(self, need: Need, name: str, earlier: Sequence[str]) -> Iterator[Step]:
        yield Step(sql=self._idiom.temporary(name, self._query(need, earlier)), why=self._listing(need))
        owned = "user_id" in self.case.subject.roles
        if owned:
            yield from self._repoint(name)
        yield self._mark(name) if self.case.subject.soft else self._delete(name)
        if (token := self._token) is not None:  # when no other row has it any more: it may be unique
            yield self._keep_token(need, name, token)

    @property
    def _token(self) -> Column | None:
        """The refresh token's column, where rows belong to users."""
        return written(self.case, "refresh_token") if "user_id" in self.case.subject.roles else None

    def _listing(self, need: Need) -> str:
        found = self.case.rows.duplicates.get(need)
        count = f" There were {found.groups} such keys, with {found.rows} rows too many." if found else ""
        if self.case.table.row_security.active:
            count = (
                "\nHow many there are is not known: row-level security applies to the role that the doctor connected "
                "as. Where there are none, this lists nothing. Run it as the owner of the table."
            )
        order = ", ".join((*self.case.subject.newest_by, self.case.subject.roles["id"]))
        rows = "live rows" if need.live else "rows"
        text = (
            f"Lists each row that shares ({', '.join(need.columns)}) with a newer one, and the newest beside it: the "
            f"one that links update already. Newest by {order}. Other {rows} are not touched.{count}"
        )
        if self.case.subject.roles.get("user_id") not in (None, *need.columns):
            text += (
                "\nUSERS LOSE A LINK HERE: of several owners of one account the newest stays, who proved last that it "
                "is theirs."
            )
        return text

    def _query(self, need: Need, earlier: Sequence[str]) -> str:
        q, subject = self.names.quote, self.case.subject
        row_id, user = q(subject.roles["id"]), subject.roles.get("user_id")
        keys = ", ".join(self._compared(name, need) for name in need.columns)
        order = ", ".join([*(self._idiom.newest(q(name)) for name in subject.newest_by), f"{row_id} DESC"])
        there = [f"{q(name)} IS NOT NULL" for name in need.columns if self._column(name).nullable]
        marks = self.names.live() if need.live else None
        where = " AND ".join([*([marks] if marks else []), *there])
        lines = [f"           {row_id} AS loser,", f"           first_value({row_id}) OVER newest AS keeper,"]
        if user is not None:
            lines.append(f"           {q(user)} = first_value({q(user)}) OVER newest AS same_user,")
        if self._token is not None:
            lines.append(f"           {q(self._token.name)} AS token,")
            lines += [f"           {fits} AS token_fits," for fits in self._fits(need)]
        inner = "\n".join([*lines, "           row_number() OVER newest AS place"]).strip()
        filtered = f"     WHERE {where}\n" if where else ""
        taken = "".join(f" + (SELECT count(*) FROM {each})" for each in earlier)  # noqa: S608  # quoted
        number = f"row_number() OVER (ORDER BY place, loser){taken}"
        return (
            f"SELECT *, {number} AS number FROM (\n    SELECT {inner}\n      FROM {self.names.table}\n{filtered}"  # noqa: S608  # quoted
            f"    WINDOW newest AS (PARTITION BY {keys} ORDER BY {order})\n) AS ranked WHERE place > 1"
        )

    def _compared(self, name: str, need: Need) -> str:
        sql = self.names.quote(name)
        text = self._idiom.bytewise(sql, self._column(name))
        if name != self.case.subject.normal or not is_lowered(self.case, need):
            return text
        return f"CASE WHEN {self._idiom.capitals(sql)} THEN {self._idiom.lowered(sql)} ELSE {text} END"

    # -- what the keeper gets -----------------------------------------------------------------------------------------

    def _keep_token(self, need: Need, name: str, column: Column) -> Step:
        q, roles = self.names.quote, self.case.subject.roles
        token, row_id = q(column.name), q(roles["id"])
        fits = " AND d.token_fits" if self._fits(need) else ""
        return Step(
            sql=(
                f"UPDATE {self.names.table} AS kept SET {token} = found.token FROM (\n"  # noqa: S608  # quoted
                "    SELECT d.keeper, d.token, row_number() OVER (PARTITION BY d.keeper ORDER BY d.place) AS nth\n"
                f"      FROM {name} AS d\n"
                f"     WHERE d.same_user AND d.token <> ''{fits}\n"
                f") AS found WHERE found.nth = 1 AND kept.{row_id} = found.keeper"
                f" AND (kept.{token} IS NULL OR kept.{token} = '')"
            ),
            why="A row that stays without a refresh token gets the newest one that its own user had in the others."
            + (" A token of another account is not taken." if fits else ""),
        )

    def _fits(self, need: Need) -> tuple[str, ...]:
        """Test whether a row's token belongs to the account of the row that stays; empty where it always does."""
        account = self.case.subject.roles.get("account_id")
        if account is None or account in need.columns:
            return ()
        name = self.names.quote(account)
        one = self._idiom.bytewise(name, self._column(account))
        return (f"({name} IS NULL OR {one} = first_value({one}) OVER newest)",)

    def _repoint(self, name: str) -> Iterator[Step]:
        for key in self.case.table.referenced_by:
            if key.targets == (self.case.subject.roles["id"],):
                child, column = self._child(key), self.names.quote(key.columns[0])
                yield Step(
                    sql=f"UPDATE {child} AS pointing SET {column} = d.keeper\n"  # noqa: S608  # quoted
                    f"  FROM {name} AS d WHERE pointing.{column} = d.loser AND d.same_user",
                    why=f"What points to such a row from {key.table} points to the one that stays, where both are one "
                    f"user's.\nFails where {key.table} allows one row for each link and both have one; nothing is "
                    "changed then.",
                )

    # -- what becomes of the others -----------------------------------------------------------------------------------

    def _mark(self, name: str) -> Step:
        set_to = ",\n       ".join(
            f"{self.names.quote(column)} = {value}" for column, value in marks(self.case, self.names, "lost")
        )
        row_id = self.names.quote(self.case.subject.roles["id"])
        return Step(
            sql=f"UPDATE {self.names.table} AS lost\n   SET {set_to}\n"  # noqa: S608  # quoted
            f"  FROM {name} AS d WHERE lost.{row_id} = d.loser",
            why="The others are marked dead as unlink does it. It cannot be taken back: their credentials are wiped. "
            "Where a CHECK or a trigger of the table refuses that, nothing is changed: complete the statement then.",
        )

    def _delete(self, name: str) -> Step:
        row_id = self.names.quote(self.case.subject.roles["id"])
        why = "The others are deleted. It cannot be taken back."
        if pointing := self.case.table.referenced_by:
            told = ", ".join(sorted({f"{key.table} (ON DELETE {key.on_delete})" for key in pointing}))
            why += (
                f"\nLOOK BEFORE YOU RUN IT: what still points to a deleted row follows its foreign key: {told}.\n"
                "That is what belongs to another user's duplicate, or points by other columns. NO ACTION and RESTRICT "
                "make this statement fail, and nothing is changed then. A foreign key without an index on its own "
                "column makes it slow: each deleted row reads all of that table."
            )
        return Step(
            sql=f"DELETE FROM {self.names.table} WHERE {row_id} IN (SELECT loser FROM {name})",  # noqa: S608  # quoted
            why=why,
        )

    # -- e-mail addresses ---------------------------------------------------------------------------------------------

    def _lower(self, condition: str | None, note: str) -> Step:
        column = self.names.quote(self.case.subject.normal or "")
        more = f" AND {condition}" if condition else ""
        return Step(
            sql=f"UPDATE {self.names.table} SET {column} = {self._idiom.lowered(column)}\n"  # noqa: S608  # quoted
            f" WHERE {self._idiom.capitals(column)}{more}",
            why=f"Addresses of plain ASCII get the form that normalize_email makes: small letters.{note}\n"
            "How they were spelled before cannot be brought back.",
        )

    # -- columns ------------------------------------------------------------------------------------------------------

    def _column(self, name: str) -> Column:
        column = self.case.table.column(name)
        if column is None:
            raise LookupError(f"{self.case.name} has no column {name}.")
        return column
