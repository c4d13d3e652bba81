#!/usr/bin/env python3
"""The page of `clinvk report --html` in headless Chromium: `python3 tests/browser.py`.

It needs chromium and chromedriver (Debian: chromium, chromium-driver), so it is no part of the discovered tests; .ci/run runs it.
"""
import atexit
import base64
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request

from support import PATIENCE, Case, clinvk, wait_until
from test_report import START, attempt, line, lines

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ENTER, ESCAPE, TAB = "\ue007", "\ue00c", "\ue004"
ATTACK = "window.attacked = 1; document.title = 'attacked'"
HOSTILE = ("<script>%s</script>" % ATTACK, "</script><script>%s</script>" % ATTACK, "<!-- <script>", "--> <script>%s</script>" % ATTACK,
           '<img src=x onerror="%s">' % ATTACK, "]]> &lt;b&gt; &amp; \\u003cb\\u003e", "a\0b\x07 \x1b]0;title\x07 \u202egnp.exe\u202c",
           "\u2028%s\u2029" % ATTACK, "${%s} `%s` \\" % (ATTACK, ATTACK), "__proto__")


def many(count):
    """A results file of so many tasks, eight at a time."""
    return lines(*(line(index, "ok" if index % 7 else "failed", start=index // 8 * 2.5, seconds=1 + index % 9 / 7, task_name="task %d" % index,
                        model="fake-model-1", cost_usd=index % 100 / 1e4, usage={"total_tokens": 1000 + index}, error="" if index % 7 else "no luck",
                        task_id="t%05d" % index) for index in range(count)))


def task(name, answer="x", **fields):
    return dict({"backend": "echo", "prompt": "rest\n" + answer, "name": name}, **fields)


def moment(seconds):
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


class Browser:
    """Chromium, driven by WebDriver on loopback."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="test-clinvk-browser-")
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._output = os.path.join(self.directory, "driver")
        with open(self._output, "wb") as output:
            self._driver = subprocess.Popen(
                [DRIVER, "--port=0"], stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True,
                env=dict(os.environ, TMPDIR=self.directory, HOME=self.directory))
        try:
            self._url = "http://127.0.0.1:%s/session" % wait_until(self._port, "chromedriver is ready")
            arguments = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1300,1000", "--no-first-run"]
            if os.geteuid() == 0:
                arguments.append("--no-sandbox")
            session = self.ask("POST", "", {"capabilities": {"alwaysMatch": {
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
                "goog:chromeOptions": {"binary": CHROMIUM, "args": arguments}}}})
        except BaseException:
            self._end()
            raise
        self._url += "/" + session["sessionId"]

    def _port(self):
        with open(self._output) as file:
            text = file.read()
        if self._driver.poll() is not None:
            raise AssertionError("chromedriver ended: " + text)
        return "".join(re.findall(r"started successfully on port (\d+)", text))

    def ask(self, method, path, value=None):
        request = urllib.request.Request(self._url + path, method=method, headers={"Content-Type": "application/json"},
                                         data=json.dumps(value or {}).encode() if method == "POST" else None)
        try:
            with self._opener.open(request, timeout=PATIENCE * 4) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError("%s %s: %s" % (method, path, error.read().decode("utf-8", "replace"))) from None

    def run(self, script, *arguments):
        """Runs JavaScript in the page.  What it returns."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": arguments})

    def command(self, name, **parameters):
        """A command of Chromium's own protocol."""
        return self.ask("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def type(self, *keys):
        """Presses keys one after the other, wherever the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.ask("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def messages(self, kind):
        return self.ask("POST", "/se/log", {"type": kind})

    def close(self):
        try:
            self.ask("DELETE", "")
        finally:
            self._end()

    def _end(self):
        try:
            os.killpg(self._driver.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._driver.wait()
        clinvk.remove_tree(self.directory)


@unittest.skipUnless(CHROMIUM and DRIVER, "needs chromium and chromedriver")
class PageTest(Case):
    @classmethod
    def setUpClass(cls):
        cls.browser = Browser()
        atexit.register(cls.browser.close)  # also after ^C

    def setUp(self):
        super().setUp()
        self.browser.command("Emulation.setEmulatedMedia", features=[])
        self.browser.command("Emulation.clearDeviceMetricsOverride")

    def report(self, *arguments):
        """Makes the page of a results file and loads it."""
        page = self.path("page.html")
        done = self.clinvk("report", "--html", page, *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.load(page)

    def load(self, page):
        for kind in ("browser", "performance"):
            self.browser.messages(kind)
        self.browser.ask("POST", "/url", {"url": "file://" + page})
        self.addCleanup(self.assert_quiet, "file://" + page)

    def assert_quiet(self, url):
        """No message on the console, and no request but that for the page."""
        self.assertEqual(self.browser.messages("browser"), [])
        events = [json.loads(entry["message"])["message"] for entry in self.browser.messages("performance")]
        requests = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        self.assertEqual(requests, [url])

    def batch(self, *tasks, options=(), code=0):
        """Runs a batch.  The path of its results file."""
        path = self.path("results.jsonl")
        done = self.clinvk("parallel", "--results", path, "-q", *options, input=json.dumps(tasks))
        self.assertEqual(done.returncode, code, done.stderr)
        return path

    def texts(self, selector):
        return self.browser.run("return [...document.querySelectorAll(arguments[0])].map(node => node.textContent)", selector)

    def names(self):
        return self.texts("#rows button")

    def click(self, selector):
        self.browser.run("document.querySelector(arguments[0]).click()", selector)

    def set(self, id, value, event):
        self.browser.run("const node = document.getElementById(arguments[0]); node.value = arguments[1];"
                         "node.dispatchEvent(new Event(arguments[2]))", id, value, event)

    def focus(self):
        return self.browser.run("return document.activeElement.textContent")

    def test_it_sorts(self):
        self.report(self.batch(*map(task, ("b10", "c", "b9", "a"))))
        self.assertEqual(self.names(), ["b10", "c", "b9", "a"])
        order = "return document.querySelector('th[data-name=name]').getAttribute('aria-sort')"
        self.assertEqual(self.browser.run(order), "none")
        self.click("th[data-name=name] button")
        self.assertEqual((self.names(), self.browser.run(order)), (["a", "b9", "b10", "c"], "ascending"))
        self.click("th[data-name=name] button")
        self.assertEqual((self.names(), self.browser.run(order)), (["c", "b10", "b9", "a"], "descending"))

    def test_it_filters(self):
        self.report(self.batch(task("first one", tags=["slow"]),
                               {"backend": "claude", "prompt": "fail no luck", "name": "Second one"},
                               task("third"), code=1))
        for text, status, names in (("", "", ["first one", "Second one", "third"]), ("ONE", "", ["first one", "Second one"]),
                                    ("one fir", "", ["first one"]), ("slow", "", ["first one"]), ("luck", "", ["Second one"]),
                                    ("", "failed", ["Second one"]), ("", "not ok", ["Second one"]), ("one", "ok", ["first one"]),
                                    ("nothing", "", [])):
            with self.subTest(text=text, status=status):
                self.set("filter", text, "input")
                self.set("status", status, "change")
                self.assertEqual(self.names(), names)
        self.assertEqual(self.texts("#place"), ["no task"])

    def test_it_pages_and_prints_all(self):
        self.report(self.batch(*(task("n%d" % number) for number in range(60)), options=("-j", "4")))
        self.assertEqual((len(self.names()), self.texts("#place")), (50, ["1 to 50 of 60 tasks"]))
        self.click("#on")
        self.assertEqual((self.names()[0], len(self.names()), self.texts("#place")), ("n50", 10, ["51 to 60 of 60 tasks"]))
        self.assertTrue(self.browser.run("return document.getElementById('on').disabled"))
        self.browser.run("addEventListener('beforeprint', () => { window.printed = document.getElementById('rows').children.length })")
        self.assertEqual(base64.b64decode(self.browser.ask("POST", "/print"))[:5], b"%PDF-")
        self.assertEqual((self.browser.run("return window.printed"), len(self.names())), (60, 50))
        self.click("#on")
        self.set("filter", "n5", "input")  # begins with the first page
        self.assertEqual(self.texts("#place"), ["1 to 11 of 11 tasks"])

    def test_a_task_is_opened_by_keyboard(self):
        self.report(self.batch(task("one", "the answer of one"),
                               {"backend": "claude", "prompt": "say half\nfail no luck", "name": "two"}, code=1))
        self.browser.run("document.getElementById('on').focus()")
        for _ in range(30):
            if self.focus() == "one":
                break
            self.browser.type(TAB)
        self.assertEqual(self.focus(), "one")
        self.assertEqual(self.browser.run("return getComputedStyle(document.activeElement).outlineStyle"), "solid")
        self.browser.type(ENTER)
        self.assertTrue(self.browser.run("return document.getElementById('detail').open"))
        self.assertEqual((self.texts("#detail-title"), self.texts("#detail pre")), (["#1 one"], ["the answer of one"]))
        self.assertEqual(self.focus(), "Close")
        self.browser.run("[...document.querySelectorAll('#detail button')].find(one => one.textContent === 'Next').focus()")
        self.browser.type(ENTER)
        self.assertEqual((self.texts("#detail-title"), self.texts("#detail pre")[0]), (["#2 two"], "no luck"))
        self.browser.type(ESCAPE)
        self.assertFalse(self.browser.run("return document.getElementById('detail').open"))
        self.assertEqual(self.focus(), "one")

    def test_the_timeline_has_each_attempt_and_run(self):
        limited = [attempt(0, 1, error_kind="rate_limit"), attempt(31, 2)]
        self.report(self.file("results", lines(
            line(0, "failed", start=31, seconds=2, attempts=2, tries=limited, label="limited"), line(1, seconds=20, label="long"),
            line(2, start=3600, seconds=3, run=clinvk.utc(START + 3599), label="later"), line(3, "canceled", attempts=0, label="never"),
            line(4, "failed", start=1, seconds=2, label="again"), line(4, start=3601, label="again", run=clinvk.utc(START + 3599)))))
        self.assertEqual(self.texts("#timeline-title"), ["Timeline: %s to %s, 6 attempts, at most 2 at once, 2 runs" % (moment(START), moment(START + 3603))])
        self.assertEqual([text for text in self.texts("#timeline text") if text.startswith("run")],
                         ["run 1" + moment(START), "run 2" + moment(START + 3599)])
        self.assertIn("59m27sNothing ran for this time", self.texts("#timeline text"))
        bars = self.texts("#timeline rect[data-task] title")
        self.assertEqual(sorted(bars), ["#1 limited: failed, 1.0s, try 1 of 2", "#1 limited: failed, 2.0s, try 2 of 2",
                                        "#1 limited: waited 30s after rate_limit", "#2 long: ok, 20s", "#3 later: ok, 3.0s", "#5 again: failed, 2.0s", "#5 again: ok, 1.0s"])
        self.browser.run("document.querySelector('#timeline rect[data-task]').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
        self.assertTrue(self.browser.run("return document.getElementById('detail').open"))

    def test_markup_in_a_task_is_text(self):
        tasks = []
        for text in HOSTILE:
            tasks.append(task(text, text, tags=[text]))
            escaped = "".join("\\x%02x" % byte for byte in text.encode())
            tasks.append({"backend": "claude", "prompt": "say %s\nexit 3" % escaped, "name": text})
            tasks.append({"backend": "claude", "prompt": "fail " + text.replace("\0", "").replace(";", ","), "name": text})
        self.report(self.batch(*tasks, options=("-j", "4", "--log-dir", self.path("logs")), code=1))
        self.browser.run("document.querySelector('#rows button').click()")
        for number in range(len(tasks)):
            with self.subTest(number=number):
                shown = clinvk.task_label(clinvk.Task("", "", name=HOSTILE[number // 3]))
                self.assertEqual(self.texts("#detail-title"), ["#%d %s" % (number + 1, shown)])
                if number % 3 == 0:
                    self.assertIn(clinvk.visible(HOSTILE[number // 3]), "\n".join(self.texts("#detail pre")))
            self.browser.run("const next = [...document.querySelectorAll('#detail button')].find(one => one.textContent === 'Next');"
                             "if (!next.disabled) next.click()")
        self.assertIsNone(self.browser.run("return window.attacked === undefined ? null : window.attacked"))
        self.assertNotIn("attacked", self.browser.run("return document.title"))
        self.assertEqual(self.browser.run("return document.querySelectorAll('img, script:not(#data)').length"), 1)
        self.assertEqual(self.browser.run("return document.body.textContent.search(/[\\0-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e]/)"), -1)

    def test_ten_thousand_tasks(self):
        self.report("--without-output", self.file("many", many(10000)))
        self.assertLess(os.stat(self.path("page.html")).st_size, 5000000)
        self.assertEqual(self.texts("#place"), ["1 to 50 of 10,000 tasks"])
        self.set("filter", "t0777", "input")
        self.assertEqual(self.texts("#place"), ["1 to 10 of 10 tasks"])
        self.assertLess(self.browser.run("return document.querySelectorAll('*').length"), 20000)

    def test_light_dark_and_narrow(self):
        self.report(self.batch(task("n" * 200, "x" * 500)))
        colors = []
        for scheme in ("light", "dark"):
            self.browser.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            colors.append([sum(map(int, re.findall(r"\d+", color)[:3])) for color in self.browser.run(
                "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]")])
        (light_text, light_back), (dark_text, dark_back) = colors
        self.assertLess(light_text + 300, light_back)
        self.assertLess(dark_back + 300, dark_text)
        self.browser.command("Emulation.setDeviceMetricsOverride", width=380, height=700, deviceScaleFactor=1, mobile=False)
        self.assertLessEqual(self.browser.run("return document.documentElement.scrollWidth"), 380)


if __name__ == "__main__":
    unittest.main()
