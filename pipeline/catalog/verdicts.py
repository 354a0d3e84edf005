"""Judges a table of clips again by the rules and tasks of a recipe; no clip is read."""

from __future__ import annotations

import duckdb

from pipeline.errors import UsageError
from pipeline.recipe.rules import Rules, first_line


def judge_candidates(con: duckdb.DuckDBPyConnection, rules: Rules) -> None:
    """Make the tables `verdict` and `fit` (a row per clip, with its tasks) from the values in the table `candidate`.

    Raises `UsageError` if a rule or a task cannot be applied to these values.
    """
    try:
        con.execute(f"CREATE TABLE verdict AS {rules.judge_table('candidate')}")
        con.execute(f"CREATE TABLE fit AS SELECT clip_id, {rules.tasks_sql()} AS tasks FROM candidate")
    except duckdb.Error as error:
        raise UsageError(
            f"a rule or task cannot be applied to the clips that are there (TRY_CAST?): {first_line(error)}"
        ) from error
