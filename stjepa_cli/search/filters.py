"""Conditions on rows, as people type them after `--where`: one small grammar for every database.

A condition never reaches a database as it was typed. It is parsed here, its columns are checked against those of the table, and what was
parsed is written again for the database that is asked, with every value as a parameter or a quoted literal. So a hostile condition can
neither write nor read another table: the grammar has no word for it.

    condition   := either ("or" either)*
    either      := one ("and" one)*
    one         := "not" one | "(" condition ")" | comparison
    comparison  := column ("=" | "!=" | "<>" | "<" | "<=" | ">" | ">=") literal
                 | column ["not"] "in" "(" literal ("," literal)* ")"
                 | column ["not"] "like" text
                 | column "is" ["not"] "null"
    literal     := number | 'text', in which '' is a quote
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.search.records import FIXED, Column

MAX_LETTERS = 4000
MAX_DEPTH = 40
MOST_INT = 2**31
EXAMPLE = "duration_seconds > 3 and uri like '%.mp4'"

Value = str | float | int

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))|(?P<text>'(?:[^']|'')*')"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign><=|>=|!=|<>|=|<|>|\(|\)|,))"
)
_NUMBERS: dict[str, type] = {
    **dict.fromkeys(("duration_seconds", "fps", "start_seconds", "end_seconds"), float),
    **dict.fromkeys(("width", "height"), int),
}
_COMPARISONS = ("=", "!=", "<>", "<", "<=", ">", ">=")


@dataclass(frozen=True)
class Field:
    """A column that a condition names and the table has.

    Attributes:
        name: Name of the column.
    """

    name: str


@dataclass(frozen=True)
class Literal:
    """A value of a condition.

    Attributes:
        value: Text or a finite number.
    """

    value: Value


Part = str | Field | Literal


@dataclass(frozen=True)
class Filter:
    """A condition that was parsed.

    Attributes:
        parts: Words of the grammar in lower case, columns and values, in order.
    """

    parts: tuple[Part, ...]

    def literal_sql(self) -> str:
        """Return the condition for databases that take no parameters (LanceDB): columns in backticks, values as quoted literals."""

        def written(part: Part) -> str:
            if isinstance(part, Field):
                return f"`{part.name}`"
            if isinstance(part, Literal):
                return "'" + part.value.replace("'", "''") + "'" if isinstance(part.value, str) else repr(part.value)
            return part

        return " ".join(map(written, self.parts))

    def parameter_sql(self) -> tuple[str, list[Value]]:
        """Return the condition for PostgreSQL, with `%s` in the place of each value, and the values."""
        words = [f'"{part.name}"' if isinstance(part, Field) else "%s" if isinstance(part, Literal) else part for part in self.parts]
        return " ".join(words), [part.value for part in self.parts if isinstance(part, Literal)]


def fields(columns: Iterable[Column] = ()) -> dict[str, type]:
    """Return what a condition on a table may name, with the type of its values: all but the vectors."""
    return {name: _NUMBERS.get(name, str) for name in FIXED} | {column.status: str for column in columns}


def parse(text: str, columns: Mapping[str, type]) -> Filter:
    """Parse a condition.

    Args:
        text: Condition, such as `duration_seconds > 3 and uri like '%.mp4'`.
        columns: Columns that a condition may name, each with the type of its values: `str`, `int` or `float`.

    Raises:
        ConfigError: The text is no condition, names another column, or compares text with a number.
    """
    if "\0" in text:
        raise ConfigError("the condition holds a character that no text has", got="NUL")
    if len(text) > MAX_LETTERS:
        raise ConfigError("the condition is too long", got=f"{len(text):,} letters", expected=f"at most {MAX_LETTERS:,}")
    return Filter(tuple(_Parser(text, columns).condition()))


class _Parser:
    """A parser by recursive descent: one method for each rule of the grammar."""

    def __init__(self, text: str, columns: Mapping[str, type]) -> None:
        self._text, self._columns = text, columns
        self._tokens = list(self._split())
        self._next, self._depth = 0, 0

    def condition(self) -> Iterator[Part]:
        yield from self._either()
        if self._next < len(self._tokens):
            raise self._error(self._tokens[self._next][1], "and, or, or the end")

    def _split(self) -> Iterator[tuple[str, str]]:
        """Yield kind and text of each token."""
        end, text = 0, self._text.rstrip()
        while end < len(text):
            found = _TOKEN.match(text, end)
            if found is None:
                raise self._error(text[end:].split()[0], "a column, a comparison, a number or 'text'")
            yield str(found.lastgroup), found[0].strip()
            end = found.end()

    def _either(self) -> Iterator[Part]:
        yield from self._both()
        while self._takes("or"):
            yield "or"
            yield from self._both()

    def _both(self) -> Iterator[Part]:
        yield from self._one()
        while self._takes("and"):
            yield "and"
            yield from self._one()

    def _one(self) -> Iterator[Part]:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error("too many brackets", f"at most {MAX_DEPTH} inside each other")
        if self._takes("not"):
            yield "not"
            yield from self._one()
        elif self._takes("("):
            yield "("
            yield from self._either()
            yield self._must(")")
        else:
            yield from self._comparison()
        self._depth -= 1

    def _comparison(self) -> Iterator[Part]:
        kind, name = self._pop("a column")
        if kind != "name" or name not in self._columns:
            raise self._error(name, "one of the columns " + ", ".join(self._columns))
        yield Field(name)
        if self._takes("is"):
            yield "is"
            if self._takes("not"):
                yield "not"
            yield self._must("null")
            return
        if self._takes("not"):
            yield "not"
            yield from self._in_or_like(name, "in or like")
        elif self._peek() in ("in", "like"):
            yield from self._in_or_like(name, "")
        else:
            sign = self._pop("a comparison, in, like or is")[1]
            if sign not in _COMPARISONS:
                raise self._error(sign, "one of " + " ".join(_COMPARISONS) + ", in, like or is")
            yield sign
            yield self._literal(name)

    def _in_or_like(self, name: str, expected: str) -> Iterator[Part]:
        if self._takes("like"):
            if self._columns[name] is not str:
                raise self._error(f"{name} like", f"text before like, but {name} holds numbers")
            yield "like"
            yield self._literal(name)
        elif self._takes("in"):
            yield "in"
            yield self._must("(")
            yield self._literal(name)
            while self._takes(","):
                yield ","
                yield self._literal(name)
            yield self._must(")")
        else:
            raise self._error(self._pop(expected)[1], expected)

    def _literal(self, name: str) -> Literal:
        """Return the next token as a value for a column."""
        wants_text = self._columns[name] is str
        expected = f"'text' in single quotes for {name}" if wants_text else f"a number for {name}"
        kind, token = self._pop(expected)
        if kind != ("text" if wants_text else "number"):
            raise self._error(token, expected)
        if wants_text:
            return Literal(token[1:-1].replace("''", "'"))
        number = float(token)
        if number in (float("inf"), float("-inf")):
            raise self._error(token, "a finite number")
        if self._columns[name] is int:  # a database may refuse other numbers for such a column
            if number != int(number) or abs(number) >= MOST_INT:
                raise self._error(token, f"a whole number below {MOST_INT:,} for {name}")
            return Literal(int(number))
        return Literal(int(token) if re.fullmatch(r"[+-]?\d{1,18}", token) else number)

    def _peek(self) -> str:
        """Return the next word or sign in lower case; nothing for literals and at the end."""
        if self._next == len(self._tokens) or self._tokens[self._next][0] in ("text", "number"):
            return ""
        return self._tokens[self._next][1].lower()

    def _takes(self, word: str) -> bool:
        found = self._peek() == word
        self._next += found
        return found

    def _must(self, word: str) -> str:
        if not self._takes(word):
            raise self._error(self._pop(word)[1], word)
        return word

    def _pop(self, expected: str) -> tuple[str, str]:
        if self._next == len(self._tokens):
            raise self._error("the end", expected)
        self._next += 1
        return self._tokens[self._next - 1]

    def _error(self, got: str, expected: str) -> ConfigError:
        shown = self._text if len(self._text) <= 80 else self._text[:79] + "…"
        return ConfigError(f"cannot read the condition `{shown}`", got=got[:40], expected=expected, fix=f'Example: --where "{EXAMPLE}".')
