#!/usr/bin/env python3
"""The real claude, codex and gemini: installed from npm in pinned versions, and given a home in which they talk to the mock.

`python3 tests/real/clis.py` installs them, where that was not done yet, and prints where they are.
"""
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile

PINS = {"claude": ("@anthropic-ai/claude-code", "2.1.332"),
        "codex": ("@openai/codex", "0.171.0"),
        "gemini": ("@google/gemini-cli", "0.61.0")}
CODEX_MODEL = "gpt-5.5"  # one that it knows; for others it warns, and offers other tools
INSTALL_SECONDS = 600


class Missing(Exception):
    """They cannot be had here, and why."""


def cache_directory():
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return os.path.join(cache if os.path.isabs(cache) else os.path.expanduser("~/.cache"), "clinvk-tests")


def programs():
    """The directory that holds the three programs.  Installs them where they are not in the cache.  Raises Missing."""
    names = sorted("%s@%s" % pin for pin in PINS.values())
    parent = cache_directory()
    installed = os.path.join(parent, hashlib.sha256("\n".join(names).encode()).hexdigest()[:16])
    if not shutil.which("node"):
        raise Missing("node is not installed")
    os.makedirs(parent, exist_ok=True)
    with open(installed + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.isdir(installed):
            if not shutil.which("npm"):
                raise Missing("npm is not installed")
            print("installing %s" % ", ".join(names), file=sys.stderr, flush=True)
            unfinished = installed + ".new"
            shutil.rmtree(unfinished, ignore_errors=True)  # of an installation that was killed
            try:
                os.mkdir(unfinished)
                _run(["npm", "install", "--prefix", unfinished, "--no-audit", "--no-fund", "--loglevel=error", *names], os.environ)
                versions(_bin(unfinished))
                os.rename(unfinished, installed)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return _bin(installed)


def _run(argv, environment):
    """What it prints.  Raises Missing where it fails."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
                              timeout=INSTALL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(str(error)) from None
    output = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode:
        raise Missing("%s: %s" % (os.path.basename(argv[0]), output))
    return output


def _bin(directory):
    return os.path.join(directory, "node_modules", ".bin")


def versions(directory):
    """What each says for --version.  Raises Missing where that is not the pinned one."""
    said = {}
    with tempfile.TemporaryDirectory() as home:
        for name, (_, version) in PINS.items():
            output = _run([os.path.join(directory, name), "--version"], dict(os.environ, HOME=home, CODEX_HOME=home))
            said[name] = next((line for line in output.splitlines() if version in line.split()), "")
            if not said[name]:
                raise Missing("%s --version: %s" % (name, output))
    return said


def furnish(home, base, own_retries=False, gemini=None):
    """Puts into a home what each CLI needs to talk to the mock at `base`, and to nobody else.  The variables to set.

    Their user has turned off all retries, unless `own_retries`.  `gemini` are more of its settings.
    """
    settings = dict({
        # Without the type it takes another one as soon as there is a base URL, and refuses that.
        "security": {"auth": {"selectedType": "gemini-api-key"}}, "privacy": {"usageStatisticsEnabled": False},
        "general": dict({"enableAutoUpdate": False, "enableAutoUpdateNotification": False}, **({} if own_retries else {"maxAttempts": 1})),
    }, **(gemini or {}))
    provider = {"name": "mock", "base_url": base + "/v1", "wire_api": "responses", "env_key": "MOCK_API_KEY"}
    if not own_retries:
        provider.update(request_max_retries=0, stream_max_retries=0)
    config = 'model = "%s"\nmodel_provider = "mock"\ncheck_for_update_on_startup = false\n[analytics]\nenabled = false\n' % CODEX_MODEL
    # The shells that read the user's environment outlive a codex that ends at once.
    config += "[features]\nshell_snapshot = false\n"
    config += "[model_providers.mock]\n" + "".join("%s = %s\n" % (key, json.dumps(value)) for key, value in provider.items())
    for path, content in ((".codex/config.toml", config), (".gemini/settings.json", json.dumps(settings))):
        path = os.path.join(home, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(content)
    variables = {"ANTHROPIC_BASE_URL": base, "ANTHROPIC_API_KEY": "mock-key", "CODEX_HOME": os.path.join(home, ".codex"), "MOCK_API_KEY": "mock-key",
                 "GOOGLE_GEMINI_BASE_URL": base, "GEMINI_API_KEY": "mock-key",
                 # What they try to reach beyond the mock fails at once.
                 "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1", "GIT_ALLOW_PROTOCOL": "file"}
    return variables if own_retries else dict(variables, CLAUDE_CODE_MAX_RETRIES="0")


# What would lead a CLI elsewhere, or change what it does.
FOREIGN = ("ANTHROPIC_", "CLAUDE_", "CODEX_", "OPENAI_", "GEMINI_", "GOOGLE_", "CLOUDSDK_")


def without_foreign(environment):
    return {name: value for name, value in environment.items() if not name.startswith(FOREIGN)}


if __name__ == "__main__":
    try:
        print(programs())
    except Missing as reason:
        sys.exit("skipped %s" % reason)
