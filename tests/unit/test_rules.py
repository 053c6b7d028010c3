"""What it takes to add a rule to the doctor."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.support.pages import ROOT

RULE: Final = '''
from accountlink.doctor.findings import Severity

RULE = "no-comment"


def find(case):
    """The one column that the rule is about."""
    column = case.table.column("note")
    yield case.finding(RULE, about=column, severity=Severity.WARNING, message="It is bare.", fix="Describe it.")
'''
LOOK: Final = """
import json
import sqlalchemy as sa
from accountlink import AccountMapping, LinkPolicy
from accountlink.doctor.examine import examine
from accountlink.doctor.ignoring import Ignored
from accountlink.doctor.repair.script import sql_script

table = sa.Table(
    "links", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("user_id", sa.Integer),
    sa.Column("provider", sa.Text, nullable=False), sa.Column("account_id", sa.Text, nullable=False),
    sa.Column("note", sa.Text), sa.UniqueConstraint("provider", "account_id"),
)
with sa.create_engine("sqlite://").begin() as connection:
    table.create(connection)
    report = examine(connection, AccountMapping(table, policy=LinkPolicy()))
    ignored = examine(connection, AccountMapping(table, policy=LinkPolicy()), ignore=["no-comment:note"])
found = [[each.rule, each.object, each.columns, each.severity.value] for each in report.findings]
print(json.dumps([found, len(ignored.findings), "no-comment: It is bare. Describe it." in sql_script(report.repair)]))
"""


def test_a_rule_is_one_file(tmp_path: Path) -> None:
    """A module in the folder of rules is found, told, ignored by its name and left to people, with no other change."""
    shutil.copytree(ROOT / "src" / "accountlink", tmp_path / "accountlink")
    (tmp_path / "accountlink" / "doctor" / "rules" / "no_comment.py").write_text(RULE, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(  # this interpreter, and a program written above
        [sys.executable, "-c", LOOK], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert [[["no-comment", "note", ["note"], "warning"]], 0, True] == json.loads(done.stdout)
