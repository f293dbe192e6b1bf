"""Conditions: what the grammar takes is written for each database, and it takes nothing else."""

from __future__ import annotations

import contextlib
import random

import pytest

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.search.filters import MAX_DEPTH, Field, parse

COLUMNS: dict[str, type] = {"uri": str, "status": str, "fps": float, "width": int}


@pytest.mark.parametrize(
    ("text", "literal", "parameter", "values"),
    [
        ("fps > 3", "`fps` > 3", '"fps" > %s', [3]),
        ("fps<=-2.5e1", "`fps` <= -25.0", '"fps" <= %s', [-25.0]),
        ("uri LIKE '%.mp4'", "`uri` like '%.mp4'", '"uri" like %s', ["%.mp4"]),
        ("uri = 'it''s'", "`uri` = 'it''s'", '"uri" = %s', ["it's"]),
        (
            "width in (1, 2) AND not fps != 3",
            "`width` in ( 1 , 2 ) and not `fps` != 3",
            '"width" in ( %s , %s ) and not "fps" != %s',
            [1, 2, 3],
        ),
        ("(uri is not null or fps is null)", "( `uri` is not null or `fps` is null )", '( "uri" is not null or "fps" is null )', []),
        ("uri not in ('a', 'b')", "`uri` not in ( 'a' , 'b' )", '"uri" not in ( %s , %s )', ["a", "b"]),
        ("uri not like '\\%'", "`uri` not like '\\%'", '"uri" not like %s', ["\\%"]),
    ],
)
def test_a_condition_is_written_for_both_kinds_of_database(text: str, literal: str, parameter: str, values: list[object]) -> None:
    found = parse(text, COLUMNS)
    assert found.literal_sql() == literal
    assert found.parameter_sql() == (parameter, values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fps",
        "fps >",
        "fps > 3 fps",
        "fps > 'three'",
        "uri > 3",
        'uri = "a"',
        "uri = 'a",
        "fps like '3'",
        "fps = 1e999",
        "fps = nan",
        "width = 64.5",
        "width < 1e10",
        "digest = 'a'",
        "fps > 3; drop table videos",
        "fps > 3 -- all",
        "fps > 3 /* all */",
        "fps = (select 1)",
        "pg_sleep(10) is null",
        "uri = uri",
        "uri = 'a' || 'b'",
        "fps > 3 union select * from pg_user",
        "uri in (select usename from pg_user)",
        "uri = e'\\'; drop table videos; --'",
        "uri = U&'a'",
        "uri = $$a$$",
        "fps > 3::int",
        "`uri` = 'a'",
        "not",
        "(fps > 3",
        "fps is 3",
        "fps not > 3",
        "fps in ()",
        "fps > 0x10",
        "uri = '\0'",
        "(" * (MAX_DEPTH + 1) + "fps > 3" + ")" * (MAX_DEPTH + 1),
        "fps > 3" + " or fps > 3" * 1000,
    ],
)
def test_anything_else_is_one_sentence(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, COLUMNS)
    assert "\n" not in caught.value.sentence()
    assert len(caught.value.sentence()) < 400


@pytest.mark.parametrize("value", ["'; drop table videos; --", "\\", "\\'", "%s", "`", '"', "a''b", "é\n"])
def test_a_value_stays_one_value(value: str) -> None:
    found = parse("uri = '" + value.replace("'", "''") + "'", COLUMNS)
    assert found.parameter_sql() == ('"uri" = %s', [value])
    assert parse(found.literal_sql().replace("`", ""), COLUMNS) == found or "`" in value


PIECES = (
    *("fps", "uri", "status", "width", "pg_user", "videos", "'a'", "'it''s'", "'", "3", "-1.5", "1e5", "''"),
    *("=", "<", ">=", "<>", "(", ")", ",", "and", "or", "not", "in", "like", "is", "null", "AND", "IS NOT NULL"),
    *(";", "--", "/*", "*/", "select", "union", "drop table videos", "::", "||", "$$", "\\", "true", "cast", "exists", ".", "`", '"'),
)
GOOD = (
    "fps > 3",
    "and uri like 'a%'",
    "or width in ( 1 , 2 )",
    "and not",
    "( status is not null )",
    "uri not in ( 'a' )",
    "or",
    "fps = .5",
)
WORDS = {"=", "!=", "<>", "<", "<=", ">", ">=", "(", ")", ",", "and", "or", "not", "in", "like", "is", "null"}


def test_whatever_is_typed_is_refused_or_made_of_the_words_of_the_grammar() -> None:
    chance, taken = random.Random(0), 0
    for _ in range(10_000):
        words = " ".join(chance.choices(GOOD, k=chance.randint(1, 3))).split(" ")
        for _ in range(chance.randint(0, 3)):
            words[chance.randrange(len(words))] = chance.choice(PIECES)
        text = " ".join(words)
        with contextlib.suppress(ConfigError):
            found = parse(text, COLUMNS)
            assert {part for part in found.parts if isinstance(part, str)} <= WORDS
            assert {part.name for part in found.parts if isinstance(part, Field)} <= set(COLUMNS)
            assert parse(found.literal_sql().replace("`", ""), COLUMNS) == found
            sql, values = found.parameter_sql()
            assert sql.count("%s") == len(values)
            assert "'" not in sql
            taken += 1
    assert taken > 100
