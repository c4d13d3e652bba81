#!/usr/bin/env python3
"""Compare validate with the library jsonschema on generated schemas and values: fuzz_schema.py [N] [--seed S].

Each of the N pairs must have the same verdict, and each schema must be one that jsonschema accepts too.
The values are made of the same few texts and numbers as the schemas, so that many are nearly valid.
Needs hypothesis and jsonschema.
"""
import argparse
import os
import sys
from collections import Counter
from decimal import Context, Decimal

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from support import clinvk

try:
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as some
    from jsonschema import Draft202012Validator, ValidationError, validators
    from jsonschema._utils import equal
except ImportError as missing:
    print("skipped fuzz_schema: %s" % missing)
    raise SystemExit(0) from None

NAMES = some.sampled_from(["a", "b", "a/b", "~ c", "\u5ba1", "%41"])
TEXTS = some.one_of(NAMES, some.sampled_from(["", "aa", "ab1", "\u0661", "\U0001F600", "a\n", "1"]), some.text(max_size=4))
NUMBERS = some.one_of(some.integers(-3, 12), some.sampled_from([0.0, -0.0, 1.0, 0.1, 0.3, 0.35, 0.01, 2.5, 19.99, 1e16, 1e300, 10 ** 20, 2 ** 64, -1e-300]),
                      some.floats(-10, 10, allow_nan=False))
SCALARS = some.one_of(some.none(), some.booleans(), NUMBERS, TEXTS)
VALUES = some.recursive(SCALARS, lambda inner: some.one_of(some.lists(inner, max_size=4), some.dictionaries(NAMES, inner, max_size=3)), max_leaves=8)
LENGTHS = some.sampled_from([0, 1, 2, 3, 1.0, 2.0])
PATTERNS = some.sampled_from(["a", "^a", r"^\d+$", r"\w{2}", "^[^a]*$", "(a|b)1?$", r"\.", "\u5ba1", "^$", r"a\Z", "(?i)A", r"[\s\S]{3}"])
TYPES = some.sampled_from(["object", "array", "string", "number", "integer", "boolean", "null"])
REFERENCES = ["#/$defs/x", "#/$defs/y", "#/definitions/a~1b", "#/$defs/~0%20c"]


def keywords(schemas):
    """The keywords, each with a strategy for its value."""
    lists, objects = some.lists(schemas, min_size=1, max_size=3), some.dictionaries(NAMES, schemas, max_size=3)
    return {
        "type": some.one_of(TYPES, some.lists(TYPES, min_size=1, max_size=4, unique=True)), "enum": some.lists(VALUES, min_size=1, max_size=5),
        "const": VALUES, "properties": objects, "required": some.lists(NAMES, max_size=2, unique=True), "additionalProperties": schemas,
        "items": schemas, "prefixItems": lists, "minItems": LENGTHS, "maxItems": LENGTHS, "uniqueItems": some.booleans(), "minLength": LENGTHS,
        "maxLength": LENGTHS, "pattern": PATTERNS, "minimum": NUMBERS, "maximum": NUMBERS, "exclusiveMinimum": NUMBERS, "exclusiveMaximum": NUMBERS,
        "multipleOf": NUMBERS.filter(lambda number: number > 0), "anyOf": lists, "oneOf": lists, "allOf": lists, "not": schemas,
        "$ref": some.sampled_from(REFERENCES), "title": TEXTS, "description": TEXTS, "default": VALUES, "format": some.just("date"),
    }


def schemas_of(inner):
    strategies = keywords(inner)
    return some.lists(some.sampled_from(sorted(strategies)), max_size=3, unique=True).flatmap(
        lambda names: some.fixed_dictionaries({name: strategies[name] for name in names}))


SCHEMAS = some.recursive(some.one_of(some.booleans(), some.builds(lambda name: {"type": name}, TYPES)), schemas_of, max_leaves=6)
ROOTS = some.builds(lambda schema, x, y, z: dict(schema, **{"$defs": {"x": x, "y": y, "~ c": z}, "definitions": {"a/b": x}}),
                    schemas_of(SCHEMAS), SCHEMAS, SCHEMAS, SCHEMAS)


def unique(validator, rule, value, schema):
    """As in jsonschema, which misses an equal pair where it sorts 1 and true between others."""
    if rule and isinstance(value, list) and any(equal([one], [other]) for place, one in enumerate(value) for other in value[:place]):
        yield ValidationError("not unique")


def multiple(validator, step, value, schema):
    """Of decimals, as JSON writes them: jsonschema divides floats, and refuses 0.3 as a multiple of 0.1."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if Context(prec=2000).remainder(Decimal(repr(value)), Decimal(repr(step))):
            yield ValidationError("not a multiple")


Oracle = validators.extend(Draft202012Validator, {"uniqueItems": unique, "multipleOf": multiple})
counts = Counter()


def compare(schema, values):
    try:
        clinvk.check_schema(schema)
    except ValueError as error:
        assert "refers to itself" in str(error), (schema, error)
        counts["endless"] += 1
        return
    Draft202012Validator.check_schema(schema)
    for value in values:
        compare_verdicts(schema, value)


def compare_verdicts(schema, value):
    valid = Oracle(schema).is_valid(value)
    errors = clinvk.validate(value, schema)
    assert valid == (not errors), (schema, value, errors)
    assert all(error.startswith("data") for error in errors)
    counts["valid" if valid else "invalid"] += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="?", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run = settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                   phases=[Phase.generate, Phase.shrink])(given(ROOTS, some.lists(VALUES, min_size=4, max_size=9))(compare))
    rounds = 0
    while counts["valid"] + counts["invalid"] < options.pairs:
        seed(options.seed * 1000000 + rounds)(run)()
        rounds += 1
    print("%d pairs, the same verdict: %s (seed %d)" % (counts["valid"] + counts["invalid"], dict(counts), options.seed))


if __name__ == "__main__":
    main()
