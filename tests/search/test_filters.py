"""Conditions: what the grammar takes is written for each database, and it takes nothing else."""

from __future__ import annotations

import pytest

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.search.filters import MAX_DEPTH, parse

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
