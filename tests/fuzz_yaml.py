#!/usr/bin/env python3
"""Differential fuzz of the YAML subset against PyYAML and ruamel.yaml: fuzz_yaml.py [N] [--seed S] [--only I].

Each of the N rounds writes a document of the subset out of random data, in random styles, and demands:

  * it is accepted and means the data that it was written from;
  * whatever is accepted, of it, of a damaged copy of it and of a few short texts of anything, means the same in PyYAML (its parser, the core schema applied
    to its scalars) and in ruamel.yaml (its parser with the core schema, and its own YAML 1.2 types but where those leave
    the core schema);
  * nothing but YamlError is ever raised, and reading twice gives the same;
  * set_yaml changes what it was asked to change, no other value, and no comment.

A failing document is printed with its seed and round: `--seed S --only I` repeats it alone.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import sys
from collections import Counter
from typing import Any, Dict, List, Optional, Tuple

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from clinvk import YamlError, parse_yaml, parse_yaml_with_lines, set_yaml

try:
    import yaml
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError as RuamelError
except ImportError as missing:
    print("skipped fuzz_yaml: %s" % missing)
    raise SystemExit(0) from None

MARK = "\u2042"  # in every comment, with a number, and nowhere else


# --- The core schema, told again ---------------------------------------------

CORE = [
    (re.compile(r"(null|Null|NULL|~|)\Z"), lambda text: None),
    (re.compile(r"(true|True|TRUE)\Z"), lambda text: True),
    (re.compile(r"(false|False|FALSE)\Z"), lambda text: False),
    (re.compile(r"[-+]?[0-9]+\Z"), lambda text: int(text, 10)),
    (re.compile(r"0o[0-7]+\Z"), lambda text: int(text[2:], 8)),
    (re.compile(r"0x[0-9a-fA-F]+\Z"), lambda text: int(text[2:], 16)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z"), float),
    (re.compile(r"[-+]?(\.inf|\.Inf|\.INF)\Z"), lambda text: -math.inf if text[0] == "-" else math.inf),
    (re.compile(r"(\.nan|\.NaN|\.NAN)\Z"), lambda text: math.nan),
]

# Where the types of ruamel.yaml in its YAML 1.2 mode are not those of the core schema.
RUAMEL_OWN = re.compile(r"""(
    [-+]?[0-9.]*_[0-9_.]*([eE][-+]?[0-9]+)?                               # 1_000
  | [-+]?0b[01_]+ | [-+]0[xo][0-9a-fA-F_]+ | 0[xo][0-9a-fA-F]*_[0-9a-fA-F_]*  # 0b1, -0x1, 0x_1
  | [-+]?\.[0-9]+[eE][-+]?[0-9]+                                          # .5e3 is a number
  | [0-9]{4}-[0-9]{1,2}-[0-9]{1,2}.*                                      # dates
  | << | =
)\Z""", re.VERBOSE)


class Strange(Exception):
    """An oracle read something that the subset does not have."""


def core_value(text: str) -> Any:
    for pattern, convert in CORE:
        if pattern.match(text):
            return convert(text)
    return text


def paired(text: str) -> str:
    """JSON's pairs of escapes put together, which neither oracle does."""
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise Strange("half a surrogate pair") from None


def node_value(node: Any, plain: Optional[List[str]] = None) -> Any:
    """The value of a node tree of either oracle, by the core schema; text without quotes is added to `plain`."""
    kind = node.id if hasattr(node, "id") else type(node).__name__
    if kind == "scalar":
        if node.style is not None and node.style != "":
            return paired(node.value)
        if plain is not None:
            plain.append(node.value)
        return core_value(node.value)
    if getattr(node, "anchor", None):
        raise Strange("an anchor")
    if kind == "sequence":
        return [node_value(item, plain) for item in node.value]
    result: Dict[str, Any] = {}
    for key, value in node.value:
        name = node_value(key, plain)
        if not isinstance(name, str):
            raise Strange("a key that is not text")
        if name in result:
            raise Strange("a key twice")
        result[name] = node_value(value, plain)
    return result


def read_pyyaml(text: str) -> Any:
    node = yaml.compose(text, Loader=yaml.BaseLoader)
    return None if node is None else node_value(node)


def read_ruamel(text: str, plain: List[str]) -> Any:
    node = YAML(typ="safe", pure=True).compose(text)
    return None if node is None else node_value(node, plain)


def load_ruamel(text: str) -> Any:
    def paired_all(value: Any) -> Any:
        if isinstance(value, dict):
            return {paired_all(key): paired_all(item) for key, item in value.items()}
        return [paired_all(item) for item in value] if isinstance(value, list) else paired(value) if isinstance(value, str) else value
    return paired_all(YAML(typ="safe", pure=True).load(text))


def same(a: Any, b: Any) -> bool:
    return repr(a) == repr(b)  # tells 1 from True and 1.0, and .nan equals itself


# --- Documents of the subset --------------------------------------------------

WORDS = ["a", "claude", "read-only", "x y", "yes", "no", "on", "Off", "012", "0o7", "0x1F", "1_000", "1:30", "1.5", "1e3", ".5", "-", "--verbose",
         "-x", "true", "True", "null", "~", "", " ", "  lead", "trail  ", "a: b", "a:b", "a #b", "a#b", "# c", "#c", "- d", "---", "...", "--- x",
         "http://x:80/p?q=1#f", "{a: 1}", "[1, 2]", "a, b", "*x", "&x", "!x", "%x", "@x", "`x`", "? x", "?x", ":x", "x:", "'", '"', "it's", 'say "x"',
         "back\\slash", "two\nlines", "two\nlines\n", "\n", "\n\n", "\nx", "x\n\n\ny\n\n", " x\n y\n", "x\n  y\nz", "x\n\n  y\n\nz\n", "tab\tin",
         "\ttab", "tab\t", "x\n\ty", "x \ny", "x\n ", "x\n \n", "\x00", "\x07\x1b", "\x85", "\u2028", "\u2029x", "\ufeff", "\xa0x", "é", "日本語", "😀", "\U0010ffff",
         "\ud7ff", "\ue000", "\ufffd", "\uffff", "\x7f", "\r", "\r\n", "a\rb", "2001-01-01", "<<", "=", ".inf", ".nan", "-.INF", "+1", "1.", "1e", "0x", "0o8", "0b1", "-0x1", "+0o7", "a?b",
         "a|b", "|", ">", "> x", "| x", "}", "]", ",", "a b c d e f g h i j", "The quick brown fox\njumps over\n\nthe lazy dog.\n"]
LETTERS = "ab:#- \n\"'\\,[]{}é\t?0.1e~|>&*!%@_😀\u3042"
NUMBERS = [("0", 0), ("-0", 0), ("012", 12), ("+5", 5), ("0x1f", 31), ("0xFF", 255), ("0o17", 15), ("-17", -17), ("1e3", 1000.0), ("1.", 1.0), (".5", 0.5),
           ("-1.5E-3", -0.0015), ("+.5", 0.5), ("12345678901234567890", 12345678901234567890), (".inf", math.inf), ("-.Inf", -math.inf),
           ("+.INF", math.inf), (".nan", math.nan), (".NaN", math.nan), ("1.0", 1.0), ("6.02e+23", 6.02e+23), ("-0.0", -0.0)]
PRINTABLE = re.compile("[\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]*\\Z")
ESCAPES = {"\0": "0", "\a": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r", "\x1b": "e", " ": " ", '"': '"', "/": "/",
           "\\": "\\", "\x85": "N", "\xa0": "_", "\u2028": "L", "\u2029": "P"}


class Number:
    """A number with its spelling."""

    def __init__(self, text: str, value: Any) -> None:
        self.text, self.value = text, value


def value_of(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: value_of(item) for key, item in data.items()}
    return [value_of(item) for item in data] if isinstance(data, list) else data.value if isinstance(data, Number) else data


class Writer:
    """Writes random data in random styles."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.comments = 0
        self.keep = False  # the last thing written was block text that keeps the line ends behind it
        self.block_text_last = False
        self.comment_rate = chance.choice([0, 0.1, 0.4])
        self.space_rate = chance.choice([0, 0.1, 0.5])

    def data(self, depth: int) -> Any:
        kind = self.chance.random()
        if depth > 0 and kind < 0.35:
            return {self.string(key=True): self.data(depth - 1) for _ in range(self.chance.choice([0, 1, 1, 2, 3, 5]))}
        if depth > 0 and kind < 0.6:
            return [self.data(depth - 1) for _ in range(self.chance.choice([0, 1, 1, 2, 3, 5]))]
        if kind > 0.92:
            return self.chance.choice([None, True, False])
        return Number(*self.chance.choice(NUMBERS)) if kind > 0.85 else self.string()

    def string(self, key: bool = False) -> str:
        kind = self.chance.random()
        if key and kind < 0.5:
            return self.chance.choice("abcdefgh") + self.chance.choice(["", "_b", "-c", "1"])
        if kind < 0.8:
            return self.chance.choice(WORDS)
        if kind < 0.85:
            return " ".join(self.chance.choice(["lorem", "ipsum", "dolor,", "sit:", "#amet"]) for _ in range(self.chance.randrange(20)))
        return "".join(self.chance.choice(LETTERS) for _ in range(self.chance.randrange(12)))

    # What may stand between.

    def comment(self) -> str:
        self.comments += 1
        return "#%s%s%d%s" % (self.chance.choice(["", " ", "\t", "- a: ", "#"]), MARK, self.comments, self.chance.choice(["", " 'x", ' "y', " [é", "  ", " a: b\t"]))

    def trail(self) -> str:
        """The rest of a line."""
        if self.chance.random() < self.comment_rate:
            return " " * self.chance.randint(1, 3) + self.comment() + "\n"
        return self.few_spaces() + "\n"

    def few_spaces(self) -> str:
        return " " * self.chance.randint(1, 3) if self.chance.random() < self.space_rate else ""

    def junk(self, column: int) -> str:
        """Whole lines without content before an entry in `column`."""
        lines = []
        while self.chance.random() < (self.comment_rate + self.space_rate) / 3:
            if self.chance.random() < 0.5:
                lines.append(" " * self.chance.randint(0, column) + self.comment() + "\n")
                self.keep = False
            elif not self.keep:
                lines.append(("" if self.block_text_last else self.few_spaces()) + "\n")
        return "".join(lines)

    # Scalars.

    def scalar(self, data: Any, margin: int, flow: bool = False, key: bool = False) -> str:
        if data is None:
            return self.chance.choice(["null", "~", "Null", "NULL"])
        if isinstance(data, bool):
            return self.chance.choice(["true", "True", "TRUE"] if data else ["false", "False", "FALSE"])
        if isinstance(data, Number):
            return data.text
        styles = [self.double]
        if PRINTABLE.match(data) and not (key and "\n" in data) and not re.search(r"[ \t]\n|\n[ \t]|\A\n|\n\Z", data):
            styles.append(self.single)
        if self.may_be_plain(data, flow) and data != "<<":
            styles += [lambda data, margin, key: data] * 4
        return self.chance.choice(styles)(data, margin, key)

    def may_be_plain(self, text: str, flow: bool) -> bool:
        if not isinstance(core_value(text), str) or not PRINTABLE.match(text) or re.search(r"[\t\n]|: | #|:\Z|\A | \Z|\A(---|\.\.\.)( |\Z)", text):
            return False
        if text[0] in ",[]{}#&*!|>'\"%@`?:" or text == "-" or text.startswith("- "):
            return False
        return not flow or not (re.search(r"[,?\[\]{}]", text) or text == "-")

    def line_break(self, margin: int, breaks: int) -> str:
        """Line ends inside quotes; with odd white space around them."""
        white = ["", " ", "\t", "  "]
        return (self.chance.choice(white) + "\n") * breaks + " " * max(margin, 0) + self.chance.choice(white)

    def single(self, text: str, margin: int, key: bool) -> str:
        def breaks(match: Any) -> str:
            if "\n" in match.group():
                return self.safe(self.line_break(margin, len(match.group()) + 1), match)
            return self.safe(self.line_break(margin, 1), match) if not key and self.chance.random() < 0.1 else str(match.group())
        return "'%s'" % re.sub(r"(?<=\S) (?=\S)|\n+", breaks, text).replace("'", "''")

    def safe(self, broken: str, match: Any) -> str:
        """No line may begin like a document's."""
        return broken if broken[-1] in " \t" or match.string[match.end():][:1] not in ("-", ".") else broken + " "

    def double(self, text: str, margin: int, key: bool) -> str:
        pieces = []
        escape_rate = self.chance.choice([0, 0, 0.3, 1])
        for position, character in enumerate(text):
            around = text[position - 1:position] + text[position + 1:position + 2]
            if character == " " and len(around) == 2 and not re.search(r"\s", around) and not key and self.chance.random() < 0.1 and (
                    pieces[-1] not in ("\\",) and not pieces[-1].endswith("\n")):
                pieces.append(self.line_break(margin, 1) + (" " if text[position + 1] in "-." else ""))
            elif not key and self.chance.random() < 0.02:
                pieces.append("\\\n" + " " * max(margin, 1) + self.escaped(character))
            elif not PRINTABLE.match(character) or character in '"\\\n\t' or self.chance.random() < escape_rate or (
                    pieces and "\n" in pieces[-1] and character in " "):
                pieces.append(self.escaped(character))
            else:
                pieces.append(character)
        return '"%s"' % "".join(pieces)

    def escaped(self, character: str) -> str:
        code = ord(character)
        forms = ["\\U%08x" % code]
        if character in ESCAPES:
            forms += ["\\" + ESCAPES[character]] * 3
        if code < 0x100:
            forms.append("\\x%02X" % code)
        forms.append(json.dumps(character)[1:-1] if code > 0xFFFF else "\\u%04x" % code)
        return self.chance.choice(forms)

    def block_text(self, text: str, column: int) -> Optional[str]:
        """What stands behind a key or a dash, or None where the text cannot be written so."""
        folded = self.chance.random() < 0.5
        content = text.rstrip("\n")
        tail = len(text) - len(content)
        if column < 0 or not PRINTABLE.match(text):
            return None
        lines = content.split("\n") if content else []
        first = next((line for line in lines if line), "")
        indented = first.startswith((" ", "\t")) or any(not line.strip(" ") and line for line in lines[:1])
        step = self.chance.randint(1, 4)
        state = indented or self.chance.random() < 0.2
        width = column + step
        chomp = "-" if tail == 0 else "+" if tail > 1 or not content else self.chance.choice(["", "", "+"])
        if chomp == "-" and not content and tail:
            return None
        marks = [str(step) if state else "", chomp]
        self.chance.shuffle(marks)
        body = self.folded(lines) if folded else lines
        written = [" " * width + line if line else " " * self.chance.choice([0, 0, width - 1 if width else 0, width]) for line in body]
        if not state:  # ruamel.yaml refuses blank lines above the text with another indentation
            for position, line in enumerate(body):
                if line:
                    break
                written[position] = " " * self.chance.choice([0, width]) if any(body) else ""
        extra = tail - 1 if content else tail
        written += [" " * self.chance.choice([0, 0, width if content or state else 0]) for _ in range(extra)]
        if chomp != "+" and self.chance.random() < 0.1:
            written.append(" " * self.chance.choice([0, width if content or state else 0]))
        self.keep = chomp == "+"
        self.block_text_last = True
        return " " + self.few_spaces() + (">" if folded else "|") + "".join(marks) + self.trail() + "".join(line + "\n" for line in written)

    def folded(self, lines: List[str]) -> List[str]:
        """The lines to write so that folding gives these."""
        out: List[str] = []
        previous: Optional[str] = None
        blanks = 0
        for line in lines:
            if not line:
                blanks += 1
                continue
            indented = line[0] in " \t"
            if previous is not None and not indented and previous[0] not in " \t":
                blanks += 1
            out += [""] * blanks
            blanks = 0
            pieces = [line]
            if not indented:
                pieces = [""]
                for position, character in enumerate(line):
                    if character == " " and 0 < position < len(line) - 1 and line[position - 1] not in " \t" and line[position + 1] not in " \t" and (
                            self.chance.random() < 0.3):
                        pieces.append("")
                    else:
                        pieces[-1] += character
            out += pieces
            previous = line
        return out

    # Collections.

    def flow(self, data: Any, margin: int) -> str:
        if not isinstance(data, (dict, list)):
            return self.scalar(data, margin, flow=True)
        entries = []
        for key in data:
            if isinstance(data, list):
                entries.append(self.flow(key, margin) + self.flow_gap(margin))
                continue
            name = self.scalar(key, margin, flow=True, key=True)
            space = self.flow_gap(margin)
            if data[key] is None and self.chance.random() < 0.3:
                entries.append(name + self.few_spaces() + ":" + (space if name[0] in "\"'" else space or " "))
                continue
            if name[0] not in "\"'" and not space:
                space = " "
            entries.append(name + self.few_spaces() + ":" + space + self.flow(data[key], margin) + self.flow_gap(margin))
        opening, closing = "{}" if isinstance(data, dict) else "[]"
        body = ",".join(self.flow_gap(margin) + entry for entry in entries) if entries else self.flow_gap(margin)
        return opening + body + ("," + self.flow_gap(margin) if entries and self.chance.random() < 0.2 else "") + closing

    def flow_gap(self, margin: int) -> str:
        if self.chance.random() < self.space_rate * 0.4:
            return self.trail() + " " * (max(margin, 0) + self.chance.randint(0, 3)) if margin > 0 or self.chance.random() < 0.5 else self.trail() + " "
        return self.chance.choice(["", " ", " "])

    def value(self, data: Any, column: int, behind: str) -> str:
        """What stands behind a key, a dash or at the start of the text, for an entry in `column`; ends with a line end."""
        self.block_text_last = False
        same_line = behind != "text"
        if isinstance(data, str) and self.chance.random() < 0.25:
            text = self.block_text(data, column)
            if text is not None:
                return text
        self.keep = False
        if data is None and same_line and self.chance.random() < 0.5:
            return self.trail()
        if not isinstance(data, (dict, list)) or not data or self.chance.random() < 0.2:
            atom = self.flow(data, max(column, 0)) if isinstance(data, (dict, list)) else self.scalar(data, column + 1)
            if not same_line:
                return atom + self.trail()
            if self.chance.random() < 0.15:
                inner = column + self.chance.randint(1, 4)
                return self.trail() + self.junk(inner) + " " * inner + atom + self.trail()
            return " " * self.chance.choice([1, 1, 1, 3]) + atom + self.trail()
        if behind == "-" and self.chance.random() < 0.6:
            space = self.chance.choice([1, 1, 3])
            return " " * space + self.entries(data, column + 1 + space, True)
        least = column if behind == ":" and isinstance(data, list) else column + 1
        inner = self.chance.choice([least, least, column + 2, column + 4])
        inner = max(inner, least, 0)
        return (self.trail() + self.junk(inner) if same_line else "") + self.entries(data, inner, not same_line and inner == 0)

    def entries(self, data: Any, column: int, begun: bool) -> str:
        pieces = []
        for key in data:
            if not begun:
                pieces.append(self.junk(column) + " " * column)
            begun = False
            if isinstance(data, list):
                pieces.append("-" + self.value(key, column, "-"))
            else:
                name = self.scalar(key, 0, key=True)
                pieces.append(name + self.few_spaces() + ":" + self.value(data[key], column, ":"))
        return "".join(pieces)

    def document(self) -> Tuple[str, Any]:
        data = self.data(self.chance.choice([0, 1, 2, 3, 3, 4, 5]))
        if self.chance.random() < 0.1:
            value = value_of(data)
            text = json.dumps(value if "nan" not in repr(value) and "inf" not in repr(value) else None, indent=self.chance.choice([None, 0, 1, 4]),
                              ensure_ascii=self.chance.random() < 0.5, separators=self.chance.choice([None, (",", ":")]))
            if PRINTABLE.match(text):
                return text, json.loads(text)
        start = self.chance.choice(["", "", "\ufeff"]) + self.junk(3) + self.chance.choice(["", "", "---" + self.trail() + self.junk(3)])
        text = start + self.value(data, -1, "text")
        if not self.keep:
            text += self.junk(0)
        if not self.block_text_last and self.chance.random() < 0.1:
            text = text.rstrip("\n") if not text.endswith(" \n") else text
        if self.chance.random() < 0.15:
            text = text.replace("\n", "\r\n")
        return text, value_of(data)


def damaged(text: str, chance: random.Random) -> str:
    """A copy with a few things deleted, doubled, put in or moved."""
    for _ in range(chance.choice([1, 1, 1, 2, 3, 6])):
        at = chance.randint(0, len(text))
        other = min(len(text), at + chance.choice([1, 1, 2, 5, 20]))
        lines = text.split("\n")
        line = chance.randrange(len(lines))
        kind = chance.randrange(10)
        if kind == 0:
            text = text[:at] + text[other:]
        elif kind in (1, 2, 3):
            text = text[:at] + chance.choice([*":-#,[]{}'\"\\|>&*!?%@`~ \t\n\r\0", "  ", "\n\n", "\n ", ": ", "- ", " #", "---\n", "\n...\n", "<<: ", "? ", "\x85",
                                              "\u2028", "\ufeff", "|2\n", ">-\n", "\ud800", "&a ", "*a", "!!str ", "0", "_", "."]) + text[at:]
        elif kind == 4:
            text = text[:at] + text[at:other] + text[at:]
        elif kind == 5:
            text = "\n".join(lines[:line] + [lines[line]] + lines[line:])
        elif kind == 6:
            text = "\n".join(lines[:line] + lines[line + 1:])
        elif kind == 7:
            text = "\n".join(lines[:line] + [" " * chance.randrange(4) + lines[line].lstrip(" ")] + lines[line + 1:])
        elif kind == 8:
            to = chance.randrange(len(lines))
            lines[line], lines[to] = lines[to], lines[line]
            text = "\n".join(lines)
        else:
            text = text[:at]
    return text


TOKENS = [*"ab:#-,[]{}'\"\\|>&*!?%@` \n\t019.xoe+_~=<", "a: ", "- ", "\n", "\n  ", "\n ", " #", "'a'", '"b"', "[a", "]", "{a: ", "}", ", ", "|\n  ", ">-\n  ", "|+\n ", "2",
          "---", "...", "null", "true", "0x", "0o7", "1e3", ".5", ".inf", "<<", "\n- ", "\nb: ", "\\n", "é", "\ufeff", "\r\n"]


def soup(chance: random.Random) -> str:
    """A short text of anything: damage seldom reaches the rare places of a document."""
    few = [chance.choice(TOKENS) for _ in range(chance.randint(2, 6))]
    return chance.choice(["", "", "a: ", "[", "- ", "{a: ", "a:\n  "]) + "".join(chance.choice(few) for _ in range(chance.randint(1, 9))) + chance.choice(["", "", "]", "}", "\n"])


# --- The checks ---------------------------------------------------------------

class Failure(Exception):
    pass


def read(text: str) -> Tuple[bool, Any]:
    """Whether it is accepted, and the value; nothing but YamlError may be raised, with a place inside the text."""
    try:
        value = parse_yaml(text)
    except YamlError as error:
        lines = text.replace("\r\n", "\n").split("\n")
        if not 1 <= error.line <= len(lines) or not 1 <= error.column <= len(lines[error.line - 1]) + 1 or not str(error):
            raise Failure("the error %r is at %s:%s, outside of the text" % (str(error), error.line, error.column)) from None
        return False, None
    except Exception as error:
        raise Failure("raised %s: %s" % (type(error).__name__, error)) from error
    if not same(value, parse_yaml_with_lines(text)[0]):
        raise Failure("reading twice gives two values")
    return True, value


def compare(text: str, value: Any) -> None:
    plain: List[str] = []
    for name, reader in (("PyYAML", read_pyyaml), ("ruamel.yaml", lambda text: read_ruamel(text, plain))):
        try:
            theirs = reader(text)
        except (yaml.YAMLError, RuamelError, Strange) as error:
            raise Failure("accepted as %r, but %s says: %s" % (value, name, error)) from None
        if not same(theirs, value):
            raise Failure("read as %r, but by %s as %r" % (value, name, theirs))
    if not any(RUAMEL_OWN.match(text) for text in plain):
        try:
            theirs = load_ruamel(text)
        except (RuamelError, ValueError) as error:
            raise Failure("accepted as %r, but ruamel.yaml's load says: %s" % (value, error)) from None
        if not same(theirs, value):
            raise Failure("read as %r, but loaded by ruamel.yaml as %r" % (value, theirs))


def accepted_by_both(text: str) -> bool:
    try:
        return same(read_pyyaml(text), read_ruamel(text, []))
    except (yaml.YAMLError, RuamelError, Strange, ValueError):
        return False


def changed(data: Any, path: List[str], value: Any) -> Any:
    if not path:
        return value
    return {**(data or {}), path[0]: changed((data or {}).get(path[0]), path[1:], value)}


def comments(text: str) -> List[str]:
    return re.findall(MARK + "[0-9]+", text)


def edit(text: str, data: Any, chance: random.Random, counts: Dict[str, int]) -> None:
    """Sets a random path, there or missing, in an accepted document."""
    path: List[str] = []
    here = data
    while isinstance(here, dict) and here and chance.random() < 0.85:
        path.append(chance.choice(list(here)))
        here = here[path[-1]]
    missing = not path or (isinstance(here, dict) or here is None) and chance.random() < 0.7
    if missing:
        path += [chance.choice(["new", "other key", "a.b", "yes", "é", "", "1"]) for _ in range(chance.choice([1, 1, 2, 3]))]
        missing = not isinstance(here, dict) or path[-1] not in here
    scalars: List[Any] = [chance.choice([*WORDS, None, True, False, 0, -7, 10 ** 20, 1.5, 1e300, 1e-7, -0.0, math.inf, math.nan]) for _ in range(3)]
    value = chance.choice([scalars[0], scalars[0], scalars, scalars[:1], []])
    counts["edits"] += 1
    try:
        edited = set_yaml(text, path, value)
    except YamlError:
        counts["edits refused"] += 1
        return
    except Exception as error:
        raise Failure("set_yaml %r to %r raised %s: %s" % (path, value, type(error).__name__, error)) from error
    try:
        accepted, found = read(edited)
        if not accepted or not same(found, changed(data, path, value)):
            raise Failure("the result means %r" % (found,))
        compare(edited, found)
        if MARK not in repr(data) and comments(edited) != comments(text):  # damage can make data of a comment
            raise Failure("a comment is lost")
        if "\r\n" in text and "\n" not in text.replace("\r\n", "") and "\n" in edited.replace("\r\n", ""):
            raise Failure("the line ends are mixed")
        start = len(os.path.commonprefix([text, edited]))
        end = len(os.path.commonprefix([text[start:][::-1], edited[start:][::-1]]))
        if missing and len(text) - start - end > 4:
            raise Failure("a key was added, but %r has gone" % text[start:len(text) - end])
    except Failure as failure:
        raise Failure("set_yaml %r to %r: %s; it wrote:\n%s" % (path, value, failure, edited)) from failure


def one_round(seed: int, number: int, counts: Dict[str, int]) -> None:
    chance = random.Random("%d/%d" % (seed, number))
    text, data = Writer(chance).document()
    try:
        counts["documents"] += 1
        accepted, value = read(text)
        if not accepted:
            parse_or_explain(text)
        if not same(value, data):
            raise Failure("read as %r, written from %r" % (value, data))
        compare(text, value)
        if value is None or isinstance(value, dict):
            edit(text, value, chance, counts)
        text = damaged(text, chance)
        counts["damaged"] += 1
        accepted, value = read(text)
        if accepted:
            counts["damaged accepted"] += 1
            compare(text, value)
            if (value is None or isinstance(value, dict)) and chance.random() < 0.3:
                edit(text, value, chance, counts)
        elif chance.random() < 0.2:
            counts["damaged refused, looked at"] += 1
            counts["of these read alike by both oracles"] += accepted_by_both(text)
        for _ in range(4):
            text = soup(chance)
            counts["soups"] += 1
            accepted, value = read(text)
            if accepted:
                counts["soups accepted"] += 1
                compare(text, value)
    except Failure as failure:
        print("--seed %d --only %d\n%s\nThe document: %r\n%s" % (seed, number, failure, text, text.encode("utf-8", "backslashreplace").decode("utf-8")))
        raise


def parse_or_explain(text: str) -> None:
    try:
        parse_yaml(text)
    except YamlError as error:
        raise Failure("refused at %d:%d: %s" % (error.line, error.column, error)) from None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rounds", nargs="?", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10 ** 6))
    parser.add_argument("--only", type=int)
    parser.add_argument("--keep-going", action="store_true")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    failed = 0
    for number in range(options.rounds) if options.only is None else [options.only]:
        try:
            one_round(options.seed, number, counts)
        except Failure:
            failed += 1
            if not options.keep_going:
                break
    print("seed %d: %s; %d failed" % (options.seed, ", ".join("%d %s" % (count, name) for name, count in counts.items()), failed))
    if options.only is None and not failed and options.rounds >= 1000:
        # A program that refuses everything, or edits nothing, must not pass.
        floors = [("damaged accepted", "damaged", 0.1), ("soups accepted", "soups", 0.05), ("edits", "documents", 0.1)]
        for name, of, floor in floors:
            if counts[name] < floor * counts[of]:
                print("only %d %s of %d %s" % (counts[name], name, counts[of], of))
                failed += 1
        if counts["edits refused"] > 0.5 * counts["edits"]:
            print("too many edits refused")
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
