"""Section 2, Text and JSON; what JSON is read and written does not depend on orjson."""
import base64
import functools
import html
import itertools
import json
import marshal
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
import types
import unicodedata
import unittest
import unittest.mock
import urllib.parse

import support
from support import clinvk

support.left_to_fork()

try:
    import orjson
except ImportError:
    orjson = None


@functools.lru_cache()
def compiled():
    with open(support.COMPILED, "rb") as file:
        return marshal.loads(file.read()[16:])


def fresh_module(name):
    """A second clinvk module."""
    module = types.ModuleType(name)
    exec(compiled(), module.__dict__)
    return module


def module_without_orjson():
    """A second clinvk module, that finds no orjson."""
    module = fresh_module("clinvk_without_orjson")
    former = sys.modules.get("orjson")
    sys.modules["orjson"] = None
    try:
        module.faster_json()  # it is looked for at first use
    finally:
        if former:
            sys.modules["orjson"] = former
        else:
            del sys.modules["orjson"]
    return module


PLAIN = module_without_orjson()
CODERS = (clinvk, PLAIN) if orjson else (PLAIN,)


def same(one, other):
    """Equal in value and in type, all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other and (not isinstance(one, float) or math.copysign(1, one) == math.copysign(1, other))


def carried(value):
    """The value as it comes out of JSON: a high surrogate alone is carried as the stray bytes of its encoding."""
    if isinstance(value, str):
        return re.sub("[\ud800-\udbff](?![\udc00-\udfff])", lambda found: clinvk.to_text(clinvk.to_bytes(found.group())), value)
    if isinstance(value, dict):
        return {carried(key): carried(item) for key, item in value.items()}
    return list(map(carried, value)) if isinstance(value, list) else value


def random_value(chance, depth=0):
    kind = chance.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return chance.choice([None, True, False])
    if kind == 1:
        return chance.choice([0, -1, 2 ** 53, 2 ** 63 - 1, -2 ** 63, 2 ** 64 - 1, 2 ** 64, -2 ** 64, 10 ** 40, chance.randrange(10 ** 6)])
    if kind == 2:
        return chance.choice([0.0, -0.0, 0.1, 1e-7, 1e16, 1.5e300, 5e-324, 1.7976931348623157e308, chance.random() * 1e6])
    if kind < 6:
        return random_text(chance)
    if kind == 6:
        return {random_text(chance): random_value(chance, depth + 1) for _ in range(chance.randrange(4))}
    return [random_value(chance, depth + 1) for _ in range(chance.randrange(4))]


def random_text(chance, alphabet="ab \t\n\r\"\\/\0\x01\x1b\x7f\x9b\u00e9\u5be9\U0001f600\ud800\udfff\udcff\u2028\ufeff'$`!"):
    text = "".join(chance.choice(alphabet) for _ in range(chance.randrange(12)))
    return text.replace("\ud800\udfff", "").replace("\ud800\udcff", "")  # as escapes such a pair is one character


class Lossless(unittest.TestCase):
    def test_to_bytes_any_two_bytes_come_back(self):
        for pair in itertools.product(range(256), repeat=2):
            data = bytes(pair)
            self.assertEqual(clinvk.to_bytes(clinvk.to_text(data)), data)

    def test_to_bytes_bytes_like_surrogates_come_back(self):
        wrong = [data.hex() for second in range(256) for third in range(0x7f, 0xc1) for data in (bytes((0xed, second, third)),)
                 if clinvk.to_bytes(clinvk.to_text(data)) != data]
        self.assertEqual(wrong, [])

    def test_to_bytes_random_bytes_come_back(self):
        chance = random.Random(1)
        pool = b"a\n\x80\xbf\xc3\xa9\xed\xa0\x80\xe5\xaf\xa9\xf0\x9f\x98\x80\xf4\x90\xff\xfe\x00\xef\xbb\xbf"
        for _ in range(3000):
            data = bytes(chance.choice(pool) for _ in range(chance.randrange(40)))
            self.assertEqual(clinvk.to_bytes(clinvk.to_text(data)), data)

    def test_to_bytes_valid_text_is_utf_8(self):
        for text in ("", "a", "审查 auth", "\U0001f600", "\0", "e\u0301"):
            self.assertEqual(clinvk.to_bytes(text), text.encode("utf-8"))
            self.assertEqual(clinvk.to_text(text.encode("utf-8")), text)

    def test_to_bytes_stray_byte_and_other_surrogate_differ(self):
        self.assertEqual(clinvk.to_bytes("\ud800"), b"\xed\xa0\x80")
        self.assertEqual(clinvk.to_text(b"\xed\xa0\x80"), "\udced\udca0\udc80")
        self.assertEqual(clinvk.to_bytes("\udcff"), b"\xff")
        self.assertEqual(clinvk.to_text(b"a\xffb"), "a\udcffb")

    def test_lossless_handler_refuses_to_decode(self):
        clinvk.to_bytes("")  # from then on the handler is known
        self.assertRaises(UnicodeDecodeError, b"\xff".decode, "utf-8", clinvk.LOSSLESS)

    def test_text_chunks_any_size_of_pieces_is_the_same_text(self):
        data = "a审查\U0001f600é".encode() + b"\xff\xed\xa0\x80\xe5\xaf" + b"z\xf0\x9f" + b"\xed\xa0"
        whole = clinvk.to_text(data)
        for size in range(1, len(data) + 1):
            pieces = [data[start:start + size] for start in range(0, len(data), size)]
            self.assertEqual("".join(clinvk.text_chunks(pieces)), whole, "in pieces of %d" % size)
        self.assertEqual(list(clinvk.text_chunks([])), [])


class Json(unittest.TestCase):
    VALUES = [None, True, 0, -0.0, 1.0, 0.1, 1e300, 2 ** 64, -2 ** 70, 10 ** 100, "", "\0", "\ud800", "a\udcff\u5be9", "\u2028\u2029", "\x7f\x9b",
              [], {}, {"": []}, {"\udc80": "\ud83d\ude00"}, {"a": [1, [2, [3, {"b": None}]]]}, ["\\", '"', "/"], [("t", "u")]]

    def test_dumps_values_are_valid_json_of_the_same_value(self):
        for coder in CODERS:
            for value in self.VALUES:
                with self.subTest(coder=coder.__name__, value=value):
                    data = coder.dumps(value)
                    self.assertIsInstance(data, bytes)
                    self.assertNotIn(b"\n", data)
                    expected = carried(json.loads(json.dumps(value)))
                    self.assertTrue(same(json.loads(data.decode("utf-8")), expected), data)
                    self.assertTrue(same(coder.loads(data), expected), data)

    def test_dumps_random_values_come_back_from_each_coder(self):
        chance = random.Random(2)
        values = [random_value(chance) for _ in range(600)]
        for writer, reader in itertools.product(CODERS, CODERS):
            for value in values:
                data = writer.dumps(value)
                self.assertTrue(same(reader.loads(data), carried(value)), (value, data))

    @unittest.skipUnless(shutil.which("jq"), "jq is not installed")
    def test_dumps_output_is_read_by_jq(self):
        chance = random.Random(16)
        values = self.VALUES + ["\ud800" + tail for tail in ("", "x", "\ud800", "\udc00", "\udcff", "\u00e9", "\\", '"')] + [random_value(chance) for _ in range(200)]
        for coder in CODERS:
            data = b"\n".join(map(coder.dumps, values))
            done = subprocess.run(["jq", "-c", "."], input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=support.PATIENCE)
            self.assertEqual((done.returncode, done.stderr, len(done.stdout.splitlines())), (0, b"", len(values)))

    def test_dumps_only_lone_surrogates_are_escaped(self):
        for coder in CODERS:
            self.assertEqual(coder.dumps("审查é"), '"审查é"'.encode())
            self.assertEqual(coder.dumps(["a\udcffb\udc80"]), b'["a\\udcffb\\udc80"]')
            self.assertEqual(coder.dumps(["a\ud800"]), b'["a\\udced\\udca0\\udc80"]', "as it is jq would not take it")
            self.assertEqual(coder.dumps({"a": 1, "b": [1, 2]}), b'{"a":1,"b":[1,2]}')

    def test_dumps_nan_and_infinity_are_never_written(self):
        def refuse(name):
            raise AssertionError(name + " was written")

        for coder in CODERS:
            for value in (float("nan"), float("inf"), {"a": [float("-inf")]}):
                try:
                    data = coder.dumps(value)
                except ValueError:
                    continue
                json.loads(data.decode(), parse_constant=refuse)

    BAD = [b"", b" ", b"{", b"[1,]", b"{'a':1}", b"NaN", b"[Infinity]", b"-Infinity", b"nul", b'"\t"', b'{"a" 1}', b"01", b"1 2", b"[1] x",
           b'"\xff"', b'{"a":"\xed\xa0\x80"}', b'"\\x"', b"\xef\xbb\xbf{}", b"+1", b".5", b"1.", b'"a', b"[1e999]", b"-1e400"]
    GOOD = [(b"1E5", 1e5), (b" [ 1 , 2 ] ", [1, 2]), (b'"\\ud800"', "\ud800"), (b'"\\ud83d\\ude00"', "\U0001f600"), (b"12345678901234567890123", 12345678901234567890123),
            (b"-0", 0), (b"-0.0", -0.0), (b"1.0", 1.0), (b"9007199254740993", 9007199254740993), (b"18446744073709551616", 18446744073709551616),
            (b'{"a":1,"a":2}', {"a": 2}), (b"1e-400", 0.0), (b'"\\u0000"', "\0"), (b"0.30000000000000004", 0.30000000000000004),
            (b"123456789012345678901234567890.5", 123456789012345678901234567890.5), (b"\t\r\n{}", {})]

    def test_loads_invalid_json_is_refused(self):
        for coder in CODERS:
            for data in self.BAD:
                with self.subTest(coder=coder.__name__, data=data), self.assertRaises(ValueError):
                    coder.loads(data)

    def test_loads_millions_of_levels_is_an_error_and_no_crash(self):
        script = ("import sys, clinvk\n"
                  "for start, end in ('[', ']'), ('{\"a\":', '}'), ('[0,', ']'):\n"
                  "    try:\n"
                  "        clinvk.loads((start * 1000000 + '1' + end * 1000000).encode())\n"
                  "    except RecursionError:\n"
                  "        print('refused')\n")
        done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=support.MODULES), timeout=support.PATIENCE)
        self.assertEqual((done.returncode, done.stdout), (0, b"refused\n" * 3))

    def test_loads_valid_json_is_the_same_with_and_without_orjson(self):
        for coder in CODERS:
            for data, value in self.GOOD:
                with self.subTest(coder=coder.__name__, data=data):
                    self.assertTrue(same(coder.loads(data), value), coder.loads(data))

    def test_loads_error_has_line_and_column(self):
        for coder in CODERS:
            with self.assertRaises(json.JSONDecodeError) as caught:
                coder.loads(b'{\n"a": ?}')
            self.assertEqual((caught.exception.lineno, caught.exception.colno), (2, 6))

    def test_loads_damaged_json_is_the_same_with_and_without_orjson(self):
        chance = random.Random(3)
        seeds = [json.dumps(random_value(chance)).encode() for _ in range(150)]

        def judged(coder, data):
            try:
                return coder.loads(data)
            except ValueError:
                return ValueError

        cases = []
        for seed in seeds:
            for _ in range(6):
                data = bytearray(seed)
                for _ in range(chance.randrange(1, 3)):
                    place = chance.randrange(len(data) + 1)
                    data[place:place + chance.randrange(2)] = chance.choice([b"", b",", b'"', b"0", b"\xff", b"\\", b"}", b"[", b"e9", b"\n", b"NaN"])
                cases.append(bytes(data))
        refused = 0
        for data in cases:
            value = judged(PLAIN, data)
            refused += value is ValueError
            self.assertTrue(same(judged(clinvk, data), value), data)
        self.assertGreater(refused, 200)


class Durations(unittest.TestCase):
    def test_parse_duration_number_with_or_without_unit(self):
        for text, seconds in (("90", 90), ("90s", 90), ("15m", 900), ("2h", 7200), ("1.5m", 90), ("0.25", 0.25), (".5s", 0.5), ("007", 7), ("5.", 5),
                              ("1h30m", 5400), ("1h 30m 5s", 5405), ("500ms", 0.5), ("1s500ms", 1.5), ("10 min", 600), ("2 hours", 7200), ("90 s", 90), ("1 hr 1 min", 3660),
                              ("3 seconds", 3), ("1.5h30m", 7200)):
            self.assertAlmostEqual(clinvk.parse_duration(text), seconds, text)

    def test_parse_duration_other_text_is_refused_with_an_example(self):
        for text in ("", "s", ".", "m5", "-1", "+1", "1e3", "1_0", "90  s", " 90", " 90s", "90s ", " ", "90S", "1d", "1h30", "30m1h", "1h1h", "1m s", "90 90", "inf", "nan", "٣", "²", "1..2", "0x1", "5\n"):
            with self.subTest(text), self.assertRaisesRegex(ValueError, "expected a duration such as 90, 90s, 15m or 2h, got "):
                clinvk.parse_duration(text)
        for text in ("0", "0s", "0.0h"):
            with self.subTest(text), self.assertRaisesRegex(ValueError, "above 0"):
                clinvk.parse_duration(text)

    def test_duration_of_any_length_is_read_back(self):
        for seconds, text in ((0, "0s"), (0.25, "0.2s"), (30, "30s"), (59.94, "59.9s"), (60, "1m"), (90.9, "1m30s"), (250, "4m10s"), (3600, "1h"), (7385, "2h3m5s"), (3605, "1h5s")):
            self.assertEqual(clinvk.duration(seconds), text)
            if seconds:
                self.assertAlmostEqual(clinvk.parse_duration(text), seconds, delta=1)

    def test_parse_size_reads_units_of_1024(self):
        for text, size in (("1", 1), ("4096", 4096), ("500K", 512000), ("64M", 64 << 20), ("1G", 1 << 30), ("1.5g", 3 << 29), ("2 TiB", 2 << 40), ("10 kb", 10240), ("7B", 7), (".5K", 512)):
            self.assertEqual(clinvk.parse_size(text), size, text)
        for text in ("", "K", "1e3", "-1", "+1", " 1", "1 ", "1KK", "1 X", "0x10", "1iB M", "٣"):
            with self.subTest(text), self.assertRaisesRegex(ValueError, "expected a size such as 500K, 64M or 1G, got "):
                clinvk.parse_size(text)
        for text in ("0", "0.5", "0G", "9" * 400, "9" * 30 + "T"):
            with self.subTest(text), self.assertRaisesRegex(ValueError, "expected a size of 1 byte or more"):
                clinvk.parse_size(text)

    def test_size_text_is_short(self):
        for size, text in ((0, "0 B"), (999, "999 B"), (1000, "1 KB"), (1229, "1.2 KB"), (64 << 20, "64 MB"), (1 << 30, "1 GB"), (5 << 50, "5120 TB")):
            self.assertEqual(clinvk.size_text(size), text)

    def test_clock_shows_hours_from_one_hour_on(self):
        for seconds, text in ((0, "00:00"), (0.99, "00:00"), (42, "00:42"), (60, "01:00"), (3599.9, "59:59"), (3600, "1:00:00"), (3723, "1:02:03"), (360000, "100:00:00")):
            self.assertEqual(clinvk.clock(seconds), text)

    def test_local_time_has_what_is_needed_to_tell_it_from_now(self):
        now = time.mktime((2026, 11, 24, 12, 30, 10, 0, 0, -1))
        with unittest.mock.patch.object(time, "time", lambda: now):
            for seconds, text in ((0, "12:30:10"), (59, "12:31:09"), (-59, "12:29:11"), (60, "12:31"), (3600, "13:30"), (86400, "2026-11-25 12:30")):
                self.assertEqual(clinvk.local_time(now + seconds), text)

    def test_utc_is_rfc_3339_with_milliseconds(self):
        for seconds, text in ((0, "1970-01-01T00:00:00.000Z"), (0.0004, "1970-01-01T00:00:00.000Z"), (0.9996, "1970-01-01T00:00:01.000Z"),
                              (951782400.5, "2000-02-29T00:00:00.500Z"), (1795535999.999, "2026-11-24T15:59:59.999Z"), (4102444800, "2100-01-01T00:00:00.000Z")):
            self.assertEqual(clinvk.utc(seconds), text)


class Words(unittest.TestCase):
    def test_quoted_value_is_json_of_a_readable_length(self):
        self.assertEqual(clinvk.quoted("a\nb"), '"a\\nb"')
        self.assertEqual(clinvk.quoted("\udcff"), '"\\udcff"')
        self.assertEqual(clinvk.quoted([1, None]), "[1,null]")
        self.assertEqual(clinvk.quoted("\ufeff\xa0审\u2028\U000e0001"), '"\\ufeff\\u00a0审\\u2028\\udb40\\udc01"')
        self.assertEqual(clinvk.quoted("x" * 58), '"%s"' % ("x" * 58))
        self.assertEqual(clinvk.quoted("x" * 59), '"%s...' % ("x" * 56))

    def test_nearest_near_word_is_offered(self):
        known = ("prompt", "model", "max_turns")
        self.assertEqual(clinvk.nearest("promt", known), ' (did you mean "prompt"?)')
        self.assertEqual(clinvk.nearest("maxturns", iter(known)), ' (did you mean "max_turns"?)')
        self.assertEqual(clinvk.nearest("zebra", known), "")
        self.assertEqual(clinvk.nearest("", known), "")
        for word, other in (("args", "tags"), ("--workers", "--workdir"), ("dir", "id")):
            self.assertEqual(clinvk.nearest(word, [other]), "", "a wrong hint is worse than none")

    def test_known_as_name_of_another_program_is_translated(self):
        for name, known, hint in (("cwd", ["workdir", "id"], "workdir"), ("--cwd", ["--workdir"], "--workdir"), ("-n", ["--max-parallel", "-f"], "--max-parallel"),
                                  ("--max-workers", ["--max-parallel"], "--max-parallel"), ("workers", ["max_parallel"], "max_parallel"),
                                  ("cwd", ["prompt"], ""), ("-n", ["--limit"], ""), ("--jbos", ["--jobs"], "--jobs"), ("", ["prompt"], ""), ("--", ["prompt"], "")):
            self.assertEqual(clinvk.known_as(name, known), ' (did you mean "%s"?)' % hint if hint else "", name)


class Fill(unittest.TestCase):
    def test_fill_known_placeholders_are_replaced_and_other_text_stays(self):
        values = {"{}": "ITEM", "{a}": "1", "{{a}}": "{a}", "{{steps.x y.output}}": "{a}", "{n}": ""}
        for text, filled in [
                ("", ""), ("x", "x"), ("{a}", "1"), ("{a}{a}", "11"), ("-{}-", "-ITEM-"),
                ("{{a}}", "{a}"), ("{{{a}}}", "{{a}}"), ("{{steps.x y.output}}", "{a}"),
                ("{n}x{n}", "x"), ("{b} {A}", "{b} {A}"), ('{"k": {a}}', '{"k": 1}'),
                ("{a\n}", "{a\n}"), ("{a", "{a"), ("{{a}", "{1"), ("{ a }", "{ a }")]:
            with self.subTest(text):
                self.assertEqual("".join(clinvk.fill(text, values.get)), filled)

    def test_fill_values_that_are_not_text_are_pieces_of_their_own(self):
        self.assertEqual(clinvk.fill("a{x}{y}b{z}", {"{x}": 0, "{y}": 1}.get), ["a", 0, 1, "b", "{z}"])
        self.assertEqual(clinvk.fill("{x}", {"{x}": 0}.get), [0])

    def test_fill_template_pattern_takes_two_braces_for_one(self):
        values = {"{{": "{", "{}": "{#}", "{/}": "b"}
        for text, filled in [("{}{/}", "{#}b"), ("{{", "{"), ("{{}", "{}"), ("{{{}", "{{#}"), ("{{{}}}", "{{#}}}"), ("{{{{}", "{{}"), ("{{/}}", "{/}}"),
                             ('{"a": {}}', '{"a": {#}}'), ("{ }{x}{", "{ }{x}{"), ("}}{}", "}}{#}")]:
            with self.subTest(text):
                self.assertEqual("".join(clinvk.fill(text, values.get, clinvk.TEMPLATE_PLACEHOLDER)), filled)

    def test_fill_many_braces_take_linear_time(self):
        for text in ("{a" * 200000, "{" + "a" * 200000):
            self.assertEqual(clinvk.fill(text, lambda _: "x", clinvk.TEMPLATE_PLACEHOLDER), [text])
        for text in ("{" * 200000, "{a" * 200000, "{{a" * 200000, "{" + "a" * 200000):
            self.assertEqual(clinvk.fill(text, lambda _: "x"), [text])


class Visible(unittest.TestCase):
    def test_visible_leaves_no_control_but_tab_and_newline(self):
        shown = clinvk.visible("".join(map(chr, range(0x3000))))
        left = [character for character in shown if unicodedata.category(character) == "Cc" and character not in "\t\n"]
        self.assertEqual(left, [])

    def test_visible_leaves_no_character_that_changes_direction(self):
        for code in itertools.chain(range(0x202a, 0x202f), range(0x2066, 0x206a)):
            self.assertEqual(clinvk.visible("a" + chr(code)), "a<U+%04X>" % code)

    def test_visible_shows_control_characters(self):
        for text, shown in (("\x1b[31mred", "^[[31mred"), ("\a\b\0", "^G^H^@"), ("\x7f", "^?"), ("a\rb", "a^Mb"), ("\x9b31m", "<U+009B>31m"), ("a\tb\n", "a\tb\n"),
                            ("审查\U0001f600é", "审查\U0001f600é")):
            self.assertEqual(clinvk.visible(text), shown)

    def test_one_line_is_the_first_line_that_is_not_blank(self):
        for text, line in (("", ""), (" \n\t\n", ""), ("a\nb", "a"), ("\n\n  a \t b\r\nc", "a b"), ("x\x1b[2Jy", "x^[[2Jy"), ("审查 模块", "审查 模块"),
                           ("a\x0bb", "a"), ("a\u2028b", "a"), ("\x07\n", "^G")):
            self.assertEqual(clinvk.one_line(text), line, ascii(text))

    def test_one_line_huge_text_is_cut(self):
        self.assertEqual(clinvk.one_line("x" * 10 ** 6)[:5], "xxxxx")
        self.assertLessEqual(len(clinvk.one_line("x" * 10 ** 6)), clinvk.CHUNK)


def columns(text):
    return sum(map(clinvk.columns_of, text))


class Width(unittest.TestCase):
    def test_columns_of_characters_are_those_of_terminals(self):
        for character, width in (("a", 1), (" ", 1), ("é", 1), ("审", 2), ("カ", 2), ("ｶ", 1), ("Ａ", 2), ("한", 2), ("\u0301", 0), ("\u200d", 0), ("\ufe0f", 0),
                                 ("\u20dd", 0), ("\u200b", 0), ("\U0001f600", 2), ("\U0001f1e9", 1), ("ß", 1), ("→", 1), ("…", 1), ("\u3000", 2)):
            self.assertEqual(clinvk.columns_of(character), width, ascii(character))

    def test_cut_text_that_fits_stays_and_a_longer_one_ends_in_dots(self):
        for text, width, cut in (("", 10, ""), ("abcd", 4, "abcd"), ("abcde", 4, "a..."), ("审查模块", 8, "审查模块"), ("审查模块", 7, "审查..."), ("审查模块", 6, "审..."),
                                 ("审查模块", 5, "审..."), ("审查模块", 4, "..."), ("e\u0301" * 5, 5, "e\u0301" * 5), ("e\u0301" * 6, 5, "e\u0301" * 2 + "..."),
                                 ("\U0001f600" * 3, 6, "\U0001f600" * 3), ("\U0001f600" * 4, 6, "\U0001f600...")):
            self.assertEqual(clinvk.cut(text, width), cut, (text, width))

    def test_cut_random_text_fits_and_wastes_no_column(self):
        chance = random.Random(4)
        for _ in range(3000):
            text = "".join(chance.choice("ab审カ\u0301\U0001f600 é\u200d") for _ in range(chance.randrange(30)))
            width = chance.randrange(4, 24)
            cut = clinvk.cut(text, width)
            self.assertLessEqual(columns(cut), width, (text, width))
            if columns(text) <= width:
                self.assertEqual(cut, text)
                continue
            self.assertEqual(cut[-3:], "...")
            kept = cut[:-3]
            self.assertTrue(text.startswith(kept))
            self.assertGreater(columns(text[:len(kept) + 1]), width - 3, (text, width))


    def test_wrapped_lines_fit_and_lose_only_blanks(self):
        for text, width, lines in (("", 5, [""]), ("ab cd ef", 5, ["ab cd", "ef"]), ("ab cd ef", 4, ["ab", "cd", "ef"]), ("abcdefg", 3, ["abc", "def", "g"]),
                                   ("a bcdefg h", 3, ["a", "bcd", "efg", "h"]), ("审查模块", 5, ["审查", "模块"]), ("ab  cd", 3, ["ab ", "cd"]), ("审", 1, ["审"])):
            self.assertEqual(clinvk.wrapped(text, width), lines, text)
        chance = random.Random(5)
        for _ in range(2000):
            text = "".join(chance.choice("ab审 \u0301") for _ in range(chance.randrange(40)))
            width = chance.randrange(2, 12)
            lines = clinvk.wrapped(text, width)
            self.assertLessEqual(max(map(columns, lines)), width, text)
            self.assertEqual("".join(lines).replace(" ", ""), text.replace(" ", ""))


def module_in(environment):
    """A clinvk module of its own, that has looked for secrets in that environment (it does so once)."""
    module = fresh_module("clinvk_in_an_environment")
    former = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        module._secrets()
    finally:
        os.environ.clear()
        os.environ.update(former)
    return module


class Secrets(unittest.TestCase):
    VALUE = "sk-0123456789"

    @support.only_in_full_runs
    def test_without_secrets_name_with_a_secret_word_is_secret(self):
        for name in ("KEY", "TOKEN", "SECRET", "PASSWORD", "X_API_KEY", "KEY_2", "MY_SECRETS_FILE", "GITHUB_TOKEN_RO", "openai_api_key", "Gh_Token", "GITHUB_PAT",
                     "OPENAI_APIKEY", "DB_PASSWD", "GPG_PASSPHRASE", "AWS_ACCESS_KEY_ID", "GOOGLE_CREDENTIALS", "CLAUDE_CODE_SESSION_ACCESS_TOKEN", "_TOKENS_", "PGPASSWORD",
                     "DB_PASS", "MYSQL_PWD", "REDIS_AUTH", "SSHPASS", "NPM_AUTHTOKEN", "AWS_ACCESSKEY", "MY-TOKEN", "githubToken", "npm.token", "GROQ_API_KEY2"):
            module = module_in({name: self.VALUE, "HOME": "/home/sk"})
            self.assertEqual(module.without_secrets("a %s b" % self.VALUE), "a [%s] b" % name)
            self.assertEqual(module.secret_pieces("a %s b" % self.VALUE), [("a ", ""), (self.VALUE, name), (" b", "")])

    @support.only_in_full_runs
    def test_without_secrets_other_names_and_short_values_stay(self):
        for name, value in (("HOME", self.VALUE), ("PWD", self.VALUE), ("OLDPWD", self.VALUE), ("SSH_ASKPASS", self.VALUE), ("SSH_AUTH_SOCK", self.VALUE), ("KEYBOARD", self.VALUE), ("X_TOKENIZER", self.VALUE), ("X_API_KEY", "1234567"), ("X_API_KEY", "")):
            text = "a %s b" % value
            module = module_in({name: value})
            self.assertEqual(module.without_secrets(text), text, name)
            self.assertEqual(module.secret_pieces(text), [(text, "")], name)
        self.assertEqual(module_in({"X_API_KEY": "12345678"}).without_secrets("12345678"), "[X_API_KEY]")

    def test_one_line_hides_secrets_before_the_cut(self):
        module = module_in({"A_KEY": self.VALUE})
        self.assertEqual(module.one_line("\n a\t%s b\nc" % self.VALUE), "a [A_KEY] b")
        self.assertNotIn(self.VALUE[:4], module.one_line("x" * (module.CHUNK - 5) + self.VALUE))

    def test_without_secrets_replaces_every_occurrence_and_nothing_else(self):
        module = module_in({"A_KEY": "aaaaaaaa", "B_KEY": ".*+?(b)[$^|"})
        self.assertEqual(module.without_secrets("aaaaaaaaaaaaaaaa x.*+?(b)[$^|\naaaaaaa aaaaaaaa"), "[A_KEY][A_KEY] x[B_KEY]\naaaaaaa [A_KEY]")
        for text in ("", "nothing", "aaaaaaa", "审查 \udcff\0\n"):
            self.assertEqual(module.without_secrets(text), text)
            self.assertEqual("".join(piece for piece, _ in module.secret_pieces(text)), text)

    def test_without_secrets_finds_json_and_single_lines(self):
        value = 'pass "审\\q" word'
        module = module_in({"A_KEY": value, "B_KEY": "-----BEGIN-----\nabcdefghijkl\nshort\n-----END-----\n"})
        for text in (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]):
            self.assertEqual(module.without_secrets("<%s>" % text), "<[A_KEY]>")
        self.assertEqual(module.quoted(value), '"[A_KEY]"')
        self.assertEqual(module.without_secrets("x abcdefghijkl y short"), "x [B_KEY] y short")
        self.assertEqual(module.without_secrets("-----BEGIN-----\\nabcdefghijkl\\nshort\\n-----END-----\\n"), "[B_KEY]")

    @support.only_in_full_runs
    def test_without_secrets_finds_repeated_quoting(self):
        value = 'sk-ant_01/"x\\y"+审'
        module = module_in({"A_KEY": value})
        text = value
        self.assertEqual(module.without_secrets(json.dumps(text)[1:-1].replace("/", "\\/")), "[A_KEY]")
        for _ in range(4):
            text = json.dumps(text)[1:-1]
            self.assertEqual(module.without_secrets("<%s>" % text), "<[A_KEY]>")
        self.assertEqual(module.without_secrets("<%s>" % json.dumps(re.escape(value), ensure_ascii=False)), '<"[A_KEY]">')
        # In time that grows as the text does, or this would not end.
        backslashes = "sk" + "\\" * 1000000
        for secret in (value, "--------", "\\-\\-\\-\\-", "-\\\\\\\\--"):
            self.assertEqual(module_in({"A_KEY": secret}).without_secrets(backslashes), backslashes)
        self.assertEqual(module_in({"A_KEY": "-\\-\\'0'-"}).without_secrets(json.dumps("<-\\-\\'0'->")), '"<[A_KEY]>"')

    def test_without_secrets_finds_user_information_of_urls(self):
        for value, secrets, plain in (
                ("http://user:pa%40ss%2Fword@proxy:8080", ("user:pa%40ss%2Fword", "pa%40ss%2Fword", "pa@ss/word", "user:pa@ss/word"), "proxy:8080"),
                ("postgres://postgres:hunter2-hunter2@db/app?x=1", ("hunter2-hunter2",), "postgres"), ("https://ghp_0123456789@github.com/x", ("ghp_0123456789",), "github.com"),
                ("amqp://a:first-secret@h1,amqp://b:second-secret@h2", ("first-secret", "second-secret"), "amqp"), ("ssh://developer@host/x", (), "developer"),
                ("redis://:only-a-password@h", ("only-a-password",), "redis"), ("https://example.org/a@b-long-path", (), "b-long-path")):
            module = module_in({"SOME_URL": value})
            for secret in secrets:
                self.assertEqual(module.without_secrets("<%s>" % secret), "<[SOME_URL]>", value)
            self.assertEqual(module.without_secrets(plain), plain)

    def test_without_secrets_finds_values_of_headers(self):
        module = module_in({"ANTHROPIC_CUSTOM_HEADERS": "X-Api-Key: first-secret\nAccept: application/json\nCookie: a=fifth-cookie\nAuthorization: Bearer second-secret", "OTEL_HEADERS": "key=third%20secret,team=a-large-team,b-token=fourth-secret",
                            "JSON_HEADERS": '{"Authorization": "Bearer fifth-secret"}'})
        self.assertEqual(module.without_secrets("first-secret X-Api-Key application/json a-large-team a=fifth-cookie Bearer second-secret; third secret third%20secret fourth-secret fifth-secret Authorization"),
                         "[ANTHROPIC_CUSTOM_HEADERS] X-Api-Key application/json a-large-team [ANTHROPIC_CUSTOM_HEADERS] [ANTHROPIC_CUSTOM_HEADERS]; [OTEL_HEADERS] [OTEL_HEADERS] [OTEL_HEADERS] [JSON_HEADERS] Authorization")

    def test_without_secrets_finds_url_html_and_base64(self):
        value = "sk-1/2+3 &<'审\">\\x?"
        module = module_in({"A_KEY": value})
        quote = urllib.parse.quote
        for text in (quote(value), quote(value, safe=""), quote(value, safe="!'()*").lower(), html.escape(value), html.escape(value, quote=False),
                     html.escape(value).replace("&quot;", "&#34;").replace("&#x27;", "&#39;").replace("+", "&#43;"), json.dumps(html.escape(value), ensure_ascii=False)[1:-1]):
            self.assertEqual(module.without_secrets("<%s>" % text), "<[A_KEY]>", text)
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            for before, after in itertools.product(("", "u", "u:", "us:"), ("", "\n", ":x", ": y")):
                text = encode((before + value + after).encode()).decode()
                left = module.without_secrets(text)
                self.assertIn("[A_KEY]", left, (before, after))
                self.assertLess(len(left), len("[A_KEY]") + 12, (before, after))
        self.assertEqual(module_in({"HTTPS_PROXY": "http://user:some-password@h"}).without_secrets("Basic dXNlcjpzb21lLXBhc3N3b3Jk"), "Basic [HTTPS_PROXY]")
        # In time that grows as the text does, or this would not end.
        for text in ("sk%2d1" * 100000, "&#" * 500000, "sk-1/" + "%5c" * 300000, base64.b64encode(b"sk-1" * 200000).decode()):
            self.assertEqual(module.without_secrets(text), text)

    @support.only_in_full_runs
    def test_without_secrets_many_secrets_keep_their_names(self):
        values = {"A%d_KEY" % number: "sk-%03d-secret" % number for number in range(200)}
        module = module_in(values)
        self.assertEqual(module.without_secrets(" ".join(values.values())), " ".join(map("[%s]".__mod__, values)))

    def test_without_secrets_longer_secret_counts_first(self):
        for names in (("IN_KEY", "OUT_KEY"), ("OUT_KEY", "IN_KEY")):  # in whatever order the environment has them
            values = {"IN_KEY": "01234567", "OUT_KEY": "abc01234567def"}
            module = module_in({name: values[name] for name in names})
            self.assertEqual(module.without_secrets("abc01234567def 01234567 abc01234567"), "[OUT_KEY] [IN_KEY] abc[IN_KEY]")
            values = {"IN_KEY": "01234567", "OUT_KEY": "01234567def"}
            module = module_in({name: values[name] for name in names})
            self.assertEqual(module.without_secrets("01234567def 01234567de"), "[OUT_KEY] [IN_KEY]de")

    def test_secret_pieces_joined_are_the_text(self):
        chance = random.Random(11)
        module = module_in({"A_KEY": "abababab", "B_KEY": "babababa", "C_KEY": "abababab-ab", "D_KEY": "审查审查审查审查"})
        for _ in range(2000):
            text = "".join(chance.choice(("a", "b", "ab", "-", "审查", "abab", "x")) for _ in range(chance.randrange(20)))
            pieces = module.secret_pieces(text)
            self.assertEqual("".join(piece for piece, _ in pieces), text)
            left = module.without_secrets(text)
            self.assertFalse([value for value in ("abababab", "babababa", "审查审查审查审查") if value in left], text)


@support.only_in_full_runs
class ShellWords(support.Case):
    TEXTS = ["", "a", "a b", "it's", '"', "$HOME `id` $(id) ${x}", "a\nb\n", "\t", "\\", "\\n", "*", "~", "!x", "-n", "a=b", "\x1b[31m", "\x7f", "\x01a1\x01f", "\r\n",
             "审查\n模块", "é\udcff9", "\ud800", "\U0001f600\n", "'\n'", "$'a'\n", "\u2028x", "\u200b", "#x\n", "a;b&c|d\n", "<(x)\n", "\x80\x9b"]

    def words(self):
        chance = random.Random(5)
        return self.TEXTS + [random_text(chance).replace("\0", "") for _ in range(300)]

    def check(self, *shell):
        if not shutil.which(shell[0]):
            self.skipTest(shell[0] + " is not installed")
        words = self.words()
        script = "".join("printf '%%s\\0' %s\n" % clinvk.shell_quoted(word) for word in words)
        for locale in ("C", "C.UTF-8"):
            done = self.run_program(list(shell) + [self.file("script", clinvk.to_bytes(script))], env={"LC_ALL": locale})
            self.assertEqual(done.stderr, b"")
            for word, got in itertools.zip_longest(words, done.stdout.split(b"\0")[:-1]):
                self.assertEqual(got, clinvk.to_bytes(word), (locale, clinvk.shell_quoted(word)))

    def test_shell_quoted_text_is_read_back_by_bash(self):
        self.check("bash", "--norc")

    def test_shell_quoted_text_is_read_back_by_zsh(self):
        self.check("zsh", "-f")

    def test_shell_quoted_text_is_one_visible_line(self):
        for word in self.words():
            quoted = clinvk.shell_quoted(word)
            self.assertTrue(quoted.isprintable(), ascii(quoted))
            self.assertGreater(len(quoted), 0)

    def test_shell_quoted_plain_word_stays(self):
        self.assertEqual(clinvk.shell_quoted("claude-opus_5.1/x"), "claude-opus_5.1/x")


if __name__ == "__main__":
    unittest.main()
