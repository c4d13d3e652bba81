#!/usr/bin/env python3
"""Compare the tasks of templates with a model, for any template and any items: fuzz_templates.py [-v].

The model below reads a template character by character.  What it refuses must be refused, and else the
prompts must be equal, wherever the chunks of the input end.  The last test runs the program: its items
are full of what a shell would carry out, and nothing may be carried out.  Needs hypothesis.
"""
import csv
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from support import PROGRAM, clinvk

try:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as some
except ImportError as missing:
    print("skipped fuzz_templates: %s" % missing)
    raise SystemExit(0) from None

settings.register_profile("templates", max_examples=700, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("templates")


class Refused(Exception):
    """Of the model: there is no such prompt."""


def base_name(item):
    return item.rstrip("/").split("/")[-1] or "/"


def directory(item):
    head, slash, _ = item.rstrip("/").rpartition("/")
    return head.rstrip("/") or slash or ("/" if item.startswith("/") else ".")


def stem(item):
    last = item.split("/")[-1]
    name = last.lstrip(".")
    return item if "." not in name else item[:len(item) - len(name) + name.rindex(".")]


PATH = re.compile(r"\.[\w-]+")
PARTS = {"{}": str, "{/}": base_name, "{//}": directory, "{.}": stem, "{/.}": lambda item: stem(base_name(item))}


def in_braces(template, place):
    """The text between the brace at `place` and its end, None where it has none."""
    end = place + 1
    while end < len(template) and template[end] not in "{}\n":
        end += 1
    return template[place + 1:end] if template[end:end + 1] == "}" else None


def is_name(text):
    return bool(text) and (text[0].isalpha() or text[0] == "_" or text[0].isalnum() and not text[0].isdecimal()) and all(
        c.isalnum() or c in "_-" for c in text)


def is_no_path(text):
    """Of what is no path: whether it looks like one."""
    return text[:1] == "." and is_name(text[1:2])


def filled(template, value_of):
    """The prompt, and how many placeholders it had.  `value_of` returns None for what is none."""
    prompt, place, count = "", 0, 0
    while place < len(template):
        if template.startswith("{{", place):
            prompt, place = prompt + "{", place + 2
            continue
        name = in_braces(template, place) if template[place] == "{" else None
        value = None if name is None else value_of(name)
        if value is None:
            prompt, place = prompt + template[place], place + 1
        else:
            prompt, place, count = prompt + value, place + len(name) + 2, count + 1
    return prompt, count


def prompts(template, form, data, size=0):
    """What clinvk makes of the bytes of an input, in chunks of that size; Refused where it refuses anything."""
    try:
        made = clinvk.Template({"prompt": template}, form)
        if form != "csv":
            made = made.checked()
        policy = clinvk.TaskPolicy({"backend": "echo"}, template=made)
        reader = clinvk.JobReader("f", policy, lambda _: None, clinvk.WHOLE)
        size = size or len(data) or 1
        chunks = (data[start:start + size] for start in range(0, len(data), size))
        return [job.task.prompt for jobs in reader.values(chunks, is_strict=True) for job in jobs]
    except clinvk.UserError:
        return Refused


def expected(template, items, value_of):
    """What the model makes of a list of items; `value_of` gets a name, an item and its number."""
    try:
        if not filled(template, lambda name: value_of(name, None, 1))[1]:
            return Refused
        made = [filled(template, lambda name, item=item, number=number: value_of(name, item, number))[0]
                for number, item in enumerate(items, 1)]
        return Refused if any(not prompt.strip() for prompt in made) else made
    except Refused:
        return Refused


def templates(*placeholders):
    """Texts with many placeholders and much that looks like one."""
    pieces = some.sampled_from(["{}", "{/}", "{//}", "{.}", "{/.}", "{#}", "{{", "{", "}", "/", ".", "#", "\n", " ", "a", '{"a": 1}', "{ }", "{1}",
                                *placeholders])
    return some.lists(pieces, min_size=1, max_size=8).flatmap(lambda found: some.text(max_size=3).map(lambda text: text.join(found)))


CHARACTERS = some.characters(blacklist_categories=["Cs"])
PATHS = some.lists(some.one_of(some.sampled_from(["/", "/", ".", "a", "b.c", "//", " ", "{}", "{{", "\r"]), some.text(CHARACTERS, max_size=3)), min_size=1, max_size=6).map("".join)


class Templates(unittest.TestCase):
    @given(templates("{x}", "{.}x", "{{}}"), some.lists(PATHS, min_size=1, max_size=4), some.integers(1, 9))
    def test_lines_and_what_nul_bytes_separate(self, template, items, size):
        def value_of(name, item, number):
            if is_name(name) or is_no_path(name):
                raise Refused
            if name == "#":
                return str(number)
            return PARTS["{%s}" % name](item or "x") if "{%s}" % name in PARTS else None

        for form, end in (("lines", "\n"), ("null", "\0")):
            usable = [item.replace(end, "").replace("\0", "").rstrip("\r").lstrip("\ufeff") for item in items]
            data = "".join(item + end for item in usable).encode()
            wanted = expected(template, [item for item in usable if item.encode().strip()], value_of)
            self.assertEqual(prompts(template, form, data, size), wanted)

    @given(templates("{.a}", "{.a.b[0]}", "{.a[-1]}", "{.b-c}", "{.a", "{.a.}"),
           some.lists(some.fixed_dictionaries({"a": some.recursive(
               some.one_of(some.none(), some.booleans(), some.integers(-9, 9), some.text(CHARACTERS, max_size=5)),
               lambda inner: some.one_of(some.lists(inner, max_size=2), some.dictionaries(some.sampled_from("ab"), inner, max_size=2)), max_leaves=4)},
               optional={"b-c": some.text(CHARACTERS, max_size=5)}), min_size=1, max_size=3), some.integers(1, 40), some.booleans())
    def test_json_values(self, template, items, size, as_array):
        paths = {".a": ["a"], ".a.b[0]": ["a", "b", 0], ".a[-1]": ["a", -1], ".b-c": ["b-c"]}
        used = []
        filled(template, used.append)
        if not set(paths).intersection(used):
            return  # the items are lines

        def value_of(name, item, number):
            if is_name(name) or name in ("/", "//", ".", "/."):
                raise Refused
            if name == "#":
                return str(number)
            if name not in paths and is_no_path(name):
                raise Refused
            if name not in paths and name != "":
                return None
            if item is None:  # to count the placeholders
                return "x"
            for step in paths.get(name, []):
                try:
                    if not isinstance(item, list if isinstance(step, int) else dict):
                        raise Refused
                    item = item[step]
                except (KeyError, IndexError):
                    raise Refused from None
            if item is None:
                raise Refused
            return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False, separators=(",", ":"))

        data = json.dumps(items) if as_array else "\n".join(map(json.dumps, items))
        self.assertEqual(prompts(template, "lines", data.encode(), size), expected(template, items, value_of))

    @given(templates("{x}", "{y z}", "{@}", "{nope}", "{/x}", "{ x}", "{x }", "{y  z}", "{.x}"), some.lists(some.tuples(*[some.text(
        some.one_of(some.sampled_from('",\n\r {}'), some.characters(blacklist_categories=["Cs"], blacklist_characters="\0")), max_size=6)] * 2),
        min_size=1, max_size=4), some.integers(1, 9))
    def test_rows(self, template, rows, size):
        def value_of(name, item, number):
            if name in ("/", "//", ".", "/.", "@", " x", "x ", "y  z") or is_name(name) and name != "x" or PATH.fullmatch(name):
                raise Refused
            row = item or ("x", "x")
            return {"#": str(number), "": json.dumps({"x": row[0], "y z": row[1]}, ensure_ascii=False, separators=(",", ":")),
                    "x": row[0], "y z": row[1]}.get(name)

        text = io.StringIO(newline="")
        csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("x", "y z"), *rows])
        self.assertEqual(prompts(template, "csv", text.getvalue().encode(), size), expected(template, rows, value_of))

    @given(some.text(some.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=40))
    def test_contents_of_files(self, content):
        with tempfile.NamedTemporaryFile() as file:
            file.write(content.encode())
            file.flush()
            self.assertEqual(prompts("<{@}{{@}>", "lines", file.name.encode()), ["<%s{@}>" % content])

    @settings(max_examples=10)
    @given(some.lists(some.lists(some.sampled_from(["$(touch ran)", "`touch ran`", ";touch ran;", "&", "|", "\n", "'", '"', "\\", "*", "~", "!", "%s", "@/etc/passwd",
                                                    "/init", "-x", "{}", "{#}", "{@}", "\u5ba1", "\t"]), min_size=1, max_size=6).map("".join),
                      min_size=1, max_size=40))
    def test_nothing_is_executed(self, items):
        items = [item for item in items if item.strip()]
        with tempfile.TemporaryDirectory() as place:
            run = subprocess.run([sys.executable, PROGRAM, "parallel", "-b", "echo", "--jsonl", "-q", "-0", "--prompt", "{#}:{}"], cwd=place, timeout=180,
                                 input="".join(item + "\0" for item in items).encode(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.assertEqual(os.listdir(place), [])
        if items:
            answers = sorted(map(json.loads, run.stdout.splitlines()), key=lambda result: result["index"])
            self.assertEqual([answer["output"] for answer in answers], ["%d:%s" % item for item in enumerate(items, 1)])
        self.assertEqual(run.returncode, 0 if items else 2, run.stderr)


if __name__ == "__main__":
    unittest.main()
