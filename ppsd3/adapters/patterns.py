"""Patterns of module names, matched in linear time: files hold them, and a file must not make a program hang.

PEFT's ``rank_pattern`` and ``alpha_pattern`` are regular expressions, nearly always plain names. Python's ``re`` tries
one alternative after the other, which takes ``(a+)+$`` exponential time. Here all alternatives are followed at once
(Thompson 1968), which takes at most the length of the pattern for each letter of a name, and mostly less, because
transitions that were found are kept. What needs looking back or ahead is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ..utils.errors import InputError

_LONGEST = 1000  # states of a pattern, and of all the patterns in a table that are no names
_PLAIN = re.compile(r"\^?[\w.-]+\$?")
_CLASSES = {letter: re.compile("\\" + letter).fullmatch for letter in "dDwWsS"}
_START, _END = "start", "end"  # conditions between letters


class NamePattern:
    r"""A regular expression of names: letters, ``.``, ``[...]``, ``\d``, groups, ``|``, ``* + ? {m,n}``, ``^``, ``$``.

    Raises:
        InputError: it has something else in it, or is too long.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern, self._at = pattern, 0
        # State -> [(condition, next state)]; a condition is None, _START, _END, or whether a letter matches.
        self._edges: list[list[tuple[Any, int]]] = []
        begin, self._last = self._alternatives(0)
        if self._at < len(pattern):
            raise self._refusal(f"a {pattern[self._at]!r} that closes nothing")
        self._begin = begin
        self._moves: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    @property
    def size(self) -> int:
        """Number of states: the most that are followed for each letter of a name."""
        return len(self._edges)

    def matches_end(self, name: str) -> bool:
        """Whether it matches all of ``name``, or all of what follows one of its dots."""
        return self._matches(name, every_part=True)

    def matches(self, name: str) -> bool:
        """Whether it matches all of ``name``."""
        return self._matches(name, every_part=False)

    def _matches(self, name: str, every_part: bool) -> bool:
        states = self._closure({self._begin}, {_START})
        again = self._closure({self._begin}, ())
        for letter in name:
            following = self._moves.get((states, letter))
            if following is None:
                reached = {to for state in states for test, to in self._edges[state] if callable(test) and test(letter)}
                following = self._moves[states, letter] = self._closure(reached, ())
            states = following | again if every_part and letter == "." else following
        return self._last in self._closure(states, {_END} if name else {_START, _END})

    def _closure(self, states: Iterable[int], conditions: Iterable[str]) -> frozenset[int]:
        """``states`` and all that is reached from them without a letter, where ``conditions`` hold."""
        found, left = set(states), list(states)
        while left:
            for test, to in self._edges[left.pop()]:
                if (test is None or (isinstance(test, str) and test in conditions)) and to not in found:
                    found.add(to)
                    left.append(to)
        return frozenset(found)

    # ------------------------------------------------------------------------------------- from the text to the states

    def _refusal(self, what: str) -> InputError:
        shown = self._pattern if len(self._pattern) <= 60 else self._pattern[:57] + "..."
        return InputError(
            f"The pattern {shown!r} has {what}. Write a module's name or its end; exclude_modules leaves modules out."
        )

    def _state(self) -> int:
        if len(self._edges) >= _LONGEST:
            raise self._refusal(f"more than {_LONGEST} parts")
        self._edges.append([])
        return len(self._edges) - 1

    def _step(self, test: Any) -> tuple[int, int]:
        begin, end = self._state(), self._state()
        self._edges[begin].append((test, end))
        return begin, end

    def _join(self, state: int, to: int) -> None:
        self._edges[state].append((None, to))

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _alternatives(self, depth: int) -> tuple[int, int]:
        if depth > 20:
            raise self._refusal("groups within more than 20 groups")
        begin, end = self._state(), self._state()
        while True:
            first, last = self._sequence(depth)
            self._join(begin, first)
            self._join(last, end)
            if self._peek() != "|":
                return begin, end
            self._at += 1

    def _sequence(self, depth: int) -> tuple[int, int]:
        begin = end = self._state()
        while self._peek() not in ("", "|", ")"):
            at = self._at
            first, last = self._atom(depth)
            after = self._at
            low, high = self._counts()
            resume = self._at
            copies = [(first, last)]
            for _ in range(max(low, high or 0, 1) - 1):  # reads the atom again for each copy
                self._at = at
                copies.append(self._atom(depth))
                assert self._at == after
            self._at = resume
            for number, (first, last) in enumerate(copies, 1):
                self._join(end, first)
                if number > low:
                    self._join(first, last)
                if high is None and number == len(copies):
                    self._join(last, first)
                end = last
            if high == 0:
                end = self._state()
                self._join(copies[0][0], end)
        return begin, end

    def _counts(self) -> tuple[int, int | None]:
        """(least, most or None) of the quantifier that comes next; (1, 1) without one."""
        found = re.compile(r"([*+?]|\{(\d{0,4})(,?)(\d{0,4})\})([?+]?)").match(self._pattern, self._at)
        if not found or found.group(1) in ("{}", "{,}"):
            if self._peek() == "{":
                raise self._refusal("braces that are no count")
            return 1, 1
        self._at = found.end()
        if self._peek() in ("*", "+", "?", "{") and self._peek():
            raise self._refusal("one count after another")
        if found.group(1) in ("*", "+", "?"):
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[found.group(1)]
        low, high = int(found.group(2) or 0), found.group(4)
        most = int(high) if high else None if found.group(3) else low
        if most is not None and most < low:
            raise self._refusal("a count whose end is before its start")
        return low, most

    def _atom(self, depth: int) -> tuple[int, int]:
        letter = self._peek()
        self._at += 1
        if letter == "(":
            if self._peek() == "?":
                if not self._pattern.startswith("?:", self._at):
                    raise self._refusal("a group that begins with (?, other than (?:")
                self._at += 2
            inner = self._alternatives(depth + 1)
            if self._peek() != ")":
                raise self._refusal("a group that is not closed")
            self._at += 1
            return inner
        if letter in "*+?{":
            raise self._refusal(f"a {letter!r} that repeats nothing")
        if letter in "^$":
            return self._step(_START if letter == "^" else _END)
        if letter == ".":
            return self._step(lambda other: other != "\n")
        return self._step(self._set() if letter == "[" else self._escape() if letter == "\\" else letter.__eq__)

    def _escape(self) -> Any:
        letter = self._peek()
        self._at += 1
        if letter in _CLASSES and letter:
            return _CLASSES[letter]
        if not letter or letter.isalnum():
            raise self._refusal(f"\\{letter}, which is not read")
        return letter.__eq__

    def _set(self) -> Any:
        found = re.compile(r"\^?\]?(?:[^\]\\]|\\.)*\]").match(self._pattern, self._at)
        if not found:
            raise self._refusal("a '[' that is not closed")
        self._at = found.end()
        try:
            return re.compile("[" + found.group()).fullmatch  # of one letter, so it takes no time
        except (re.error, RecursionError, OverflowError) as error:
            raise self._refusal(f"a set of letters that cannot be read ({error})") from error


class PatternTable:
    """Pattern -> value, looked up by a module's name as PEFT does: the first pattern that matches its end counts.

    Args:
        patterns: as they are in a file or a configuration.
        name: what messages call them.

    Raises:
        InputError: a pattern that is not read, or so many that are no names that they would take long.
    """

    def __init__(self, patterns: dict[str, Any], name: str) -> None:
        self._names: dict[str, tuple[int, Any]] = {}
        self._others: list[tuple[int, NamePattern, Any]] = []
        size = 0
        for order, (pattern, value) in enumerate(patterns.items()):
            if not isinstance(pattern, str):
                raise InputError(f"{name} has {pattern!r}, which is no module's name.")
            if _PLAIN.fullmatch(pattern):
                self._names.setdefault(pattern.removesuffix("$"), (order, value))
                continue
            try:
                compiled = NamePattern(pattern)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
            size += compiled.size
            if size > _LONGEST:
                raise InputError(
                    f"{name} has regular expressions of more than {_LONGEST} parts together. Write names of modules, "
                    "or their ends, which may be as many as there are."
                )
            self._others.append((order, compiled, value))

    def get(self, module: str, default: Any) -> Any:
        """The value for ``module``."""
        parts = module.split(".")
        ends = ["^" + module, *(".".join(parts[start:]) for start in range(len(parts)))]
        found = [self._names[end] for end in ends if end in self._names]
        first = min(found, key=lambda entry: entry[0], default=None)
        for order, pattern, value in self._others:
            if first is not None and first[0] < order:
                break
            if pattern.matches_end(module):
                return value
        return default if first is None else first[1]
