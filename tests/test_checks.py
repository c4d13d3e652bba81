"""Section 10, Checks: a command judges what a program did.  It runs as a program does: bounded, in the directory of the task, and
leaving nothing running."""
import itertools
import json
import os
import shutil
import subprocess
import tracemalloc
import unittest
from unittest import mock

import support
from support import clinvk, results, tasks


def shell(*texts):
    return tuple(("sh", "-c", text) for text in texts)


class Verdicts(support.WorkerCase):
    def test_exit_status_of_the_check_decides(self):
        for text, kind, status, code, error in (
                ("exit 0", "", "passed", 0, ""), ("exit 1", "check", "failed", 1, "failed: exit status 1"),
                ("exit 124", "check", "failed", 124, "failed: exit status 124"), ("exit 255", "check", "failed", 255, "failed: exit status 255"),
                ("exit 126", "check_error", "error", 126, "could not be run: exit status 126"),
                ("no-such-program-here", "check_error", "error", 127, "could not be run: exit status 127"),
                ("exit 75", "check_error", "error", 75, "could not decide: exit status 75"),
                ("kill -KILL $$", "check_error", "error", 137, "was ended by signal 9 (SIGKILL)"),
                ("sh -c 'kill -TERM $$'; exit $?", "check_error", "error", 143, "was ended by signal 15 (SIGTERM)")):
            with self.subTest(text):
                result = self.run_it("say x", check=shell(text))
                self.check(result, status="failed" if kind else "ok", exit_code=bool(kind), error_kind=kind, output="x\n",
                           error=kind and "the check %s: %s" % (error, text))
                facts = result.check
                self.assertEqual((facts["status"], facts["command"], facts["exit_code"], facts["runs"]), (status, text, code, 4 if code == 75 else 1))

    def test_check_that_cannot_tell_is_run_again_and_the_program_is_not(self):
        result = self.run_it("append %s asked;say x" % self.path("asked"), check=shell("echo $0 >> runs; [ $(wc -l < runs) -ge 3 ] || exit 75"),
                             workdir=self.directory)
        self.check(result, status="ok", error="")
        self.assertEqual((result.check["status"], result.check["runs"]), ("passed", 3))
        with open(self.path("asked")) as file:
            self.assertEqual(file.read(), "asked\n")

    def test_checks_run_in_their_order_until_one_fails(self):
        result = self.run_it("say x", check=(*shell("echo 1 >> order"), ("sh", "-c", "echo $0 >> order; exit 9", "two words"), *shell("echo 3 >> order")),
                             workdir=self.directory)
        self.check(result, error="the check failed: exit status 9: sh -c 'echo $0 >> order; exit 9' 'two words'")
        with open(self.path("order")) as file:
            self.assertEqual(file.read(), "1\ntwo words\n")

    def test_program_that_fails_is_not_checked(self):
        for prompt, fields in (("exit 3", {}), ("say too much", {"max_output": 1}), ("sleep 300", {"timeout": 1.0})):
            result = self.run_it(prompt, check=shell("touch checked"), workdir=self.directory, **fields)
            self.assertNotEqual(result.status, "ok")
            self.assertIsNone(result.check)
        self.assertFalse(os.path.exists(self.path("checked")))

    def test_command_that_is_none_is_an_error_of_the_check(self):
        self.file("no-program", "text")
        for argv, code, reason in ((("no-such-program",), 127, "not found"), (("./no-program",), 126, "ermission denied")):
            result = self.run_it("say x", check=(argv,), workdir=self.directory)
            self.check(result, status="failed", error_kind="check_error", error="the check could not be run: exit status %d: %s" % (code, argv[0]))
            self.assertIn(reason, result.check["output"])

    def test_output_of_the_check_is_its_end_in_order_without_secrets(self):
        os.environ["MY_TOKEN"] = "hidden-word-1234"
        clinvk._secrets.cache_clear()
        self.addCleanup(clinvk._secrets.cache_clear)
        result = self.run_it("say x", check=shell("seq 20000; echo out; echo error >&2; echo $MY_TOKEN; exit 1 # hidden-word-1234"))
        self.assertLessEqual(len(result.check["output"]), clinvk.CHECK_BYTES)
        self.assertTrue(result.check["output"].endswith("\n20000\nout\nerror\n[MY_TOKEN]\n"), result.check["output"][-99:])
        self.assertNotIn("hidden", str(clinvk.result_fields(result)))
        shown = clinvk.result_fields(result)["check"]
        self.assertEqual((len(shown["output"]), shown["output"]), (4096, result.check["output"][-4096:]))

    def test_end_of_a_text_has_whole_characters(self):
        self.assertEqual([clinvk.last_bytes("a审b", size) for size in range(6)], ["", "b", "b", "b", "审b", "a审b"])


class Surroundings(support.WorkerCase):
    def test_check_runs_in_the_directory_with_the_answer_and_the_result(self):
        os.mkdir(self.path("here"))
        for prompt, answer in (("say x", "x\n"), ("flood 300000", "x" * 300000)):
            text = 'pwd > where; /bin/cat > stdin; cp "$CLINVK_OUTPUT" answer; cp "$CLINVK_RESULT" result; echo $CLINVK_TASK $CLINVK_TASK_ID > names; env > env'
            result = clinvk.run_job(support.job(3, "echo", prompt, id="an id", workdir=self.path("here"), check=shell(text)))
            self.check(result, status="ok", output=answer)
            found = {}
            for name in ("where", "stdin", "answer", "result", "names", "env"):
                with open(self.path("here", name)) as file:
                    found[name] = file.read()
            self.assertEqual((found["where"], found["stdin"], found["names"]), (self.path("here") + "\n", "", "3 an id\n"))
            self.assertEqual(found["answer"], answer)
            self.assertEqual(json.loads(found["result"]), {"index": 3, "task_id": "an id", "backend": "echo", "status": "ok", "exit_code": 0,
                                                           "output": answer, "attempts": 1})
            self.assertIn("PWD=%s\n" % self.path("here"), found["env"])

    def test_files_of_the_check_are_gone_and_the_next_task_has_none(self):
        state = self.state()
        for index in range(3):
            result = clinvk.run_job(support.job(index, "echo", "list-tmp", check=shell("touch $TMPDIR/left; [ -s $CLINVK_OUTPUT ]")), state)
            self.check(result, status="ok", output="700 []\n")
        self.assertEqual(os.listdir(state.directory), [])
        self.leave(state)

    def test_task_that_removed_its_directory_is_checked(self):
        self.check(self.run_it("say x;remove-tmp", check=shell("grep x $CLINVK_OUTPUT")), status="ok")


class Ends(support.WorkerCase):
    """Whatever a check does, it ends."""

    def test_check_that_hangs_is_stopped_though_it_ignores_what_it_is_asked(self):
        state = self.state(grace=0.2)
        text = "trap '' TERM; echo working; echo $$ > new; mv new pid; while :; do sleep 0.05; done"
        self.timeouts_come_after(self.path("pid"))
        result = clinvk.run_job(support.job(0, "echo", "say x", check=shell(text), check_timeout=2.0, workdir=self.directory), state)
        self.check(result, status="failed", exit_code=1, error_kind="check_error", error="the check timed out after 2s: " + text)
        self.assertEqual((result.check["status"], result.check["exit_code"], result.check["output"]), ("timeout", 124, "working\n"))
        self.assert_gone(self.pid_in(self.path("pid")))
        self.leave(state)

    def test_what_the_check_left_running_is_killed(self):
        for code in (0, 1):
            result = self.run_it("say x", check=shell("sleep 300 & echo $! > pid; setsid sleep 300 & exit %d" % code), workdir=self.directory)
            self.check(result, error_kind="check" * code)
            self.assert_gone(self.pid_in(self.path("pid")))
        self.assertEqual(support.processes_with(self.mark), [])

    @support.only_linux
    def test_a_worker_that_adopts_orphans_names_them(self):
        completed = self.clinvk("parallel", "--jsonl", "-q", "--check", "setsid sleep 300 & exit 1", input=tasks("say x"))
        warning, = results(completed)[0]["warnings"]
        self.assertRegex(warning, "^the check left processes running, which were killed: (sh|setsid|sleep)$")

    def test_check_that_prints_much_needs_little_memory(self):
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        result = self.run_it("say x", check=shell("head -c 30000000 /dev/zero | tr '\\0' y; exit 4"))
        self.assertLess(tracemalloc.get_traced_memory()[1], 10000000)
        self.check(result, error_kind="check")
        self.assertEqual(result.check["output"], "y" * clinvk.CHECK_BYTES)

    def test_check_that_prints_without_end_is_stopped(self):
        result = self.run_it("say x", check=shell("yes"), max_output=1 << 20)
        self.check(result, status="failed", error_kind="check_error", error="the check printed more than 1 MB: yes")

    def test_canceled_run_stops_the_check(self):
        state = self.state()
        result = self.in_background(support.job(0, "echo", "say x", check=shell("echo $$ > pid.new; mv pid.new pid; exec sleep 300"), workdir=self.directory), state)
        self.wait_for_file(self.path("pid"))
        state.cancel()
        self.check(result(), status="canceled", exit_code=-1, error_kind="canceled", output="x\n", check=None)
        self.leave(state)

    def test_full_disk_is_an_error_of_the_check(self):
        with mock.patch.object(clinvk, "_check_environment", side_effect=OSError(28, "No space left on device", "/tmp/x")):
            self.check(self.run_it("say x", check=shell("true")), status="failed", error_kind="check_error", output="x\n",
                       error="the check cannot be run: /tmp/x: No space left on device")


@support.only_in_full_runs
@unittest.skipUnless(shutil.which("git"), "there is no git")
class Changes(support.WorkerCase):
    """What a program changed in a git work tree, whatever it does to git."""

    def setUp(self):
        super().setUp()
        self.tree = self.path("tree")
        os.makedirs(os.path.join(self.tree, "tests", "deep"))
        self.git("init", "-q", cwd=self.tree)
        for name in ("Makefile", "tests/check.sh", "tests/deep/data"):
            self.file(os.path.join("tree", name), "%s\n" % name)
        self.file("tree/.gitignore", "*.o\nbuilt/\n")
        self.git("add", ".")
        self.git("-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "first")
        self.file("tree/untracked", "")
        self.file("tree/old.o", "")

    def git(self, *words, cwd=None):
        subprocess.run(["git", *words], cwd=cwd or self.tree, check=True, stdin=subprocess.DEVNULL)

    def after(self, script, workdir="", **fields):
        """The result of a task whose program is a shell script."""
        definition = clinvk.Definition(("sh",))
        task = clinvk.Task("mine", script + "\necho done", workdir=os.path.join(self.tree, workdir), **fields)
        return clinvk.run_job(clinvk.Job(0, task, definition))

    def test_task_that_changes_nothing_fails(self):
        for script in ("", "touch Makefile", "echo x > new.o; mkdir built; echo x > built/y; mkdir empty", "cp Makefile x; rm Makefile; mv x Makefile",
                       "git gc -q; git checkout -q -b other", "chmod g-r Makefile"):
            with self.subTest(script):
                self.check(self.after(script, require_change=True), status="failed", exit_code=1, error_kind="no_change", output="done\n",
                           error="nothing was changed in the git work tree " + self.tree)

    def test_look_at_the_work_tree_is_shown_as_a_check(self):
        noted = []
        state = self.state(note_output=lambda *facts: noted.append(facts[2:]))
        task = clinvk.Task("mine", "echo x >> Makefile; echo done", workdir=self.tree, require_change=True, check=(("sh", "-c", "exit 0"),))
        self.check(clinvk.run_job(clinvk.Job(0, task, clinvk.Definition(("sh",))), state), status="ok")
        self.leave(state)
        self.assertEqual([facts for facts, _ in itertools.groupby(noted)],
                         [("check: git ls-files", 0), ("", 0), ("check: git ls-files", 0), ("check: exit 0", 0)])

    def test_each_kind_of_change_counts(self):
        for script in ("echo more >> Makefile", "rm Makefile; ln -s tests Makefile", "chmod +x untracked", "echo x > new", "rm untracked", "echo x > untracked",
                       "mkdir -p a/b; echo x > a/b/c", "rm -r tests", "printf 'makefile\\n' > Makefile; touch -r .gitignore Makefile", "git init -q inner"):
            with self.subTest(script):
                self.git("reset", "-q", "--hard")
                self.check(self.after(script, require_change=True, workdir="tests/deep/../.."), status="ok")

    def test_time_of_a_file_that_was_set_back_hides_nothing(self):
        os.utime(os.path.join(self.tree, "Makefile"), (1e9, 1e9))
        self.check(self.after("printf 'makefile\\n' > Makefile; touch -d @1000000000 Makefile", require_change=True), status="ok")

    def test_protected_paths_are_found_however_they_are_changed(self):
        cases = [("echo : > tests/check.sh", "tests/check.sh"), ("rm tests/deep/data", "tests/deep/data"), ("echo x > tests/new", "tests/new"),
                 ("chmod +x tests/check.sh", "tests/check.sh"), ("git mv tests/check.sh other", "tests/check.sh"),
                 ("echo : > tests/check.sh; git commit -qam x --author='a <b>' || :; git update-index --assume-unchanged tests/check.sh", "tests/check.sh"),
                 ("git rm -q --cached tests/check.sh; echo tests >> .gitignore; echo : > tests/check.sh", "tests/check.sh"),
                 ("echo '*' > tests/.gitignore; echo x > tests/planted", "tests/.gitignore, tests/planted"),
                 ("echo tests/planted >> .git/info/exclude; echo x > tests/planted", "tests/planted"),
                 ("rm -r .git/info; mkdir .git/i; echo tests/planted > .git/i/exclude; ln -s i .git/info; echo x > tests/planted", "tests/planted"),
                 ("git config core.ignoreCase true; echo x > tests/CHECK.sh", "tests/CHECK.sh"),
                 ("mv tests moved; ln -s moved tests", "tests, tests/check.sh, tests/deep/data")]
        for script, found in cases:
            with self.subTest(script):
                self.git("config", "core.ignoreCase", "false")
                self.git("reset", "-q", "--hard")
                self.git("clean", "-qfdx")
                if os.path.lexists(os.path.join(self.tree, ".git", "info", "exclude")):
                    os.unlink(os.path.join(self.tree, ".git", "info", "exclude"))
                self.check(self.after(script, protect=("Makefile", "tests"), check=shell("touch checked")), status="failed", error_kind="protected",
                           error="protected paths were changed: " + found)
                self.assertFalse(os.path.exists(os.path.join(self.tree, "checked")), "the check ran")
        os.unlink(os.path.join(self.tree, "tests"))
        self.git("reset", "-q", "--hard")
        self.check(self.after("for i in 1 2 3 4 5 6 7; do echo > tests/$i; done", protect=("tests/*",)),
                   error="protected paths were changed: tests/1, tests/2, tests/3, tests/4, tests/5 and 2 more")

    def test_rules_in_another_place_hide_nothing(self):
        exclude = os.path.join(self.tree, ".git", "info", "exclude")
        os.rename(exclude, self.path("exclude"))
        os.symlink(self.path("exclude"), exclude)
        common = "mkdir -p .git/c/info; cp -r .git/objects .git/refs .git/c; echo tests/two > .git/c/info/exclude; echo c > .git/commondir; : > tests/two"
        for script, found in (("echo tests/one >> .git/info/exclude; : > tests/one", "tests/one"), (common, "tests/two"),
                              ("echo tests/three >> .git/c/info/exclude; : > tests/three", "tests/three")):
            self.check(self.after(script, protect=("tests",)), error="protected paths were changed: " + found)
            os.unlink(os.path.join(self.tree, found))

    def test_file_that_was_ignored_is_not_protected_when_it_is_listed(self):
        self.file("tree/tests/old.o", "")
        for script in (": > .gitignore", "git add -f tests/old.o"):
            self.check(self.after(script, protect=("tests",)), status="ok")
        self.git("reset", "-q", "--hard")
        self.check(self.after(": > .gitignore; : > tests/new.o", protect=("tests",)), error="protected paths were changed: tests/new.o")

    def test_directory_that_cannot_be_listed_any_more_counts(self):
        self.addCleanup(os.chmod, os.path.join(self.tree, "tests", "new"), 0o755)
        if os.geteuid() == 0:  # who can list any directory
            for directory, _, names in os.walk(self.directory):
                for name in (directory, *(os.path.join(directory, name) for name in names)):
                    os.chown(name, 65534, 65534)
            os.seteuid(65534)
            self.addCleanup(os.seteuid, 0)
        script = "mkdir tests/new; echo x > tests/new/planted; chmod 111 tests/new"
        with mock.patch.dict(os.environ, LC_ALL="de_DE.UTF-8", LANGUAGE="de"):
            self.check(self.after(script, protect=("tests",)), error="protected paths were changed: tests/new/")
            self.check(self.after("echo x > other", protect=("tests",)), status="ok")

    def test_two_stars_also_match_no_directory(self):
        for path, pattern, expected in (("a", "**/a", True), ("x/a", "**/a", True), ("xa", "**/a", False), ("x/a", "x/**/a", True), ("x/y/a", "x/**/a", True),
                                        ("xy/a", "x/**/a", False), ("y/x/a", "**/x/**/a", True), ("x/y/a", "**/x/**/a", True), ("xy/a", "x**/a", True),
                                        ("x/a", "x/y**/a", False), ("a/b", "**/a", True), ("a", "**/", True)):
            self.assertEqual(clinvk._matches(path, pattern), expected, (path, pattern))

    def test_any_name_of_a_file_is_shown_whole(self):
        script = "printf x > \"$(printf 'tests/a\\nb')\"; printf x > 'tests/it, too'; printf x > \"$(printf 'tests/\\377')\""
        self.check(self.after(script, protect=("tests",)), error="protected paths were changed: $'tests/a\\nb', 'tests/it, too', $'tests/\\xff'")
        odd = os.path.join(self.tree, "odd\nname")
        self.git("init", "-q", odd)
        self.check(self.after(":", workdir=odd, require_change=True), error="nothing was changed in the git work tree $'%s/odd\\nname'" % self.tree)

    def test_files_of_a_repository_inside_count(self):
        self.git("init", "-q", self.path("part"))
        self.file("part/code", "x")
        for words in (("add", "."), ("-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "first")):
            self.git(*words, cwd=self.path("part"))
        self.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", self.path("part"), "part")
        self.git("clone", "-q", self.path("part"), "clone")
        os.symlink("Makefile", os.path.join(self.tree, "clone", "link"))
        self.check(self.after("git -C part gc -q; git -C clone checkout -qb other", require_change=True), error_kind="no_change")
        for script, found in (("echo x >> part/code", "part/code"), ("rm clone/code", "clone/code"), ("ln -sf x clone/link", "clone/link"),
                              ("git rm -rq --cached tests; git init -q tests; echo x > tests/planted", "tests/, tests/planted"),
                              ("echo late >> .git/info/exclude; git init -q late; echo x > late/planted", "late/planted"),
                              ("mv part moved; ln -s moved part", "part, part/code")):
            with self.subTest(script):
                self.check(self.after(script, protect=("part", "clone/*", "tests", "late/planted")), error="protected paths were changed: " + found)

    def test_file_far_below_in_a_repository_inside_counts(self):
        self.git("init", "-q", "inner")
        script = "cd inner; i=0; while [ $i -lt 1200 ]; do mkdir d; cd d; i=$((i+1)); done; : > new"
        self.check(self.after(script, require_change=True), status="ok", error="")

    def test_file_of_any_size_does_not_keep_the_task(self):
        with mock.patch.object(clinvk, "CHECK_SECONDS", 1.0):
            result = self.after("truncate -s 30G huge", require_change=True)
        self.check(result, status="failed", error_kind="check_error",
                   error="the check cannot be run: %s: its files cannot be compared: it took longer than 1s" % self.tree)

    def test_other_paths_may_change(self):
        for pattern in ("tests", "test?/*", "*.sh", "Make", "tests/deep/"):
            self.check(self.after("echo x >> Makefile; echo x > tests/x.o; echo x >> testing; rm -f testing", protect=(pattern,)), status="ok", error="")

    def test_check_may_change_what_the_program_may_not(self):
        self.check(self.after("echo x > new", protect=("tests",), check=shell("echo x > tests/report")), status="ok")

    def test_git_runs_nothing_that_the_program_could_have_written(self):
        bait = self.file("bait", "#!/bin/sh\necho $0 $* >> %s\n" % self.path("caught"))
        os.chmod(bait, 0o755)
        hooks = os.path.join(self.tree, ".git", "hooks")
        for name in os.listdir(hooks):
            os.unlink(os.path.join(hooks, name))
        for name in ("post-index-change", "fsmonitor-watchman", "pre-commit", "post-checkout"):
            os.symlink(bait, os.path.join(hooks, name))
        for name in ("core.fsmonitor", "core.sshCommand", "core.pager", "core.editor", "core.gitProxy", "core.askPass", "diff.external", "diff.x.command",
                     "diff.x.textconv", "filter.x.clean", "filter.x.smudge", "filter.x.process", "credential.helper", "gpg.program", "alias.ls-files", "uploadpack.packObjectsHook"):
            self.git("config", name, "!" + bait if name.startswith("alias") else bait)
        self.git("config", "core.hooksPath", hooks)
        self.git("config", "core.untrackedCache", "true")
        self.file("tree/.gitattributes", "* filter=x diff=x\n")
        if os.path.exists(self.path("caught")):
            os.unlink(self.path("caught"))
        os.environ.update(GIT_DIR="/nowhere", GIT_EXTERNAL_DIFF=bait, GIT_INDEX_FILE="/nowhere/index", GIT_TRACE=self.path("trace"))
        self.check(self.after("echo x >> Makefile", require_change=True, protect=("tests",)), status="ok")
        for name in ("caught", "trace"):
            self.assertFalse(os.path.exists(self.path(name)), name)

    def test_work_tree_that_is_linked(self):
        self.git("worktree", "add", "-q", "--detach", self.path("linked"))
        for script, kind in (("", "no_change"), ("echo x >> Makefile", "")):
            self.check(self.after(script, require_change=True, workdir=self.path("linked", "tests", "..")), error_kind=kind)

    def test_repository_that_cannot_be_read_is_an_error(self):
        self.check(self.after("echo x > .git/index", require_change=True), status="failed", error_kind="check_error", output="done\n")
        self.check(self.after("", require_change=True), status="failed", error_kind="backend")
        shutil.rmtree(os.path.join(self.tree, ".git"))
        os.mkdir(os.path.join(self.tree, ".git"))
        self.assertIn("git cannot list its files: ", self.after("", protect=("x",)).error)
        support.write_program(self.path("bin", "git"), b"#!/bin/sh\nprintf 'warning: odd\\nfatal: index file corrupt\\n' >&2\nexit 128\n")
        with mock.patch.dict(os.environ, PATH=self.path("bin") + os.pathsep + os.environ["PATH"]):
            self.assertEqual(self.after("", protect=("x",)).error, self.tree + ": git cannot list its files: fatal: index file corrupt")

    def test_program_that_edits_its_check_is_not_asked_again(self):
        mine = {"CLINVK_BACKENDS": json.dumps({"mine": {"command": ["sh"]}})}
        arguments = ["parallel", "--jsonl", "-q", "-b", "mine", "--check", "sh tests/check.sh", "--attempts", "3", "--require-change", "--protect", "Makefile", "--protect", "tests"]
        for script, kind, attempts in (("echo exit 0 > tests/check.sh", "protected", 1), ("", "no_change", 1), ("echo x >> untracked", "check", 2)):
            self.file("tree/tests/check.sh", "exit 1")
            completed = self.clinvk(*arguments, input=json.dumps({"prompt": script + "\necho done; exit 0"}), env=mine, cwd=self.tree)
            result, = results(completed)
            self.assertEqual((completed.returncode, result["error_kind"], result["attempts"], completed.stderr), (1, kind, attempts, b""))
        refused = self.clinvk(*arguments, "-f", self.file("tasks", tasks("x")), env=mine)
        self.assertEqual(refused.returncode, 2)
        self.assertIn(b"the current directory is in no git work tree, which require_change and protect need", refused.stderr)

    def test_task_is_not_judged_by_the_changes_of_another(self):
        waiting = "i=0; until [ -e .git/%s ] || [ $i = 10 ]; do sleep 0.1; i=$((i+1)); done; "  # for the other task, if it runs
        scripts = (": > .git/a; %s echo x > new; : > .git/c; echo" % (waiting % "b"), ": > .git/b; %s echo" % (waiting % "c"))
        batch = "".join(json.dumps({"prompt": script + " done; exit"}) + "\n" for script in scripts)
        completed = self.clinvk("parallel", "--jsonl", "-q", "-b", "mine", "-j", "2", "--require-change", input=batch, cwd=self.tree,
                                env={"CLINVK_BACKENDS": json.dumps({"mine": {"command": ["sh"]}})})
        self.assertEqual([(result["index"], result.get("error_kind")) for result in results(completed)], [(0, None), (1, "no_change")])

    def test_later_attempt_need_not_change_anything_more(self):
        self.check(self.second("echo x > new", "", require_change=True), status="ok")
        end = "; echo 503 service unavailable >&2; exit 1"
        self.assertEqual(self.attempts_at("echo x >> untracked" + end, ":", "--require-change"), (None, ""))

    def attempts_at(self, first, later, *options):
        """The error of a task whose program runs the first script at its first start, the other one at its second."""
        result = self.tried(first, later, *options)
        self.assertEqual(result["attempts"], 2, result)
        return result.get("error_kind"), result.get("error", "")

    def tried(self, first, later, *options):
        """The result of a task whose program runs the first script at its first start."""
        script = "if [ -e .git/tried ]; then %s; else : > .git/tried; %s; fi; echo done; exit" % (later, first)
        self.git("reset", "-q", "--hard")
        self.git("clean", "-qf")
        if os.path.exists(os.path.join(self.tree, ".git", "tried")):
            os.unlink(os.path.join(self.tree, ".git", "tried"))
        mine = {"CLINVK_BACKENDS": json.dumps({"mine": {"command": ["sh"], "agent": True}})}
        completed = self.clinvk("parallel", "--jsonl", "-q", "-b", "mine", "--retry-acted", "--retries", "1", *options,
                                input=json.dumps({"prompt": script}), env=mine, cwd=self.tree)
        result, = results(completed)
        self.assertEqual(completed.stderr, b"")
        return result

    def test_task_whose_changes_are_unknown_or_not_permitted_is_not_tried_again(self):
        die = "; kill -9 $PPID; sleep 300"
        check = "if [ ! -e .git/checked ]; then : > .git/checked; kill -9 $PPID; sleep 300; fi"
        for first, options, kind in ((": > tests/check.sh" + die, ("--protect", "tests"), "worker_lost"), ("echo x > new" + die, ("--require-change",), "worker_lost"),
                                     ("echo x > new", ("--require-change", "--retry-on", "worker_lost", "--check", check), "worker_lost"),
                                     (": > tests/check.sh", ("--protect", "tests", "--retry-on", "protected"), "protected")):
            with self.subTest(first=first, options=options):
                result = self.tried(first, "git checkout -q tests", *options)
                self.assertEqual((result["error_kind"], result["attempts"], result["warnings"][-1]),
                                 (kind, 1, "not tried again, because what it has changed is not known or not permitted"))

    def second(self, first, later, workdir="", **fields):
        """The result of the second attempt of a task, whose first one was permitted."""
        state = self.state()
        task = clinvk.Task("mine", first + "\necho done", workdir=os.path.join(self.tree, workdir), **fields)
        job = clinvk.Job(0, task, clinvk.Definition(("sh",)))
        earlier = clinvk.run_job(job, state)
        self.check(earlier, status="ok")
        result = clinvk.run_job(job._replace(attempt=2, changes=earlier.changes, task=task._replace(prompt=later + "\necho done")), state)
        self.leave(state)
        return result

    def test_rules_that_an_attempt_changed_hide_nothing_in_the_next(self):
        for rules in ("echo tests/new > .gitignore; echo tests/own >> .gitignore", "echo 'tests/*' > .git/info/exclude"):
            for later, found in (("echo x > tests/new", "tests/new"), ("echo x > tests/own", "tests/own"), ("echo x > other", "")):
                with self.subTest(rules=rules, later=later):
                    self.git("reset", "-q", "--hard")
                    self.file("tree/.git/info/exclude", "")
                    self.git("clean", "-qf")
                    self.file("tree/tests/own", "")  # not tracked
                    error = "protected paths were changed: " + found if found else ""
                    self.check(self.second(rules, later, protect=("tests",)), error_kind="protected" if found else "", error=error)

    def test_rules_stay_known_over_checks_and_retries(self):
        once = "if [ -e .git/checked ]; then exit 0; fi; : > .git/checked; exit 1"
        for end, options in (("", ("--attempts", "2", "--check", once)), ("; echo 503 service unavailable >&2; exit 1", ())):
            self.assertEqual(self.attempts_at("echo tests/new > .gitignore" + end, "echo x > tests/new", "--protect", "tests", *options),
                             ("protected", "protected paths were changed: tests/new"))
            os.unlink(os.path.join(self.tree, "tests", "new"))

    def test_rules_of_another_directory_hide_nothing(self):
        script = "mkdir .cache; echo '*' > .cache/.gitignore; echo x > .cache/x; echo x > tests/x.o"
        self.check(self.after(script, protect=("tests",)), status="ok", error="")
        self.check(self.after("echo x > .cache/y; echo '*' >> .cache/.gitignore", protect=(".cache",)), error="protected paths were changed: .cache/y")

    def test_added_rules_count_only_what_they_ignore(self):
        for script, found in (("sed -i '1a *.log' .gitignore; : > tests/x.o; : > tests/x.log", "tests/x.log"),
                              ("echo '*.log' >> .git/info/exclude; mkdir tests/built; : > tests/built/x", ""),
                              ("printf 'tests/x \\r\\n' >> .gitignore; : > tests/x", "tests/x"), ("printf '\\303\\244\\n' >> .gitignore; : > tests/$(printf '\\303\\244')", "'tests/\u00e4'"),
                              ("printf 'tests/x\\0y\\n' >> .gitignore; : > tests/x", "tests/x"), ("printf '!new\\ntests/new\\n!new/\\n' >> .gitignore; : > tests/new", "tests/new"),
                              ("sed -i '1a tests/new' .gitignore; sed -i 1d .gitignore; : > tests/x.o", "tests/x.o"),
                              ("seq 2000 >> .gitignore; : > tests/x.o", "tests/x.o"), ("mv .gitignore rules; ln -s rules .gitignore; : > tests/x.o", "tests/x.o"),
                              ("mkdir 'a b[*'; echo '*' > 'a b[*/.gitignore'; : > 'a b[*/tests'; : > tests/x.o", "'a b[*/tests'")):
            with self.subTest(script):
                self.git("reset", "-q", "--hard")
                self.git("clean", "-qfdx")
                self.file("tree/.git/info/exclude", "")
                error = "protected paths were changed: " + found if found else ""
                self.check(self.after(script, protect=("tests", "*/tests")), error=error)

    def test_rules_that_a_check_changed_are_no_change_of_the_program(self):
        check = "if [ -e .cache ]; then exit 0; fi; mkdir .cache; echo '*' > .cache/.gitignore; exit 1"
        self.assertEqual(self.attempts_at(":", "echo x > tests/new.o", "--protect", "tests", "--attempts", "2", "--check", check), (None, ""))

    def test_change_that_the_next_attempt_undoes_is_none(self):
        for first, later, kind in (("echo x >> Makefile; rm untracked", "git checkout -q Makefile; : > untracked", "no_change"),
                                   ("echo x > new; git add new", "git rm -qf new", "no_change"), ("echo x > new", "rm new; chmod +x untracked", ""),
                                   ("echo Makefile > .git/info/exclude; echo x > tests/new.o", ":", "")):
            with self.subTest(first=first):
                self.check(self.second(first, later, require_change=True), error_kind=kind)
        undo = "git checkout -q Makefile"
        self.assertEqual(self.attempts_at("echo x >> Makefile", undo, "--require-change", "--attempts", "2", "--check", "git diff --quiet"),
                         ("no_change", "nothing was changed in the git work tree " + self.tree))

    def test_new_rules_that_the_next_attempt_undoes_are_no_change(self):
        check = "if [ -e new.o ]; then exit 0; fi; : > new.o; exit 1"  # ignored
        for first, later, kind in (("echo '*.log' >> .gitignore", "git checkout -q .gitignore", "no_change"),
                                   ("echo new >> .gitignore; : > new", "git checkout -q .gitignore", None),
                                   ("echo new >> .git/info/exclude; : > new", ":", None)):
            with self.subTest(first=first, later=later):
                self.git("clean", "-qfx")
                options = "--require-change", "--attempts", "2", "--check", check
                self.assertEqual(self.attempts_at(first, later, *options)[0], kind)

    def test_what_a_check_changed_is_not_the_change_that_is_required(self):
        check = "if [ -e .git/checked ]; then exit 0; fi; : > .git/checked; echo x | tee check.log >> tests/deep/data; exit 1"
        undo = "git checkout -q Makefile"
        for later, kind in ((undo, None), ("git checkout -q .; rm check.log", "no_change"), (undo + "; echo y >> tests/deep/data", None), (":", None)):
            with self.subTest(later):
                options = "--require-change", "--attempts", "2", "--check", check
                self.assertEqual(self.attempts_at("echo x >> Makefile", later, *options)[0], kind)
                os.unlink(os.path.join(self.tree, ".git", "checked"))

    def test_repository_that_an_attempt_made_does_not_replace_the_work_tree(self):
        os.mkdir(os.path.join(self.tree, "part"))
        self.check(self.second("git init -q", "echo x > ../tests/new", workdir="part", protect=("tests",)), error_kind="protected")

    def test_what_a_check_changed_is_not_the_change_of_the_next_attempt(self):
        self.assertEqual(self.attempts_at(":", ":", "--protect", "tests", "--attempts", "2", "--check", "if [ -e tests/report ]; then exit 0; fi; : > tests/report; exit 1"), (None, ""))

    def test_changes_of_a_program_that_failed_count(self):
        self.check(self.after("echo : > tests/check.sh; exit 3", protect=("tests",)), status="failed", exit_code=3, error_kind="protected",
                   error="protected paths were changed: tests/check.sh")
        self.check(self.after("echo x > new; exit 3", require_change=True, protect=("tests",)), exit_code=3, error_kind="backend")
        self.check(self.after("exit 3", require_change=True), exit_code=3, error_kind="backend")

    def test_change_before_an_answer_that_is_asked_for_again_counts(self):
        script = "if [ -e done ]; then echo '{}'; exit; fi; touch done; echo exit 0 > tests/check.sh; echo no JSON; exit"
        mine = {"CLINVK_BACKENDS": json.dumps({"mine": {"command": ["sh"]}})}
        for options, kind, attempts in ((("--protect", "tests", "--check", "sh tests/check.sh"), "protected", 1), (("--require-change",), None, 2)):
            self.git("reset", "-q", "--hard")
            self.git("clean", "-qf")
            completed = self.clinvk("parallel", "--jsonl", "-q", "-b", "mine", "--schema", '{"type": "object"}', *options,
                                    input=json.dumps({"prompt": script}), env=mine, cwd=self.tree)
            result, = results(completed)
            self.assertEqual((result.get("error_kind"), result["attempts"]), (kind, attempts), result)

    def test_canceled_run_ends(self):
        state = self.state()
        job = clinvk.Job(0, clinvk.Task("mine", "touch there; while [ ! -e go ]; do sleep 0.01; done; echo done", workdir=self.tree, require_change=True),
                         clinvk.Definition(("sh",)))
        result = self.in_background(job, state)
        self.wait_for_file(os.path.join(self.tree, "there"))
        with mock.patch.object(clinvk, "execute", return_value=None):
            self.file("tree/go", "")
            ended = result()
        state.cancel()
        never = clinvk.run_job(job, state)
        self.leave(state)
        self.check(ended, status="canceled", error_kind="canceled", output="done\n")
        self.check(never, status="canceled", attempts=0)


class Repairs(unittest.TestCase):
    SESSION = "5e551000-0000-4000-8000-000000000001"
    CHECK = {"status": "failed", "command": "make test", "exit_code": 2, "output": "{{check.command}} failed\n"}

    def repaired(self, backend, prompt="do it", answer="the answer", session=SESSION, **fields):
        """The job after a failed check, as the program gets it."""
        first = support.job(0, backend, prompt, check=shell("make test"), attempts=2, **fields)
        result = clinvk.unfinished(first, "failed", "e", "check")._replace(session_id=session, check=self.CHECK, answer=answer)
        job = clinvk.repaired_job(first, result)
        self.assertEqual(job.task, first.task)
        return clinvk.asked_job(job)

    def test_program_is_asked_in_its_session_where_it_can_be_continued(self):
        for backend, fields, resume in (
                ("claude", {}, self.SESSION), ("codex", {}, self.SESSION), ("gemini", {}, ""), ("echo", {}, ""),
                ("claude", {"session": ""}, ""), ("codex", {"session": "--last"}, ""), ("claude", {"extra": ("--continue",)}, ""),
                ("claude", {"extra": ("--resume=x",)}, ""), ("codex", {"extra": ("resume", "x")}, ""), ("claude", {"resume": "of-the-user", "session": ""}, "of-the-user"),
                ("claude", {"resume": "of-the-user"}, self.SESSION)):
            with self.subTest(backend=backend, fields=fields):
                job = self.repaired(backend, **fields)
                self.assertEqual((job.resume, job.literal), (resume, True))
                self.assertEqual("do it" in job.task.prompt, not resume)
                self.assertIn("exit status 2: make test\n", job.task.prompt)
                self.assertIn("\n\n{{check.command}} failed\n", job.task.prompt)

    def test_text_about_a_schema_has_the_error_and_in_a_new_conversation_the_answer(self):
        for backend, session in (("claude", self.SESSION), ("gemini", "")):
            first = support.job(0, backend, "do it", schema={"type": "object"}, check=shell("true"), attempts=2)._replace(repair_prompt="not for this")
            result = clinvk.unfinished(first, "failed", "data: expected an object, got []", "schema")._replace(session_id=session, answer="[]")
            asked = clinvk.asked_job(clinvk.repaired_job(first, result))
            text = "This answer is not valid by the JSON Schema of the task:\n\ndata: expected an object, got []\n\nGive the whole answer again, corrected."
            before = "" if session else "do it\n\nThis task was tried before. The answer was:\n\n[]\n\n"
            self.assertEqual((asked.task.prompt, asked.resume), (before + text, session))
            self.assertTrue(clinvk.backend_of(asked).text(asked).startswith(before + text))

    def test_new_conversation_has_the_end_of_the_answer(self):
        answer = self.repaired("gemini", answer="x" * 99 + "y" * clinvk.ANSWER_BYTES).task.prompt
        self.assertNotIn("x" * 9 + "y", answer)
        self.assertIn("do it\n\nThis task was tried before. The answer was:\n\n" + "y" * clinvk.ANSWER_BYTES + "\n\n", answer)

    def test_large_prompt_gets_the_text_behind_it_or_is_replaced(self):
        for session, expected in (("", 3), (self.SESSION, 0)):
            parts = self.repaired("claude", parts=("large", "prompt"), session=session).parts
            self.assertEqual((len(parts), parts[:2]), (expected, ("large", "prompt")[:expected]))

    def test_prompt_of_the_user_replaces_that_of_clinvk(self):
        job = self.repaired("claude", repair_prompt="Status {{check.exit_code}} of {{check.command}}:\n{{check.output}}end")
        self.assertEqual(job.task.prompt, "Status 2 of make test:\n{{check.command}} failed\nend")

    def test_job_without_a_repair_is_asked_its_prompt(self):
        job = support.job(0, "claude", "do it", resume="s")
        self.assertIs(clinvk.asked_job(job), job)


class Sessions(support.ForkingCase):
    def test_session_is_gone_after_the_last_attempt(self):
        """A claude that keeps its session as the real one does."""
        support.write_program(os.path.join(self.bin, "claude"), b"""#!/bin/sh
            id=5e551000-0000-4000-8000-000000000001
            case "$*" in *--no-session-persistence*) ;; *)
                mkdir -p ~/.claude/projects/-x ~/.claude/todos
                /bin/cat >> ~/.claude/projects/-x/$id.jsonl
                echo "$*" >> ~/.claude/todos/$id-agent.json
                touch ~/.claude/projects/-x/another.jsonl ;;
            esac
            [ -d ~/.claude ] && mkdir -p "$SEEN" && cp -R ~/.claude/. "$SEEN"
            echo '{"type":"result","subtype":"success","is_error":false,"session_id":"'$id'","result":"done"}'
            """)
        for attempts, status in (("1", 1), ("2", 1), ("3", 0)):
            seen, count = self.path("seen" + attempts), self.path("count" + attempts)
            completed = self.clinvk("parallel", "--jsonl", "-q", "--check", "echo x >> %s; /bin/cat %s; [ $(wc -l < %s) -ge 3 ]" % (count, count, count),
                                    "--attempts", attempts, input=json.dumps({"prompt": "do it"}), env={"SEEN": seen})
            self.assertEqual(completed.returncode, status, completed.stderr)
            self.assertEqual(results(completed)[0]["attempts"], int(attempts))
            kept = ["another.jsonl"] * (attempts > "1")
            self.assertEqual(sorted(name for _, _, names in os.walk(os.path.join(self.home, ".claude")) for name in names), kept)
            self.assertEqual(len([name for _, _, names in os.walk(seen) for name in names]), 3 * len(kept))

    def test_session_is_found_in_a_directory_of_any_name(self):
        id = "5e551000-0000-4000-8000-000000000001"
        home = self.path("100% [mine] %s *")
        for backend, variable, path in (("claude", "CLAUDE_CONFIG_DIR", "projects/-x/%s.jsonl"), ("codex", "CODEX_HOME", "sessions/2026/11/29/rollout-%s.jsonl")):
            file = os.path.join(home, path % id)
            os.makedirs(os.path.dirname(file))
            open(file, "w").close()
            with mock.patch.dict(os.environ, {variable: home}):
                places = clinvk.BACKENDS[backend].sessions(support.job(0, backend, "p"))
                self.assertEqual(clinvk.session_files(places, {id}), [file])
                self.assertEqual(clinvk.session_files(places, {""}), [])

    def test_sessions_of_many_tasks_are_removed_by_few_searches(self):
        ids = ["5e551000-0000-4000-8000-%012d" % number for number in range(100)]
        for number, id in enumerate(ids):
            os.makedirs(self.path("claude", "projects", "-%d" % number, id))
            self.file("claude/projects/-%d/%s.jsonl" % (number, id), "")
        self.file("claude/projects/-0/mine", "")
        scandir = os.scandir
        with mock.patch.dict(os.environ, {"CLAUDE_CONFIG_DIR": self.path("claude"), "TMPDIR": self.directory}), mock.patch.object(os, "scandir", side_effect=scandir) as scans:
            pool = clinvk.Pool(1, "thread")
            try:
                pool.forget(support.job(0, "claude", "p"), [ids[0], ""])
                support.wait_until(lambda: pool.wait(0.01) or not os.path.exists(self.path("claude", "projects", "-0", ids[0])), "the session is there")
                for id in ids[1:]:
                    pool.forget(support.job(0, "claude", "p"), [id, ""])
            finally:
                pool.close()
        self.assertEqual([name for _, inner, names in os.walk(self.path("claude", "projects")) for name in names + inner if not name.startswith("-")], ["mine"])
        self.assertLess(scans.call_count, 2000)  # 10,000 where each task searches

    def test_task_is_not_tried_again_with_a_prompt_that_its_program_cannot_take(self):
        own = json.dumps({"own": {"command": ["echo", "{prompt}"]}})
        for check, prompt in (("printf 'a\\0b'; exit 1", "x"), ("exit 1", "x" * 131000)):
            completed = self.clinvk("parallel", "--jsonl", "-q", "--check", check, "--attempts", "2", input=tasks(prompt, backend="own"), env={"CLINVK_BACKENDS": own})
            (result,) = results(completed)
            self.assertEqual((result["error_kind"], result["attempts"], result["output"]), ("check", 1, prompt + "\n"))
            self.assertRegex(result["warnings"][-1], "^not tried again, because the prompt .* own")

    def test_prompt_of_a_repair_is_read_from_its_file_and_checked(self):
        arguments = ["parallel", "--jsonl", "-q", "--check", "[ -e there ] || { touch there; exit 3; }", "--attempts", "2", "--repair-prompt"]
        good = self.clinvk(*arguments, self.file("good", "say status {{check.exit_code}}"), input=tasks("say first", backend="claude", workdir=self.directory))
        self.assertEqual(results(good)[0]["output"], "status 3")
        for text, message in ((" \n", b": the file is blank"), ("{{check.status}}", b'"{{check.status}}" cannot be replaced; known are {{check.exit_code}}, ')):
            bad = self.clinvk(*arguments, self.file("bad", text), input=tasks("say x"))
            self.assertEqual((bad.returncode, bad.stdout), (2, b""))
            self.assertIn(message, bad.stderr)


class Shown(support.ForkingCase):
    def test_option_may_be_given_for_each_check_and_the_table_shows_the_end_of_the_output(self):
        os.mkdir(self.path("two"))
        completed = self.clinvk("parallel", "--check", "echo one", "--check", r"seq 9; printf '\033[1m\n\n'; test -d two", "--color", "never",
                                input=tasks("say x") + tasks("say y", workdir=self.path("two")))
        self.assertEqual(completed.returncode, 1)
        table = completed.stdout.decode().partition("\nResults\n")[2]
        lines = [line.split(None, 1) for line in table.splitlines() if line.startswith("     ")]
        self.assertEqual([line[1] for line in lines if line[0] == "check:"], ["6", "7", "8", "9", "^[[1m"])
        self.assertIn("     error: the check failed: exit status 1: seq 9", table)
        self.assertIn("2 tasks, 1 completed, 1 failed", table)

    def test_results_file_has_the_check_and_only_the_same_check_counts(self):
        arguments = ["parallel", "--jsonl", "-q", "--results", "r", "--resume", "--check"]
        first, again, other = (results(self.clinvk(*arguments, check, input=tasks("say x"))) for check in ("echo fine", "echo fine", "echo other"))
        self.assertEqual((first[0]["check"]["output"], again[0]["resumed"]), ("fine\n", True))
        self.assertEqual(again[0]["check"], first[0]["check"])
        self.assertNotIn("resumed", other[0])

    def test_steps_of_a_chain_are_checked(self):
        chain = {"steps": [{"prompt": "say a", "backend": "echo"}, {"prompt": "say {{previous}}", "backend": "echo"}]}
        completed = self.clinvk("chain", "--json", "--attempts", "2", "--check", "[ $CLINVK_TASK = 0 ] || [ -e there ] || { touch there; exit 1; }",
                                "--repair-prompt", self.file("repair", "\nsay {{check.exit_code}}"), input=json.dumps(chain), env={"PATH": os.environ["PATH"]})
        first, second = json.loads(completed.stdout)["results"]
        self.assertEqual([first["check"]["status"], second["check"]["status"], first["attempts"], second["attempts"]], ["passed", "passed", 1, 2])
        self.assertIn("This task was tried before. The answer was:\n\nsay say a\n\n\nsay 1", second["output"])
        refused = self.clinvk("chain", input=json.dumps(dict(chain, defaults={"check": "true"})))
        self.assertIn(b"defaults.check: commands that a chain defines are only run with --allow-commands", refused.stderr)


if __name__ == "__main__":
    unittest.main()
