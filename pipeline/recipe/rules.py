"""Rules: named SQL predicates over a clip's columns, which decide between kept, rejected and pending.

DuckDB evaluates them, clip by clip while ingesting and over the whole catalog when the rules change, so both give the
same verdict. A predicate may name columns and call scalar functions; it can read nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import duckdb

from pipeline.errors import did_you_mean
from pipeline.formats.schema import Status

# What a rule or a task may be called.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

SQL_TYPES = {"float": "DOUBLE", "int": "BIGINT", "str": "VARCHAR", "bool": "BOOLEAN"}


class RuleError(ValueError):
    """A rule or task predicate that cannot be evaluated; the message names it and says why."""

    code = "RULE_ERROR"

    def __init__(self, sentence: str, column: str | None = None) -> None:
        """`column`: the unknown column that it names, if any."""
        super().__init__(sentence)
        self.column = column


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict so far: `status` is kept, rejected or pending; `rule` names the rule that decided."""

    status: Status
    rule: str | None = None
    detail: str | None = None


def connect() -> duckdb.DuckDBPyConnection:
    """A DuckDB connection for predicates: in memory, with one thread, without access to files and the network."""
    return duckdb.connect(config={"threads": 1, "enable_external_access": False, "lock_configuration": True})


def _iterate_nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _iterate_nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _iterate_nodes(value)


def parse_columns(name: str, predicate: str, con: duckdb.DuckDBPyConnection) -> list[str]:
    """The columns that a predicate names, in order of appearance.

    Raises `RuleError` if the text is not one scalar expression: bad SQL, a subquery, or more than a predicate.
    """
    # With parentheses, so that it cannot add clauses; without them, so that it cannot close them.
    for text in (f"SELECT 1 WHERE {predicate}\n", f"SELECT ({predicate}\n)"):
        row = con.execute("SELECT json_serialize_sql(?)", [text]).fetchone()
        assert row is not None
        parsed = json.loads(row[0])
        if parsed["error"]:
            raise RuleError(f"{name}: {predicate!r} is not an SQL predicate ({parsed['error_message']})")
    statements = parsed["statements"]
    node = statements[0]["node"] if len(statements) == 1 else {}
    is_expression = (
        node.get("type") == "SELECT_NODE" and node["from_table"]["type"] == "EMPTY" and len(node["select_list"]) == 1
    )
    if not is_expression or any(
        part.get("class") in {"SUBQUERY", "WINDOW", "STAR"} for part in _iterate_nodes(node["select_list"])
    ):
        raise RuleError(f"{name}: {predicate!r} must be one predicate over columns, without subqueries")
    functions = [
        part["function_name"] for part in _iterate_nodes(node["select_list"]) if part.get("class") == "FUNCTION"
    ]
    inconsistent = con.execute(
        "SELECT DISTINCT function_name FROM duckdb_functions() "
        "WHERE stability <> 'CONSISTENT' AND list_contains(?::VARCHAR[], lower(function_name))",
        [[function.lower() for function in functions]],
    ).fetchall()
    if inconsistent:
        raise RuleError(f"{name}: {predicate!r} would judge differently each time, as {inconsistent[0][0]}() does")
    columns = [
        part["column_names"][-1] for part in _iterate_nodes(node["select_list"]) if part.get("class") == "COLUMN_REF"
    ]
    return list(dict.fromkeys(columns))


class Rules:
    """A recipe's rules, ready to judge one clip's values or a whole table.

    A rule rejects where its predicate is true. Null (a signal not measured yet, or not applicable) neither rejects nor
    passes: if it remains after every annotator, the clip is pending. Rules are evaluated in stages, as while ingesting,
    each with more columns than the one before; the first true rule of the earliest stage is the reason.
    """

    def __init__(
        self,
        rules: Mapping[str, str],
        tasks: Mapping[str, str],
        kinds: Mapping[str, str],
        stages: Sequence[Set[str]],
    ) -> None:
        """`kinds`: each known column -> float, int, str or bool. `stages`: the columns known at each stage, growing.

        Raises `RuleError` for an invalid name or predicate, and for an unknown column.
        """
        self._con = connect()
        self._rules, self._tasks, self._stages = dict(rules), dict(tasks), list(stages)
        # Two dictionaries: a rule and a task may have the same name.
        self._rule_columns = self._parse_predicates(self._rules, kinds)
        self._task_columns = self._parse_predicates(self._tasks, kinds)
        column_lists = (*self._rule_columns.values(), *self._task_columns.values())
        self._used = {column: SQL_TYPES[kinds[column]] for columns in column_lists for column in columns}
        self._row = (
            ", ".join(f"CAST(? AS {kind}) AS {quote_name(column)}" for column, kind in self._used.items()) or "1"
        )
        for name, text in (*self._rules.items(), *self._tasks.items()):
            self._check_type(name, text)

    @property
    def columns(self) -> list[str]:
        """The columns that rules and tasks name."""
        return list(self._used)

    def _parse_predicates(self, predicates: Mapping[str, str], kinds: Mapping[str, str]) -> dict[str, list[str]]:
        """The columns of each predicate, after checking their names and its own."""
        columns = {}
        for name, text in predicates.items():
            if not _NAME.fullmatch(name):
                raise RuleError(
                    f"{name!r}: the name of a rule or task is made of letters, digits and _, no digit first"
                )
            columns[name] = parse_columns(name, text, self._con)
            for column in columns[name]:
                if column not in kinds:
                    raise RuleError(f"{name}: no column named {column!r}{did_you_mean(column, kinds)}", column)
        return columns

    def _check_type(self, name: str, text: str) -> None:
        """Evaluate one predicate on nulls and on ones, in a WHERE clause, where SQL allows no aggregates."""
        for number in (None, 1):
            values = [None if kind == "VARCHAR" else number for kind in self._used.values()]
            try:
                sql = f"SELECT typeof(({text}\n)), ({text}\n) FROM (SELECT {self._row}) WHERE ({text}\n) OR true"
                kind = self._con.execute(sql, values).fetchall()[0][0]
            except duckdb.Error as error:
                raise RuleError(f"{name}: {text!r} cannot be evaluated: {first_line(error)}") from error
            if kind != "BOOLEAN":
                raise RuleError(f"{name}: {text!r} is {kind.lower()}, and must be true or false, as `luma < 40` is")

    def _query(self, predicates: Mapping[str, str], values: Mapping[str, Any]) -> list[bool | None]:
        """The result of each predicate on the values. Raises `duckdb.Error` if one cannot be evaluated on them."""
        sql = f"SELECT {_answers_sql(predicates)} FROM (SELECT {self._row})"
        row = self._con.execute(sql, [values.get(column) for column in self._used]).fetchone()
        assert row is not None
        return list(row)[1:]

    def _evaluate(
        self, predicates: Mapping[str, str], columns: Mapping[str, list[str]], values: Mapping[str, Any]
    ) -> list[bool | None]:
        """As `_query`, but raises `RuleError` with the predicate and the values on which it failed."""
        try:
            return self._query(predicates, values)
        except duckdb.Error:
            answers: list[bool | None] = []
            for name, text in predicates.items():
                try:
                    answers += self._query({name: text}, values)
                except duckdb.Error as error:
                    problem = f"{name}: {text!r} cannot be evaluated  ({_format_values(columns[name], values)})"
                    raise RuleError(f"{problem}: {first_line(error)}") from error
            return answers

    def judge(self, values: Mapping[str, Any], stage: int | None = None) -> Verdict:
        """The verdict on one clip after `stage` (by default the last): rejected, pending or kept.

        Columns not measured are absent or None. Before the last stage, "pending" means that a rule needs more columns.
        Raises `RuleError` for a rule that cannot be evaluated on these values (a cast that fails).
        """
        answers: list[bool | None] = []
        for known_columns in self._stages[: None if stage is None else stage + 1]:
            known_values = {column: values.get(column) for column in known_columns}
            answers = self._evaluate(self._rules, self._rule_columns, known_values)
            for name, answer in zip(self._rules, answers, strict=True):
                if answer:
                    return Verdict(Status.REJECTED, name, self.because(name, values))
        for name, answer in zip(self._rules, answers, strict=True):
            if answer is None:
                return Verdict(Status.PENDING, name, self.because(name, values))
        return Verdict(Status.KEPT)

    def tasks(self, values: Mapping[str, Any]) -> list[str]:
        """The tasks with a predicate that is true for the clip. Raises `RuleError` as `judge` does."""
        answers = self._evaluate(self._tasks, self._task_columns, values)
        return [name for name, answer in zip(self._tasks, answers, strict=True) if answer]

    def judge_table(self, table: str) -> str:
        """SQL that judges every row of `table` (with a column clip_id) as `judge` would: (clip_id, status, rule).

        Columns that `table` lacks must not be in any rule, or the caller must add them as nulls.
        """
        parts, rejected = [], []
        for number, known_columns in enumerate(self._stages):
            row = ", ".join(
                f"CAST({quote_name(column) if column in known_columns else 'NULL'} AS {kind}) AS {quote_name(column)}"
                for column, kind in self._used.items()
            )
            answers = _answers_sql(self._rules, f"s{number}_")
            parts.append(f"SELECT clip_id, {answers} FROM (SELECT clip_id{', ' + row if row else ''} FROM {table})")
            rejected += [(f"s{number}.s{number}_{index}", name) for index, name in enumerate(self._rules)]
        last = len(self._stages) - 1
        waiting = [(f"s{last}.s{last}_{index} IS NULL", name) for index, name in enumerate(self._rules)]
        cases = [f"WHEN {test} THEN ('{Status.REJECTED}', {quote_text(name)})" for test, name in rejected]
        cases += [f"WHEN {test} THEN ('{Status.PENDING}', {quote_text(name)})" for test, name in waiting]
        kept = f"('{Status.KEPT}', NULL)"
        verdict = f"CASE {' '.join(cases)} ELSE {kept} END" if cases else kept
        joins = f"({parts[0]}) s0 " + " ".join(
            f"JOIN ({part}) s{number} USING (clip_id)" for number, part in enumerate(parts) if number
        )
        judged = f"SELECT clip_id, {verdict} AS verdict FROM {joins}"
        return f"SELECT clip_id, verdict[1] AS status, verdict[2] AS rule FROM ({judged})"

    def tasks_sql(self) -> str:
        """An SQL expression for the list of tasks that a row is fit for, as `tasks` returns it."""
        cases = ", ".join(f"CASE WHEN ({text}\n) THEN {quote_text(name)} END" for name, text in self._tasks.items())
        return f"list_filter([{cases}]::VARCHAR[], lambda task: task IS NOT NULL)"

    def because(self, name: str, values: Mapping[str, Any]) -> str:
        """A rule's predicate and its values for this clip, for people."""
        return f"{self._rules[name]}  ({_format_values(self._rule_columns[name], values)})"


def _answers_sql(predicates: Mapping[str, str], prefix: str = "answer_") -> str:
    # The newline ends a comment at the end of a predicate. Numbered, because names of rules that differ only in case
    # would be one column to SQL.
    tests = (f"CAST(({text}\n) AS BOOLEAN) AS {prefix}{index}" for index, text in enumerate(predicates.values()))
    return ", ".join(["1", *tests])


def _format_values(columns: Iterable[str], values: Mapping[str, Any]) -> str:
    return ", ".join(f"{column} = {_format_value(values.get(column))}" for column in columns)


def first_line(error: Exception) -> str:
    """DuckDB's message without its quotation of our SQL; Arrow's errors, too, may have many lines."""
    return str(error).splitlines()[0]


def quote_text(text: str) -> str:
    """A text as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    """A column's name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _format_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "null" if value is None else str(value)
