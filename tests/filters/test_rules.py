"""Tests rules: which texts are predicates, three-valued verdicts, and equal verdicts for a clip and for a table."""

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.recipe.rules import RuleError, Rules

KINDS = {"luma": "float", "motion": "float", "width": "int", "licence": "str"}
STAGES = [{"luma", "width", "licence"}, set(KINDS)]


def build_rules(tasks: dict[str, str] | None = None, /, **texts: str) -> Rules:
    return Rules(texts, tasks or {}, KINDS, STAGES)


def test_a_true_rule_rejects_and_says_why() -> None:
    verdict = build_rules(dark="luma < 20").judge({"luma": 12.34567})
    assert (verdict.status, verdict.rule) == ("rejected", "dark")
    assert verdict.detail == "luma < 20  (luma = 12.35)"


def test_null_neither_rejects_nor_passes() -> None:
    assert build_rules(still="motion < 0.1").judge({"luma": 30}).status == "pending"
    assert build_rules(still="motion < 0.1 OR luma < 40").judge({"luma": 30}).status == "rejected"
    assert build_rules(still="motion < 0.1 AND luma > 40").judge({"luma": 30}).status == "kept"


def test_an_earlier_stage_gives_the_reason() -> None:
    rule_set = build_rules(still="motion < 0.1", dark="luma < 20")
    assert rule_set.judge({"luma": 1, "motion": 0.0}).rule == "dark"
    assert rule_set.judge({"luma": 1, "motion": 0.0}, stage=0).rule == "dark"
    assert rule_set.judge({"luma": 90, "motion": 0.0}, stage=0).status == "pending"


def test_tasks_are_the_true_ones() -> None:
    rule_set = build_rules({"flow": "motion > 1", "wide": "width > 500", "any": "true"})
    assert rule_set.tasks({"motion": 2.0, "width": None}) == ["flow", "any"]


@pytest.mark.parametrize(
    "text",
    [
        "luma <",
        "luma < 1; SELECT 2",
        "(SELECT 1) = 1",
        "luma < 1) FROM read_csv('/etc/passwd') --",
        "luma IN (SELECT size FROM glob('/*'))",
        "true) WHERE (true",
        "row_number() OVER () > 1",
        "sum(luma) > 1",
        "luma > 'abc'",
        "read_text('/etc/passwd') = ''",
        "luma, motion",
        "luma > 1) OR (luma < 2",
        "luma",
        "null",
        "random() < 0.5",
        "now() > '2030-01-01'",
        "*",
        "",
    ],
)
def test_only_one_scalar_predicate_is_accepted(text: str) -> None:
    with pytest.raises(RuleError, match="bad: "):
        build_rules(bad=text)


@pytest.mark.parametrize("name", ["quote's", 'a"b', "", "1st", "a b", "ä", "a\n"])
def test_only_plain_names_are_accepted(name: str) -> None:
    with pytest.raises(RuleError, match="letters, digits and _"):
        build_rules(**{name: "luma < 1"})
    with pytest.raises(RuleError, match="letters, digits and _"):
        build_rules({name: "luma < 1"})


def test_a_rule_and_a_task_may_bear_one_name() -> None:
    rule_set = build_rules({"same": "width > 500"}, same="luma < 20")
    assert rule_set.judge({"luma": 1.0}).detail == "luma < 20  (luma = 1)"
    assert rule_set.tasks({"width": 600}) == ["same"]
    with pytest.raises(RuleError, match="same: "):
        build_rules({"same": "true"}, same="luma > 'abc'")


def test_a_value_that_a_predicate_cannot_take_is_named() -> None:
    text = "CAST(licence AS INT) < 1990"
    for apply in (build_rules(fine="luma < 1", old=text).judge, build_rules({"old": text}).tasks):
        with pytest.raises(RuleError, match=r"old: 'CAST\(licence AS INT\) < 1990' .*licence = unknown"):
            apply({"licence": "unknown"})
        apply({"licence": "1980"})


def test_an_unknown_column_gets_the_nearest_name() -> None:
    with pytest.raises(RuleError, match="did you mean 'luma'"):
        build_rules(bad="lumma < 3")
    with pytest.raises(RuleError, match="did you mean 'luma'"):
        build_rules(bad="LUMA < 3")


values = st.none() | st.floats(-5, 5, allow_nan=False)


@settings(deadline=None)
@given(st.lists(st.tuples(values, values), min_size=1, max_size=20))
def test_one_clip_and_a_whole_table_are_judged_alike(rows: list[tuple[float | None, float | None]]) -> None:
    rule_set = build_rules(
        {"t": "motion > luma", "dark": "luma > 0"},
        Dark="luma < -4",
        odd="luma < -1 OR motion < -2",
        still="motion < 0 -- a comment",
        dark="luma < 0",
    )
    con = duckdb.connect()
    con.execute("CREATE TABLE clips (clip_id INTEGER, luma DOUBLE, motion DOUBLE, width INTEGER, licence VARCHAR)")
    for number, row in enumerate(rows):
        con.execute("INSERT INTO clips VALUES (?, ?, ?, NULL, NULL)", [number, *row])
    verdict_rows = con.execute(f"{rule_set.judge_table('clips')} ORDER BY clip_id").fetchall()
    task_rows = con.execute(f"SELECT {rule_set.tasks_sql()} FROM clips ORDER BY clip_id").fetchall()
    for (number, status, rule), (tasks,), (luma, motion) in zip(verdict_rows, task_rows, rows, strict=True):
        verdict = rule_set.judge({"luma": luma, "motion": motion})
        assert (status, rule) == (verdict.status, verdict.rule), number
        assert tasks == rule_set.tasks({"luma": luma, "motion": motion})
