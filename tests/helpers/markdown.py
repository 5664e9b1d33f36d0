"""What tests read out of a Markdown page: headings, code blocks, tables and links."""

import re
import shlex
import textwrap
from typing import NamedTuple

NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*")  # in the line before a block, invisible to readers


class Block(NamedTuple):
    """A fenced block: its language, code without the indentation, first line in the page, and why it is not run."""

    language: str
    code: str
    line: int
    not_run: str

    def commands(self):
        """The shell commands of the block as lists of words; comments are left out."""
        lines = self.code.replace("\\\n", " ").splitlines()
        words = (shlex.split(line, comments=True) for line in lines)
        return [command for line in words for command in _split(line, "&&") if command]


def blocks(text):
    """[Block] in the order of the page."""
    found, lines, before = [], text.splitlines(), ""
    numbered = iter(enumerate(lines, 1))
    for number, line in numbered:
        opening = re.match(r"\s*```(\w*)", line)
        if opening:
            code = []
            for _, inner in numbered:
                if inner.strip() == "```":
                    break
                code.append(inner)
            note = NOT_RUN.fullmatch(before.strip())
            source = textwrap.dedent("\n".join(code)) + "\n"
            found.append(Block(opening.group(1), source, number + 1, note.group(1) if note else ""))
        before = line
    return found


def prose(text):
    """The page without its code blocks."""
    return re.sub(r"^(\s*)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)


def inline_commands(text):
    """[[word, ...]]: ``ppsd3 COMMAND ARGUMENT ...`` between backquotes."""
    spans = re.findall(r"`(ppsd3 \w+ [^`]+)`", prose(text).replace("\n", " "))
    return [shlex.split(span) for span in spans]


def headings(text):
    """[(level, title)]"""
    return [(len(marks), title.strip()) for marks, title in re.findall(r"^(#+) (.+)$", prose(text), re.MULTILINE)]


def anchor(title):
    """What GitHub makes of a heading for links to it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def links(text):
    """Targets of links and images."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))


def numbers_in_tables(text):
    """[[number, ...]]: of each row of a table that has any, sorted, since word order differs; code is left out."""
    rows = [re.sub(r"`[^`]*`", "", line) for line in prose(text).splitlines() if line.startswith("|")]
    found = (re.findall(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?", row) for row in rows)
    return [sorted(number.replace(",", "") for number in row) for row in found if row]


def _split(words, separator):
    parts = [[]]
    for word in words:
        parts.append([]) if word == separator else parts[-1].append(word)
    return parts
