"""Schemas: which are refused and where, which values are valid, and what is wrong with the others."""
import json
import os
import subprocess
import sys
import unittest

from support import ROOT, clinvk, only_in_full_runs

ITEM = {"type": "object", "properties": {"label": {"enum": ["bug", "feature"]}, "note": {"type": ["string", "null"]}},
        "required": ["label"], "additionalProperties": False}
ITEMS = {"type": "object", "properties": {"items": {"type": "array", "items": ITEM}}, "required": ["items"]}
TREE = {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "required": ["name"], "properties": {
    "name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}}}

# A schema, and what is wrong with it.
REFUSED = [
    (5, "expected a schema (an object, true or false), got 5"),
    ({"contains": {}}, 'contains: clinvk cannot check this keyword; it checks $defs, $ref, additionalProperties, allOf, anyOf, const, '
     'definitions, enum, exclusiveMaximum, exclusiveMinimum, items, maxItems, maxLength, maximum, minItems, minLength, minimum, '
     'multipleOf, not, oneOf, pattern, prefixItems, properties, required, type, uniqueItems'),
    ({"properties": {"a": {"requird": []}}}, 'properties.a.requird: clinvk cannot check this keyword (did you mean "required"?)'),
    ({"items": {"$id": "x"}}, "items[\"$id\"]: clinvk cannot check this keyword"),
    ({"type": "text"}, "type: expected one of object, array, string, number, integer, boolean, null, or a list of them, got \"text\""),
    ({"type": ["string", "string"]}, "type: expected one of"),
    ({"type": []}, "type: expected one of"),
    ({"type": [["string"]]}, "type: expected one of"),
    ({"enum": []}, "enum: expected a list of one element or more, got []"),
    ({"enum": {}}, "enum: expected a list"),
    ({"properties": []}, "properties: expected an object of schemas, got []"),
    ({"properties": {"a": 1}}, "properties.a: expected a schema (an object, true or false), got 1"),
    ({"required": "a"}, "required: expected a list of names, each once, got \"a\""),
    ({"required": ["a", "a"]}, "required: expected a list of names"),
    ({"required": [1]}, "required: expected a list of names"),
    ({"items": [{}]}, "items: expected a schema (an object, true or false), got [{}]"),
    ({"prefixItems": []}, "prefixItems: expected a list of one element or more"),
    ({"anyOf": [{}, None]}, "anyOf[1]: expected a schema"),
    ({"oneOf": {}}, "oneOf: expected a list"),
    ({"not": "x"}, "not: expected a schema"),
    ({"minItems": -1}, "minItems: expected a whole number from 0 on, got -1"),
    ({"maxLength": 1.5}, "maxLength: expected a whole number from 0 on"),
    ({"maxItems": True}, "maxItems: expected a whole number from 0 on"),
    ({"minimum": "1"}, "minimum: expected a number, got \"1\""),
    ({"multipleOf": 0}, "multipleOf: expected a number above 0, got 0"),
    ({"uniqueItems": 1}, "uniqueItems: expected true or false, got 1"),
    ({"pattern": "("}, "pattern: expected a regular expression of Python, got \"(\""),
    ({"pattern": r"\p{L}"}, "pattern: expected a regular expression of Python"),
    ({"pattern": 1}, "pattern: expected a regular expression of Python"),
    ({"$ref": "#"}, '["$ref"]: expected "#/$defs/NAME" or "#/definitions/NAME", got "#"'),
    ({"$ref": "other.json"}, '["$ref"]: expected "#/$defs/NAME"'),
    ({"$ref": 1}, '["$ref"]: expected "#/$defs/NAME"'),
    ({"$ref": "#/$defs/a/items"}, '["$ref"]: expected "#/$defs/NAME"'),
    ({"$ref": "#/$defs/a"}, '["$ref"]: the schema has no definition "#/$defs/a"'),
    ({"$defs": {"a": {}}, "$ref": "#/definitions/a"}, '["$ref"]: the schema has no definition'),
    ({"$defs": {"a": {"$ref": "#/$defs/a"}}}, '["$defs"].a: the schema refers to itself for the same value, without end'),
    ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"not": {"$ref": "#/$defs/a"}}}}, '["$defs"].a: the schema refers to itself'),
    ({"description": "x" * 102400}, "the schema has 100 KB; at most 100 KB are allowed"),
]

# A schema, a valid value, and an invalid value with what is wrong with it.
JUDGED = [
    (ITEMS, {"items": [{"label": "bug"}]}, {"items": [{"label": "bug"}, {"label": "bug"}, {"label": "Bug"}]},
     ['data.items[2].label: expected one of "bug", "feature", got "Bug"']),
    (ITEMS, {"items": [], "more": 1}, {"items": [{"lable": "bug"}]},
     ['data.items[0]: expected a property "label", got {"lable":"bug"}', 'data.items[0]: expected no property but "label", "note", got "lable"']),
    (ITEMS, {"items": []}, [], ["data: expected an object, got []"]),
    (TREE, {"name": "a", "children": [{"name": "b"}]}, {"name": "a", "children": [{"name": 1}]}, ["data.children[0].name: expected a string, got 1"]),
    (False, None, 1, ["data: expected no value, got 1"]),
    ({"type": "integer"}, 1.0, 1.5, ["data: expected a whole number, got 1.5"]),
    ({"type": "integer"}, 10 ** 30, True, ["data: expected a whole number, got true"]),
    ({"type": "number"}, 1, False, ["data: expected a number, got false"]),
    ({"type": ["string", "null"]}, None, 0, ["data: expected a string or null, got 0"]),
    ({"enum": [1, "1", [True]]}, 1.0, True, ['data: expected one of 1, "1", [true], got true']),
    ({"enum": [{"a": [1]}]}, {"a": [1.0]}, {"a": [True]}, ['data: expected one of {"a":[1]}, got {"a":[true]}']),
    ({"const": 0}, 0.0, False, ["data: expected 0, got false"]),
    ({"const": {"a": 1, "b": 2}}, {"b": 2, "a": 1}, {"a": 1}, ['data: expected {"a":1,"b":2}, got {"a":1}']),
    ({"const": None}, None, 0, ["data: expected null, got 0"]),
    ({"minLength": 2}, "\U0001F600x", "\U0001F600", ['data: expected at least 2 characters, got "\U0001F600"']),
    ({"maxLength": 1.0}, "\u5ba1", "ab", ['data: expected at most 1 character, got "ab"']),
    ({"maxLength": 1}, [1, 2], "ab", ['data: expected at most 1 character, got "ab"']),
    ({"pattern": "b"}, "abc", "ac", ['data: expected a text that matches "b", got "ac"']),
    ({"pattern": r"^\d+$"}, "\u0661", "x1", [r'data: expected a text that matches "^\\d+$", got "x1"']),
    ({"minimum": 1, "maximum": 2}, 1, 0, ["data: expected at least 1, got 0"]),
    ({"maximum": 2}, "3", 2.5, ["data: expected at most 2, got 2.5"]),
    ({"exclusiveMinimum": 1}, 1.1, 1, ["data: expected more than 1, got 1"]),
    ({"exclusiveMaximum": 1}, 0, 1.0, ["data: expected less than 1, got 1.0"]),
    ({"maximum": 0}, True, 1, ["data: expected at most 0, got 1"]),
    ({"multipleOf": 2}, 4.0, 5, ["data: expected a multiple of 2, got 5"]),
    ({"multipleOf": 0.01}, 19.99, 19.995, ["data: expected a multiple of 0.01, got 19.995"]),
    ({"multipleOf": 0.1}, 0.3, 0.35, ["data: expected a multiple of 0.1, got 0.35"]),
    ({"multipleOf": 1e-300}, 1e308, 1e-301, ["data: expected a multiple of 1e-300, got 1e-301"]),
    ({"multipleOf": 3}, 3e22, 1e15, ["data: expected a multiple of 3, got 1000000000000000.0"]),
    ({"multipleOf": 0.5}, 1e308, 0.6, ["data: expected a multiple of 0.5, got 0.6"]),
    ({"multipleOf": 0.5}, 10 ** 400, 0.75, ["data: expected a multiple of 0.5, got 0.75"]),
    ({"multipleOf": 10 ** 400}, 0.0, 1.5, ["data: expected a multiple of %s, got 1.5" % ("1" + "0" * 56 + "...")]),
    ({"items": {"type": "string"}}, ["a"], ["a", 1], ["data[1]: expected a string, got 1"]),
    ({"items": False}, [], [1], ["data[0]: expected no value, got 1"]),
    ({"prefixItems": [{"type": "string"}], "items": {"type": "number"}}, ["a", 1], [1, "a"],
     ["data[0]: expected a string, got 1", "data[1]: expected a number, got \"a\""]),
    ({"prefixItems": [True], "items": False}, [1], [1, 2], ["data[1]: expected no value, got 2"]),
    ({"prefixItems": [True, {"const": 1}]}, [0], [0, 0], ["data[1]: expected 1, got 0"]),
    ({"minItems": 1}, {}, [], ["data: expected at least 1 item, got []"]),
    ({"maxItems": 1}, [1], [1, 2], ["data: expected at most 1 item, got [1,2]"]),
    ({"uniqueItems": True}, [1, True, "1", [1], [True]], [1, 2, 1.0], ["data[2]: expected an item that differs from those before it, got 1.0"]),
    ({"uniqueItems": True}, [{"a": 1}, {"a": True}], [[1], [True], [1]], ["data[2]: expected an item that differs from those before it, got [1]"]),
    ({"uniqueItems": False}, [1, 1], None, None),
    ({"required": ["a b"]}, {"a b": None}, {}, ['data: expected a property "a b", got {}']),
    ({"properties": {"a b": {"type": "null"}}}, {}, {"a b": 1}, ['data["a b"]: expected null, got 1']),
    ({"additionalProperties": {"type": "number"}, "properties": {"a": True}}, {"a": "", "b": 1}, {"b": ""}, ['data.b: expected a number, got ""']),
    ({"additionalProperties": False}, {}, {"a": 1}, ['data: expected no property, got "a"']),
    ({"allOf": [{"minimum": 1}, {"maximum": 2}]}, 1, 3, ["data: expected at most 2, got 3"]),
    ({"not": {"type": "string"}}, 1, "", ['data: expected a value that does not match {"type":"string"}, got ""']),
    ({"anyOf": [{"type": "string"}, {"type": "null"}]}, None, 1, ["data: expected a string or null, got 1"]),
    ({"anyOf": [{"type": "null"}, ITEM]}, {"label": "bug"}, {"label": 1},
     ['data.label: expected one of "bug", "feature" (alternative 2 of 2), got 1']),
    ({"oneOf": [{"type": "null"}, {"items": {"type": "number", "minimum": 1}}, {"items": {"const": "a"}}]}, ["a", "a"], [0, 1],
     ["data[0]: expected at least 1 (alternative 2 of 3), got 0", 'data[0]: expected "a" (alternative 3 of 3), got 0']),
    ({"oneOf": [{"minimum": 1}, {"minimum": 2}, {"maximum": 9}]}, 0, 2, ["data: expected a match of one alternative, not of 1 and 2 and 3, got 2"]),
    ({"oneOf": [{"type": "string"}, {"const": 1}]}, 1, None, ["data: expected a string or 1, got null"]),
    ({"$ref": "#/definitions/a~1b~0%20c", "definitions": {"a/b~ c": {"type": "null"}}, "type": "null"}, None, 1,
     ["data: expected null, got 1", "data: expected null, got 1"]),
    ({"$id": "http://x/y", "$schema": "s", "title": 1, "format": "date", "default": 1, "$comment": "", "examples": []}, "no date", None, None),
]


def nested(depth):
    value = 1
    for _ in range(depth):
        value = {"a": value}
    return value


class RefusedSchemas(unittest.TestCase):
    def test_each_error_has_the_path_in_the_schema(self):
        for schema, error in REFUSED:
            with self.subTest(str(schema)[:99]):
                with self.assertRaises(ValueError) as caught:
                    clinvk.check_schema(schema)
                self.assertEqual(str(caught.exception)[:len(error)], error)
                with self.assertRaises(ValueError):
                    clinvk.validate({}, schema)

    def test_a_schema_nested_too_deep_is_refused(self):
        deep, chain = {}, {"a%d" % number: {"$ref": "#/$defs/a%d" % (number + 1)} for number in range(2000)}
        for _ in range(300):
            deep = {"not": deep}
        for schema in (deep, {"$defs": dict(chain, a2000={}), "$ref": "#/$defs/a0"}):
            with self.assertRaisesRegex(ValueError, "^the schema is nested too deep$"):
                clinvk.check_schema(schema)

    @only_in_full_runs
    def test_errors_show_no_secrets(self):
        script = "import clinvk; print(clinvk.validate({'hush-hush-hush': 1}, {'additionalProperties': {'const': 'hush-hush-hush'}}))"
        run = subprocess.run([sys.executable, "-B", "-c", script], env=dict(os.environ, MY_TOKEN="hush-hush-hush"), cwd=ROOT,
                             stdout=subprocess.PIPE, timeout=60)
        self.assertEqual(run.stdout.decode(), "['data.[MY_TOKEN]: expected \"[MY_TOKEN]\", got 1']\n")


class Values(unittest.TestCase):
    def test_each_keyword(self):
        for schema, valid, invalid, errors in JUDGED:
            with self.subTest(str(schema)):
                if schema is not False:
                    self.assertEqual(clinvk.validate(valid, schema), [])
                if errors:
                    self.assertEqual(clinvk.validate(invalid, schema), errors)

    def test_an_empty_schema_and_true_accept_every_value(self):
        for schema in ({}, True):
            for value in (None, True, 1, 1.5, "", [], {}):
                self.assertEqual(clinvk.validate(value, schema), [])

    def test_multiples_are_those_of_decimals(self):
        for step, digits in ((0.1, 1), (0.01, 2), (0.001, 3), (0.25, 2), (2.5, 1)):
            for number in range(-1000, 1000):
                value = float("%.*f" % (digits, number * step))
                self.assertEqual(clinvk.validate(value, {"multipleOf": step}), [], value)
                self.assertTrue(clinvk.validate(value + step / 2, {"multipleOf": step}), value)
        for value, step, expected in ((float("inf"), 0.5, False), (float("nan"), 2, False), (1, float("inf"), False), (10 ** 20000, 1e-300, True),
                                      (10 ** 20000 + 1, 10, False), (5e-324, 5e-324, True), (0, 1e308, True), (-0.0, 0.1, True)):
            self.assertEqual(clinvk._is_multiple(value, step), expected, (value, step))

    def test_keywords_apply_to_values_of_their_type_only(self):
        rules = {"minimum": 5, "maximum": -5, "multipleOf": 7, "minLength": 5, "maxLength": 1, "pattern": "^x$", "minItems": 5, "maxItems": 1,
                 "uniqueItems": True, "items": False, "prefixItems": [False], "required": ["a"], "properties": {"a": False}, "additionalProperties": False}
        for keyword, rule in rules.items():
            for value in (None, True):
                self.assertEqual(clinvk.validate(value, {keyword: rule}), [], keyword)
        self.assertEqual(clinvk.validate("\0", {name: rule for name, rule in rules.items() if "Length" not in name and name != "pattern"}), [])

    def test_the_errors_are_bounded(self):
        errors = clinvk.validate(["x" * 5000] * 5000, {"items": {"enum": ["y" * 50] * 50}})
        self.assertEqual(len(errors), clinvk.MAX_FAULTS)
        self.assertLess(max(map(len, errors)), 1100)

    def test_only_the_first_values_of_a_long_enum_are_shown(self):
        self.assertEqual(clinvk.validate("x", {"enum": list(range(20))})[0], "data: expected one of %s, got \"x\"" % ", ".join(map(str, range(20))))
        self.assertEqual(clinvk.validate("x", {"enum": list(range(9999))})[0], "data: expected one of %s, ..., got \"x\"" % ", ".join(map(str, range(20))))

    def test_value_nested_too_deep_is_an_error(self):
        self.assertEqual(clinvk.validate(nested(300), {"type": "object"}), ["data: the value and the schema are nested too deep to check"])

    def test_a_value_of_the_greatest_depth_is_checked(self):
        schema = {"$ref": "#/$defs/a", "$defs": {"a": {"type": ["object", "integer"], "additionalProperties": {"$ref": "#/$defs/a"}}}}
        self.assertEqual(clinvk.validate(nested(190), schema), [])
        self.assertEqual(len(clinvk.validate(json.loads(json.dumps(nested(190)).replace("1", "null")), schema)), 1)


if __name__ == "__main__":
    unittest.main()
