#!/usr/bin/env python3
"""Compare the YAML subset with PyYAML on damaged texts: fuzz_yaml.py [N] [--seed S].

Each of the N texts is a text of tests/test_yaml.py with random changes.  A text that clinvk accepts
must have the same value in PyYAML, with the core schema applied to PyYAML's scalars.  A text that
clinvk refuses must raise ConfigError with a place inside of the text, and nothing else.
"""
import argparse
import json
import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import test_yaml
from support import clinvk

try:
    import yaml
except ImportError as missing:
    print("skipped fuzz_yaml: %s" % missing)
    raise SystemExit(0) from None

CORE = {"null": None, "~": None, "": None, "true": True, "false": False}
CORPUS = [text for cases in test_yaml.ACCEPTED.values() for text, _ in cases]
CORPUS += [case[0] for case in test_yaml.REFUSED if len(case[0]) < 100]


def core_value(text):
    """The value of a plain scalar by the core schema of YAML 1.2."""
    if text in (text.lower(), text.capitalize(), text.upper()) and text.lower() in CORE:
        return CORE[text.lower()]
    for convert in (int, float):
        if set(text) <= set("0123456789+-.eE") and any(map(str.isdigit, text)):
            try:
                return convert(text)
            except ValueError:
                continue
    return text


def node_value(node):
    """The value of PyYAML's node tree."""
    if node.id == "scalar":
        return node.value if node.style else core_value(node.value)
    if node.id == "sequence":
        return [node_value(item) for item in node.value]
    return {node_value(key): node_value(value) for key, value in node.value}


def damaged(chance):
    text = list(chance.choice(CORPUS))
    for _ in range(chance.randrange(1, 4)):
        place, action = chance.randrange(len(text) + 1), chance.random()
        if action < 0.4:
            del text[place:place + 1]
        elif action < 0.8:
            text[place:place] = chance.choice(" \n:-[]{},'\"#|&*ab1\t\\>~?!.")
        else:
            other = chance.choice(CORPUS)
            text[place:place] = other[:chance.randrange(len(other) + 1)]
    return "".join(text)


def check(text):
    """Return whether clinvk accepts the text.  Raises AssertionError."""
    try:
        value = clinvk.YamlDocument(text, "f").value
    except clinvk.ConfigError as error:
        lines = text.replace("\r\n", "\n").split("\n")
        line, column = map(int, str(error).split(":")[1:3])
        assert 1 <= line <= len(lines), (text, line)
        assert 1 <= column <= len(lines[line - 1]) + 2, (text, column)
        return False
    if "\\/" in text:  # an escape of JSON and YAML 1.2 that PyYAML does not have
        return True
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        oracle = json.loads(json.dumps(node_value(node) if node else None))  # pairs surrogates
    except yaml.YAMLError as error:
        if "'\\t'" in str(error) and isinstance(value, (dict, list)):  # between the values of JSON
            return True
        raise AssertionError("%r is accepted, but PyYAML says %s" % (text, error)) from None
    assert repr(oracle) == repr(value), (text, value, oracle)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", nargs="?", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    accepted = sum(check(damaged(chance)) for _ in range(options.count))
    print("seed %d: %d texts, %d accepted" % (options.seed, options.count, accepted))
    assert accepted > options.count / 20


if __name__ == "__main__":
    main()
