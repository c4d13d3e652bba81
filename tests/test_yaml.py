"""Section 4, Configuration: the YAML subset.  What is read, what is refused and where, and edits that leave the rest alone.

That the accepted texts mean the same to PyYAML and ruamel.yaml is for fuzz_yaml.py to show; these tests need neither.
"""
import json
import math
import random
import signal
import unittest

import support
from support import clinvk

support.left_to_full_runs()

YamlError, parse_yaml, parse_yaml_with_lines, set_yaml = clinvk.YamlError, clinvk.parse_yaml, clinvk.parse_yaml_with_lines, clinvk.set_yaml


INF, NAN = math.inf, math.nan

ACCEPTED = {
    "nothing": [
        ("", None), ("\n \n", None), ("# only a comment", None), ("---\n", None), ("---", None), ("\ufeff", None), ("\ufeff# x\n--- # y\na: 1", {"a": 1}),
    ],
    "types of the core schema": [
        ("~", None), ("null", None), ("Null", None), ("NULL", None), ("nULL", "nULL"), ("true", True), ("True", True), ("TRUE", True), ("tRue", "tRue"),
        ("false", False), ("False", False), ("FALSE", False), ("yes", "yes"), ("No", "No"), ("on", "on"), ("off", "off"), ("y", "y"),
        ("0", 0), ("-0", 0), ("+12", 12), ("012", 12), ("0o17", 15), ("0o8", "0o8"), ("0x1F", 31), ("-0x1", "-0x1"), ("+0o7", "+0o7"), ("0b1", "0b1"),
        ("1_000", "1_000"), ("1:30", "1:30"), ("12345678901234567890", 12345678901234567890), ("1.0", 1.0), ("1.", 1.0), (".5", 0.5), ("-.5e3", -500.0),
        ("1e3", 1000.0), ("1E-2", 0.01), ("+1.5e+3", 1500.0), ("1e", "1e"), (".", "."), (".e1", ".e1"), ("-", [None]), ("--", "--"), ("+", "+"),
        (".inf", INF), ("-.Inf", -INF), ("+.INF", INF), (".iNF", ".iNF"), (".nan", NAN), (".NaN", NAN), (".NAN", NAN), ("-.nan", "-.nan"),
        ("2001-01-01", "2001-01-01"), ("2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"), ("=", "="), ("a: <<", {"a": "<<"}),
        ("'1'", "1"), ('"true"', "true"), ("''", ""), ("1" * 400, int("1" * 400)),
    ],
    "text without quotes": [
        ("a b  c", "a b  c"), ("a: b c # d", {"a": "b c"}), ("a: b#c", {"a": "b#c"}), ("a: b:c", {"a": "b:c"}), ("a: http://x:80/p?q#f", {"a": "http://x:80/p?q#f"}),
        ("a: -x", {"a": "-x"}), ("a: --verbose", {"a": "--verbose"}), ("a: ---", {"a": "---"}), ("a: x [y] {z}, 'w' \"v\"", {"a": "x [y] {z}, 'w' \"v\""}),
        ("a: it's", {"a": "it's"}), ("a:  x  ", {"a": "x"}), ("a:\n  x\n", {"a": "x"}), ("a: 日本語 😀", {"a": "日本語 😀"}), ("---a: b", {"---a": "b"}),
        ("a b : c", {"a b": "c"}), ("a:b: c", {"a:b": "c"}), ("a: x\xa0", {"a": "x\xa0"}), ("-a: b", {"-a": "b"}), ("a: x: ".strip(" :") + "y", {"a": "xy"}),
    ],
    "quotes": [
        ("a: 'it''s'", {"a": "it's"}), ("a: ''''", {"a": "'"}), ("a: 'x\\n'", {"a": "x\\n"}), ("'a b' : c", {"a b": "c"}), ('"a": "b" # c', {"a": "b"}),
        (r'"\0\a\b\t\n\v\f\r\e\ \"\/\\\N\_\L\P"', "\0\a\b\t\n\v\f\r\x1b \"/\\\x85\xa0\u2028\u2029"), ('"\\\t"', "\t"),
        (r'"\x41\u00e9\U0001F600"', "Aé😀"), (r'"\ud83d\ude00"', "😀"), (r'"\uD83D\uDE00x"', "😀x"), ('"a\n b"', "a b"), ('"a \n\t b"', "a b"), ("'a\n\n\n b'", "a\n\nb"),
        ('"a\\\n   b"', "ab"), ('"a \\\n\n b"', "a \nb"), ('"\n a\n"', " a "), ('a: "x\n  y"', {"a": "x y"}), ("- 'x\n  y'", ["x y"]), ('"a\tb"', "a\tb"), ("'# x'", "# x"),
        ("'<<': 1", {"<<": 1}), ("'1': 2", {"1": 2}), ("'': 1", {"": 1}), ('"a: b": c', {"a: b": "c"}),
    ],
    "block collections": [
        ("a: 1\nb: 2", {"a": 1, "b": 2}), ("a:\n  b:\n    c: 1\n  d: 2\ne: 3\n", {"a": {"b": {"c": 1}, "d": 2}, "e": 3}), ("  a: 1\n  b: 2", {"a": 1, "b": 2}),
        ("a:\nb:\n", {"a": None, "b": None}), ("a: # x\n  b: 1 # y\n# z\n", {"a": {"b": 1}}), ("a:\n- 1\n- 2\nb: 3", {"a": [1, 2], "b": 3}),
        ("a:\n  - 1\n  - 2\nb: 3", {"a": [1, 2], "b": 3}), ("- a: 1\n  b: 2\n- c: 3", [{"a": 1, "b": 2}, {"c": 3}]), ("-   a: 1\n    b: 2", [{"a": 1, "b": 2}]),
        ("- - 1\n  - 2\n-\n  - 3\n-\n- # x\n  4", [[1, 2], [3], None, 4]), ("- a:\n  - 1\n  b: 2", [{"a": [1], "b": 2}]), ("-\n- \n", [None, None]),
        ("a:\n      # far\n# near\n  b: 1\n\n\n  c: 2", {"a": {"b": 1, "c": 2}}), ("a:\r\n  b: 1\r\n  c: x\r\n", {"a": {"b": 1, "c": "x"}}), ("a: 1   \n   \n", {"a": 1}),
    ],
    "flow collections": [
        ("[]", []), ("{}", {}), ("[1, x, 'y', \"z\", ~]", [1, "x", "y", "z", None]), ("a: [b, c,]", {"a": ["b", "c"]}), ("{a: 1, b: {c: [d]}, }", {"a": 1, "b": {"c": ["d"]}}),
        ("{a: , b: 1}", {"a": None, "b": 1}), ("{a: }", {"a": None}), ('{"a":1,"b":}', {"a": 1, "b": None}), ("{'a':b}", {"a": "b"}), ("{a : b}", {"a": "b"}),
        ("[a b, c:d, --x, -1, http://x:80/]", ["a b", "c:d", "--x", -1, "http://x:80/"]), ("a: [\n  1, # one\n\n  2\n]\nb: 1", {"a": [1, 2], "b": 1}),
        ("a:\n  b: [\n    1,\n  ]", {"a": {"b": [1]}}), ("a:\n  [1,\n  2]", {"a": [1, 2]}), ("- [a, [b]]\n- {c: d}", [["a", ["b"]], {"c": "d"}]), ("[a#b, 'x\n  y']", ["a#b", "x y"]),
        ("{a:\n 1,\nb: 2}", {"a": 1, "b": 2}),
    ],
    "block text": [
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}), ("a: |-\n  x\n\nb: 1", {"a": "x", "b": 1}), ("a: |+\n  x\n\nb: 1", {"a": "x\n\n", "b": 1}), ("a: | # why\n  x # text\n", {"a": "x # text\n"}),
        ("a: |\n  x\n # comment\nb: 1", {"a": "x\n", "b": 1}), ("a: |\n\n  x\n   y\n\n  z\n", {"a": "\nx\n y\n\nz\n"}), ("a: |2\n   x\n", {"a": " x\n"}), ("a:\n  b: |1\n    x\n", {"a": {"b": " x\n"}}), ("a: |1-\n  x", {"a": " x"}),
        ("a: |-1\n  x", {"a": " x"}), ("a: |\n  x", {"a": "x"}), ("a: |\n", {"a": ""}), ("a: |+\n\n\n", {"a": "\n\n"}), ("a: |+", {"a": ""}), ("a: |\nb: 1", {"a": "", "b": 1}),
        ("a: |\n  x\n    \n", {"a": "x\n  \n"}), ("a: |\n  \tx\n", {"a": "\tx\n"}), ("a: >\n  x\n  y\n\n  z\n", {"a": "x y\nz\n"}), ("a: >-\n  x\n   y\n  z\n", {"a": "x\n y\nz"}),
        ("a: >\n  x\n\n   y\n\n  z\n", {"a": "x\n\n y\n\nz\n"}), ("a: >\n\n\n  x\n  \ty\n", {"a": "\n\nx\n\ty\n"}), ("- |\n x\n- >\n y\n", ["x\n", "y\n"]),
        ("- a: |\n    x\n  b: 1", [{"a": "x\n", "b": 1}]), ("a:\n  |\n  x\n", {"a": "x\n"}), ("a:\n- |\n x\n", {"a": ["x\n"]}), ("a: |\r\n  x\r\n  y\r\n", {"a": "x\ny\n"}),
        ("a: |\n  --- x\n  - y: 'z\n", {"a": "--- x\n- y: 'z\n"}), ("a: |\n \n x\n", {"a": "\nx\n"}),
    ],
}

REFUSED = [
    # text, line, column, part of the message
    ("a: &x 1", 1, 4, "anchors are not supported"),
    ("a: 1\nb: *a", 2, 4, "aliases are not supported"),
    ("a: !!str 1", 1, 4, "tags are not supported"),
    ("? a\n: 1", 1, 1, "keys marked by ? are not supported"),
    ("a: 1\n? b\n: 2", 2, 1, "keys marked by ? are not supported"),
    ("{? a: 1}", 1, 2, "keys marked by ? are not supported"),
    ("%YAML 1.2\n---\na: 1", 1, 1, "directives are not supported"),
    ("a: 1\n---\nb: 2", 2, 1, "more than one document"),
    ("a: 1\n...\n", 2, 1, "more than one document"),
    ("---\n---\n", 2, 1, "more than one document"),
    ("...", 1, 1, "more than one document"),
    ("[\n---\n]", 2, 1, "more than one document"),
    ("'x\n--- y'", 2, 1, "more than one document"),
    ("--- a", 1, 5, "the end of the line was expected"),
    ("a: @x", 1, 4, "it is reserved"),
    ("a: `x`", 1, 4, "it is reserved"),
    ("a: ?x", 1, 4, "found `?`"),
    ("a: :x", 1, 4, "found `:`"),
    (": 1", 1, 1, "found `:`"),
    ("a:\n\tb: 1", 2, 1, "found a tab"),
    ("a:\tb", 1, 3, "found a tab"),
    ("a: b\t# c", 1, 5, "found a tab"),
    ("a: b\tc", 1, 5, "found a tab"),
    ("-\ta", 1, 2, "found a tab"),
    ("[1,\t2]", 1, 4, "found a tab"),
    ("a: b\n  c", 2, 3, "text that goes on from the line above"),
    ("- b\n  c", 2, 3, "text that goes on from the line above"),
    ("a\nb", 2, 1, "text that goes on from the line above"),
    ("a: [b\n  c]", 2, 3, "found `c` where `,` or `]` was expected"),
    ("a:\n    b: 1\n  c: 2", 3, 3, "unexpected indentation"),
    ("a: 1\n b: 2", 2, 2, "unexpected indentation"),
    ("  a: 1\nb: 2", 2, 1, "unexpected indentation"),
    ("a:\n  - 1\n b: 2", 3, 2, "unexpected indentation"),
    ("a:\n  - 1\n  b: 2", 3, 3, "unexpected indentation"),
    ("a: 1\n- b", 2, 1, "a list entry cannot begin here"),
    ("a:\n  b:\n- c", 3, 1, "a list entry cannot begin here"),
    ("a: - b", 1, 4, "a list entry cannot begin here"),
    ("[- a]", 1, 2, "a list entry cannot begin here"),
    ("[-]", 1, 2, "a list entry cannot begin here"),
    ("a: b: c", 1, 5, "found a second `:`"),
    ("a: 'b': c", 1, 7, "found a second `:`"),
    ("a: b:", 1, 5, "found a second `:`"),
    ("a: 1\nb", 2, 2, "the text ends where `:` and a space was expected"),
    ("a: 1\nb\nc: 2", 2, 2, "`:` and a space was expected"),
    ("'a':b", 1, 4, "the end of the line was expected"),
    ("[a: 1]", 1, 3, "found `:` where `,` or `]` was expected"),
    ("{a}", 1, 3, "found `}` where `:` and a space was expected"),
    ("{a:[1]}", 1, 3, "`:` and a space was expected"),
    ("{a:}", 1, 3, "`:` and a space was expected"),
    ("{'a'\n: 1}", 1, 5, "`:` and a space was expected"),
    ("{a: b: c}", 1, 6, "found `:` where `,` or `}` was expected"),
    ("[a?b]", 1, 3, "found `?`"),
    ("[a, , b]", 1, 5, "found `,`"),
    ("[,]", 1, 2, "found `,`"),
    ("[a] b", 1, 5, "the end of the line was expected"),
    ("[a]]", 1, 4, "found `]`"),
    ("[a,#b\n]", 1, 4, "a comment needs a space before it"),
    ("a: 'b'#c", 1, 7, "a comment needs a space before it"),
    ("a: [b", 1, 4, "`[` is not closed"),
    ("a: 1\nb: {c: 1,\n", 2, 4, "`{` is not closed"),
    ("a:\n  b: [\n 1]", 3, 2, "this line has to be indented more: `[` in line 2 is not closed yet"),
    ("a:\n  b: [[\n 1]]", 3, 2, "this line has to be indented more: `[` in line 2 is not closed yet"),
    ("a: 'b\nc: 'd'", 2, 1, "this line has to be indented more: `'` in line 1 is not closed yet"),
    ("a: 'b", 1, 4, "`'` is not closed"),
    ('a: "b\\"', 1, 4, '`"` is not closed'),
    ("a: 'b' 'c'", 1, 8, "found `'` where the end of the line was expected"),
    (r'"\q"', 1, 2, "`\\q`: there is no such escape"),
    (r'"\'"', 1, 2, "`\\'`: there is no such escape"),
    (r'"\x4"', 1, 2, "`\\x`: there is no such escape"),
    (r'"\u12"', 1, 2, "`\\u`: there is no such escape"),
    (r'"\U00110000"', 1, 2, "there is no such character"),
    (r'a: "\ud83d"', 1, 4, "half of a surrogate pair"),
    (r'"\ude00\ud83d"', 1, 1, "half of a surrogate pair"),
    ("a: |x\n  y", 1, 4, "behind `|` only"),
    ("a: |0\n  y", 1, 4, "behind `|` only"),
    ("a: >++\n  y", 1, 4, "behind `>` only"),
    ("a: |#c\n  y", 1, 4, "behind `|` only"),
    ("a: | y", 1, 4, "behind `|` only"),
    ("a: |3\n  x\n", 2, 3, "unexpected indentation"),
    ("a: |\n   x\n  y\n", 3, 3, "unexpected indentation"),
    ("a: |\n    \n  y\n", 3, 3, "the blank lines above this one are indented unlike it"),
    ("|\n  x\n", 1, 1, "a block of text cannot be the whole document"),
    ("[|\n x]", 1, 2, "a block of text cannot begin here"),
    ("a: 1\nb: 2\na: 3", 3, 1, "the key `a` stands in line 1 already"),
    ("{a: 1, 'a': 2}", 1, 8, "the key `'a'` stands in line 1 already"),
    ("x:\n  a: 1\n  \"\\x61\": 2", 3, 3, "stands in line 2 already"),
    ("<<: {a: 1}", 1, 1, "found `<<`: merge keys are not supported"),
    ("{<<: 1}", 1, 2, "found `<<`: merge keys are not supported"),
    ("1: a", 1, 1, "the key `1` is not text"),
    ("true: a", 1, 1, "the key `true` is not text"),
    ("a: {~: 1}", 1, 5, "the key `~` is not text"),
    ("[a]: b", 1, 1, "a collection as a key is not supported"),
    ("{{a: 1}: b}", 1, 2, "a collection as a key is not supported"),
    ("'a\n b': c", 1, 1, "a key has to stand on one line"),
    ("a: 1" + "1" * 400, 1, 4, "the number is out of range"),
    ("a: 1e999", 1, 4, "the number is out of range"),
    ("a: -1e999", 1, 4, "the number is out of range"),
    ("a: x\0", 1, 5, "U+0000"),
    ("a: 1\nb: '\x07'", 2, 5, "U+0007"),
    ("a: 1\rb: 2", 1, 5, "U+000D"),
    ("a: \x7f", 1, 4, "U+007F"),
    ("a: 'x\x85y'", 1, 6, "U+0085"),
    ("a: x\u2028y", 1, 5, "U+2028"),
    ("a: x\ufeff", 1, 5, "U+FEFF"),
    ("\ufeff\ufeffa: 1", 1, 1, "U+FEFF"),
    ("a: \ud800", 1, 4, "U+D800"),
    ("# \uffff", 1, 3, "U+FFFF"),
    ("a: ]", 1, 4, "found `]`"),
    ("}", 1, 1, "found `}`"),
    ("\r\n\r\na: *b\r\n", 3, 4, "aliases"),
    ("a: é *b\nb: 日本 : x", 2, 7, "found a second `:`"),
]

EDITS = [
    # text, path, value, what comes out
    ("a: 1\n", "a", 2, "a: 2\n"),
    ("a:   1   # why\nb: 2\n", "a", True, "a:   true   # why\nb: 2\n"),
    ("a: 'x'\n", "a", "y z", 'a: "y z"\n'),
    ("a: 1", "a", "yes", 'a: "yes"'),
    ("a: 1", "a", "012", 'a: "012"'),
    ("a: 1", "a", "null", 'a: "null"'),
    ("a: 1", "a", "", 'a: ""'),
    ("a: 1", "a", None, "a: null"),
    ("a: 1", "a", 0.5, "a: 0.5"),
    ("a: 1", "a", 1e300, "a: 1e+300"),
    ("a: 1", "a", -INF, "a: -.inf"),
    ("a: 1", "a", "x\ty\n\"\\\u2028é😀", 'a: "x\\ty\\n\\"\\\\\\u2028é😀"'),
    ("a: 1", "a", "claude-opus-4.1", "a: claude-opus-4.1"),
    ("a: 1", "a", "/usr/bin/x", "a: /usr/bin/x"),
    ("a: 1", "a", [], "a: []"),
    ("a: 1", "a", ["-x", 1, None, "b"], 'a: ["-x", 1, null, b]'),
    ("a:\nb: 1\n", "a", 2, "a: 2\nb: 1\n"),
    ("a:   # why\n", "a", 2, "a: 2   # why\n"),
    ("a:\n  # above\n  x # why\n", "a", 2, "a:\n  # above\n  2 # why\n"),
    ("a:\n  b:\n    c: 1 # why\n  d: 2\n", "a.b.c", 5, "a:\n  b:\n    c: 5 # why\n  d: 2\n"),
    ("a: [1, 2] # why\n", "a", ["x"], "a: [x] # why\n"),
    ("a: [1,\n  2]\nb: 1\n", "a", 3, "a: 3\nb: 1\n"),
    ("a: \"x\n  y\" # why\n", "a", 3, "a: 3 # why\n"),
    ("{a: 1, b: {c: 2}} # why\n", "b.c", 3, "{a: 1, b: {c: 3}} # why\n"),
    ("a: {b: , c: 1}\n", "a.b", 2, "a: {b: 2, c: 1}\n"),
    ('{"a":}', "a", 2, '{"a": 2}'),
    ("a: |\n  x\n  y\nb: 1\n", "a", 2, "a: 2\nb: 1\n"),
    ("a: |- # why\n  x\n\n# next\nb: 1\n", "a", 2, "a: 2  # why\n\n# next\nb: 1\n"),
    ("a: |+\n  x\n\nb: 1\n", "a", 2, "a: 2\nb: 1\n"),
    ("a:\n  - 1\n  - 2\nb: 1\n", "a", ["x", "v", "z"], "a:\n  - x\n  - v\n  - z\nb: 1\n"),
    ("a: # why\n- 1 # one\nb: 1\n", "a", [2], "a: # why\n- 2 # one\nb: 1\n"),
    ("a: # why\n- 1\n- 2\nb: 1\n", "a", [], "a: []  # why\nb: 1\n"),
    ("a:\n- 1\n", "a", "x", "a: x\n"),
    ("a: 1\n", "b", 2, "a: 1\nb: 2\n"),
    ("a: 1", "b", 2, "a: 1\nb: 2"),
    ("", "a", 1, "a: 1\n"),
    ("# only a comment", "a", 1, "# only a comment\na: 1\n".rstrip("\n")),
    ("# only a comment\n\n", "a.b", 1, "# only a comment\n\na:\n  b: 1\n"),
    ("---\n", "a", 1, "---\na: 1\n"),
    ("a:\n  b: 1 # why\n  # c: 2\nd: 3\n", "a.c", 4, "a:\n  b: 1 # why\n  c: 4\n  # c: 2\nd: 3\n"),
    ("a:\n    b: 1\nd: 3\n", "a.c.x", "w", "a:\n    b: 1\n    c:\n      x: w\nd: 3\n"),
    ("a: 1\n\n# end\n", "b.c", 2, "a: 1\nb:\n  c: 2\n\n# end\n"),
    ("a:\n  b: |\n    x\n\nd: 3\n", "a.c", 4, "a:\n  b: |\n    x\n  c: 4\n\nd: 3\n"),
    ("a:\n  b: |+\n    x\n\nd: 3\n", "a.c", 4, "a:\n  b: |+\n    x\n\n  c: 4\nd: 3\n"),
    ("a:\n  b:\n  - 1\n  -\nd: 3\n", "a.c", 4, "a:\n  b:\n  - 1\n  -\n  c: 4\nd: 3\n"),
    ("a:\nb: 1\n", "a.c", 2, "a:\n  c: 2\nb: 1\n"),
    ("x:\n   a:\n   b: 1\n", "x.a.c", 2, "x:\n   a:\n     c: 2\n   b: 1\n"),
    ('{"a":}', "a.b", 2, '{"a": {b: 2}}'),
    ("a: # why\n  # c: 1\nb: 1\n", "a.c", 2, "a: # why\n  c: 2\n  # c: 1\nb: 1\n"),
    ("a: ~ # why\n", "a.c", 2, "a: {c: 2} # why\n"),
    ("{}", "a.b", 1, "{a: {b: 1}}"),
    ("a: {b: 1,} # why\n", "a.c.d", "x", "a: {b: 1, c: {d: x},} # why\n"),
    ("a: {b: 1 # why\n  }\n", "a.c", 2, "a: {b: 1, c: 2 # why\n  }\n"),
    ("a: {b: }\n", "a.c", 2, "a: {b: , c: 2}\n"),
    ("a: {b: }\n", "a.b.c", 2, "a: {b: {c: 2}}\n"),
    ("'a b': 1\n", "a b", 2, "'a b': 2\n"),
    ("a: 1\n", "b c", 2, 'a: 1\n"b c": 2\n'),
    ("a: 1\n", "1", 2, 'a: 1\n"1": 2\n'),
    ("\ufeffa: 1\r\nb:\r\n  c: 2 # why\r\n", "b.d", 3, "\ufeffa: 1\r\nb:\r\n  c: 2 # why\r\n  d: 3\r\n"),
    ("a: 1\r\nb: x\r\n", "a", "w", "a: w\r\nb: x\r\n"),
    ("  a: 1\n", "b", 2, "  a: 1\n  b: 2\n"),
]

EDITS_REFUSED = [
    # text, path, value, line, column, part of the message
    ("a:\n  b: 1\n", "a", 2, 1, 1, "this is a mapping"),
    ("x: 1\na: {}\n", "a", 2, 2, 1, "this is a mapping"),
    ("x: 1\na: 1\n", "a.b", 2, 2, 4, "this is not a mapping, so that b cannot be set in it"),
    ("a: []\n", "a.b", 2, 1, 4, "this is not a mapping"),
    ("- a: 1\n", "a", 2, 1, 1, "this is not a mapping"),
    ("a: [1, # one\n  2]\n", "a", [3], 1, 4, "such as a comment"),
    ("a:\n- 1 # one\n- 2\n", "a", [3], 2, 1, "such as a comment"),
    ("a: 1\nb: |\n  x", "c", 1, 3, 4, "without changing something else"),
    ("a: 1\n", "k" * 1100, 1, 1, 5, "a key cannot be longer"),
    ("a: 1\n", ".".join("k" * 101), 1, 1, 1, "a path has 1 to 100 keys"),
    ("a: 1\n", "a", "\udc80", 1, 4, "half of a surrogate pair"),
    ("a: 1\n", "a", 10 ** 400, 1, 4, "out of range"),
    ("a: *b\n", "a", 1, 1, 4, "aliases"),
]


def nested(depth):
    value = "x"
    for _ in range(depth):
        value = [value]
    return value


class Reading(unittest.TestCase):
    def check(self, group):
        for text, value in ACCEPTED[group]:
            with self.subTest(text=text):
                # repr tells 1 from True and from 1.0, and lets .nan equal itself
                self.assertEqual(repr(parse_yaml(text)), repr(value))

    def test_an_empty_text_is_null(self):
        self.check("nothing")

    def test_scalars_have_the_types_of_the_core_schema_of_yaml_1_2(self):
        self.check("types of the core schema")

    def test_text_without_quotes_ends_at_a_colon_a_comment_or_the_line(self):
        self.check("text without quotes")

    def test_quotes_know_every_escape_and_fold_lines(self):
        self.check("quotes")

    def test_block_collections_nest_by_indentation(self):
        self.check("block collections")

    def test_flow_collections_may_go_over_lines(self):
        self.check("flow collections")

    def test_block_text_is_chomped_folded_and_indented_as_its_head_says(self):
        self.check("block text")

    def test_json_is_yaml(self):
        value = {"a": [1, -2.5, 1e300, True, None, "é\u65e5\U0001f600 \"\\/\b\f\n\r\t\x00", [], {}], "b c": {"d": {"e": ["x: y", "# z", "- w"]}}, "": ""}
        for indent in (None, 0, 1, 4):
            for separators in (None, (",", ":")):
                for ascii_only in (True, False):
                    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=ascii_only)
                    with self.subTest(text=text):
                        self.assertEqual(repr(parse_yaml(text)), repr(value))

    def test_each_entry_has_the_line_where_it_begins(self):
        text = "# x\na: 1\nb:\n  c:\n\n  - d\n  - e: |\n      x\n    f: {g: 1,\n      h: 2}\n"
        value, line = parse_yaml_with_lines(text)
        self.assertEqual(value, {"a": 1, "b": {"c": ["d", {"e": "x\n", "f": {"g": 1, "h": 2}}]}})
        for path, number in [((), 2), (("a",), 2), (("b",), 3), (("b", "c"), 4), (("b", "c", 0), 6), (("b", "c", 1), 7), (("b", "c", 1, "e"), 7),
                             (("b", "c", 1, "f"), 9), (("b", "c", 1, "f", "g"), 9), (("b", "c", 1, "f", "h"), 10)]:
            self.assertEqual(line(path), number, path)
        self.assertEqual(line(("b", "c", 7, "x")), 4)  # what is missing is named by what there is of its path
        self.assertEqual(line(("a", "x")), 2)
        self.assertEqual(parse_yaml_with_lines("")[1](("a",)), 1)


class Refusing(unittest.TestCase):
    def test_what_is_not_supported_is_an_error_that_says_where_and_what(self):
        for text, line, column, part in REFUSED:
            with self.subTest(text=text):
                with self.assertRaises(YamlError) as caught:
                    print("read as %r" % parse_yaml(text))
                self.assertEqual((caught.exception.line, caught.exception.column), (line, column), caught.exception)
                self.assertIn(part, str(caught.exception))

    def test_the_error_is_a_value_error(self):
        with self.assertRaises(ValueError):
            parse_yaml("a: *b")

    def test_a_key_has_1024_characters_at_most(self):
        self.assertEqual(parse_yaml("k" * 1024 + ": 1"), {"k" * 1024: 1})
        self.assertEqual(parse_yaml("{%s: 1}" % ("k" * 1024)), {"k" * 1024: 1})
        for text in ("k" * 1025 + ": 1", "k" + " " * 1024 + ": 1", "'%s': 1" % ("k" * 1023), "{%s: 1}" % ("k" * 1025)):
            with self.assertRaisesRegex(YamlError, "a key cannot be longer than 1024 characters"):
                parse_yaml(text)

    def test_100_collections_may_stand_inside_each_other(self):
        deep = [lambda n: "[" * n + "x" + "]" * n, lambda n: "- " * n + "x", lambda n: "".join(" " * i + "-\n" for i in range(n)) + " " * n + "x",
                lambda n: "- " * (n - n // 2) + "[" * (n // 2) + "x" + "]" * (n // 2)]
        for text in deep:
            self.assertEqual(parse_yaml(text(100)), nested(100))
            for depth in (101, 100000 if text is not deep[2] else 2000):
                with self.assertRaisesRegex(YamlError, "more than 100 collections inside each other"):
                    parse_yaml(text(depth))
        mappings = "".join(" " * i + "a:\n" for i in range(101))
        with self.assertRaises(YamlError) as caught:
            parse_yaml(mappings)
        self.assertEqual((caught.exception.line, caught.exception.column), (101, 101))
        self.assertEqual(parse_yaml("[%s]" % ", ".join(["[[]]"] * 200)), [[[]]] * 200)  # beside each other is not inside

    def test_damaged_texts_raise_nothing_but_yaml_errors(self):
        chance = random.Random(5)
        texts = [text for group in ACCEPTED.values() for text, _ in group] + [text for text, _, _, _ in REFUSED]
        accepted = 0
        for _ in range(4000):
            text = chance.choice(texts) + chance.choice(["", "\n", "\n" + chance.choice(texts)])
            at = chance.randint(0, len(text))
            text = chance.choice([text[:at], text[:at] + chance.choice(":-#,[]{}'\"\\|>&*!?%@` \t\n\r\0") + text[at:], text[:at] + text[at + 1:]])
            try:
                value = parse_yaml(text)
            except YamlError as error:
                lines = text.replace("\r\n", "\n").split("\n")
                self.assertTrue(1 <= error.line <= len(lines) and 1 <= error.column <= len(lines[error.line - 1]) + 1, text)
            else:
                accepted += 1
                self.assertEqual(repr(value), repr(parse_yaml_with_lines(text)[0]))
        self.assertGreater(accepted, 400)


class Size(unittest.TestCase):
    """Each of these takes seconds; with one step that goes over the rest of the text each time it takes an hour."""

    MEGABYTE = 1 << 20

    def setUp(self):
        def fail(number, frame):
            raise AssertionError("more than five minutes")
        self.addCleanup(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, fail))
        self.addCleanup(signal.alarm, 0)
        signal.alarm(300)

    def test_ten_thousand_keys(self):
        expected = {"key%d" % number: {"x": number, "y": [str(number)]} for number in range(10000)}
        text = "".join("key%d: # comment\n  x: %d\n  y:\n  - '%d'\n\n" % (number, number, number) for number in range(10000))
        self.assertEqual(parse_yaml(text), expected)
        self.assertEqual(parse_yaml(json.dumps(expected)), expected)
        expected["key7"]["x"] = "z"
        self.assertEqual(parse_yaml(set_yaml(text, ["key7", "x"], "z")), expected)

    def test_lines_of_a_megabyte(self):
        size = self.MEGABYTE
        for text, value in [("x" * size, "x" * size), ("x:" * (size // 2) + "y", "x:" * (size // 2) + "y"), (" " * size + "y", "y"), ("x" + " " * size, "x"),
                            ("'%s'" % ("''" * (size // 2)), "'" * (size // 2)), ('"%s"' % ("\\n" * (size // 2)), "\n" * (size // 2)), ('"%s"' % (" " * size), " " * size),
                            ("[%s]" % ("a," * (size // 10)), ["a"] * (size // 10)), ("# " + "x" * size, None)]:
            self.assertTrue(parse_yaml("a: " + text) == {"a": value}, text[:20])

    def test_a_megabyte_of_short_lines(self):
        size = self.MEGABYTE
        for text, value in [("\n" * size, None), (" \n" * (size // 2), None), ("#\n" * (size // 2), None), ("#\n" * (size // 2) + "---\n", None),
                            ("a: |\n" + " x\n" * (size // 3), {"a": "x\n" * (size // 3)}), ("a: |+\n" + "\n" * size, {"a": "\n" * size}),
                            ("a: >\n" + " x\n" * (size // 3), {"a": "x " * (size // 3 - 1) + "x\n"}), ('"' + "x\n" * (size // 2) + '"', "x " * (size // 2)),
                            ('"' + "x\\\n" * (size // 3) + '"', "x" * (size // 3)), ("-\n" * (size // 20), [None] * (size // 20)),
                            ("[" + "a,\n" * (size // 20) + "]", ["a"] * (size // 20))]:
            self.assertTrue(parse_yaml(text) == value, text[:20])

    def test_a_megabyte_that_is_refused(self):
        size = self.MEGABYTE
        for text in ["[" * size, "- " * size, "a: '" + "''" * (size // 2), 'a: "' + "x " * (size // 2), "a: " + "1" * size, "0x" + "f" * size, "a: 1." + "0" * size,
                     "k" * size + ": 1", "a: |" + "+" * size, " \n" * (size // 2) + "--- x", "\t" * size, "a: x" + " " * size + "\t"]:
            with self.assertRaises(YamlError):
                parse_yaml(text)


class Setting(unittest.TestCase):
    def test_a_value_is_set_and_the_rest_stays_as_it_is(self):
        for text, key, value, expected in EDITS:
            with self.subTest(text=text, key=key, value=value):
                edited = set_yaml(text, key.split("."), value)
                self.assertEqual(edited, expected)
                found = parse_yaml(edited)
                for name in key.split("."):
                    found = found[name]
                self.assertEqual(repr(found), repr(value))

    def test_setting_a_value_twice_changes_nothing_more(self):
        for text, key, value, _ in EDITS:
            with self.subTest(text=text, key=key, value=value):
                once = set_yaml(text, key.split("."), value)
                self.assertEqual(set_yaml(once, key.split("."), value), once)

    def test_where_one_edit_cannot_do_it_the_error_says_why(self):
        for text, key, value, line, column, part in EDITS_REFUSED:
            with self.subTest(text=text, key=key, value=value):
                with self.assertRaises(YamlError) as caught:
                    print("became %r" % set_yaml(text, key.split("."), value))
                self.assertEqual((caught.exception.line, caught.exception.column), (line, column), caught.exception)
                self.assertIn(part, str(caught.exception))

    def test_a_path_has_at_least_one_key(self):
        with self.assertRaisesRegex(YamlError, "a path has 1 to 100 keys"):
            set_yaml("a: 1\n", [], 2)

    def test_keys_may_hold_dots(self):
        self.assertEqual(set_yaml("a: 1\n", ["b.c", "d"], 2), "a: 1\nb.c:\n  d: 2\n")

    def test_what_it_writes_is_text_to_yaml_1_1_as_well(self):
        for word in ("yes", "No", "ON", "off", "y", "N", "true", "~", "null", "012", "1_000", "1:30", "0o7", "1e3", ".inf", "2001-01-01", "=", "<<", "- a", "a: b", "#", "a #b"):
            self.assertEqual(set_yaml("a: 1", ["a"], word), 'a: "%s"' % word)


if __name__ == "__main__":
    unittest.main()
