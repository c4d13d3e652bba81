"""Section 4, Configuration: the YAML subset, and the message for each text outside of it.

tests/fuzz_yaml.py compares accepted texts with PyYAML; these tests do not need PyYAML.
"""
import json
import unittest

import support
from support import clinvk

support.left_to_full_runs()

ACCEPTED = {
    "scalars": [
        ("", None), ("# only a comment", None), ("---\n", None), ("\ufeff# x\n---\na: 1", {"a": 1}),
        ("~", None), ("null", None), ("nULL", "nULL"), ("true", True), ("FALSE", False),
        ("yes", "yes"), ("off", "off"), ("-0", 0), ("+12", 12), ("012", 12), ("1_000", "1_000"),
        ("1:30", "1:30"), ("1.", 1.0), ("-.5e3", -500.0), ("1e", "1e"), (".", "."), ("--", "--"),
        ("2001-01-01", "2001-01-01"), ("=", "="), ("1" * 400, int("1" * 400)),
    ],
    "plain text": [
        ("a b  c", "a b  c"), ("a: b c # d", {"a": "b c"}), ("a: b#c", {"a": "b#c"}),
        ("a: http://x:80/p?q#f", {"a": "http://x:80/p?q#f"}), ("a: --verbose", {"a": "--verbose"}),
        ("a: x [y] {z}, 'w'", {"a": "x [y] {z}, 'w'"}), ("a:  it's  ", {"a": "it's"}),
        ("a:\n  x\n", {"a": "x"}), ("a: 日本語 😀", {"a": "日本語 😀"}), ("a b : c", {"a b": "c"}),
        ("---a: b", {"---a": "b"}), ("a:b: c", {"a:b": "c"}),
    ],
    "quotes": [
        ("a: 'it''s'", {"a": "it's"}), ("a: ''''", {"a": "'"}), ("a: 'x\\n'", {"a": "x\\n"}),
        ("'a b' : c", {"a b": "c"}), ('"a": "b" # c', {"a": "b"}), ('"a\tb"', "a\tb"),
        (r'"\t\n\"\/\\\u00e9\ud83d\ude00"', "\t\n\"/\\é😀"), ("'# x'", "# x"), ("'1'", "1"),
        ("'1': 2", {"1": 2}), ("'': 1", {"": 1}), ('"a: b": c', {"a: b": "c"}),
    ],
    "blocks": [
        ("a:\n  b:\n    c: 1\n  d: 2\ne: 3\n", {"a": {"b": {"c": 1}, "d": 2}, "e": 3}),
        ("  a: 1\n  b: 2", {"a": 1, "b": 2}), ("a:\nb:\n", {"a": None, "b": None}),
        ("a:\n- 1\n- 2\nb: 3", {"a": [1, 2], "b": 3}), ("-\n- \n", [None, None]),
        ("a:\n  - 1\n  - 2\nb: 3", {"a": [1, 2], "b": 3}), ("- - 1\n  - 2\n- 3", [[1, 2], 3]),
        ("- a: 1\n  b: 2\n- c: 3", [{"a": 1, "b": 2}, {"c": 3}]),
        ("- a:\n  - 1\n  b: 2", [{"a": [1], "b": 2}]), ("a: 1   \n   \n", {"a": 1}),
        ("a:\n      # far\n# near\n  b: 1\n\n\n  c: 2", {"a": {"b": 1, "c": 2}}),
        ("a:\r\n  b: 1\r\n  c: x\r\n", {"a": {"b": 1, "c": "x"}}),
    ],
    "flow": [
        ("[]", []), ("{}", {}), ("[1, x, 'y', \"z\", ~]", [1, "x", "y", "z", None]),
        ("{a: 1, b: {c: [d]}, }", {"a": 1, "b": {"c": ["d"]}}), ("a: [b, c,]", {"a": ["b", "c"]}),
        ("{a: , b: 1}", {"a": None, "b": 1}), ('{"a":1,"b":}', {"a": 1, "b": None}),
        ("[a b, c:d, --x, -1, http://x:80/]", ["a b", "c:d", "--x", -1, "http://x:80/"]),
        ("{a:\n 1,\n# why\nb: 2}", {"a": 1, "b": 2}),
    ],
    "text blocks": [
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}), ("a: |-\n  x\n\nb: 1", {"a": "x", "b": 1}),
        ("a: | # why\n  x # text\n", {"a": "x # text\n"}), ("a: |\n  x", {"a": "x"}),
        ("a: |\n\n  x\n   y\n\n  z\n", {"a": "\nx\n y\n\nz\n"}), ("a: |\nb: 1", {"a": "", "b": 1}),
        ("a: |\n  x\n # comment\nb: 1", {"a": "x\n", "b": 1}), ("- |\n x\n", ["x\n"]),
        ("a: |\n  --- x\n  - y: 'z\n", {"a": "--- x\n- y: 'z\n"}),
        ("- a: |\n    x\n  b: 1", [{"a": "x\n", "b": 1}]),
    ],
}

# text, line, column, a part of the message
REFUSED = [
    ("a: &x 1", 1, 4, "anchors are not supported; write the value out"),
    ("a: 1\nb: *a", 2, 4, "aliases are not supported; write the value out"),
    ("a: !!str 1", 1, 4, "tags are not supported; leave the tag out"),
    ("? a\n: 1", 1, 1, "write the key as `key:`"),
    ("%YAML 1.2", 1, 1, "directives are not supported"),
    ("a: >\n  x\n", 1, 4, "folded text is not supported; write `|`"),
    ("a: |+\n  x\n", 1, 4, "only `|` and `|-` are supported"),
    ("a: |2\n  x\n", 1, 4, "only `|` and `|-` are supported"),
    ("a:\n  |\n  x\n", 2, 3, "a text block is only possible as the value of a key"),
    ("a: |\n    \n  y\n", 2, 1, "leave the blank lines"),
    ("a:\n\tb: 1", 2, 1, "indent and separate with spaces"),
    ("a: b\n  c", 2, 3, "put text of several lines behind `|`"),
    ("a: 1\n  b: 2", 2, 3, "unexpected text or indentation"),
    ("  a: 1\nb: 2", 2, 1, "text or indentation: put text of several lines behind `|`"),
    ("a: b: c", 1, 5, "put text with a colon and a space in quotes"),
    ("a: :x", 1, 4, "needs quotes"), ("a: @x", 1, 4, "needs quotes"), ("[-]", 1, 2, "needs quotes"),
    ("a: 'b' 'c'", 1, 8, "found \"'\" where the end of the line was expected"),
    ("a: [b, c] d", 1, 11, "the end of the line was expected"),
    ("a: [b,\n  c]", 1, 4, "`[` is not closed on this line; write an entry a line"),
    ("a: 1\nb: {c: 1", 2, 4, "`{` is not closed on this line"),
    ('{"a": [1,\n', 1, 7, "`[` is not closed"),
    ("a: 'b\n  c'", 1, 4, "`'` is not closed on this line; put text of several lines behind"),
    ('a: "b', 1, 4, '`"` is not closed on this line'),
    (r'a: "\x41"', 1, 4, "has an escape that JSON does not have; write \\uXXXX"),
    (r'a: "\ud83d"', 1, 4, "has an escape that JSON does not have"),
    ("{a}", 1, 3, "expected `:` and a space behind the key"),
    ("a: 0x1F", 1, 4, "write a decimal number, or quotes for a text"),
    ("a: .inf", 1, 4, "write a decimal number"), ("a: 1e999", 1, 4, "the number is out of range"),
    ("a: 1" + "1" * 400, 1, 4, "the number is out of range"),
    ("a: 1\nb: 2\na: 3", 3, 1, 'the key "a" is in line 1 already'),
    ("{a: 1, 'a': 2}", 1, 8, 'the key "a" is in line 1 already'),
    ("1: a", 1, 1, "the key 1 is not text: it needs quotes"),
    ("<<: {a: 1}", 1, 1, "merge keys are not supported"),
    ("a: 1\n---\nb: 2", 2, 1, "only one document is possible in a file"),
    ("a: 1\n...\n", 2, 1, "only one document is possible in a file"),
    ("a: x\0", 1, 5, "the character U+0000 is not allowed; in double quotes write \\u0000"),
    ("a: 1\nb: '\x85'", 2, 5, "U+0085"), ("\ufeff\ufeffa: 1", 1, 1, "U+FEFF"),
    ("a: 1\rb: 2", 1, 5, "U+000D"), ("- " * 101, 1, 201, "more than 100 collections"),
    ("[" * 102, 1, 102, "more than 100 collections"),
]


class Yaml(unittest.TestCase):
    def test_yaml_document_accepted_texts_have_their_values(self):
        for group, cases in ACCEPTED.items():
            for text, value in cases:
                with self.subTest(group, text=text):  # repr distinguishes 1, True and 1.0
                    self.assertEqual(repr(clinvk.YamlDocument(text, "c.yaml").value), repr(value))

    def test_yaml_document_other_texts_fail_with_place_and_remedy(self):
        for text, line, column, message in REFUSED:
            with self.subTest(text=text), self.assertRaises(clinvk.ConfigError) as caught:
                clinvk.YamlDocument(text, "c.yaml")
            place, reason = str(caught.exception).split(": ", 1)
            self.assertEqual(place, "c.yaml:%d:%d" % (line, column), reason)
            self.assertIn(message, reason)

    def test_yaml_document_json_in_any_layout_is_accepted(self):
        value = {"a": [1, -2.5, 1e300, True, None, "é😀 \"\\/\b\f\n\r\t\x00", [], {}], "": "",
                 "b c": {"d": {"e": ["x: y", "# z", "- w", "a, b"]}}}
        for indent in (None, 0, 1, 4, "\t"):
            for ascii_only in (True, False):
                text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
                with self.subTest(text=text):
                    self.assertEqual(repr(clinvk.YamlDocument(text, "c.yaml").value), repr(value))

    def test_yaml_document_line_is_that_of_the_entry_or_its_nearest_parent(self):
        text = "# x\na: 1\nb:\n  c:\n\n  - d\n  - e: |\n      x\n    f: {g: 1, h: 2}\n"
        document = clinvk.YamlDocument(text, "c.yaml")
        self.assertEqual(document.value, {"a": 1, "b": {"c": ["d", {"e": "x\n", "f": {"g": 1, "h": 2}}]}})
        for path, number in [(("a",), 2), (("b",), 3), (("b", "c"), 4), (("b", "c", 0), 6),
                             (("b", "c", 1), 7), (("b", "c", 1, "f", "h"), 9), ((), 1),
                             (("b", "c", 7), 4), (("b", "x", "y"), 3), (("z",), 1)]:
            self.assertEqual(document.line(path), number, path)


if __name__ == "__main__":
    unittest.main()
