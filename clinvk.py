#!/usr/bin/env python3
"""clinvk: run many prompts through AI command-line programs, several at a time.

    clinvk parallel --file tasks.json            results as text, a table at the end
    generate | clinvk parallel --jsonl | jq ...  one JSON line per task as it ends
    clinvk chain --file chain.json               steps, each with the answers before it
    clinvk compare --backends claude,codex TEXT  answers to one prompt, side by side

One file, Python 3.8 or newer, the standard library only (orjson is used where it
can be imported and changes nothing but speed).  How a batch flows through it:

    file or stdin -> Input -> Scheduler -> Pool -> Scheduler -> Sinks -> stdout
                     Jobs     which job    |  ^    Results      |
                              is next      v  |                 v
                                         Worker              Summary -> verdict
                                         one program a job   table      exit status

The parent process runs all of it but Worker; a thread of it reads a pipe ahead.
Each worker is a process (a thread where processes cannot be used) of one
multiprocessing.Pool, with a thread that waits for the end of the parent and
watches the output of the program.

Data flows down the file: a section uses only what stands above it.

     1. Types          what travels: Task, Job, Result; statuses, exit codes, errors
     2. Text and JSON  dumps, loads, the fields of a result, fill, widths, secrets
     3. Schema         check_schema, validate: the JSON Schema subset
     4. Platform       processes, files, locks, terminals; every platform difference
     5. Configuration  values and their checks, YAML, the file, what counts first
     6. Backends       a row each: how to ask a program, how to read its answer
     7. Input          JSON or items, from a file or a pipe -> Supply of validated Jobs
     8. Plans          chain and compare: jobs made from earlier results
     9. Processes      execute: one process, from its files to its end; how it is stopped
    10. Checks         commands that judge what a program did
    11. Worker         run_job: one Job to its Result; logs
    12. Pool           jobs in, exactly one Result for each out
    13. Scheduler      which job is next and when, also after an error; run_pool
    14. Journal        the results file, from which a run continues; the keys of jobs
    15. Sinks          text, JSON Lines, JSON, files of answers; progress, status file
    16. Summary        the ordered table, the totals, the verdict
    17. Report         results files -> table, totals, timeline, page; runs nothing
    18. Sessions       conversations that can be resumed, a file each
    19. Commands       options -> jobs -> scheduler -> journal, sinks -> verdict
    20. Command line   the table of options, build_parser, main

What holds everywhere:

  * Every task is answered by exactly one Result, whatever dies.
  * Nothing that a run started outlives it.
  * Only sinks, the commands' messages and main write to stdout or stderr.
  * The verdict and main say what the exit status is; nothing below them exits.
  * Importing the module starts nothing, and loads little: modules that only some
    commands need are imported by the function that needs them.
"""
from __future__ import annotations  # clinvk needs Python 3.8 or newer

import os
import sys


def set_first_signals() -> None:
    """Let SIGINT kill the process, and let SIGUSR1 do nothing, until a command says otherwise."""
    import _signal  # type: ignore[import-not-found]  # which costs nothing, unlike `signal`
    # KeyboardInterrupt could be raised at the end, after all is written.
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    if _signal.getsignal(_signal.SIGUSR1) == _signal.SIG_DFL:
        _signal.signal(_signal.SIGUSR1, lambda *_: None)  # SIG_IGN would be inherited


if __name__ == "__main__" or os.path.basename("".join(sys.argv[:1])) == "clinvk":  # pip's script
    set_first_signals()


def lacking(error: ModuleNotFoundError) -> str:
    """Return the message about a Python without a part of its standard library."""
    return ("clinvk needs the module %s, which this Python lacks; on Debian and Ubuntu: "
            "apt install python3" % str(error.name).partition(".")[0])


def _refuse(reason: str) -> None:
    """Exit where the program cannot run; as a module, refuse to be imported."""
    if __name__ != "__main__":
        raise ImportError(reason)
    sys.stderr.write(reason + "\n")
    sys.exit(2)


if sys.version_info < (3, 8):
    _refuse("clinvk needs Python 3.8 or newer; this is %d.%d.%d" % sys.version_info[:3])
try:
    import codecs
    import contextlib
    import errno
    import fcntl
    import functools
    import itertools
    import json
    import operator
    import re
    import select
    import signal
    import stat
    import time
    from collections import Counter, defaultdict, deque, namedtuple
except ModuleNotFoundError as _error:
    _refuse(lacking(_error))

__version__ = "0.1.0"
__all__ = ["Control", "Job", "Result", "RunPolicy", "Task", "UserError", "check_schema", "main",
           "run_job", "run_pool", "validate"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from types import FrameType
    from typing import (Any, Callable, Container, Deque, Dict, FrozenSet, Generator, Iterable,
                        Iterator, List, Match, NamedTuple, NoReturn, Optional, Sequence,
                        Set, Tuple, Type, TypeVar, Union)

    _T = TypeVar("_T")
    _Check = Callable[[Any], Any]  # returns the value as the program uses it; raises ValueError
    _Fields = Callable[["Result"], Dict[str, Any]]  # the JSON fields of a result
    _Path = Tuple[Union[str, int], ...]  # to a place in a JSON value
    _Doing = Tuple[str, str, int]  # the key of a message; its action, "" for no news; its tokens
    _Saying = Tuple[str, bool]  # a text to show; whether it is a whole message, and no piece of one
    _Item = Union["Job", "Result"]  # of the input: a job, or the Result of what is no task
    _Next = Union[_Item, str]  # of Supply.next_job: also NOT_READY or END
    _Fault = Tuple[_Path, str, Any]  # of a value: where, what a schema expects there, what is there
    _Message = Union[bytes, Tuple[str, bytes]]  # a pickled value; or a file with it and its digest
else:
    class _RecordType(type):
        """Make `class X(NamedTuple)` a collections.namedtuple: importing typing takes too long."""

        def __new__(mcs, name, bases, body):
            if not bases:
                return super().__new__(mcs, name, bases, body)
            fields = type(name, (), dict(body)).__annotations__  # not in the body in Python 3.14
            defaults = [body.pop(field) for field in fields if field in body]
            record = namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            return type(name, (record,), dict(body, __slots__=()))

    class NamedTuple(metaclass=_RecordType):
        pass


# --- 1. Types ----------------------------------------------------------------

# lost: the worker died with the job.  skipped: a dry run.
STATUSES = ("ok", "failed", "timeout", "canceled", "lost", "skipped")
FAILED_STATUSES = ("failed", "timeout", "lost")  # that count as failed

# Assigned by error_kind, the readers of the backends, _judge, _not_started, by_schema, with_checks,
# Pool and Scheduler.
ERROR_KINDS = ("rate_limit", "quota", "overloaded", "network", "auth", "permission", "invalid",
               "context_length", "max_turns", "budget", "timeout", "stalled", "signal",
               "not_found", "no_output", "max_output", "damaged_output", "schema", "check",
               "check_error", "no_change", "protected", "backend", "worker_lost", "canceled")

# The exit statuses of clinvk.  A test compares them with EXIT STATUS in the man page.
EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_CONFIG, EXIT_SESSION = 0, 1, 2, 3, 4
EXIT_BUG, EXIT_OUTPUT, EXIT_LEFT = 70, 74, 75  # the last: a later run can do the rest
EXIT_TIMEOUT, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 124, 126, 127  # of single prompts
EXIT_HANGUP, EXIT_INTERRUPT, EXIT_PIPE, EXIT_TERMINATE = 129, 130, 141, 143

BUILT_IN: List[str] = []  # the names of BACKENDS, which fills this list
KNOWN: Dict[str, Definition] = {}  # commands that need no definition by a user; Backends has them
STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
APPROVAL_MODES = ("default", "auto", "none", "always")
SANDBOX_MODES = ("default", "read-only", "workspace", "full")
EFFORTS = ("low", "medium", "high", "xhigh", "max")


class UserError(Exception):
    """Bad usage or bad input, which the user can correct.  The message names the place."""


class ConfigError(Exception):
    """The configuration file cannot be read or is invalid.  The message names the place."""


class OutputError(Exception):
    """Results could not be written; with `broken_pipe` because their reader is gone."""

    def __init__(self, message: str, broken_pipe: bool = False) -> None:
        super().__init__(message)
        self.broken_pipe = broken_pipe


class Interrupted(BaseException):
    """A second or later signal arrived during a write that may never end.

    For `main` and, after SIGTERM, command_parallel.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class Definition(NamedTuple):
    """A command that is a backend: one of the user's own, or of KNOWN.

    A path consists of keys and positions and leads into the JSON that the command prints.  `ok` and
    `done` are a path and the JSON of the value there that means success, or the end of the work.
    `errors` are texts, each with the kind of the error that it shows.
    """

    argv: Tuple[str, ...]
    output: str = "text"  # or json, jsonl
    answer: _Path = ()
    error: _Path = ()
    session_id: _Path = ()
    usage: _Path = ()
    join: bool = False  # of JSON Lines: the answer is all texts, not the last
    structured: _Path = ()  # of the value that a schema asks for
    ok: Optional[Tuple[_Path, str]] = None
    done: Optional[Tuple[_Path, str]] = None
    errors: Tuple[Tuple[str, str], ...] = ()
    stop_signal: str = "SIGTERM"
    agent: bool = False  # it runs tools, which can change files
    answer_only: Optional[Tuple[str, ...]] = None  # the arguments with which it runs no tools
    needs_model: bool = False  # it has no default model


def do_nothing(*_: Any) -> None:
    """Do nothing, in the place of a function that a caller may give."""


class Sample(NamedTuple):
    """The place of a job among those that were made of one task.

    `index` is the position of the task in the input, from 0; `sample` counts from 1.  `cell` has
    the fields that a matrix sets, as on the command line; `slug` is its form in names of files and
    `cell_number` its place in the matrix, from 1.
    """

    index: int  # type: ignore[assignment]
    sample: int = 1
    samples: int = 1
    cell: Dict[str, str] = {}
    slug: str = ""
    cell_number: int = 0


class Task(NamedTuple):
    """One prompt for one backend, as its user states it: complete, validated, defaults merged.

    `timeout` and `idle_timeout` are in seconds, `max_output` is in bytes.  `literal` makes the Job
    literal, and so does `answer_only`, with which the program has no tools.  `schema` is that of
    the answer.  `write_to` is the file for the answer; only an option can set it, not the input.
    `check` are commands that must succeed, one after the other, for `check_timeout` seconds each at
    most; `attempts` is how often the task may be tried in all.  `require_change` and `protect`,
    patterns of paths, are about the git work tree of `workdir`.  `repeat` is how many samples are
    made of the task; `sample` is that of the job, and the input cannot set it.  0, "", () and None
    mean "not given".
    """

    backend: str
    prompt: str
    model: str = ""
    workdir: str = ""
    approval_mode: str = "default"
    sandbox_mode: str = "default"
    system_prompt: str = ""
    max_turns: int = 0
    max_tokens: int = 0
    timeout: float = 0.0
    idle_timeout: float = 0.0
    max_output: int = 0
    extra: Tuple[str, ...] = ()
    verbose: bool = False
    dry_run: bool = False
    id: str = ""
    name: str = ""
    tags: Tuple[str, ...] = ()
    meta: Optional[Dict[str, Any]] = None
    literal: bool = False
    schema: Optional[Dict[str, Any]] = None
    schema_retries: int = 1
    effort: str = ""
    answer_only: bool = False
    write_to: str = ""
    check: Tuple[Tuple[str, ...], ...] = ()
    check_timeout: float = 0.0
    repeat: int = 0
    sample: Optional[Sample] = None  # None where the task has one sample, and there is no matrix
    attempts: int = 0
    require_change: bool = False
    protect: Tuple[str, ...] = ()


def judges_changes(task: Task) -> bool:
    """Return whether the changes of a task in its git work tree decide about its result."""
    return task.require_change or bool(task.protect)


class Changes(NamedTuple):
    """Record the changes that the attempts of a task have made so far to its git work tree.

    `tree` is that work tree and the directory of its git.  `first` is a digest of its files before
    the first attempt that changed one, "" where none has.  `new_rules` are patterns of git that
    match whatever is ignored only by rules which attempts have changed; `hidden` are the files of
    these that count all the same.
    """

    tree: Tuple[str, str]
    first: str = ""
    new_rules: Tuple[str, ...] = ()
    hidden: Tuple[str, ...] = ()


class Job(NamedTuple):
    """A task and whatever else a worker needs to run it.

    `index` is unique in a run; that of a task without a Sample is its position in the input, from
    0.  `definition` is that of a backend of the user's own.  `root` is a directory that the task's
    workdir must not leave.  `literal`: the prompt is not trusted; the program must not add a file
    to it, nor carry out its first word.  `parts` are those of a prompt with answers that are files
    (Steps), and `task.prompt` is then its beginning; the pool writes them to one file for the
    worker.  `keep`: the backend keeps its session.  `resume` is a session of the backend to
    continue.  `follow`: the output can be read while it is written (followed_path).  `attempt`
    counts the starts of the task, from 1.  `retried`: clinvk starts the task again after any
    transient failure, so the program should not retry by itself.  `budget_usd` is the most that the
    program may spend; 0: no limit.  `wrap` are words to put before the command, with the
    placeholders of command_of.  What the program prints in this attempt is left in `log`.jsonl
    and `log`.err, which are cut to `log_max` bytes at the end.  `repair` is what the program is
    asked after a judgement that failed: in the conversation `resume` in place of the prompt, else
    after it.  `repair_prompt` is the user's template for that.  `changes` are those of the attempts
    before this one.
    """

    index: int  # type: ignore[assignment]  # of tuple.index, which nobody needs here
    task: Task
    definition: Optional[Definition] = None
    root: str = ""
    literal: bool = False
    parts: Tuple[Union[str, TextFile], ...] = ()
    keep: bool = False
    resume: str = ""
    follow: bool = False
    attempt: int = 1
    retried: bool = False
    budget_usd: float = 0.0
    wrap: Tuple[str, ...] = ()
    log: str = ""
    log_max: int = 0
    repair: str = ""
    repair_prompt: str = ""
    changes: Optional[Changes] = None


class RunPolicy(NamedTuple):
    """How a run repeats, spreads and bounds its tasks.

    `retries` is how often a task may be tried again after an error of a kind in `retry_on`; 0: no
    retry, and no waiting for limits.  `retry_acted`: also tasks that may have changed something.
    `max_wait` is the seconds that a task may wait for limits in all.  `limits` is how many tasks of
    a backend may run.  `one_per_workdir`: tasks in one directory run one after the other.
    `max_cost` is in USD, 0 for any; with `allow_unknown_cost` a cost that a backend does not state
    counts as none.  `max_failures` stops the run: a number, or a share of the
    tasks (0 < share <= 1, a float); 0: never.  `canary` tasks must succeed before others start.
    """

    retries: int = 0
    retry_on: Tuple[str, ...] = ("rate_limit", "overloaded", "network", "worker_lost")
    retry_acted: bool = False
    max_wait: float = 3600.0
    limits: Dict[str, int] = {}
    one_per_workdir: bool = False
    max_cost: float = 0.0
    max_failures: Union[int, float] = 0
    canary: int = 0
    allow_unknown_cost: bool = False


NO_POLICY = RunPolicy()

class Result(NamedTuple):
    """The end of one task.

    `exit_code` is that of the backend; 1 where it was 0 and the task failed all the same, 124 after
    a timeout, 126 or 127 where the program could not be started, 128+n where signal n ended it, -1
    for a task that was canceled or lost.  Times are seconds since the epoch.  `answer` is a
    TextFile where it is large: iterate over it, or read `output`, which joins it in memory.
    `written` is the file that contains the answer, as in `write_to` of the task.  `data` is the
    value of the answer of a task with a schema; only a valid one.
    `attempts` is how often the task was started; of several, `tries` has the fields (try_fields),
    `usage` and `cost_usd` are sums, and all else is of the last.  `retry_at`, since the epoch, is
    when a limit ends that took too long.  `usage_is_cumulative`: `usage` is that of all runs of its
    session.  `limits` are those of the account, by name, as the backend states them.  `acted`: a
    tool of the backend ran, or may have run where that cannot be known.  `log` and `log_stderr` are
    the files of the log.  `check` has the fields of the check that failed, else of the last.
    `changes` are None where the changes of the task do not matter, or were not judged or permitted.
    """

    index: int  # type: ignore[assignment]
    backend: str
    status: str
    exit_code: int
    answer: Union[str, TextFile] = ""
    error: str = ""
    error_kind: str = ""
    retry_after_seconds: Optional[float] = None
    warnings: Tuple[str, ...] = ()
    model: str = ""
    session_id: str = ""
    usage: Optional[Dict[str, int]] = None
    cost_usd: Optional[float] = None
    num_turns: Optional[int] = None
    attempts: int = 1
    start_time: float = 0.0
    end_time: float = 0.0
    # None where the input holds no task; with a matrix only its sample; not sent back by a worker
    task: Optional[Task] = None
    resumed: bool = False  # an earlier run got it, and the results file kept it
    usage_is_cumulative: bool = False
    limits: Optional[Dict[str, Dict[str, Any]]] = None
    acted: bool = False
    tries: Tuple[Dict[str, Any], ...] = ()
    retry_at: float = 0.0
    written: str = ""
    data: Optional[Dict[str, Any]] = None
    log: str = ""
    log_stderr: str = ""
    check: Optional[Dict[str, Any]] = None
    changes: Optional[Changes] = None

    @property
    def output(self) -> str:
        """The answer as text; bytes that are not UTF-8 are lone surrogates."""
        return self.answer if isinstance(self.answer, str) else "".join(self.answer)

    @property
    def duration_seconds(self) -> float:
        return max(0.0, self.end_time - self.start_time)


def sample_of(one: Union[Job, Result]) -> Sample:
    """Return the Sample of a job or a result; that of an only sample where the task has none."""
    return one.task and one.task.sample or Sample(one.index)


def number_of(one: Union[Job, Result]) -> str:
    """Return the number of a task, from 1, for its user: `3`, or `3.2` for its second sample."""
    sample = sample_of(one)
    more = ".%d" % sample.sample if sample.sample > 1 else ""
    return "%d%s" % (sample.index + 1, more)


def unfinished(job: Job, status: str, error: str, error_kind: str, *, exit_code: int = -1,
               attempts: int = 0, start_time: Optional[float] = None) -> Result:
    """Return the Result of a job that no backend answered."""
    now = time.time()
    return Result(job.index, job.task.backend, status, exit_code, error=error,
                  error_kind=error_kind, model=job.task.model, attempts=attempts, task=job.task,
                  start_time=now if start_time is None else start_time, end_time=now)


# --- 2. Text and JSON --------------------------------------------------------

CHUNK = 1 << 16  # characters or bytes that are held at a time of a text of any size
LOSSLESS = "clinvk-lossless"  # codec error handler for encoding
run_once = functools.lru_cache(maxsize=None)  # for functions without parameters


def _lossless(error: UnicodeError) -> Tuple[bytes, int]:
    """Encode a stray byte as what it was, and any other lone surrogate as its own three bytes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return b"".join(bytes([ord(c) - 0xDC00]) if 0xDC80 <= ord(c) <= 0xDCFF
                    else c.encode("utf-8", "surrogatepass")
                    for c in error.object[error.start:error.end]), error.end


codecs.register_error(LOSSLESS, _lossless)


def to_bytes(text: str) -> bytes:
    """Return any str as UTF-8, with the stray bytes that to_text has read."""
    return text.encode("utf-8", LOSSLESS)


def to_text(data: Union[bytes, bytearray]) -> str:
    """Return any bytes as text; a stray byte is a lone surrogate (U+DC80 to U+DCFF, PEP 383)."""
    return data.decode("utf-8", "surrogateescape")


def text_chunks(pieces: Iterable[bytes]) -> Iterator[str]:
    """Decode a text that arrives in pieces, which may part a character."""
    return codecs.iterdecode(pieces, "utf-8", "surrogateescape")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("the number %s is out of range" % text)
    return number


def _refuse_constant(name: str) -> Any:
    raise ValueError("%s is not JSON" % name)


# Made once, because the functions of json make new ones at every call.
_JSON_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
JSON_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


@run_once
def faster_json() -> Any:
    """Return orjson, or None.  Call it before a fork: a lock is held during the import."""
    try:
        import orjson
        return orjson
    except ImportError:
        return None


def dumps(value: Any, exact: bool = False) -> bytes:
    """Return `value` as compact JSON, always valid UTF-8: lone surrogates are written as escapes.

    A high surrogate is broken up into its bytes, because jq gives up at it; not where `exact`.
    """
    def escaped(surrogates: Match[str]) -> str:
        text = surrogates.group()
        if len(text) == 1 and text < "\udc00" and not exact:
            text = to_text(to_bytes(text))
        return "".join("\\u%04x" % ord(c) for c in text)

    if faster_json():
        try:
            return bytes(faster_json().dumps(value))
        except TypeError:  # a lone surrogate or a number past 64 bits, which orjson does not write
            pass
    text = _JSON_ENCODER.encode(value)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        surrogates = "[\ud800-\udbff][\udc00-\udfff]|[\ud800-\udfff]"
        return re.sub(surrogates, escaped, text).encode("utf-8")


def as_text(value: Any) -> str:
    """Return a text as it is, and any other JSON value as JSON."""
    return value if isinstance(value, str) else dumps(value).decode("utf-8")


MAX_BRACKETS = 2000  # in JSON for orjson, of which old versions crash at too many levels


def loads(data: bytes) -> Any:
    """Return the JSON value in `data` (UTF-8).

    Raises ValueError, mostly JSONDecodeError, and RecursionError for too many levels.
    """
    # orjson rounds integers past 64 bits to floats.  Its errors name no line.
    if faster_json() and data.count(b"[") + data.count(b"{") <= MAX_BRACKETS and (
            not re.search(rb"[0-9]{16}|[0-9][eE]", data)):
        try:
            return faster_json().loads(data)
        except ValueError:
            pass
    return JSON_DECODER.decode(data.decode("utf-8"))


OBJECT_START = r'\{\s*"'  # braces in the text of a log are followed by something else


def objects_in(data: bytes) -> Tuple[List[Any], str, int]:
    """Return the JSON objects in `data`, the text around them, and the number of good lines.

    The search ends at a damaged object: an object inside of it is not a value of its own.
    """
    text, end = to_text(data), 0
    objects: List[Any] = []
    around: List[str] = []
    while True:
        start = re.compile(OBJECT_START).search(text, end)
        if not start:
            break
        try:
            value, after = JSON_DECODER.raw_decode(text, start.start())
            text[start.start():after].encode("utf-8")
        except (ValueError, RecursionError):
            break
        around.append(text[end:start.start()])
        objects.append(value)
        end = after
    around.append(text[end:])
    return objects, "\n".join(around), text.count("\n", 0, start.start() if start else end)


MAX_SECONDS = 1e9  # seconds; what timers can take ends at some 9e9


@functools.lru_cache(maxsize=100)
def _utc_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def utc(seconds: float) -> str:
    """Return a time by RFC 3339: UTC, with milliseconds."""
    whole, milliseconds = divmod(int(round(seconds * 1000)), 1000)
    return "%s.%03dZ" % (_utc_second(whole), milliseconds)


def local_time(seconds: float) -> str:
    """Return the time of day in local time, `14:05`.

    It has the seconds where it is less than a minute away, and the date where it is not today.
    """
    there, now = time.localtime(seconds), time.time()
    is_today = there[:3] == time.localtime(now)[:3]
    form = "%H:%M" if is_today else "%Y-%m-%d %H:%M"
    return time.strftime(form + ":%S" * (abs(seconds - now) < 60), there)


_DURATION = ("(?:N ?(?:h|hrs?|hours?))? ?(?:N ?(?:m|mins?|minutes?))? ?"
             "(?:N ?(?:s|secs?|seconds?))? ?(?:N ?(?:ms|milliseconds?))?")


def parse_duration(text: str) -> float:
    """Return the seconds in `90`, `90s`, `1.5m`, `1h30m`, `500ms` or `10 min`; or ValueError."""
    number = r"(\d+\.?\d*|\.\d+)"
    parts = re.fullmatch(number, text, re.ASCII)
    if text.strip() == text != "":
        parts = parts or re.fullmatch(_DURATION.replace("N", number), text, re.ASCII)
    if not parts:
        raise ValueError("expected a duration such as 90, 90s, 15m or 2h, got %s" % quoted(text))
    factors = (1.0,) if parts.re.groups == 1 else (3600.0, 60.0, 1.0, 0.001)
    seconds = sum(float(part) * factor for part, factor in zip(parts.groups(), factors) if part)
    if not 0 < seconds < float("inf"):
        raise ValueError("expected a duration above 0, got %s" % quoted(text))
    return seconds


def duration(seconds: float) -> str:
    """Return `0.5s`, `30s`, `4m10s`, `5m` or `2h3m`, which parse_duration reads."""
    if seconds < 60:
        return "%gs" % round(seconds, 1)
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = (hours, "h"), (minutes, "m"), (rest, "s")
    return "".join("%d%s" % part for part in parts if part[0])


DEFAULT_MAX_OUTPUT = 1 << 30  # bytes of stdout; for a task that sets no limit
_SIZE_UNITS = ("", "K", "M", "G", "T")


def parse_size(text: str) -> int:
    """Return the bytes in `4096`, `500K`, `1.5M`, `64 MB` or `1GiB`; or ValueError."""
    parts = re.fullmatch(r"(\d+\.?\d*|\.\d+)(?: ?(?=[KMGTB])([KMGT]?)(?:i?B)?)?", text,
                         re.ASCII | re.I)
    if not parts:
        raise ValueError("expected a size such as 500K, 64M or 1G, got %s" % quoted(text))
    size = float(parts.group(1)) * 1024 ** _SIZE_UNITS.index((parts.group(2) or "").upper())
    if not 1 <= size < 1 << 62:
        raise ValueError("expected a size of 1 byte or more, got %s" % quoted(text))
    return int(size)


def size_text(size: float) -> str:
    """Return `512 B`, `1.2 MB` or `1 GB`, with units as parse_size has them."""
    unit = 0
    while size >= 1000 and unit < len(_SIZE_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return "%g %sB" % (round(size, 1), _SIZE_UNITS[unit])


def clock(seconds: float) -> str:
    """Return `00:42`, or `1:02:03` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return "%d:%02d:%02d" % (hours, minutes, rest) if hours else "%02d:%02d" % (minutes, rest)


def age(seconds: float) -> str:
    """Return `42s`, `5m`, `3h` or `12d`."""
    for unit, letter in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= unit:
            return "%d%s" % (seconds // unit, letter)
    return "%ds" % max(0.0, seconds)


def counted(number: int, noun: str) -> str:
    """Return "1 task" or "2 tasks"."""
    return "%d %s%s" % (number, noun, "" if number == 1 else "s")


MAX_NAMED = 5  # names or numbers in a message


_ENCODINGS = (  # by how a text begins in them, with and without a byte order mark
    (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32"), (rb"\xff\xfe|\xfe\xff", "UTF-16"),
    (rb"[^\0]\0\0\0", "UTF-32LE"), (rb"\0\0\0[^\0]", "UTF-32BE"),
    (rb"[^\0]\0(\Z|[^\0]\0|\0[^\0])", "UTF-16LE"), (rb"\0[^\0](\0[^\0]|\0?\Z)", "UTF-16BE"))

# A pattern for the message of the JSON module, a pattern for the text, the repair.  The message
# begins with "torn" where the input ends inside of the value, ends with "unprintable" if the
# character is, and is "between" between values.  The first row that matches counts.
_REPAIRS = (
    ("Invalid control", "", "write it as %(escape)s in a string"),
    ("^Unterminated", "", "a string ends on its line; write a line break in it as \\n"),
    (r"Invalid \\", "", "write a backslash in a string as \\\\"),
    ("^between", "```", "the JSON is in a Markdown fence, which `sed '/^ *```/d'` strips"),
    ("^between", ",", "remove the comma between values, or put the values into [ ]"),
    ("^between", '"', "`jq '{prompt: .}'` makes a task of a string"),
    ("", r"(?<=,)[\]}]|,\s*[\]}]", "remove the comma before the closing bracket"),
    ("", r"#|//|/\*", "remove the comment; JSON has none"),
    ("", "['\xab\xbb\u2018-\u201f\u2039\u203a\uff02]", "JSON has no quotes but \""),
    ("", r"(True|False|None|undefined|NaN)\b", "JSON has true, false and null"),
    ("unprintable$", "", "remove %(code)s (%(name)s), which is not white space in JSON"),
    ("^Expecting ','", "",
     "a comma is missing here, or a backslash before a \" inside of a string"),
    ("^between", r"[^\]}]", "leave only the JSON; `jq -R '{prompt: .}'` makes a task of each line"))


def wide_encoding(data: Union[bytes, bytearray]) -> str:
    """Return that a text is UTF-16 or UTF-32, and how to convert it; else ""."""
    for start, encoding in _ENCODINGS:
        if re.match(start, data, re.S):
            return ": the input is %s; `iconv -f %s -t UTF-8` makes it UTF-8" % (encoding, encoding)
    return ""


def _repair(data: Union[bytes, bytearray], message: str, before: str, text: str) -> str:
    """Return how to repair JSON in which `text` is wrong after `before`; else ""."""
    encoding = wide_encoding(data)
    if encoding:
        return encoding
    import unicodedata
    character, text = text[:1] or " ", (before.rstrip() or " ")[-1] + text[:50]
    message += "" if character.isprintable() else "; unprintable"
    for error, start_of_text, repair in _REPAIRS:
        match = re.compile(start_of_text).match(text, 1)
        if match and re.search(error, message):
            return ": " + repair % {
                "code": "U+%04X" % ord(character), "escape": json.dumps(character)[1:-1],
                "name": unicodedata.name(character, "a control character")}
    return ""


def first_of(names: Sequence[_T], name_of: Callable[[_T], str] = str, *,
             separator: str = ", ") -> str:
    """Return MAX_NAMED names for a message, and how many more there are."""
    more = len(names) - MAX_NAMED
    first = separator.join(map(name_of, names[:MAX_NAMED]))
    return first + (" and %d more" % more if more > 0 else "")


def quoted(value: Any) -> str:
    """Return a value as JSON for a message: without secrets, visible, of a readable length."""
    text = without_secrets(dumps(value).decode("utf-8"))
    text = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean "prompt"?)`, or nothing: a wrong hint is worse than none."""
    import difflib
    words = list(known)
    near = difflib.get_close_matches(word, words, 1, 0.75)
    if near and difflib.SequenceMatcher(None, near[0], word).ratio() < 0.8:
        near = [other for other in near if other[:1] == word[:1] != "-"]
    return ' (did you mean "%s"?)' % near[0] if near else ""


# What fields and options are called in other programs.
OTHER_NAMES = {other: name for name, others in {
    "workdir": "cwd dir directory working_dir working_directory", "prompt": "text message",
    "system_prompt": "system instructions", "extra": "args flags options", "meta": "metadata",
    "backend": "agent provider tool", "sandbox_mode": "sandbox", "name": "title", "tags": "labels",
    "approval_mode": "approval permission_mode", "timeout": "timeout_seconds",
    "max_parallel": "workers max_workers concurrency threads", "--max-parallel": "--jobs -P -n",
    "effort": "reasoning_effort thinking", "schema": "json_schema output_schema response_format",
    "check": "test verify validate", "repeat": "samples runs times", "answer_only": "no_tools",
}.items() for other in others.split()}


def known_as(name: str, known: Iterable[str]) -> str:
    """Return a hint as `nearest` does, first for the name of a field or option elsewhere."""
    names = list(known)
    other = OTHER_NAMES.get(name) or OTHER_NAMES.get(name.lstrip("-").replace("-", "_"), "")
    if name.startswith("--") and not other.startswith("-"):
        other = "--" + other.replace("_", "-")
    return ' (did you mean "%s"?)' % other if other in names else nearest(name, names)


@run_once
def _controls() -> Dict[int, str]:
    """Return what to show for the characters that a terminal could obey, tab and newline aside."""
    table = {code: "^" + chr(code ^ 0x40) for code in range(0x20) if code not in (9, 10)}
    table[0x7F] = "^?"
    for first, last in (0x80, 0x9F), (0x202A, 0x202E), (0x2066, 0x2069), (0xD800, 0xDFFF):
        table.update((code, "<U+%04X>" % code) for code in range(first, last + 1))
    table.update((0xDC00 + byte, "<%02X>" % byte) for byte in range(0x80, 0x100))
    return table


def visible(text: str) -> str:
    """Return the text with visible control characters, safe to show on a terminal."""
    return text.translate(_controls())


def one_line(text: str) -> str:
    """Return the first line that is not blank, for a terminal, without secrets.

    Runs of white space become one blank.
    """
    for line in without_secrets(text)[:CHUNK].splitlines():
        if line.strip():
            return visible(" ".join(line.split()))
    return ""


def plain_name(text: str) -> str:
    """Return a text as a part of file names that is valid everywhere and is no path; maybe ""."""
    return re.sub(r"[^\w-]", "_", text[:64], flags=re.ASCII).strip("_")


def columns_of(character: str) -> int:
    """Return how many terminal columns a character takes: 0, 1 or 2 (Unicode annex 11)."""
    if character.isascii():
        return 1
    import unicodedata
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def columns_in(text: str) -> int:
    """Return how many terminal columns a line takes."""
    return sum(map(columns_of, text))


def cut(text: str, columns: int) -> str:
    """Cut a text to that many terminal columns (4 at least); `...` shows that."""
    width, kept = 0, 0
    for position, character in enumerate(text):
        width += columns_of(character)
        if width <= columns - 3:
            kept = position + 1
        if width > max(columns, 3):
            return text[:kept] + "..."
    return text


def wrapped(text: str, columns: int) -> List[str]:
    """Return the text in lines of at most that many terminal columns, if possible cut at blanks."""
    lines: List[str] = []
    start = blank = width = 0
    for position, character in enumerate(text):
        width += columns_of(character)
        if character == " ":
            blank = position
        while width > columns and position > start:
            end = blank if blank > start else position
            lines.append(text[start:end])
            start = end + (text[end] == " ")
            width = columns_in(text[start:position + 1])
    return lines + [text[start:]]


def shell_quoted(text: str) -> str:
    """Return the text as one word for bash, ksh and zsh, on one line."""
    import shlex
    if text.isprintable():
        return shlex.quote(text)
    escapes = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", "'": "\\'"}
    return "$'%s'" % "".join(escapes.get(c) or (c if c.isprintable() else "".join(
        "\\x%02x" % byte for byte in to_bytes(c))) for c in text)


PLACEHOLDER = r"\{\{[^{}\n]+\}\}|\{[^{}\n]*\}"
TEMPLATE_PLACEHOLDER = r"\{\{|\{[^{}\n]*\}"  # `{{` stands for a brace


def fill(text: str, lookup: Callable[[str], Optional[_T]],
         pattern: str = PLACEHOLDER) -> List[Union[str, _T]]:
    """Return the text in pieces, with the value of each placeholder in the placeholder's place.

    `lookup` is called with each text that matches, `{name}` or `{{name}}`, braces included, and
    returns the value; for None the text stays as it is.  Values are not searched for placeholders.
    """
    pieces: List[Any] = re.split("(%s)" % pattern, text)
    for place in range(1, len(pieces), 2):  # of what the pattern matches
        value = lookup(pieces[place])
        pieces[place] = pieces[place] if value is None else value
    return [piece for piece in pieces if piece != ""]


_SECRET_NAME = ("((KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL)S?|PASSWD|PASSPHRASE|(?<!ASK)PASS|(^|_)PAT)"
                "[0-9]*(_|$)|_(AUTH|PWD)[0-9]*$")
MIN_SECRET = 8  # characters: a shorter value is a word that occurs elsewhere


def _names_secret(variable: str) -> bool:
    """Return whether a variable holds a secret by its name, but not SSH_ASKPASS, PWD or OLDPWD."""
    return bool(re.search(_SECRET_NAME, re.sub("[-.]", "_", variable.upper())))


def _secrets_in(variable: str, value: str) -> Iterator[str]:
    """Yield the secrets in a variable: its value and lines, headers, user information of URLs."""
    secrets = []
    if _names_secret(variable):
        secrets += [value] + value.splitlines()
    if variable.upper().endswith("_HEADERS"):
        is_secret = False
        for header in re.split("[\n,]", value):
            parts = re.split("[:=]", header, maxsplit=1)
            *names, text = (part.strip(" \t\r\"'{}") for part in parts)
            if names:  # else it belongs to the header before
                is_secret = (_names_secret(names[0])
                             or names[0].upper().endswith(("AUTHORIZATION", "COOKIE")))
            if is_secret:
                secrets += [text] + text.split()[-1:]  # without the word Bearer
    for scheme, user in re.findall(r"(?<!\w)(\w*)://([^/\s?#]*)@", value):
        name, colon, password = user.partition(":")
        secrets += [user, password] if colon else [name] * scheme.startswith("http")
    for text in secrets:
        yield text
        if "%" in text:
            from urllib.parse import unquote
            yield unquote(text)


def _forms(secret: str) -> Iterator[str]:
    """Yield a secret as it is, as it is in JSON, and what every base64 text of it contains."""
    from binascii import b2a_base64
    yield from (secret, json.dumps(secret, ensure_ascii=False)[1:-1], json.dumps(secret)[1:-1])
    data = to_bytes(secret.strip())
    for before in range(3):
        start, end = (before * 8 + 5) // 6, (before + len(data)) * 8 // 6
        text = b2a_base64(bytes(before) + data)[start:end].decode()
        yield from (text, text.replace("+", "-").replace("/", "_"))


def _any_encoding(secret: str) -> str:
    """Return a pattern for a secret that may be encoded.

    A character that is not an ASCII letter or digit may be written as in a URL or in HTML, and
    there may be backslashes before it, as in JSON in JSON.  Not before the first character: on a
    long run of backslashes the match would take quadratic time.
    """
    names = {"&": "amp|", "<": "lt|", ">": "gt|", '"': "quot|", "'": "apos|"}

    def encodable(mark: Match[str]) -> str:
        character = mark.group().lstrip("\\")
        slashes = mark.group()[:len(mark.group()) - len(character)]
        start = r"(?:\\|%5[cC])+" if slashes else r"\\*"
        if mark.start() == 0:
            start = re.escape(slashes)
        if not character:
            return start
        url = "".join("%%%02x" % byte for byte in to_bytes(character))
        html = "%s#%d|#x%x" % (names.get(character, ""), ord(character), ord(character))
        return "%s(?:%s|(?i:%s|&(?:%s);))" % (start, re.escape(character), url, html)

    return re.sub(r"\\+[^\\A-Za-z0-9]?|[^\\A-Za-z0-9]", encodable, secret)


@run_once
def _secrets() -> Tuple[List[str], List[str], str]:
    """Return what the secrets in the environment are found by, that of the longest first.

    The names of the variables, a word of each secret that is the same in all encodings, and a
    pattern with a group for each, which most runs need not compile.
    """
    names: Dict[str, str] = {}
    for name, value in os.environ.items():
        for secret in _secrets_in(name, value):
            if len(secret.strip()) >= MIN_SECRET:
                for form in _forms(secret):
                    names.setdefault(form.strip(), name)
    forms = sorted((form for form in names if len(form) >= MIN_SECRET), key=len, reverse=True)
    return ([names[form] for form in forms],
            [max(re.findall("[A-Za-z0-9]+", form), key=len, default="") for form in forms],
            "|".join("(%s)" % _any_encoding(form) for form in forms))


def secret_pieces(text: str) -> List[Tuple[str, str]]:
    """Return a text in pieces: (text, "") or (secret, the name of its variable)."""
    names, words, pattern = _secrets()
    if not any(map(text.__contains__, words)):
        return [(text, "")]
    pieces: List[Tuple[str, str]] = []
    end = 0
    for match in re.finditer(pattern, text):
        name = names[(match.lastindex or 1) - 1]
        pieces += [(text[end:match.start()], ""), (match.group(), name)]
        end = match.end()
    return [piece for piece in pieces + [(text[end:], "")] if piece[0]]


def without_secrets(text: str) -> str:
    """Return the text with the names of variables for the secrets in them; call before a cut."""
    return text and "".join("[%s]" % name if name else piece for piece, name in secret_pieces(text))


def redacted(result: Result) -> Result:
    """Return a result without secrets in its error and warnings.  The answer stays as it is.

    A worker does so because messages are also kept in files, run_plan before anything has a result.
    """
    if not (result.error or result.warnings):
        return result
    return result._replace(error=without_secrets(result.error),
                           warnings=tuple(map(without_secrets, result.warnings)))


class InvalidValue(ValueError):
    """An invalid value, with the path to the value (`("tasks", 3, "max_turns")`)."""

    def __init__(self, message: str, path: _Path = ()) -> None:
        super().__init__(message)
        self.message, self.path = message, path

    def __str__(self) -> str:
        return (path_text(self.path) + ": " if self.path else "") + self.message


def expected(what: str, value: Any, path: _Path = ()) -> InvalidValue:
    """Return the error for a value that is not `what`."""
    return InvalidValue("expected %s, got %s" % (what, quoted(value)), path)


MAX_DEPTH = 200  # levels of free data, because every JSON program can read so many


def items_of(value: Any) -> Iterable[Tuple[Union[str, int], Any]]:
    """Return the keys or the positions in an object or a list, each with its value."""
    if isinstance(value, dict):
        return value.items()
    if isinstance(value, list):
        return enumerate(value)
    return ()


def _free_object(value: Any) -> Dict[str, Any]:
    """Check an object of any JSON values.  Raises RecursionError for too many levels."""
    if not isinstance(value, dict):
        raise expected("an object", value)
    level: List[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [item for owner in level for _, item in items_of(owner)]
        if not level:
            return value
    raise RecursionError("nested too deep")  # as the JSON module raises; orjson has another limit


def _free_value(value: Any) -> Any:
    """Check any JSON value.  Raises RecursionError for too many levels."""
    return _free_object({"": value})[""]


class Instead:
    """A block from which the error that `error_of` returns is raised instead of some kinds."""

    __enter__ = do_nothing

    def __init__(self, kinds: Any, error_of: Callable[[Any], Exception]) -> None:
        self._kinds, self._error_of = kinds, error_of

    def __exit__(self, _: Any, error: Optional[BaseException], __: Any) -> None:
        if isinstance(error, self._kinds):
            raise self._error_of(error) from None


def path_context(*steps: Union[str, int]) -> Instead:
    """Put steps in front of the path of a ValueError that leaves the block."""
    return Instead(ValueError, lambda error: InvalidValue(
        getattr(error, "message", str(error)), steps + getattr(error, "path", ())))


def path_text(path: _Path) -> str:
    """Return `tasks[3].max_turns`; a name that could be taken for other text is quoted."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += "[%d]" % step
        elif step.replace("-", "_").replace(".", "_").isidentifier() and len(step) <= 60:
            text += ("." if text else "") + step
        else:
            text += "[%s]" % quoted(step)
    return text


SHOWN_CHECK_BYTES = 4096  # of the output of a check, in a result


def last_bytes(text: str, size: int) -> str:
    """Return the end of a text that has at most so many bytes, with whole characters."""
    data = to_bytes(text)
    if len(data) <= size:
        return text
    return to_text(re.sub(rb"\A[\x80-\xbf]+", b"", data[len(data) - size:]))


def result_fields(result: Result) -> Dict[str, Any]:
    """Return the JSON fields of a result; empty ones are left out.  `output` is a placeholder."""
    task = result.task
    sample = sample_of(result)
    fields: Dict[str, Any] = {"index": sample.index}
    if task:
        if sample.samples > 1:
            fields.update(sample=sample.sample, samples=sample.samples)
        fields.update(cell=sample.cell, cell_number=sample.cell_number or None, task_id=task.id,
                      task_name=task.name, tags=task.tags, meta=task.meta)
    fields.update(
        backend=result.backend, model=result.model, status=result.status,
        exit_code=result.exit_code, output="", data=result.data, error=result.error,
        error_kind=result.error_kind,
        retry_after_seconds=result.retry_after_seconds,
        retry_at=utc(result.retry_at) if result.retry_at else "", warnings=result.warnings,
        session_id=result.session_id, usage=result.usage, cost_usd=result.cost_usd,
        num_turns=result.num_turns, limits=result.limits, attempts=result.attempts,
        tries=result.tries, check=result.check and dict(
            result.check, output=last_bytes(result.check["output"], SHOWN_CHECK_BYTES)),
        start_time=utc(result.start_time), end_time=utc(result.end_time),
        duration_seconds=round(result.duration_seconds, 3), written=result.written,
        resumed=result.resumed or None, log=result.log, log_stderr=result.log_stderr)
    return {name: value for name, value in fields.items()
            if value or value == 0 or name in ("backend", "output")
            or name == "data" and value is not None}


def encoded(result: Result, fields_of: _Fields = result_fields) -> Iterator[bytes]:
    """Yield a result as one JSON object, in pieces of bounded size."""
    fields, answer = fields_of(result), result.answer
    if isinstance(answer, str):
        fields["output"] = answer
        whole = dumps(fields)
        if b"\\ud" not in whole:  # there is no lone surrogate
            yield whole
            return
    names = list(fields)
    start, end = names.index("backend"), names.index("output")
    # The user's own words, which come before the backend, are given back exactly.
    yield dumps({name: fields[name] for name in names[:start]}, exact=True)[:-1] + b","
    yield dumps({name: fields[name] for name in names[start:end]})[1:-1] + b',"output":"'
    for chunk in [answer] if isinstance(answer, str) else answer:
        yield dumps(chunk)[1:-1]
    yield b'",' + dumps({name: fields[name] for name in names[end + 1:]})[1:]


# --- 3. Schema ---------------------------------------------------------------
#
# A subset of JSON Schema 2020-12.  A keyword outside of it is an error, so that nothing which a
# schema states stays unchecked.  Verdicts are those of the Python library jsonschema.

MAX_SCHEMA_BYTES = 100 << 10  # the schema can be an argument of a program
MAX_FAULTS = 100  # that validate returns
MAX_FAULT_TEXT = 1000  # characters
MAX_SHOWN_VALUES = 20  # of an enum, in a message

# The name of each type in a message, and its classes.
_TYPES: Dict[str, Tuple[str, Any]] = {
    "object": ("an object", dict), "array": ("an array", list), "string": ("a string", str),
    "number": ("a number", (int, float)), "integer": ("a whole number", int),
    "boolean": ("true or false", bool), "null": ("null", type(None))}
# Of a number, of the length of a string and of that of an array.
_BOUNDS = {"minimum": (operator.ge, "at least", ""), "maximum": (operator.le, "at most", ""),
           "exclusiveMinimum": (operator.gt, "more than", ""),
           "exclusiveMaximum": (operator.lt, "less than", ""),
           "minLength": (operator.ge, "at least", "character"),
           "maxLength": (operator.le, "at most", "character"),
           "minItems": (operator.ge, "at least", "item"),
           "maxItems": (operator.le, "at most", "item")}
_NUMBERS = tuple(keyword for keyword, (_, _, noun) in _BOUNDS.items() if not noun)
_LENGTHS = tuple(keyword for keyword, (_, _, noun) in _BOUNDS.items() if noun)
_ANNOTATIONS = ("title", "description", "default", "examples", "deprecated", "readOnly",
                "writeOnly", "format", "$comment", "$schema", "contentEncoding",
                "contentMediaType", "contentSchema")


def _has_type(value: Any, name: str) -> bool:
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[name][1]) and (name == "boolean" or not isinstance(value, bool))


def _shown(values: Any) -> str:
    """Return the first of the values in a list or an object for a message."""
    shown = ", ".join(map(quoted, itertools.islice(values, MAX_SHOWN_VALUES)))
    return shown + ", ..." * (len(values) > MAX_SHOWN_VALUES)


def _rule(what: str, fits: Callable[[Any], bool]) -> _Check:
    """Return a check that returns a value which fits, and raises ValueError for any other."""
    def check(value: Any) -> Any:
        if not fits(value):
            raise expected(what, value)
        return value
    return check


def _is_pattern(rule: Any) -> bool:
    try:
        return bool(re.compile(rule)) and isinstance(rule, str)
    except (re.error, OverflowError, RecursionError, TypeError):
        return False


def _is_names(rule: Any) -> bool:
    """Return whether a value is a list of names, each once."""
    return (isinstance(rule, list) and all(isinstance(name, str) for name in rule)
            and len(set(rule)) == len(rule))


def _is_type(rule: Any) -> bool:
    names = rule if isinstance(rule, list) else [rule]
    return names != [] and _is_names(names) and set(names) <= set(_TYPES)


_ONE_SCHEMA = ("additionalProperties", "items", "not")  # the value is a schema
_LISTS = ("prefixItems", "anyOf", "oneOf", "allOf")  # a list of schemas
_OBJECTS = ("properties", "$defs", "definitions")  # an object of schemas
# The keywords with the checks of their values.  Schemas in them and "$ref" are checked elsewhere.
_KEYWORDS: Dict[str, _Check] = {
    "type": _rule("one of %s, or a list of them" % ", ".join(_TYPES), _is_type),
    "required": _rule("a list of names, each once", _is_names),
    "multipleOf": _rule("a number above 0", lambda rule: _has_type(rule, "number") and rule > 0),
    "uniqueItems": _rule("true or false", lambda rule: isinstance(rule, bool)),
    "pattern": _rule("a regular expression of Python", _is_pattern)}
for _keywords, _check in (
        (_ONE_SCHEMA + _ANNOTATIONS + ("$ref", "const"), do_nothing),
        (_OBJECTS, _rule("an object of schemas", lambda rule: isinstance(rule, dict))),
        (_LISTS + ("enum",), _rule("a list of one element or more", lambda rule: (
            isinstance(rule, list) and rule != []))),
        (_NUMBERS, _rule("a number", lambda rule: _has_type(rule, "number"))),
        (_LENGTHS, _rule("a whole number from 0 on", lambda rule: (
            _has_type(rule, "integer") and rule >= 0)))):
    _KEYWORDS.update(dict.fromkeys(_keywords, _check))


def _target(reference: Any, root: Any) -> Any:
    """Return the schema that `$ref` names.  Raises ValueError."""
    from urllib.parse import unquote
    match = re.fullmatch(r"#/(\$defs|definitions)/([^/]*)", unquote(str(reference)))
    if not match:
        raise expected('"#/$defs/NAME" or "#/definitions/NAME"', reference)
    owner = root.get(match.group(1)) if isinstance(root, dict) else None
    name = match.group(2).replace("~1", "/").replace("~0", "~")
    if not isinstance(owner, dict) or name not in owner:
        raise ValueError("the schema has no definition %s" % quoted(reference))
    return owner[name]


def _check_keywords(schema: Any, root: Any) -> None:
    """Check the keywords of one schema, but not the schemas in it."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise expected("a schema (an object, true or false)", schema)
    for keyword, rule in schema.items():
        with path_context(keyword):
            if keyword in _KEYWORDS:
                _KEYWORDS[keyword](rule)
            elif keyword != "$id" or schema is not root:
                raise ValueError("clinvk cannot check this keyword%s; it checks %s" % (
                    nearest(keyword, _KEYWORDS),
                    ", ".join(sorted(set(_KEYWORDS).difference(_ANNOTATIONS)))))
            if keyword == "$ref":
                _target(rule, root)


def _check_end(schema: Any, root: Any, is_done: Dict[int, bool]) -> None:
    """Refuse a schema that is applied to the same value again and again.

    `is_done` has the schemas that were visited, by id; False for those whose visit is under way.
    """
    if isinstance(schema, bool) or is_done.get(id(schema)):
        return
    if id(schema) in is_done:
        raise ValueError("the schema refers to itself for the same value, without end")
    is_done[id(schema)] = False
    for keyword in ("allOf", "anyOf", "oneOf"):
        for inner in schema.get(keyword, ()):
            _check_end(inner, root, is_done)
    _check_end(schema.get("not", True), root, is_done)
    if "$ref" in schema:
        _check_end(_target(schema["$ref"], root), root, is_done)
    is_done[id(schema)] = True


def schemas_in(schema: Any, path: _Path = ()) -> Iterator[Tuple[_Path, Any]]:
    """Yield a schema and all schemas in it, each with its path."""
    yield path, schema
    for keyword, rule in items_of(schema):
        if keyword in _ONE_SCHEMA:
            yield from schemas_in(rule, path + (keyword,))
        elif keyword in _LISTS + _OBJECTS:
            for step, inner in items_of(rule):
                yield from schemas_in(inner, path + (keyword, step))


def check_schema(schema: Any) -> None:
    """Raise InvalidValue, with the path in the schema, where validate cannot use the schema."""
    try:
        _free_value(schema)
        size = len(dumps(schema))
        if size > MAX_SCHEMA_BYTES:
            raise InvalidValue("the schema has %s; at most %s are allowed" % (
                size_text(size), size_text(MAX_SCHEMA_BYTES)))
        for path, inner in schemas_in(schema):
            with path_context(*path):
                _check_keywords(inner, schema)
        is_done: Dict[int, bool] = {}
        for path, inner in schemas_in(schema):
            with path_context(*path):
                _check_end(inner, schema, is_done)
    except RecursionError:
        raise InvalidValue("the schema is nested too deep") from None


class _Validation:
    """The application of a schema to a value."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._enums: Dict[int, FrozenSet[Any]] = {}  # the keys of the values in an enum, by its id

    def _key(self, value: Any) -> Any:
        """Return a key which is that of another value only where JSON has them as equal."""
        if isinstance(value, dict):
            return dict, frozenset((name, self._key(item)) for name, item in value.items())
        if isinstance(value, list):
            return list, tuple(map(self._key, value))
        return (bool, value) if isinstance(value, bool) else value

    def _is_one_of(self, value: Any, values: List[Any]) -> bool:
        if id(values) not in self._enums:
            self._enums[id(values)] = frozenset(map(self._key, values))
        return self._key(value) in self._enums[id(values)]

    def faults(self, value: Any, schema: Any, path: _Path) -> Iterator[_Fault]:
        """Yield what is wrong with the value at that path."""
        if isinstance(schema, bool):
            if not schema:
                yield path, "no value", value
            return
        if "$ref" in schema:
            yield from self.faults(value, _target(schema["$ref"], self._root), path)
        names = schema.get("type", [])
        names = names if isinstance(names, list) else [names]
        if names and not any(_has_type(value, name) for name in names):
            yield path, " or ".join(_TYPES[name][0] for name in names), value
        if "enum" in schema and not self._is_one_of(value, schema["enum"]):
            yield path, "one of " + _shown(schema["enum"]), value
        if "const" in schema and self._key(value) != self._key(schema["const"]):
            yield path, quoted(schema["const"]), value
        yield from self._of_scalar(value, schema, path)
        if isinstance(value, list):
            yield from self._of_array(value, schema, path)
        if isinstance(value, dict):
            yield from self._of_object(value, schema, path)
        yield from self._of_branches(value, schema, path)

    def _of_scalar(self, value: Any, schema: Any, path: _Path) -> Iterator[_Fault]:
        kinds = {"": "number", "character": "string", "item": "array"}
        for keyword, (fits, words, noun) in _BOUNDS.items():
            if keyword in schema and _has_type(value, kinds[noun]):
                bound = schema[keyword]
                if not fits(len(value) if noun else value, bound):
                    text = counted(int(bound), noun) if noun else quoted(bound)
                    yield path, "%s %s" % (words, text), value
        if "multipleOf" in schema and _has_type(value, "number"):
            if not _is_multiple(value, schema["multipleOf"]):
                yield path, "a multiple of %s" % quoted(schema["multipleOf"]), value
        if "pattern" in schema and isinstance(value, str):
            if not re.search(schema["pattern"], value):
                yield path, "a text that matches %s" % quoted(schema["pattern"]), value

    def _of_array(self, value: List[Any], schema: Any, path: _Path) -> Iterator[_Fault]:
        first = schema.get("prefixItems", ())
        for position, inner in enumerate(first[:len(value)]):
            yield from self.faults(value[position], inner, path + (position,))
        if schema.get("items", True) is not True:
            for position in range(len(first), len(value)):
                yield from self.faults(value[position], schema["items"], path + (position,))
        if schema.get("uniqueItems"):
            keys = set()
            for position, item in enumerate(value):
                key = self._key(item)
                if key in keys:
                    yield path + (position,), "an item that differs from those before it", item
                keys.add(key)

    def _of_object(self, value: Dict[str, Any], schema: Any, path: _Path) -> Iterator[_Fault]:
        known = schema.get("properties", {})
        for name in schema.get("required", ()):
            if name not in value:
                yield path, "a property %s" % quoted(name), value
        for name, inner in known.items():
            if name in value:
                yield from self.faults(value[name], inner, path + (name,))
        others = schema.get("additionalProperties", True)
        for name in () if others is True else value:
            if name not in known and others is not False:
                yield from self.faults(value[name], others, path + (name,))
            elif name not in known:
                names = " but " + _shown(known) if known else ""
                yield path, "no property" + names, name

    def _of_branches(self, value: Any, schema: Any, path: _Path) -> Iterator[_Fault]:
        def first(branch: Any) -> Optional[_Fault]:
            return next(self.faults(value, branch, path), None)

        for branch in schema.get("allOf", ()):
            yield from self.faults(value, branch, path)
        if "not" in schema and not first(schema["not"]):
            yield path, "a value that does not match %s" % quoted(schema["not"]), value
        for keyword in ("anyOf", "oneOf"):
            faults = list(map(first, schema.get(keyword, ())))
            valid = [str(number) for number, fault in enumerate(faults, 1) if not fault]
            if not valid:
                yield from _of_alternatives(list(filter(None, faults)), value, path)
            elif keyword == "oneOf" and len(valid) > 1:
                yield path, "a match of one alternative, not of %s" % " and ".join(valid), value


def _of_alternatives(faults: List[_Fault], value: Any, path: _Path) -> Iterator[_Fault]:
    """Yield the first fault by each alternative, of which none matches.

    Where all of them are about the value itself, one fault has them all; else those alternatives
    are left out, because another comes further.
    """
    inner = [(number, fault) for number, fault in enumerate(faults, 1) if fault[0] != path]
    if faults and not inner:
        yield path, " or ".join(dict.fromkeys(what for _, what, _ in faults)), value
    for number, (where, what, item) in inner:
        yield where, "%s (alternative %d of %d)" % (what, number, len(faults)), item


def _is_multiple(value: Union[int, float], step: Union[int, float]) -> bool:
    """Divide as decimals, as JSON writes them: 19.99 is a multiple of 0.01, as floats it is not."""
    from fractions import Fraction
    top, bottom = (number if isinstance(number, int) else repr(number) for number in (value, step))
    try:
        return Fraction(top) % Fraction(bottom) == 0
    except ValueError:  # infinite, or NaN
        return False


def validate(value: Any, schema: Any) -> List[str]:
    """Return what is wrong with a JSON value by a schema: texts that begin with a path in `data`.

    The list is empty for a valid value, and has MAX_FAULTS texts at most.  Raises InvalidValue for
    a schema that check_schema refuses.
    """
    check_schema(schema)
    errors = []
    try:
        _free_value(value)
        faults = _Validation(schema).faults(value, schema, ("data",))
        for path, what, item in itertools.islice(faults, MAX_FAULTS):
            text = without_secrets(str(expected(what, item, path)))
            errors.append(text if len(text) <= MAX_FAULT_TEXT else text[:MAX_FAULT_TEXT] + "...")
    except RecursionError:
        errors.append("data: the value and the schema are nested too deep to check")
    return errors


# --- 4. Platform -------------------------------------------------------------


def send_signal(process_group: int, signal_number: int) -> bool:
    """Signal a process group.  Return False where it does not exist any more."""
    try:
        os.killpg(process_group, signal_number)
        return True
    except (ProcessLookupError, PermissionError):
        return False


class OpenDirectory(NamedTuple):
    """An open directory; renaming or replacing its path does not affect it."""

    file: int
    real: str  # where it is, all symbolic links followed

    def path(self) -> str:
        """Return a path to the directory that works in a child, too.

        Without /proc this is the path at the time of opening.
        """
        own = "/proc/self/fd/%d" % self.file
        return own if os.path.isdir(own) else self.real


def open_directory(path: str, way: int = getattr(os, "O_PATH", os.O_RDONLY)) -> OpenDirectory:
    """Open a directory that this process may enter.  Raises OSError."""
    file = os.open(os.path.join(path, "."), way | os.O_DIRECTORY | os.O_CLOEXEC)
    if file <= 2:  # a child has its own standard ones in place before it enters the directory
        standard, file = file, fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 3)
        os.close(standard)
    try:
        return OpenDirectory(file, os.readlink("/proc/self/fd/%d" % file))
    except OSError:
        return OpenDirectory(file, os.path.realpath(path))


def lock_file(file: int) -> bool:
    """Lock an open file or directory; return False where another process has the lock.

    The lock lasts until this process and its forks have closed the file.  On a file system without
    locks, return True.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def refuse_irregular(option: str, path: str) -> None:
    """Raise UserError where the path of an option leads to something else than a regular file."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError("%s %s: expected a regular file, or a name that does not exist"
                        % (option, visible(path)))


def is_same(file: Union[int, str], path: str) -> bool:
    """Return whether a path leads to a file, which is open or has another path.

    Two paths are also the same where they are equal and there is no file yet.
    """
    try:
        return os.path.samestat(os.stat(file), os.stat(path))
    except OSError:
        return isinstance(file, str) and "" != file and absolute(file) == absolute(path)


def work_tree(path: str) -> str:
    """Return the top of the git work tree that a directory is in; "" where it is in none."""
    if deleted_directory(path):
        return ""
    path = os.path.realpath(path or ".")
    while not os.path.lexists(os.path.join(path, ".git")):
        if path == os.path.dirname(path):
            return ""
        path = os.path.dirname(path)
    return path


def deleted_directory(path: str = "") -> str:
    """Return the message that the current directory was deleted; "" where `path` needs none."""
    try:
        if not path.startswith("/"):
            os.getcwd()
        return ""
    except FileNotFoundError:
        return "the current directory does not exist any more"


def absolute(path: str) -> str:
    """Return the absolute path, or `path` itself where the current directory was deleted."""
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        return path


def search_path() -> List[str]:
    """Return the directories of the PATH, relative to this directory and not to a workdir."""
    return [absolute(entry) for entry in os.get_exec_path()]


def candidates(program: str) -> List[str]:
    """Return the absolute paths at which a program may be."""
    if "/" in program:
        return [absolute(program)]
    return [os.path.join(entry, program) for entry in search_path()]


def find_program(name: str) -> Tuple[str, str]:
    """Return the path of a program and "", or why the program cannot be started."""
    there = [path for path in candidates(name) if os.path.isfile(path)]
    for path in there:
        if os.access(path, os.X_OK):
            return path, ""
    return (there[0], "cannot be executed") if there else ("", "not found on the PATH")


def start_session(argv: Tuple[str, ...], environment: Dict[str, str],
                  workdir: Optional[OpenDirectory], files: Sequence[int]) -> int:
    """Start a program in a session of its own and return its pid.

    `files` become its stdin, stdout and stderr.  Raises OSError with the program or None as
    `filename`.
    """
    if workdir is None:
        try:
            return os.posix_spawnp(
                argv[0], argv, environment, setsid=True, setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
                file_actions=[(os.POSIX_SPAWN_DUP2, file, to) for to, file in enumerate(files)])
        except NotImplementedError:  # setsid
            pass
    import subprocess  # slower than posix_spawn by 0.1 ms, but it can change the directory
    program = absolute(argv[0]) if "/" in argv[0] else argv[0]
    if "PATH" in environment:
        environment = dict(environment, PATH=os.pathsep.join(search_path()))
    try:
        process = subprocess.Popen(
            argv, executable=program, stdin=files[0], stdout=files[1], stderr=files[2],
            cwd=workdir.path() if workdir else None, env=environment, start_new_session=True)
    except OSError as error:
        error.filename = argv[0]
        raise
    process.returncode = 0  # the caller waits for the pid
    return process.pid


def code_of_status(status: int) -> int:
    """Return the exit code in a wait status, or -n where signal n ended the process."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def entries(directory: str) -> List[int]:
    """Return the numbers among the entries of /proc or /dev/fd; none where it cannot be read."""
    try:
        return [int(entry) for entry in os.listdir(directory) if entry.isdigit()]
    except OSError:
        return []


def close_on_exec_inherited() -> None:
    """Mark inherited descriptors above 2 close-on-exec, so that no backend gets them."""
    for file in entries("/dev/fd") or range(256):
        if file > 2:
            with contextlib.suppress(OSError):  # the listing's own, or not open
                os.set_inheritable(file, False)


def in_main_thread() -> bool:
    """Return whether signal handlers can be set here."""
    import threading
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a block that takes longer; only in the main thread, which has signals.

    A regular expression can take years, and nothing but a signal can interrupt it.
    """
    def stop(*_: Any) -> None:
        raise TimeoutError("it took longer than " + duration(seconds))

    if not in_main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)


def reset_sigchld() -> None:
    """Reset SIGCHLD: if our parent ignored it, we could not wait for children."""
    if in_main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def process_exists(pid: int, signal_number: int = 0) -> bool:
    """Send a signal to a process.  Return whether the process exists."""
    try:
        os.kill(pid, signal_number)
        return True
    except OSError as error:
        return isinstance(error, PermissionError)


def wait_for_end(pid: int) -> Optional[int]:
    """Block until the child has ended; leave it a zombie, so that its pid and group stay its own.

    Return its status where no wait without reaping exists (macOS before Python 3.13).
    """
    if not hasattr(os, "waitid"):
        return os.waitpid(pid, 0)[1]
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return None


def _read_proc(pid: int, name: str) -> bytes:
    """Return a file of a process in /proc; b"" where there is none, or it is another user's."""
    try:
        with open("/proc/%d/%s" % (pid, name), "rb", buffering=0) as file:
            return file.read() or b""
    except OSError:
        return b""


def marked_processes(mark: str) -> List[int]:
    """Return the processes whose environment holds `mark`: a variable's name, or `NAME=value`.

    /proc shows the environment that a process started with.  A child inherits it even where it
    has left its session and group.  Without /proc such processes cannot be found.
    """
    variable = b"\0" + mark.encode() + (b"\0" if "=" in mark else b"=")
    return [pid for pid in entries("/proc") if pid != os.getpid()
            and variable in b"\0" + _read_proc(pid, "environ") + b"\0"]


def finds_strays() -> bool:
    """Return whether processes that left their process group can be found here."""
    return sys.platform.startswith("linux") and bool(entries("/proc"))


def _kill_all(pids: Iterable[int], ended: Optional[Dict[int, str]]) -> bool:
    """SIGKILL the processes and note their names, as ps(1) shows them.

    Return whether one could be killed.
    """
    killed = False
    for pid in pids:
        name = visible(to_text(_read_proc(pid, "comm").strip())) or str(pid)
        with contextlib.suppress(OSError):  # it has ended, or it is another user's, as of sudo
            os.kill(pid, signal.SIGKILL)
            killed = True
            if ended is not None:
                ended.setdefault(pid, name)
    return killed


def sweep(mark: str, ended: Optional[Dict[int, str]] = None) -> None:
    """SIGKILL every process that carries the mark, until none is left that can be killed.

    Note the names of the processes in `ended`.
    """
    for _ in range(100):
        if not _kill_all(marked_processes(mark), ended):
            return
        time.sleep(0.002)  # a killed process keeps its environment until it is torn down


_GUARD = """(
read -r told && exit
tries=0
search() {
grep -lszF "$MARK=" /proc/[0-9]*/environ; [ $? -lt 126 ] || for file in /proc/[0-9]*/environ
do case $(cat "$file") in *"$MARK="*) echo "$file"; esac; done; }
while found=$(search); [ "$found" ] && [ $((tries += 1)) -le 100 ]
do for file in $found; do file=${file%/environ}; kill -9 "${file#/proc/}"; done
done
[ -L "$DIRECTORY" ] || chmod -R u+rwx "$DIRECTORY"; rm -rf "$DIRECTORY"
); :"""


def start_guard(file: int, mark: str, directory: str) -> int:
    """Start a process that clears up when all of a run's own processes are killed at once.

    The guard waits for the end of the pipe `file`.  Then it kills the processes with the mark and
    removes the directory, by the system's tools before those of the PATH.  A newline from the pipe
    ends the guard instead.  Without -z the grep of busybox reads to the first NUL only; without
    any grep, or with more processes than it takes, a slow loop finds them.  SHELLOPTS, GREP_OPTIONS
    and functions of bash, which could change what the guard does, are not inherited.
    `killall` and `pkill -f clinvk` do not match the guard's name and command line.  The guard is
    the child of a shell that reaps it, so a signal to clinvk's children does not reach it.
    Return the pid of that shell, or 0 where it cannot be started.
    """
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("BASH", "GREP", "SHELLOPTS"))}
    environment.update(GUARD=_GUARD, MARK=mark, DIRECTORY=directory,
                       PATH=os.defpath + os.pathsep + os.environ.get("PATH", ""))
    argv = "/bin/sh", "-c", "trap '' HUP INT TERM; eval \"$GUARD\""
    try:
        return start_session(argv, environment, None, (file,) * 3)  # the guard prints nothing
    except OSError:
        return 0


@run_once
def process_control() -> Any:
    """Return prctl(2), or None.  Workers that are forked after the first call share it."""
    try:
        import ctypes
        return ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return None


def adopt_orphans() -> bool:
    """Make orphans among this process's descendants its children (PR_SET_CHILD_SUBREAPER).

    Then end_children finds all that a task has left behind, and costs less than a sweep.
    Return False where the system cannot do that.
    """
    prctl = process_control() if sys.platform.startswith("linux") else None
    return prctl is not None and prctl(36, 1, 0, 0, 0) == 0


def _children() -> List[int]:
    parents = ((pid, _read_proc(pid, "stat").rpartition(b")")[2].split()[1:2])
               for pid in entries("/proc"))
    return [pid for pid, parent in parents if parent == [b"%d" % os.getpid()]]


def end_children(ended: Optional[Dict[int, str]] = None) -> bool:
    """Kill and reap every child of this process and the orphans that it adopts.

    Note the names of those that had not ended by themselves in `ended`.  Return whether none is
    left.
    """
    for _ in range(1000):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        if not _kill_all(_children(), ended):
            return False
        time.sleep(0.001)
    return False


def default_start_method() -> str:
    """Return `fork` where that is sound, else `spawn` (system libraries of macOS break by fork)."""
    return "fork" if sys.platform.startswith("linux") else "spawn"


class KernelLock:
    """A lock between processes that the kernel releases when its holder dies.

    multiprocessing's own locks are semaphores.  They need /dev/shm, and a semaphore whose holder
    is killed stays locked.  An idle worker of a Pool waits for its next task inside such a lock.
    This is a record lock on one byte of an open file, with the methods that queues call.
    """

    def __init__(self, file: Any, position: int) -> None:
        self._file, self._position = file, position

    def acquire(self) -> bool:
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, self._position)
        return True

    def release(self, *_: object) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._position)

    __enter__, __exit__ = acquire, release


def _ready(file: int, events: int, seconds: Optional[float] = 0.0) -> int:
    """Return the events of poll(2) for a file, waiting that long for one; None is no limit."""
    poll = select.poll()
    poll.register(file, events)
    return sum(event for _, event in poll.poll(None if seconds is None else seconds * 1000))


def write_pieces(file: int, pieces: Iterable[Union[bytes, bytearray]]) -> int:
    """Write a record, each piece by one `write` where the system takes it whole.  Return the size.

    Raises OSError; a regular file is then cut back, so that it does not end in half a record.
    """
    written = 0
    try:
        for piece in pieces:
            view, done = memoryview(piece), 0
            while done < len(view):
                try:
                    count = os.write(file, view[done:])
                except BlockingIOError:  # a process that shares the pipe made it non-blocking
                    _ready(file, select.POLLOUT, None)
                    continue
                done += count
                written += count
    except OSError:
        if (written and _is_regular(file)
                and os.fstat(file).st_size == os.lseek(file, 0, os.SEEK_CUR)):
            os.ftruncate(file, os.lseek(file, 0, os.SEEK_CUR) - written)
            os.lseek(file, 0, os.SEEK_END)
        raise
    return written


def write_all(file: int, data: Union[bytes, bytearray]) -> None:
    """Write all of `data`, as write_pieces does."""
    write_pieces(file, (data,))


def put_on_disk(file: int) -> None:
    """Wait until the content of a file would survive a crash of the machine.  Raises OSError."""
    getattr(os, "fdatasync", os.fsync)(file)  # macOS has no fdatasync


def host_name() -> str:
    return os.uname().nodename


def _is_regular(file: int) -> bool:
    return stat.S_ISREG(os.fstat(file).st_mode)


@contextlib.contextmanager
def opened(path: str, flags: int = 0, directory: Optional[int] = None) -> Iterator[int]:
    """Open a file for reading, and close it after the block.  Never wait.  Raise OSError."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags, dir_fd=directory)
    try:
        yield file
    finally:
        os.close(file)


def nameless_file(directory: str) -> int:
    """Open a new private file that has no name, so that nothing is left to remove."""
    flag = getattr(os, "O_TMPFILE", 0)
    if flag:
        try:
            return os.open(directory, flag | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:  # EISDIR and ENOENT are those of kernels that lack the flag
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
                raise
    import tempfile
    file, path = tempfile.mkstemp(dir=directory)
    os.unlink(path)
    return file


def existing_part(path: str) -> str:
    """Return the longest part of a path that exists, "" where the first name does not."""
    while path and not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def refuse_unwritable(what: str, path: str, can_be_made: bool = False) -> None:
    """Raise OutputError where no file can be made in a directory.  Leaves nothing there.

    `can_be_made`: the directory, and those above it, may be missing.  `what` is for the message.
    """
    place = absolute(path)
    try:
        os.close(nameless_file(existing_part(place) if can_be_made else place))
    except OSError as error:
        raise OutputError("cannot write %s: %s" % (what, error.strerror)) from None


def read_some(file: int) -> bytes:
    """Wait for bytes and return them; b"" at the end."""
    while True:
        # Python calls no handler for a signal that arrives just before a read that waits.
        if can_be_read(file, 1.0):
            with contextlib.suppress(BlockingIOError):  # which a process that shares the pipe set
                return os.read(file, CHUNK)


def can_be_read(file: int, patience_seconds: float = 0.0) -> bool:
    """Return whether, after that time at most, a read returns at once: bytes, or the end."""
    return bool(_ready(file, select.POLLIN, patience_seconds))


def can_be_written(file: int) -> bool:
    """Return whether a short write returns at once."""
    return bool(_ready(file, select.POLLOUT))


def unread(pipe: int) -> int:
    """Return how many bytes in a pipe nobody has read yet."""
    import termios
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


class WatchedFile:
    """A file that another program has to read as it was written."""

    def __init__(self, path: str) -> None:
        """Begin to watch.  Raises OSError."""
        self.path = path
        before = self._forget_readers()
        self._text = self._read()
        self._notes_readers = os.stat(path).st_atime_ns != before.st_atime_ns
        self._was = self._forget_readers()

    def _forget_readers(self) -> os.stat_result:
        os.utime(self.path, (0, 0))
        return os.stat(self.path)

    def _read(self) -> bytes:
        with open(self.path, "rb") as file:
            return file.read()

    def was_read(self) -> bool:
        """Return whether somebody has read the file; True where that cannot be known."""
        try:
            accessed = os.stat(self.path).st_atime_ns
        except OSError:
            return True
        return accessed != self._was.st_atime_ns or not self._notes_readers

    def problem(self) -> str:
        """Return what is wrong with the file; "" where it was read and nobody has changed it."""
        was_read = self.was_read()
        try:
            now, text = os.stat(self.path), self._read()
        except OSError as error:
            return "%s: %s" % (self.path, error.strerror)
        if text != self._text or any(getattr(now, field) != getattr(self._was, field)
                                     for field in ("st_dev", "st_ino", "st_ctime_ns")):
            return self.path + " was changed"
        return "" if was_read else self.path + " was not read"


def give_name(file: int, path: str) -> None:
    """Make a nameless file appear under `path`.  Raises OSError, as on some file systems."""
    try:
        # src_dir_fd is not used, but with it Python before 3.14 follows the link, too
        os.link("/proc/self/fd/%d" % file, path, src_dir_fd=file, follow_symlinks=True)
    except NotImplementedError:
        raise OSError("this system cannot name an open file") from None


def file_chunks(file: int, start: int = 0, end: Optional[int] = None) -> Iterator[bytes]:
    """Yield the bytes of an open file; its own position is neither used nor moved."""
    while end is None or start < end:
        piece = os.pread(file, CHUNK if end is None else min(CHUNK, end - start), start)
        if not piece:
            return
        start += len(piece)
        yield piece


def last_lines(file: int, most: int) -> Iterator[bytes]:
    """Yield the lines in the last `most` bytes of an open file, the last line first."""
    end = os.fstat(file).st_size
    data = os.pread(file, most, max(0, end - most)).rstrip(b"\n")
    end = len(data)
    while end > 0:
        start = data.rfind(b"\n", 0, end) + 1
        yield data[start:end]
        end = start - 1


class TextFile:
    """A text on disk, the first `size` bytes of a file, read in chunks of str.

    It travels between processes by its path.  Call open() before reading: the file is closed with
    this object.  Call take() to own the file: it is unlinked, too.
    """

    def __init__(self, path: str, size: int) -> None:
        self._path, self._size, self.file = path, size, -1

    def __reduce__(self) -> Tuple[Type[TextFile], Tuple[str, int]]:
        return TextFile, (self._path, self._size)

    def take(self) -> TextFile:
        """Open the file and unlink it.  Raises OSError, also where it is smaller than the text."""
        self.open()
        os.unlink(self._path)
        if os.fstat(self.file).st_size < self._size:
            raise OSError("%s was cut by another process" % self._path)
        return self

    def open(self) -> None:
        """Open the file, if it is not open.  Raises OSError."""
        if self.file < 0:
            self.file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[str]:
        return text_chunks(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes as the backend wrote them."""
        return file_chunks(self.file, 0, self._size)

    def __del__(self) -> None:
        if self.file >= 0:
            os.close(self.file)


def texts_of(parts: Iterable[Union[str, TextFile]]) -> Iterator[str]:
    """Yield texts one after the other; those on disk in chunks."""
    for part in parts:
        yield from (part,) if isinstance(part, str) else part


def beginning_of(parts: Iterable[Union[str, TextFile]]) -> str:
    """Return the beginning of a text without the white space before it; "" for a blank text."""
    beginning = ""
    for text in texts_of(parts):
        beginning = (beginning + text).lstrip()
        if len(beginning) > 1000:  # more than is shown of it anywhere
            break
    return beginning


def write_text(path: str, pieces: Iterable[bytes]) -> TextFile:
    """Write a text file whole.  Raises OSError."""
    return TextFile(path, write_whole(path, pieces))


def remove_tree(path: str) -> None:
    """Remove a file, or a directory and all in it, as far as possible.  Follow no link."""
    for remove in (os.unlink, os.rmdir):
        with contextlib.suppress(OSError):
            remove(path)
            return
    if os.path.islink(path) or not os.path.isdir(path):
        return
    import shutil
    while True:
        with contextlib.suppress(RecursionError):
            shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path) or not _lift(path):
            return


def _lift(path: str) -> bool:
    """Let the user write to the directories in a tree, and move deep ones to its top.

    Return whether that changed anything.  rmtree goes only as deep as Python's stack and the
    descriptors allow; a Go module cache has read-only directories.
    """
    changed, level = False, [path]
    for _ in range(100):
        below: List[str] = []
        for directory in level:
            with contextlib.suppress(OSError):  # another user's
                if stat.S_IMODE(os.lstat(directory).st_mode) != 0o700:
                    os.chmod(directory, 0o700)
                    changed = True
                with os.scandir(directory) as entries:
                    below += [entry.path for entry in entries
                              if entry.is_dir(follow_symlinks=False)]
        level = below
    for directory in level:
        with contextlib.suppress(OSError):
            os.chmod(directory, 0o700)
            os.rename(directory, os.path.join(path, os.urandom(6).hex()))
            changed = True
    return changed


def temporary_directory() -> str:
    """Return the directory for temporary files, as mktemp(1) chooses it."""
    return os.environ.get("TMPDIR") or "/tmp"


NO_HOME = os.path.join(os.devnull, "no-home-directory")  # a path at which nothing can exist
NO_HOME_REASON = "there is no home directory; set HOME or CLINVK_HOME"


def reason_of(error: OSError) -> str:
    """Return the file that the error is about, where that is known, and the system's message."""
    if str(error.filename).startswith(NO_HOME):
        return NO_HOME_REASON
    reason = error.strerror or str(error)
    return "%s: %s" % (error.filename, reason) if error.filename else reason


@functools.lru_cache(maxsize=100)  # entered often, and without a state
def writing(what: str, path: str = "") -> Instead:
    """Turn an OSError of the block into an OutputError that names `what` and the file."""
    return Instead(OSError, lambda error: OutputError("cannot write %s to %s: %s" % (
        what, error.filename or path or temporary_directory(), error.strerror or error)))


def make_private_directory() -> str:
    """Make a directory of mode 0700 for temporary files.  Raises OutputError."""
    while True:
        path = os.path.join(absolute(temporary_directory()), "clinvk-" + os.urandom(4).hex())
        try:
            os.mkdir(path, 0o700)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise OutputError("cannot write temporary files to %s: %s"
                              % (temporary_directory(), error.strerror)) from None


def make_directories(path: str, mode: int = 0o700) -> None:
    """Make a directory and those above it that are missing.  Raise OSError."""
    missing, above = [], path
    while above and not os.path.isdir(above):  # os.makedirs recurses, too deep for some paths
        missing.append(above)
        above = os.path.dirname(above.rstrip("/"))
    for directory in reversed(missing):
        try:
            os.mkdir(directory, mode if directory == path else 0o777)
        except FileExistsError:
            if not os.path.isdir(directory):
                raise NotADirectoryError(
                    errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None


def renew_directory(path: str) -> None:
    """Make a private directory again, or its mode, where a task changed that.  Raises OSError."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        os.mkdir(path, 0o700)
        return
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    if status.st_mode & 0o777 != 0o700:
        os.chmod(path, 0o700)


MAX_NAME_BYTES = 255  # of a file, on all usual file systems

_drafts: Set[Tuple[str, Optional[int]]] = set()  # paths and their directories


def remove_drafts(*drafts: Tuple[str, Optional[int]]) -> None:
    """Remove drafts, as far as possible: paths, with the open directories that contain them."""
    for path, directory in drafts:
        with contextlib.suppress(OSError):
            os.unlink(path, dir_fd=directory)


def write_whole(path: str, pieces: Iterable[bytes], *, durable: bool = False,
                directory: Optional[int] = None, replace: bool = True, mode: int = 0o600) -> int:
    """Put a file in place, whole or not at all.  Return its size.  Raises OSError.

    `durable`: the file survives a crash of the machine.  `directory`: an open one that contains
    `path`.  Without `replace`, raise FileExistsError where `path` exists.  die_at_once removes the
    draft, too.
    """
    # The name is unknown to who might put a link there; drafts_in knows its form.
    parent, name = os.path.split(path)
    draft = os.path.join(parent, "%s.%s.tmp" % (draft_stem(name), os.urandom(6).hex()))
    _drafts.add((draft, directory))
    try:
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode,
                       dir_fd=directory)
        try:
            size = write_pieces(file, pieces)
            if durable:
                os.fsync(file)
        finally:
            os.close(file)
        if replace or not _link_new(draft, path, directory):
            os.replace(draft, path, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        remove_drafts((draft, directory))
        raise
    finally:
        _drafts.discard((draft, directory))
    if durable:
        sync_directory(os.path.dirname(path) or ".")
    return size


def draft_stem(name: str) -> str:
    """Return the name of a file as it is in the names of its drafts, which have 17 bytes more."""
    most, data = MAX_NAME_BYTES - 17, os.fsencode(name)
    return name if len(data) <= most else data[:most].decode("utf-8", "ignore")


def drafts_in(directory: OpenDirectory) -> List[Tuple[str, str]]:
    """Return the drafts of write_whole in a directory, each after the draft_stem of its file.

    Return none where the directory cannot be listed.
    """
    names: List[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir(directory.path())
    found = (re.fullmatch(r"(?s)(.+)[.][0-9a-f]{12}[.]tmp", name) for name in names)
    return [(match.group(1), match.group()) for match in found if match]


def _link_new(draft: str, path: str, directory: Optional[int]) -> bool:
    """Rename a file to a new name.  Raise FileExistsError where the name exists.

    Return False where the name is free, but the file system has no hard links.
    """
    try:
        os.link(draft, path, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        os.unlink(draft, dir_fd=directory)
        return True
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
    try:
        os.stat(path, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)


def checksum(data: bytes) -> bytes:
    import hashlib
    return hashlib.sha256(data).digest()


def sync_directory(path: str) -> None:
    """Put the names in a directory on the disk, where the file system and its mode allow that."""
    with contextlib.suppress(OSError):  # the file is in place all the same
        with opened(path, os.O_DIRECTORY) as file:
            os.fsync(file)


def is_full(file: Union[int, str]) -> bool:
    """Return whether the file system of a file has no room left.  Raise OSError."""
    status = os.statvfs(file)
    return status.f_blocks > 0 and status.f_bavail * status.f_frsize < CHUNK


def free_space(directory: str) -> int:
    """Return the bytes that can still be written there; 0 where that is not known."""
    try:
        status = os.statvfs(directory)
        return status.f_bavail * status.f_frsize
    except OSError:
        return 0


def allow_descriptors(count: int) -> None:
    """Let this process have `count` files open, as far as the hard limit allows."""
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        count = min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < count:
        with contextlib.suppress(ValueError, OSError):  # a system with one more limit, as macOS
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def descriptor_limit() -> int:
    """Return how many files a process may have open."""
    import resource
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def terminal_size(file: int) -> Tuple[int, int]:
    """Return the columns and lines of the terminal `file`; 80 and 24 where it is not a terminal."""
    try:
        columns, lines = os.get_terminal_size(file)
        return columns or 80, lines or 24
    except OSError:
        return 80, 24


def terminal_columns(file: int) -> int:
    return terminal_size(file)[0]


def is_in_background(file: int) -> bool:
    """Return whether the terminal `file` belongs to another job of its shell."""
    try:
        return os.tcgetpgrp(file) != os.getpgrp()
    except OSError:  # it is not the terminal of this process
        return False


def stop_until_continued() -> None:
    """Stop this process as SIGTSTP (^Z) does by default.  For a handler of SIGTSTP."""
    handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, handler)


def reader_is_gone(file: int) -> bool:
    """Return whether `file` is a pipe or socket that nobody can read any more."""
    return bool(_ready(file, 0) & (select.POLLERR | select.POLLHUP))


NOT_A_DEVICE = "%s: is a device; expected a regular file, a pipe or a terminal"


def is_endless(file: int) -> bool:
    """Return whether `file` is a device such as /dev/zero, and not a terminal or /dev/null."""
    mode = os.fstat(file).st_mode
    is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    return is_device and not os.isatty(file) and not is_same(file, os.devnull)


def has_content(file: int, patience_seconds: float = 0.0) -> bool:
    """Return whether there is something to read from a pipe, a socket or the start of a file.

    Wait that long for a pipe that is open and silent.  A file that was read already, as by the
    `read` of a shell loop, belongs to its reader.
    """
    status = os.fstat(file)
    if stat.S_ISREG(status.st_mode):
        return status.st_size > 0 == os.lseek(file, 0, os.SEEK_CUR)
    if not (stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode)):
        return False
    return can_be_read(file, patience_seconds) and unread(file) > 0


def open_standard_streams() -> None:
    """Open closed standard descriptors, so that no file of ours becomes somebody's stdout.

    A closed stdout gets a file that cannot be written.
    """
    for file in (0, 1, 2):
        try:
            os.fstat(file)
        except OSError:
            way = os.O_WRONLY if file == 2 else os.O_RDONLY
            try:
                new = os.open(os.devnull, way)
            except OSError:  # a chroot without devices
                new, writer = os.pipe()
                os.close(writer)
            os.set_inheritable(new, True)


@contextlib.contextmanager
def on_signals(react: Callable[[int], None], numbers: Iterable[int] = (
        signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) -> Iterator[None]:
    """While the block runs, these signals call `react(signal_number)`.

    A signal that was ignored from the start stays ignored (nohup, a shell's `&`).  Outside the
    main thread, where Python allows no handlers, nothing is changed.
    """
    former: Dict[int, Any] = {}
    try:
        for number in numbers:
            if in_main_thread() and signal.getsignal(number) is not signal.SIG_IGN:
                former[number] = signal.signal(number, lambda number, _: react(number))
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def die_of(signal_number: int) -> None:
    """End this process by the signal, so that the shell that called it sees that.

    Return where that is not possible: PID 1 of a container is not killed by its own signals.
    """
    signal.signal(signal_number, signal.SIG_DFL)
    os.kill(os.getpid(), signal_number)


def die_at_once(signal_number: int, exit_status: int = 0) -> None:
    """End this process where there is nothing to stop; an exception could strike anywhere.

    Without an `exit_status` it dies of the signal.
    """
    remove_drafts(*_drafts)
    if not exit_status:
        die_of(signal_number)
    os._exit(exit_status or 128 + signal_number)


# --- 5. Configuration --------------------------------------------------------
#
# Three parts: checks of values, the subset of YAML, and the configuration file with its settings.
# A check takes a value, returns it in the form that the program uses, and raises ValueError.


def _of_type(kind: Type[_T], what: str) -> Callable[[Any], _T]:
    """Return a check for values of exactly that type."""
    return _rule(what, lambda value: type(value) is kind)


_known_string = _of_type(str, "a string")
_truth = _of_type(bool, "true or false")


def _some_text(value: Any) -> str:
    if not _known_string(value).strip():
        raise ValueError("must not be blank")
    return str(value)


def _argument(value: Any) -> str:
    """Check a text that becomes part of a command line, an environment or a path."""
    text = _some_text(value)
    if "\0" in text:
        raise ValueError("must not contain NUL")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError("contains a character that cannot be passed to a program") from None
    return text


def _path(value: Any) -> str:
    """Return the path, with `~` and `~user` at its start expanded as a shell does."""
    path = _argument(value)
    if not path.startswith("~"):
        return path
    expanded = os.path.expanduser(path)
    if not os.path.isabs(expanded) or os.environ.get("HOME") == "" and path[1:2] in ("", "/"):
        raise ValueError(
            "%s begins with a home directory that is not known; write the path in full, "
            "or ./%s for a name in the current directory" % (quoted(path), visible(path)))
    return expanded


def _plain_path(value: Any) -> str:
    """Return the path of a file where `-` is none, because stdin and stdout have another use."""
    if value == "-":
        raise ValueError('expected the name of a file, got "-"')
    return _path(value)


MAX_JOBS = 1000  # each is a process, with a backend process
MAX_SAMPLES = 1000  # of a task
MAX_SCHEMA_RETRIES = 5


def _whole_number(value: Any, least: int = 1, most: Optional[int] = None) -> int:
    if _of_type(int, "a whole number")(value) < least:
        raise expected("a whole number from %d on" % least, value)
    if most is not None and value > most:
        raise expected("at most %d" % most, value)
    return int(value)


_jobs = functools.partial(_whole_number, most=MAX_JOBS)
_samples = functools.partial(_whole_number, most=MAX_SAMPLES)


def _seconds(value: Any) -> float:
    if isinstance(value, str):
        return min(parse_duration(value), MAX_SECONDS)
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise expected("seconds above 0 or a duration such as \"15m\"", value)
    return min(float(value), MAX_SECONDS)


# Larger values are damage: they could not be added, printed or written.
MAX_COUNT, MAX_DOLLARS = 1 << 60, 1e15
MAX_TIME = 253370764800.0  # the end of the year 9998, with room for any time zone


_token_count = functools.partial(_whole_number, least=0, most=MAX_COUNT)


def _amount(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < MAX_DOLLARS:
        raise expected("an amount", value)
    return float(value)


def parse_utc(value: Any) -> float:
    """Return the seconds since the epoch of a time as utc() writes it.  Raises ValueError."""
    from datetime import datetime
    text = _known_string(value)
    with contextlib.suppress(ValueError, OverflowError):
        seconds = datetime.fromisoformat(text[:-1] + "+00:00").timestamp()
        if 0 <= seconds < MAX_TIME and utc(seconds) == text:
            return seconds
    raise expected("a time such as 2025-01-31T12:00:00.000Z", value)


def _bytes(value: Any) -> int:
    if isinstance(value, str):
        return parse_size(value)
    if type(value) is not int or not 0 < value < 1 << 62:
        raise expected("a number of bytes above 0 or a size such as \"64M\"", value)
    return value


def _wait_seconds(value: Any) -> float:
    if type(value) in (int, float) and value < 0:
        raise expected("seconds from 0 on or a duration such as \"15m\"", value)
    return 0.0 if value in (0, "0", "0s") and value is not False else _seconds(value)


def _usd(value: Any) -> float:
    if isinstance(value, str):
        amount = re.fullmatch(r"\$?(\d+\.?\d*|\.\d+)", value, re.ASCII)
        value = float(amount.group(1)) if amount else value
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise expected("an amount in USD above 0, such as 5 or 0.50", value)
    return float(value)


def _failures(value: Any) -> Union[int, float]:
    """Check a number of failures, or a percentage, which is returned as a share."""
    match = re.fullmatch(r"([1-9]\d{0,8})(%?)", str(value), re.ASCII)
    if type(value) not in (int, str) or not match or match.group(2) and int(match.group(1)) > 100:
        raise expected("a number from 1 on, or a percentage such as 10%", value)
    return int(match.group(1)) / 100 if match.group(2) else int(match.group(1))


def share_of(share: float, count: int) -> float:
    """Return a share of a number; 7 % of 100 are 7, which 0.07 * 100 is not."""
    return round(share * count, 6)


def _limit(text: str) -> Tuple[str, int]:
    """Check the value of the option --limit."""
    name, _, limit = text.partition("=")
    if not name or not limit.isascii() or not limit.isdigit():
        raise expected("BACKEND=N, such as claude=2", text)
    return name, _jobs(int(limit))


def _one_of(words: Iterable[str], what: str) -> Callable[[Any], str]:
    """Return a check for one of the words; `what` names such a word in the message."""
    def check(value: Any) -> str:
        known = list(words)
        if value not in known:
            near = nearest(value, known) if isinstance(value, str) else ""
            raise ValueError("unknown %s %s%s; known are %s"
                             % (what, quoted(value), near, ", ".join(known)))
        return str(value)
    return check


def _words(text: str) -> List[str]:
    """Return the words of an option's value, which commas separate."""
    return [word.strip() for word in text.split(",")]


def _shell_words(text: str) -> Tuple[str, ...]:
    """Return the words of a command line, quoted as for a shell."""
    import shlex
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise expected("a command line (%s)" % str(error).lower(), text) from None
    if not words:
        raise expected("a command line", text)
    return words


def _each(element: _Check, what: str, kind: Type[Any] = list) -> _Check:
    """Return a check of the elements of a list, which it returns as a tuple, or of an object."""
    def check(value: Any) -> Any:
        if not isinstance(value, kind):
            raise expected(what, value)
        checked = {}
        for step, item in items_of(value):
            try:
                checked[step] = element(item)
            except ValueError:
                with path_context(step):  # entered for each element it would cost more
                    raise
        return checked if kind is dict else tuple(checked.values())
    return check


_list_of = functools.partial(_each, what="a list of strings")
_limits = _each(_jobs, "an object such as {\"claude\": 2}", dict)
_token_counts = _each(_token_count, "an object", dict)


def _pattern(value: Any) -> str:
    """Check a pattern for paths from the top of a git work tree, which others would never match."""
    text = re.sub("^(\\./)+", "", re.sub("/+", "/", _argument(value)))
    if any(part in ("", ".", "..", ".git") for part in re.sub("(?<=.)/$", "", text).split("/")):
        raise expected("a pattern for paths from the top of the git work tree, without / before it "
                       "or a part . or .. or .git, such as tests/* (* matches all paths)", value)
    return text


def _command(value: Any) -> Any:
    """Return a list of arguments, or a text for `sh -c`, as a command."""
    if isinstance(value, str):
        return "sh", "-c", _argument(value)
    if not value:
        raise expected("a command: a text for sh -c, or a list of arguments", value)
    return _list_of(_argument)(value)


def _one_or_list(element: _Check, what: str) -> _Check:
    """Return a check of a list, which takes a text for a list of that one element."""
    def check(value: Any) -> Any:
        return (element(value),) if isinstance(value, str) else _each(element, what)(value)
    return check


def _checked(value: Any, fields: Dict[str, _Check], what: str,
             hint: Callable[[str], Optional[str]] = do_nothing) -> Dict[str, Any]:
    """Check the fields of an object and return those that are not null.  Raises InvalidValue.

    `hint` returns, for the message, what to do instead of giving a field that is unknown here.
    """
    if not isinstance(value, dict):
        raise expected(what, value)
    checked = {}
    for name, item in value.items():
        try:
            if name not in fields:
                meta = '; free data goes into "meta"' if "meta" in fields else ""
                raise InvalidValue("unknown field" + (hint(name) or known_as(name, fields) + meta))
            if item is not None:
                checked[name] = fields[name](item)
        except ValueError:
            with path_context(name):  # entered for each field it would cost more than the checks
                raise
    return checked


PLACEHOLDERS = ("model", "effort", "workdir", "system_prompt", "max_turns", "max_tokens",
                "prompt_file", "prompt", "schema", "schema_file")
OUTPUT_FORMS = ("text", "json", "jsonl")


def placeholders(element: str) -> List[str]:
    """Return the names in braces; `{{name}}` is not a placeholder, but stands for `{name}`."""
    return [name for name in re.findall(r"{{[a-z_]+}}|{([a-z_]+)}", element) if name]


def _element(value: Any) -> str:
    """Check an element of a command, with or without placeholders."""
    for name in placeholders(_argument(value)):
        _one_of(PLACEHOLDERS, "placeholder")(name)
    return str(value)


def _value_path(value: Any) -> _Path:
    """Return the keys and positions of a path such as `.choices[0].text`."""
    if not re.fullmatch(r"(\.[\w-]+|\[-?\d{1,9}\])+", _some_text(value)):
        raise expected("a path such as .message.content or .choices[0].text", value)
    return tuple(int(position) if position else key
                 for key, position in re.findall(r"\.([\w-]+)|\[(-?\d+)\]", value))


def _expected_value(value: Any) -> Tuple[_Path, str]:
    """Return a path and the JSON of the value that is expected there."""
    what = 'an object such as {"path": ".status", "value": "SUCCESS"}'
    fields = _checked(value, {"path": _value_path, "value": _rule(
        "a text, a number, true or false", lambda item: isinstance(item, (str, int, float)))}, what)
    if len(fields) < 2:
        raise expected(what, value)
    return fields["path"], dumps(fields["value"]).decode("utf-8")


def _kinds_by_text(value: Any) -> Tuple[Tuple[str, str], ...]:
    """Return the pairs of an object of texts and error kinds."""
    kinds = _each(_one_of(ERROR_KINDS, "error kind"), "an object of texts and error kinds", dict)
    for text in kinds(value):
        with path_context(text):
            _some_text(text)
    return tuple(value.items())


# The fields in the definition of a command.
DEFINITION_FIELDS: Dict[str, _Check] = {
    "command": _list_of(_element), "output": _one_of(OUTPUT_FORMS, "form of output"),
    "answer": _value_path, "error": _value_path, "session_id": _value_path, "usage": _value_path,
    "join": _truth, "structured": _value_path, "ok": _expected_value, "done": _expected_value,
    "errors": _kinds_by_text, "stop_signal": _one_of(STOP_SIGNALS, "signal"),
    "agent": _truth, "answer_only": _list_of(_element), "needs_model": _truth,
}


def _definition(value: Any) -> Definition:
    """Check the definition of a command.  Raises InvalidValue."""
    fields = _checked(value, DEFINITION_FIELDS, "a definition (an object with a command)")
    argv = fields.pop("command", ())
    if not argv or placeholders(argv[0]) or argv[0].startswith("-"):
        raise InvalidValue("expected a list that begins with the name of a program",
                           tuple(key for key in ("command",) if key in value))
    definition = Definition(argv, **fields)
    if definition.output != "text" and not definition.answer:
        raise InvalidValue('output "%s" needs the path of the answer: "answer"' % definition.output)
    others = {name for name, item in fields.items() if item} - {
        "output", "errors", "stop_signal", "agent", "answer_only", "needs_model"}
    if definition.output == "text" and others:
        raise InvalidValue('with output "text" all output is the answer: '
                           'paths into JSON need the output "json" or "jsonl"')
    if definition.done and definition.output != "jsonl":
        raise InvalidValue('only a command with the output "jsonl" prints events', ("done",))
    return definition


def _definitions(value: Any) -> Dict[str, Definition]:
    """Check the user's own commands, by name.  Raises InvalidValue."""
    if not isinstance(value, dict):
        raise expected("an object of definitions", value)
    found = {}
    for name, item in value.items():
        with path_context(name):
            if name in BUILT_IN:
                keys = tuple(key for key, _ in items_of(item) if key in DEFINITION_FIELDS)
                raise InvalidValue("%s is built in and cannot be redefined" % name, keys[:1])
            if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
                raise InvalidValue("a name may have lower-case letters, digits, '.', '_' and '-'")
            found[name] = _definition(item)
    return found


def loads_unique(data: Union[bytes, bytearray], strict: bool = True) -> Any:
    """Return the JSON value in `data` (UTF-8); raise InvalidValue where an object has a key twice.

    orjson would drop the first of the two.  For small tasks the JSON module is not slower.  Unless
    `strict`, strings may have control characters.
    """
    repeated: List[Tuple[Any, str]] = []

    def as_dict(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            repeated.append((value, Counter(name for name, _ in pairs).most_common(1)[0][0]))
        return value

    value = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite,
                             object_pairs_hook=as_dict, strict=strict).decode(data.decode("utf-8"))
    if repeated:
        owner, key = repeated[-1]  # an object inside of an earlier one may be dropped
        paths: List[Tuple[Any, _Path]] = [(value, ())]
        for item, path in paths:
            if item is owner:
                raise InvalidValue("the key is given twice in one object", path + (key,))
            paths += [(inner, path + (step,)) for step, inner in items_of(item)]
    return value


def environment_definitions(environment: Dict[str, str]) -> Dict[str, Definition]:
    """Return the commands that CLINVK_BACKENDS defines, as JSON.  Raises UserError."""
    text = environment.get("CLINVK_BACKENDS") or "{}"
    try:
        return _definitions(loads_unique(to_bytes(text)))
    except (ValueError, RecursionError) as error:
        problem, repair = "" if isinstance(error, InvalidValue) else "not valid JSON: ", ""
        if isinstance(error, json.JSONDecodeError):
            repair = _repair(to_bytes(text), error.msg, text[:error.pos], text[error.pos:])
        raise UserError("CLINVK_BACKENDS: %s%s%s" % (problem, error, repair)) from None


# - YAML -
#
# The subset of YAML that configuration files use: block mappings and sequences, flow collections
# on one line, quoted and plain scalars on one line, `|` and `|-`, comments, and JSON.  The types
# are those of the core schema of YAML 1.2.  Everything else is an error that names the place and
# what to write instead, so no text means one thing to clinvk and another to a YAML library.

MAX_YAML_DEPTH = 100  # collections inside each other
MAX_YAML_DIGITS = 400  # int() takes quadratic time for more

_YAML_HINTS = {
    "&": "anchors are not supported; write the value out",
    "*": "aliases are not supported; write the value out",
    "!": "tags are not supported; leave the tag out",
    "?": "write the key as `key:`",
    "%": "directives are not supported; leave the line out",
    ">": "folded text is not supported; write `|` or put the text on one line",
    "|": "a text block is only possible as the value of a key or of a list entry",
    "\t": "indent and separate with spaces, not with a tab",
}
_YAML_CONSTANTS = {form: value for word, value in (
    ("~", None), ("null", None), ("true", True), ("false", False))
    for form in (word, word.capitalize(), word.upper())}
_YAML_NUMBER = r"[-+]?(?:[0-9]+|\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?"
_FOREIGN_NUMBER = r"0o[0-7]+|0x[0-9a-fA-F]+|(?i:[-+]?\.inf|\.nan)"
_YAML_UNPRINTABLE = ("[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd"
                     "\U00010000-\U0010ffff]")
# Each of these pairs is for the outside and the inside of brackets.
_PLAIN = (r"(?![:'\"])(?:[^\s:#]|:(?=\S)|(?<=\S)#| +(?=[^\s:#]|:\S))+",
          r"(?![:'\"]|-[,\[\]{}])(?:[^\s:#?,\[\]{}]|:(?=[^\s,\[\]{}])"
          r"|(?<=[^\s,\[\]{}])#| +(?=[^\s:#?,\[\]{}]|:[^\s,\[\]{}]))+")
_QUOTED = r"(?:\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\n]|'')*')"
_KEY = (r"(?:%s|%s) *:(?!\S)" % (_QUOTED, _PLAIN[0]),
        r"(?:%s *:|%s *:(?!\S))" % (_QUOTED, _PLAIN[1]))
_DASH = r"-(?!\S)"
_SPACES = r" *(?:(?<!\S)#.*)?"  # and a comment
_LINE_END = _SPACES + "$"


class YamlDocument:
    """The value of a text in the YAML subset.  Raises ConfigError with file, line and column.

    The value consists of dict (with keys of type str), list, str, int, float, bool and None.
    """

    def __init__(self, text: str, file: str) -> None:
        text = text[text.startswith("\ufeff"):].replace("\r\n", "\n")
        self._file, self._at = file, 0  # the offset of the next character
        self._text = re.sub(r"\A((?:\n(?:#.*)?)*\n)--- *(?=\n|\Z)", r"\1", "\n" + text)
        self._starts: Dict[_Path, int] = {}  # the offset of each entry
        self._gap = _SPACES  # between values in brackets
        bad = re.search(_YAML_UNPRINTABLE, self._text)
        if bad:
            self._fail("the character U+%04X is not allowed; in double quotes write \\u%04x"
                       % (ord(bad.group()), ord(bad.group())), bad.start())
        self.value = self._entry((), indent=-1, in_list=True)
        if self._char:
            self._fail("unexpected text or indentation: put text of several lines behind `|`")

    def line(self, path: _Path) -> int:
        """Return the line of the longest part of the path that the text contains, from 1 on."""
        while path and path not in self._starts:
            path = path[:-1]
        return self._text.count("\n", 0, self._starts.get(path, 1))

    def _fail(self, message: str, at: Optional[int] = None) -> NoReturn:
        self._at = self._at if at is None else at
        raise ConfigError("%s:%d:%d: %s" % (self._file, self._text.count("\n", 0, self._at),
                                            self._column + 1, message))

    def _unexpected(self, expected: str) -> NoReturn:
        hint = _YAML_HINTS.get(self._char, "text that begins so needs quotes")
        self._fail("found %s where %s was expected: %s" % (quoted(self._char), expected, hint))

    @property
    def _char(self) -> str:
        """The next character; "" at the end."""
        return self._text[self._at:self._at + 1]

    @property
    def _column(self) -> int:
        return self._at - self._text.rfind("\n", 0, self._at) - 1

    def _match(self, pattern: str) -> Optional[Match[str]]:
        return re.compile(pattern, re.M).match(self._text, self._at)

    def _take(self, pattern: str) -> str:
        """Move past the text that the pattern matches here, and return the text."""
        match = self._match(pattern)
        self._at = match.end() if match else self._at
        return match.group() if match else ""

    def _end_line(self) -> None:
        """Move to the next value; only a comment may follow on this line."""
        self._take(" *")
        if self._char == ":":
            self._fail("found a second `:`; put text with a colon and a space in quotes")
        if not self._match(_LINE_END):
            self._unexpected("the end of the line")
        self._take(_LINE_END + r"(?:\n *(?:#.*)?)*")
        if self._char == "\t":
            self._unexpected("a value")
        if self._match(r"(?<=\n)(?:---|\.\.\.)(?!\S)"):
            self._fail("only one document is possible in a file")

    def _entry(self, path: _Path, *, indent: int, in_list: bool) -> Any:
        """Read the value behind a dash or a key, which is in the column `indent`."""
        self._take(" *")
        if self._char == "|":
            return self._text_block(indent)
        if not self._match(_LINE_END):
            return self._block(path) if in_list else self._line_value(path)
        self._end_line()
        is_deeper = self._column > indent or (self._column == indent and not in_list
                                              and self._match(_DASH))
        return self._block(path) if self._char and is_deeper else None

    def _line_value(self, path: _Path) -> Any:
        value = self._inline(path)
        self._end_line()
        return value

    def _block(self, path: _Path) -> Any:
        """Read the value that begins here: a sequence, a mapping or a value on one line."""
        indent, is_list = self._column, bool(self._match(_DASH))
        if not is_list and (self._char in "[{" or not self._match(_KEY[0])):
            return self._line_value(path)
        items: Dict[Any, Any] = {}
        while self._char and self._column == indent and bool(self._match(_DASH)) == is_list:
            name = self._name(items, path, is_list)
            if is_list:
                self._take(_DASH)
            items[name] = self._entry(path + (name,), indent=indent, in_list=is_list)
        return list(items.values()) if is_list else items

    def _name(self, items: Dict[Any, Any], path: _Path, is_list: bool, *,
              in_flow: bool = False) -> Union[int, str]:
        """Read the key of an entry and the colon.  Return the key, or the position in a list."""
        start, key = self._at, self._match(_KEY[in_flow])
        name = len(items) if is_list else self._inline(path, in_flow)
        if not is_list:
            if not key:
                self._fail("expected `:` and a space behind the key")
            if not isinstance(name, str):
                self._fail("the key %s is not text: it needs quotes" % quoted(name), start)
            if name == "<<":
                self._fail("merge keys are not supported; write the values out", start)
            if name in items:
                self._fail("the key %s is in line %d already"
                           % (quoted(name), self.line(path + (name,))), start)
            self._at = key.end()
        if len(path) == MAX_YAML_DEPTH:
            self._fail("more than %d collections inside each other" % MAX_YAML_DEPTH, start)
        self._starts[path + (name,)] = start
        return name

    def _inline(self, path: _Path, in_flow: bool = False) -> Any:
        """Read a value on one line."""
        if self._char in ("[", "{"):
            return self._flow(path)
        if self._char in ("'", '"'):
            return self._quoted()
        plain = self._match(_PLAIN[in_flow])
        if not plain or self._char in _YAML_HINTS or self._char in ",]}@`#" or self._match(_DASH):
            self._unexpected("a value")
        value = self._scalar(plain.group())
        self._at = plain.end()
        return value

    def _scalar(self, text: str) -> Any:
        """Return the value of plain text by the core schema."""
        if text in _YAML_CONSTANTS:
            return _YAML_CONSTANTS[text]
        if re.fullmatch(_FOREIGN_NUMBER, text):
            self._fail("%s: write a decimal number, or quotes for a text" % quoted(text))
        if not re.fullmatch(_YAML_NUMBER, text):
            return text
        is_whole = text.lstrip("+-").isdigit()
        if len(text) > MAX_YAML_DIGITS or not is_whole and abs(float(text)) == float("inf"):
            self._fail("the number is out of range")
        return int(text) if is_whole else float(text)

    def _quoted(self) -> str:
        start, text = self._at, self._take(_QUOTED)
        if not text:
            self._fail("`%s` is not closed on this line; put text of several lines behind `|`"
                       % self._char)
        if text[0] == "'":
            return text[1:-1].replace("''", "'")
        try:  # the escapes are those of JSON
            value: str = json.loads(text, strict=False)
            value.encode("utf-8")
            return value
        except ValueError:
            self._fail("%s has an escape that JSON does not have; write \\uXXXX" % text, start)

    def _flow(self, path: _Path) -> Any:
        """Read the list or the mapping in brackets that begins here."""
        start, is_list = self._at, self._char == "["
        closing = "]" if is_list else "}"
        items: Dict[Any, Any] = {}
        if not path:  # only a document that is in brackets as a whole, as JSON is, may span lines
            self._gap = r"(?:[ \t\n]|(?<!\S)#.*)*"
        self._at += 1
        self._skip_gap(start)
        while not self._take(closing):
            name = self._name(items, path, is_list, in_flow=True)
            self._skip_gap(start)
            is_empty = not is_list and self._char in ",}"
            items[name] = None if is_empty else self._inline(path + (name,), in_flow=True)
            self._skip_gap(start)
            if self._char not in (",", closing):
                self._fail("expected `,` or `%s`" % closing)
            if self._take(","):
                self._skip_gap(start)
        return list(items.values()) if is_list else items

    def _skip_gap(self, start: int) -> None:
        """Skip white space inside of the brackets that begin at `start`."""
        self._take(self._gap)
        if self._char in ("", "\n"):
            self._fail("`%s` is not closed on this line; write an entry a line, as `- value` or "
                       "`key: value`" % self._text[start], start)

    def _text_block(self, indent: int) -> str:
        """Read the text behind `|` or `|-`: the following lines that are indented more."""
        header = self._take(r"\|-?(?=%s)" % _LINE_END)
        if not header:
            self._fail("only `|` and `|-` are supported")
        self._take(_LINE_END)
        text = ""
        first = self._match(r"(?:\n *)*\n {%d,}(?=[^ \n])" % (indent + 1))
        if first:
            *blank, margin = first.group().split("\n")
            if len(max(blank)) > len(margin):
                self._fail("leave the blank lines of the text above its first line empty",
                           self._at + 1)
            text = self._take(r"(?:\n%s.*|\n *$)*" % margin)[1:]
            text = re.sub("^ {0,%d}" % len(margin), "", text, flags=re.M)
            is_cut = self._at == len(self._text) and not text.endswith("\n")
            text = text.rstrip("\n") + ("" if is_cut or header == "|-" else "\n")
        self._end_line()
        return text


# - settings -


def model_variable(backend: str) -> str:
    """Return the environment variable that names the model for a backend."""
    return "CLINVK_%s_MODEL" % backend.upper().replace(".", "_").replace("-", "_")


def _or_nothing(check: _Check, *nothing: str) -> _Check:
    """Return a check that takes an empty string, 0 and `nothing` for a setting that is not set."""
    def check_if_set(value: Any) -> Any:
        is_unset = value in ("", 0, *nothing) and value is not False
        return None if is_unset else check(value)
    return check_if_set


def _color(value: Any) -> str:
    if isinstance(value, bool):
        return "auto" if value else "never"
    return _one_of(("auto", "always", "never"), "choice")(value)


PROMPT_FORMS = ("text", "json", "stream-json")


def _schema(value: Any) -> Dict[str, Any]:
    """Check the schema of an answer, which must be an object: claude drops any other answer."""
    if not isinstance(value, dict):
        hint = "; the option --schema reads a file" if isinstance(value, str) else ""
        raise InvalidValue("expected a JSON Schema (an object), got %s%s" % (quoted(value), hint))
    if value.get("type") != "object":
        fault = "not " + quoted(value["type"]) if "type" in value else 'but "type" is missing'
        raise InvalidValue('the type of an answer must be "object", %s; wrap a list as %s' % (
            fault, '{"type": "object", "properties": {"items": ...}}'))
    check_schema(value)
    return value


# The fields of a task in the input, with their checks.
TASK_FIELDS: Dict[str, _Check] = {
    "backend": _argument, "prompt": _some_text, "model": _argument,
    "effort": _one_of(EFFORTS, "effort"), "workdir": _path,
    "approval_mode": _one_of(APPROVAL_MODES, "approval mode"),
    "sandbox_mode": _one_of(SANDBOX_MODES, "sandbox mode"), "output_format": _known_string,
    "max_tokens": _whole_number, "max_turns": _whole_number, "system_prompt": _argument,
    "timeout": _seconds, "idle_timeout": _seconds, "max_output": _bytes,
    "extra": _list_of(_argument), "verbose": _truth, "dry_run": _truth, "literal": _truth,
    "answer_only": _truth,
    "check": _one_or_list(_command, "a command, or a list of commands"),
    "check_timeout": _seconds, "attempts": _whole_number,
    "require_change": _truth, "protect": _one_or_list(_pattern, "a list of strings"),
    "id": _some_text, "name": _some_text, "tags": _list_of(_known_string), "meta": _free_object,
    "schema": _schema,
    "schema_retries": functools.partial(_whole_number, least=0, most=MAX_SCHEMA_RETRIES),
    "repeat": _samples,
}

# The fields of RunPolicy that a batch and the configuration can set, with their checks.
POLICY_FIELDS: Dict[str, _Check] = {
    "retries": functools.partial(_whole_number, least=0),
    "retry_on": _list_of(_one_of(ERROR_KINDS, "error kind")), "retry_acted": _truth,
    "max_wait": _wait_seconds, "one_per_workdir": _truth, "max_cost": _usd,
    "allow_unknown_cost": _truth, "max_failures": _failures, "canary": _whole_number}
_UNSET_BY_0 = ("max_cost", "max_failures", "canary")  # in the configuration

# The settings of the configuration file: the check and the default of each.
SETTINGS: Dict[str, Tuple[_Check, Any]] = {
    "default_backend": (_or_nothing(_argument), "claude"),
    "unified_flags.approval_mode": (_or_nothing(TASK_FIELDS["approval_mode"]), "default"),
    "unified_flags.sandbox_mode": (_or_nothing(TASK_FIELDS["sandbox_mode"]), "default"),
    "unified_flags.verbose": (_truth, False), "unified_flags.dry_run": (_truth, False),
    "unified_flags.max_turns": (_or_nothing(_whole_number), 0),
    "unified_flags.max_tokens": (_or_nothing(_whole_number), 0),
    "unified_flags.command_timeout_secs": (_or_nothing(_seconds), 0),
    "session.auto_resume": (_truth, False),
    "session.retention_days": (functools.partial(_whole_number, least=0), 30),
    "session.default_tags": (_list_of(_known_string), ()),
    "session.store_token_usage": (_truth, True),
    "output.format": (_or_nothing(_one_of(PROMPT_FORMS, "format")), "text"),
    "output.show_tokens": (_truth, False), "output.show_timing": (_truth, False),
    "output.color": (_color, "auto"),
    "parallel.max_workers": (_or_nothing(_jobs), 3),
    "parallel.fail_fast": (_truth, False), "parallel.aggregate_output": (_truth, True),
    "parallel.idle_timeout": (_or_nothing(_seconds), 0),
    "parallel.max_output": (_or_nothing(_bytes), DEFAULT_MAX_OUTPUT),
    **{"parallel." + name: (_or_nothing(check) if name in _UNSET_BY_0 else check,
                            RunPolicy._field_defaults[name])
       for name, check in POLICY_FIELDS.items()},
    "parallel.retries": (POLICY_FIELDS["retries"], 2),
}
# The task fields that the file can set for all backends, with their settings, and for one.
_FOR_ALL = {key.partition(".")[2].replace("command_timeout_secs", "timeout"): key
            for key in SETTINGS if key.startswith(
                ("unified_flags.", "parallel.idle_timeout", "parallel.max_output"))}
_FOR_ONE = ("model", "effort", "approval_mode", "sandbox_mode", "system_prompt")
# The settings below `backends.NAME`; those of DEFINITION_FIELDS define a command of the user's own.
BACKEND_SETTINGS: Dict[str, Tuple[_Check, Any]] = {
    **{name: (_or_nothing(TASK_FIELDS[name]), "") for name in _FOR_ONE},
    "allowed_tools": (_or_nothing(_argument, "all"), ""),
    "extra_flags": (_list_of(_argument), ()),
    "enabled": (_truth, True),
    "max_parallel": (_or_nothing(_jobs), 0),
    **{name: (check, None) for name, check in DEFINITION_FIELDS.items()},
}


def setting_named(key: str) -> Tuple[_Check, Any]:
    """Return the check and the default of a setting.  Raises ValueError with the nearest name."""
    if key in SETTINGS:
        return SETTINGS[key]
    section, _, rest = key.partition(".")
    known = list(SETTINGS)
    if section == "backends":
        backend, _, name = rest.rpartition(".")
        if name in BACKEND_SETTINGS:
            return BACKEND_SETTINGS[name]
        known += ["backends.%s.%s" % (backend or "NAME", name) for name in BACKEND_SETTINGS
                  if name not in DEFINITION_FIELDS or backend not in BUILT_IN]
    raise ValueError("unknown setting %s%s" % (quoted(key), nearest(key, known)))


class Configuration(NamedTuple):
    """The content of a configuration file; without a file there are no values.

    `values` are the checked settings by dotted name, `lines` are their lines.
    """

    path: str = ""
    values: Dict[str, Any] = {}
    lines: Dict[str, int] = {}
    definitions: Dict[str, Definition] = {}

    def get(self, key: str) -> Any:
        """Return the value in the file, else the default."""
        value = self.values.get(key)
        return setting_named(key)[1] if value is None else value

    def origin(self, key: str) -> str:
        """Return the file and the line of a setting."""
        return "%s:%d" % (self.path, self.lines.get(key, 1))

    def task_fields(self, backend: str) -> Dict[str, Any]:
        """Return the task fields that the file sets for a backend, except `extra`."""
        start, values = "backends.%s." % backend, self.values
        fields = {name: values[key] for name, key in _FOR_ALL.items() if key in values}
        fields.update((name, values[start + name]) for name in _FOR_ONE if start + name in values)
        return fields

    def extra(self, backend: str, sandbox: str) -> Tuple[str, ...]:
        """Return the options that the file adds for a backend.

        `allowed_tools` holds only where no sandbox is promised.
        """
        options: Tuple[str, ...] = self.values.get("backends.%s.extra_flags" % backend) or ()
        tools = self.values.get("backends.%s.allowed_tools" % backend)
        if tools and sandbox in ("default", "full"):
            options = ("--allowedTools", tools) + options
        return options


def read_configuration(text: str, path: str) -> Configuration:
    """Return the configuration in a text.  Raises ConfigError with file and line."""
    document = YamlDocument(text, path)
    values: Dict[str, Any] = {}
    lines: Dict[str, int] = {}
    try:
        for place, value in _settings_in(document.value, ()):
            key = ".".join(map(str, place))
            with path_context(*place):
                check = setting_named(key)[0]
                lines[key] = document.line(place)
                checked = None if value is None else check(value)
                if checked is not None:
                    values[key] = checked
        return Configuration(path, values, lines, _configured_definitions(document.value or {}))
    except InvalidValue as error:
        raise ConfigError("%s:%d: %s" % (path, document.line(error.path), error)) from None


def _settings_in(value: Any, path: _Path) -> Iterator[Tuple[_Path, Any]]:
    """Yield the path and the value of each setting in a document.  Raises InvalidValue."""
    if path and len(path) == {"backends": 3, "default_backend": 1}.get(str(path[0]), 2):
        yield path, value
        return
    sections = {key.partition(".")[0] for key in SETTINGS} | {"backends"}
    if path and path[0] not in sections:
        raise InvalidValue("unknown setting%s" % nearest(str(path[0]), sections), path)
    if not isinstance(value, (dict, type(None))):
        raise expected("a mapping", value, path)
    for name, inner in items_of(value):
        yield from _settings_in(inner, path + (name,))


def _configured_definitions(value: Dict[str, Any]) -> Dict[str, Definition]:
    """Return the commands that a configuration defines.  Raises InvalidValue."""
    definitions = {}
    for name, fields in (value.get("backends") or {}).items():
        own = {key: item for key, item in (fields or {}).items()
               if key in DEFINITION_FIELDS and item is not None}
        with path_context("backends", name):
            if name not in BUILT_IN and name not in KNOWN and not own:
                raise InvalidValue("unknown backend%s; a backend of your own needs a command"
                                   % nearest(name, [*BUILT_IN, *KNOWN]))
            if name != "claude" and (fields or {}).get("allowed_tools") not in (None, "", "all"):
                raise InvalidValue("only claude has this setting", ("allowed_tools",))
        if own:
            definitions[name] = own
    with path_context("backends"):
        return _definitions(definitions)


def home_directory(environment: Dict[str, str]) -> str:
    """Return CLINVK_HOME, else ~/.clinvk; NO_HOME where the user has no home directory."""
    if environment.get("CLINVK_HOME"):
        path = os.path.expanduser(environment["CLINVK_HOME"])
        return NO_HOME if path.startswith("~") else path  # not a directory with the name `~`
    home = os.path.expanduser("~") if environment.get("HOME") != "" else ""
    if not os.path.isabs(home) or not os.path.isdir(home):  # /nonexistent must not be made
        return NO_HOME
    return os.path.join(home, ".clinvk")


def configuration_path(option: Optional[str], environment: Dict[str, str]) -> Tuple[str, bool]:
    """Return the path of the configuration file, and whether the user named the file."""
    named = option or environment.get("CLINVK_CONFIG")
    if named:
        return os.path.expanduser(named), True
    return os.path.join(home_directory(environment), "config.yaml"), False


def load_configuration(option: Optional[str], environment: Dict[str, str]) -> Configuration:
    """Read the configuration file; only a file that the user named must exist.

    Raises ConfigError.
    """
    path, named = configuration_path(option, environment)
    try:
        with open(path, "rb") as file:
            if is_endless(file.fileno()):
                raise ConfigError(NOT_A_DEVICE % path)
            data = file.read()
    except OSError as error:
        if not named and isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return Configuration(path)
        raise ConfigError("%s: %s" % (path, error.strerror)) from None
    try:
        return read_configuration(data.decode("utf-8"), path)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError("%s:%d: not valid UTF-8" % (path, line)) from None


def all_definitions(configuration: Configuration,
                    environment: Dict[str, str]) -> Dict[str, Definition]:
    """Return the user's own commands; those of CLINVK_BACKENDS count first.  Raise UserError."""
    return dict(configuration.definitions, **environment_definitions(environment))


def merge_layers(layers: Sequence[Tuple[str, Dict[str, Any]]],
            names: Container[str]) -> Dict[str, Tuple[Any, str]]:
    """Return, for each of the names, the value and the source of the first layer that sets it.

    All precedence is decided here.
    """
    return {name: (value, source) for source, layer in reversed(layers)
            for name, value in layer.items() if value not in (None, "") and name in names}


# --- 6. Backends -------------------------------------------------------------
#
# How the programs take each option and report each event was measured on Claude Code 2.1.332,
# Codex 0.171.0 and Gemini CLI 0.61.0; tests/real/ runs them.

SCHEMA_FILE = "schema.json"
SCRATCH = "\0scratch\0"  # in an argument or a variable: the directory of the command's files
HERE = SCRATCH + "/here"  # an empty directory
ANSWER_PROMPT = "Answer the prompt."  # the system prompt of answer-only tasks without their own
OPTIONAL_FIELDS = ("model", "effort", "answer_only", "system_prompt", "max_turns", "max_tokens",
                   "extra", "verbose")  # that a backend may be unable to honour
MAX_LINE_BYTES = 1 << 26  # of a line of output that is read; the answers of programs are smaller
LONG_LINE = 1 << 20  # bytes of a line of events after which the rest of a string is left on disk
# Matches an event whose type is whole, and its second type if that event can be part of an answer.
_WHOLE_TYPE = (rb'\{"type":"(?:(?!item\.completed"|message")[\w.]+"'
               rb'|item\.completed","item":\{[^{}]{0,200}?"type":"\w+"'
               rb'|message",[^{}]{0,200}?"role":"\w+")')


class Command(NamedTuple):
    """How to give a job to a program.

    The prompt goes by stdin or in a file, and into an argument only where a definition says so.
    """

    argv: Tuple[str, ...]
    environment: Dict[str, str] = {}
    preset: Dict[str, str] = {}  # is set where the user's environment lacks the variable
    files: Dict[str, str] = {}   # texts by name, written into SCRATCH; "prompt" is the prompt
    by_stdin: bool = True        # False: the prompt is elsewhere, and stdin is empty
    problem: str = ""            # why the sandbox mode cannot be kept: the program is not started
    links: Dict[str, str] = {}   # targets by name, of symbolic links in SCRATCH
    apart: bool = False          # it runs in HERE, not in the workdir


class Lines:
    """Split pieces into lines without their ends, of which blank ones are left out.

    A line above MAX_LINE_BYTES is cut.  `number` is that of the last line.
    """

    def __init__(self) -> None:
        self.number = self._size = 0
        self._parts: List[bytes] = []

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield the lines that end in this piece."""
        *ends, begun = piece.split(b"\n")
        for end in ends:
            yield from self.rest(end)
        self._parts.append(begun)
        self._size += len(begun)
        if self._size > MAX_LINE_BYTES:
            del self._parts[9:]

    def rest(self, end: bytes = b"") -> List[bytes]:
        """Return the line that ends with these bytes, unless it is blank."""
        most = CHUNK if self._size + len(end) > MAX_LINE_BYTES else None
        line = b"".join((*self._parts, end))[:most]
        self._parts, self._size, self.number = [], 0, self.number + 1
        return [line] * bool(line.strip())


class Capture:
    """The output of a program, in a file that stays open while the output is read.

    `start` and `end` are those of a part of the file, and of lines in it.
    """

    def __init__(self, file: int, start: int = 0, end: Optional[int] = None) -> None:
        self.lost_lines: List[int] = []  # the damaged lines that may have held a part of the answer
        self.damaged: List[int] = []  # the others; plain text is not damaged
        self.complete = False  # set by a reader: no part of the answer follows
        self._lines = Lines()
        self._name = os.urandom(8).hex()  # begins the names of strings; no program can guess it
        self.file, self._start = file, start
        # a process that was left behind may write more
        self._end = os.fstat(file).st_size if end is None else end

    def __len__(self) -> int:
        return self._end - self._start

    def pieces(self) -> Iterator[bytes]:
        return file_chunks(self.file, self._start, self._end)

    def read(self, start: int = 0, end: Optional[int] = None) -> bytes:
        """Return the bytes of the file from `start` on; never more than the part."""
        start = max(start, self._start)
        end = self._end if end is None else min(end, self._end)
        return b"".join(file_chunks(self.file, start, end))

    def lines(self, is_marked: Optional[Callable[[bytes], Any]] = None) -> Iterator[bytes]:
        """Yield the lines.  In marked lines names replace long strings (text_of)."""
        lines = self._lines = Lines()
        for piece in self.short_pieces(is_marked) if is_marked else self.pieces():
            yield from lines.feed(piece)
        yield from lines.rest()

    def short_pieces(self, is_marked: Callable[[bytes], Any]) -> Iterator[bytes]:
        """Yield the output with names for the ends of strings that make a marked line long."""
        offset = begin = self._start  # begin: a place in the line that is not inside a string
        while offset < self._end:
            piece = self.read(offset, offset + CHUNK)
            yield piece
            if b"\n" in piece:
                begin = offset + piece.rfind(b"\n") + 1
            offset = offset + len(piece) if piece else self._end
            if offset - begin < LONG_LINE:
                continue
            outside = re.compile(rb'[^"]*(?:"[^"\\]*(?:\\.[^"\\]*)*"[^"]*)*', re.S)
            # a place that is not inside of a character, an escape or a surrogate pair
            undivided = re.compile(rb'[^"\\]{12}(?=[^"\\\x80-\xbf])'
                                   rb'|(?<=[^\\])\\(?:[^u]|u(?![dD][89a-fA-F])[0-9a-fA-F]{4})')
            line = self.read(begin, offset + CHUNK).partition(b"\n")[0]
            closed = begin + outside.match(line).end()  # type: ignore[union-attr]
            place = undivided.search(line, offset - begin)
            if closed >= offset:
                begin = closed
                continue
            start = begin + place.end() if place and is_marked(line) else self._end
            begin = self._end  # unless there is a string to leave out, the line is read as it is
            with contextlib.suppress(ValueError):
                end = start + sum(size for _, size in self._string_pieces(start))
                yield self.read(offset, start) + b'%s:%d:"' % (self._name.encode(), start)
                offset = begin = end + 1

    def _string_pieces(self, start: int) -> Iterator[Tuple[str, int]]:
        """Yield the text of a JSON string from `start` inside of it, and the bytes of each piece.

        Raises ValueError if it has no end, is not valid, or has half a surrogate pair.
        """
        whole = re.compile(r'(?:[^"\\]+|\\u[dD][89abAB]..\\u[dD][c-fC-F]..'
                           r'|\\u(?![dD][89abAB])....|\\[^u])*')
        decode = codecs.getincrementaldecoder("utf-8")().decode
        rest = ""
        for piece in file_chunks(self.file, start, self._end):
            rest += decode(piece)
            text = whole.match(rest).group()  # type: ignore[union-attr]
            yield JSON_DECODER.decode('"%s"' % text), len(text.encode("utf-8"))
            rest = rest[len(text):]
            if rest[:1] == '"':
                return
            if len(rest) > 12:
                break
        raise ValueError("not a JSON string")

    def has_names(self, text: str) -> bool:
        return self._name in text

    def whole(self, value: Any) -> Any:
        """Return a value in a line, with the strings in the place of their names."""
        if isinstance(value, str) and self.has_names(value):
            return "".join(self.text_of(value))
        if isinstance(value, list):
            return list(map(self.whole, value))
        if isinstance(value, dict):
            return {self.whole(name): self.whole(item) for name, item in value.items()}
        return value

    def text_of(self, text: str) -> Iterator[str]:
        """Yield a text from a line in pieces, with the strings in the place of their names."""
        before, *parts = text.split(self._name)  # each part begins with `:OFFSET:`
        yield before
        for part in parts:
            _, offset, after = part.split(":", 2)
            yield from (piece for piece, _ in self._string_pieces(int(offset)))
            yield after

    def values(self, line: bytes, answer: str, is_marked: Callable[[bytes], Any]) -> Iterator[Any]:
        """Yield the JSON value in a line, or the objects in it; other text is dropped.

        A damaged line is lost if the pattern `answer` matches its damaged part.
        """
        value = _parsed(line)
        if value is not None:
            yield value
            return
        objects, around, before = objects_in(line)
        yield from objects
        number = max(1, self._lines.number) + before
        if re.search(answer, around):
            (self.damaged if self.complete else self.lost_lines).append(number)
        elif re.search(OBJECT_START, around) and is_marked(to_bytes(around)):
            self.damaged.append(number)

    def spare_damaged(self) -> None:
        """Report the lines that were lost until now as damaged: a later text replaces them."""
        self.damaged += self.lost_lines
        self.lost_lines.clear()

    def events(self, *marks: bytes, answer: str) -> Iterator[Dict[str, Any]]:
        """Yield the JSON objects in the lines that contain a mark, also those in a list.

        Other lines are not parsed, but searched for damage, unless they look whole.
        """
        has_mark = re.compile(b"|".join(marks)).search
        has_whole_type = re.compile(_WHOLE_TYPE).match
        for line in self.lines(has_mark):
            if has_mark(line):
                for value in self.values(line, answer, has_mark):
                    events = value if isinstance(value, list) else [value]
                    yield from (event for event in events if isinstance(event, dict))
            elif not (has_whole_type(line) and line.endswith((b"}", b"}\r"))):
                list(self.values(line, answer, has_mark))

    def is_blank(self) -> bool:
        return not any(piece.strip() for piece in self.pieces())

    def tail(self) -> str:
        """Return the last 64 KiB without secrets, from the start of a line: not half a secret."""
        text = without_secrets(to_text(self.read(self._end - CHUNK)))
        if len(self) <= CHUNK:
            return text
        return text[text.find("\n", 0, len(text) // 2) + 1 or len(text) // 2:]


class Reply(NamedTuple):
    """The content of a program's output."""

    output: Optional[str] = ""  # None: all of stdout is the answer
    error: str = ""  # the program failed
    error_kind: str = ""
    retry_after_seconds: Optional[float] = None
    warnings: Tuple[str, ...] = ()
    model: str = ""
    session_id: str = ""
    usage: Optional[Dict[str, int]] = None
    cost_usd: Optional[float] = None
    num_turns: Optional[int] = None
    waiting: str = ""  # what a program that had to be stopped was waiting for
    usage_is_cumulative: bool = False
    limits: Optional[Dict[str, Dict[str, Any]]] = None
    acted: bool = False
    structured: Any = None  # the value that a schema asks for, where the program states one


def _no_files(*_: Any) -> List[Any]:
    return []


def _plain_prompt(job: Job) -> str:
    return job.task.prompt + schema_request(job)


def _prompt_without_command(job: Job, signs: Tuple[str, ...] = ("/",)) -> str:
    """Return the prompt; a literal one does not begin with a sign that makes it a command."""
    return "\n" * (job.literal and job.task.prompt.startswith(signs)) + _plain_prompt(job)


_SCHEMA_REQUEST = """

Answer with one JSON object and nothing else: no explanation, no Markdown.
It must be valid by this JSON Schema:
%s
"""


def schema_text(task: Task) -> str:
    """Return the schema of a task as JSON, without `@`, with which a program could add a file."""
    return dumps(task.schema).decode("utf-8").replace("@", "\\u0040") if task.schema else ""


def schema_request(job: Job) -> str:
    """Return what follows the prompt where the program takes the schema in no other way."""
    schema = job.task.schema
    if not schema or (backend_of(job).takes_schema
                      and not backend_of(job).schema_problem(schema)):
        return ""
    return _SCHEMA_REQUEST % schema_text(job.task)


class Backend(NamedTuple):
    """How to run one program, how to read its output, and what it can do.  It starts nothing."""

    name: str
    command: Callable[[Job], Command]
    read: Callable[[Capture, str, int], Reply]  # of stdout, the end of stderr, the exit code
    honours: FrozenSet[str]  # the OPTIONAL_FIELDS with an effect; option_warnings has the others
    # pairs of a sandbox and an approval mode that cannot be kept, each with the reason
    impossible_modes: Dict[Tuple[str, str], str] = {}
    stop_signal: str = "SIGTERM"
    max_prompt: int = 0  # the size of the largest prompt; 0: no limit
    max_prompt_unit: str = "bytes"
    prompt_arguments: Tuple[str, ...] = ()  # of a command of its own, with the prompt; also "--"
    leftovers: Callable[[Job, Reply], List[str]] = _no_files  # files of an unwanted session
    install: str = ""  # the command that installs the program
    cautions: Tuple[Tuple[str, str], ...] = ()  # words in `extra` and the warnings that they cause
    ours: Tuple[str, ...] = ()  # options refused in `extra`: they decide what the program prints
    resuming: Tuple[str, ...] = ()  # what may change in a session that is resumed; (): keeps none
    saying: Optional[Callable[[bytes], _Saying]] = None  # of a line, while it runs; None: all of it
    doing: Optional[Callable[[bytes], _Doing]] = None  # of a line, while it runs; None: not known
    helpers: Tuple[str, ...] = ()  # processes that the program leaves running by itself
    rejection: bytes = b""  # is in a line of stderr if the program ignores the file of its rules
    text: Callable[[Job], str] = _plain_prompt  # what goes in by stdin
    # Whether stdout ends with the event after which the program has no more to do; None: no events.
    is_over: Optional[Callable[[int], bool]] = None
    states_cost: bool = False
    is_agent: bool = False  # the program runs tools, which can change files
    needs_model: bool = False  # it has no default model
    # Directories with files of sessions, each with a pattern for each level below it; [] where a
    # next attempt cannot continue the session.
    sessions: Callable[[Job], List[Tuple[str, ...]]] = _no_files
    takes_schema: bool = False  # otherwise the schema follows the prompt
    schema_problem: Callable[[Any], Optional[str]] = do_nothing  # why it cannot take this schema
    states_data: bool = False  # an answer by a schema is Reply.structured, not the text


MAX_DATA_BYTES = 1 << 20  # of an answer by a schema
_FENCE = r"(?m)^ {0,3}(`{3,})[ \t]*(\w*)[^`\n]*\n((?s:.*?))^ {0,3}\1`*[ \t\r]*$"


def json_in(text: str) -> Any:
    """Return the JSON value that a text is, else that in the fence which it is.

    Else the value in its last fence that is marked as JSON.  Raises ValueError.
    """
    def value_of(part: str) -> Any:
        return loads_unique(to_bytes(part), strict=False)

    try:
        try:
            return value_of(text)
        except json.JSONDecodeError:
            fences = list(re.finditer(_FENCE, text))
            marked = [fence for fence in fences
                      if fence.group(2).lower() == "json" or fence.group() == text.strip()]
            if not marked:
                raise
            return value_of(marked[-1].group(3))
    except InvalidValue as error:
        raise InvalidValue(error.message, ("data", *error.path)) from None
    except (ValueError, RecursionError) as error:
        raise ValueError("the answer is not JSON: %s" % error) from None


def refused_prompt(backend: Backend, *parts: Union[str, TextFile]) -> str:
    """Return why the program cannot take the whole prompt; "" if it can."""
    size = 0
    if backend.max_prompt_unit == "characters":
        size = sum(map(len, texts_of(parts)))
    elif backend.max_prompt:
        size = sum(len(to_bytes(part)) if isinstance(part, str) else len(part) for part in parts)
    if size > backend.max_prompt:
        return "the prompt has {:,} {}; {} takes {:,} at most".format(
            size, backend.max_prompt_unit, backend.name, backend.max_prompt)
    if not backend.prompt_arguments:
        return ""
    prompt = "".join(texts_of(parts))
    if prompt.startswith("-") and any(
            word.startswith("{prompt}") for word in
            itertools.takewhile("--".__ne__, backend.prompt_arguments)):
        return ("the prompt begins with -, so %s would take it for an option; a command of "
                "your own can have -- before {prompt}" % backend.name)
    try:
        _argument(prompt)
    except ValueError as error:
        return "the prompt is an argument of %s: it %s" % (backend.name, error)
    return ""


def refused_extra(backend: Backend, extra: Iterable[str]) -> str:
    """Return why the program cannot be given these words; "" if it can."""
    for word in extra:
        for option in backend.ours:
            if word.split("=")[0] == option or len(option) == 2 and word.startswith(option):
                return "%s decides what %s prints, which clinvk has to read" % (
                    quoted(word), backend.name)
    return ""


def _options(*pairs: Tuple[str, str]) -> List[str]:
    """Return the options that have a value."""
    return [word for option, value in pairs if value for word in (option, value)]


def _has_option(job: Job, names: Container[str]) -> bool:
    return any(word.split("=")[0] in names for word in job.task.extra)


def answers_only(job: Job) -> bool:
    """Return whether the program of a job has no tools, and can only answer."""
    return job.task.answer_only and "answer_only" in backend_of(job).honours


def sandbox_of(job: Job) -> str:
    """Return the sandbox mode that holds for a job."""
    return "read-only" if answers_only(job) else job.task.sandbox_mode


def option_warnings(job: Job) -> Tuple[str, ...]:
    """Return a warning for each option of the task that its backend cannot apply."""
    backend, task = backend_of(job), job.task
    warnings = ["%s has no %s; it was not applied" % (backend.name, field)
                for field in OPTIONAL_FIELDS
                if field not in backend.honours and getattr(task, field)]
    problem = backend.schema_problem(task.schema) if task.schema else ""
    cautions = [text for word, text in backend.cautions if word in task.extra]
    return (*warnings, *filter(None, [problem]), *cautions)


def _has_last_event(stdout: int, is_last: Callable[[Any], bool]) -> bool:
    """Return whether nothing but noise and notices follows the last event of a program."""
    for line in last_lines(stdout, LONG_LINE):
        event = _parsed(line)
        if is_last(event):
            return True
        if line.startswith(b"{") and not _is_notice(_mapping(event)):
            return False
    return False


def _is_notice(event: Dict[str, Any]) -> bool:
    """Return whether an event can follow the last one of a turn without beginning another."""
    if event.get("type") == "system":
        return not re.search("init|task", _string(event.get("subtype")))
    return event.get("type") in ("rate_limit_event", "error")


def _ends_by(*types: str) -> Callable[[int], bool]:
    """Return the `is_over` of a program whose last event has one of these types."""
    return functools.partial(
        _has_last_event, is_last=lambda event: _mapping(event).get("type") in types)


# - what all readers use -

UNKEPT = "the sandbox could not be kept: %s"
# An event whose type is cut off or has a bad byte, which may be an event of any type.
_CUT_TYPE = (r'\{\s*"(?:t|ty|typ|type|type"\s*|type"\s*:\s*|type"\s*:\s*"[\w.]*)?'
             r'(?:$|\{\s*"|[\udc80-\udcff])')
_BLANK_END = "%s ended with a blank text; the output is the text before it"
_BAD_EXIT = "%s ended with exit status %d after a complete answer"
# A path, or a file with a line, which says nothing about an account.
_FILE_NAME = (r"(?<![\w/:.-])[\w.@~+-]*(?:/[\w.@~+-]+)+/?(?::\d+)*|\b[\w-]+\.[a-z]\w*(?::\d+)+"
              r"|\b[\w-]+\.(?:c|cfg|cpp|csv|go|h|html|ini|java|jsx?|json|log|md|py|rb|rs|sh|sql"
              r"|toml|tsv|tsx?|txt|xml|ya?ml)\b")
# The words before an HTTP status; a number without them can be any.
_STATUS = (r"(?:^\W*|(?:\bhttp|status|(?:\b|status)code|\berror|failed|returned|received"
           r"|respon(?:se|ded))\W{1,4}(?:(?:code|status|with)\W{1,3})*)(?:%s)\b")
# Errors in the words of the three APIs and their clients; good answers contain the words, too.
# The first match counts: a kind stands above the kinds that are less exact.
_KIND_PATTERNS = (
    ("quota", r"credit (balance|limit)|out of (extra )?usage|out of credits|spend (cap|limit)"
              r"|(exceed|insufficient|out of|reached|exhausted)[^\n]{0,40}(?<!check |.disk )quota"
              r"|(?<!disk )quota[^\n]{0,40}(exceed|reached|exhausted|limit)|quota.?error"
              r"|(exceeded|over)[^\n]{0,40}usage.?limit|usage.?limit[^\n]{0,40}(exceed|reached|hit)"
              r"|(hit|reached) your (?!rate)[^\n]{0,40}limit"
              r"|\b(hour|session|daily|weekly|monthly|opus|sonnet|haiku) limit (reached|exceeded)"
              r"|(your|and|&|check|enable) billing"
              r"|billing( is)?.?(hard|limit|detail|account|error|not)|payment required"
              r"|insufficient (balance|credit|fund)|more credits|credits are depleted"),
    ("rate_limit", _STATUS % "429" + r"|rate.?limit|too many requests|resource.?exhausted"),
    ("overloaded", _STATUS % "50[0234]|52[0-49]" + r"|overloaded|at capacity|high demand"
                   r"|unavailable|internal.server.error|bad gateway|gateway.time.?out"),
    ("context_length", r"context (length|window)|prompt is too long|input (exceeds|is too long)"
                       r"|exceeds the maximum (length|number of tokens)"),
    ("max_turns", r"maximum number of turns|max turns|max session turns"),
    ("budget", r"maximum budget"),
    ("no_output", r"empty response"),
    ("auth", _STATUS % "401" + r"|api.key|not logged in|authenticat|unauthorized|auth method"
             r"|missing environment variable"),
    ("permission", _STATUS % "403" + r"|forbidden|permission|trusted directory|untrusted"),
    ("network", r"\beconn|connection|network|\benotfound|getaddrinfo|stream (disconnected|ended)"
                r"|timed out|fetch failed"),
    ("invalid", _STATUS % "40[04]" + r"|does not exist|not found|invalid|unexpected argument"
                r"|unknown (option|argument)|no (conversation|rollout) found"),
)
_KIND_BY_STATUS = {
    400: "invalid", 401: "auth", 402: "quota", 403: "permission", 404: "invalid", 408: "network",
    413: "context_length", 429: "rate_limit", 500: "overloaded", 502: "overloaded",
    503: "overloaded", 504: "overloaded", 529: "overloaded"}
# The kinds that are more exact than a status.
_FINER_THAN_STATUS = {400: ("quota", "context_length", "auth"), 403: ("quota",), 429: ("quota",)}
SHORT_WAIT_SECONDS = 300.0
JUST_PASSED_SECONDS = 600.0
MAX_REASON = 8192  # characters of an error in which its kind and a time to wait are looked for
_UNIT = r"(?:days?|hours?|hrs?|minutes?|mins?|seconds?|secs?|[dhms])(?![a-z])[ ,]*"
_UNIT_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1, "": 1}
_WAITS = (r"(?:try again|retry|resets?)\b(?:[ -]*(?:in|after))?[:= ]*((?:[0-9.]+ *%s)+)" % _UNIT,
          r"retry_?delay\W+([0-9.]+s)\b",
          r"(?:resets_in_seconds|retry.after)\W+([0-9]+(?:\.[0-9]+)?)\b(?!-\d)")
_MOMENT = r"(?:resets_?at\W+|limit reached\|)([0-9]{10})\b"
_DATE = (r"(?:resets?(?:.?at)?|retry.after|try again(?: at)?)\W+"
         r"(\d{4}-\d\d-\d\dt\d\d:\d\d:\d\d)(?:\.\d+)?(z|[+-]\d\d:\d\d)")
_TIME_OF_DAY = (r"(?:resets?|try again)(?: at)? "
                r"(?:(mon|tue|wed|thu|fri|sat|sun)[a-z]*,?(?: at)? )?"
                r"(?:([a-z]{3})[a-z]* (\d{1,2})(?:st|nd|rd|th)?,?(?: (\d{4}))?,?(?: at)? )?"
                r"(\d{1,2})(?::(\d\d))? ?([ap])\.?m\b(?: \(([\w/+-]+)\))?")
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")  # in any locale
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NOISE = (r"Warning: 256-color|Ripgrep is not|\[STARTUP\]|YOLO mode|Reading additional input"
          r"|Loaded cached|Attempt \d+ failed|Suggested retry|Node\.js v\d|\(Use `node ")
_AFTERMATH = (r"(?i:usage|options|require stack|stack (?:back)?trace):|[ \t]+at |\tfrom "
              r"|goroutine \d|(?:note|hint): ")
# The first of Python's chained exceptions is the root cause; Java and Node print theirs last.
_ROOT_TRACEBACK = (r"(?m)(?<!exception:\n\n)(?<!occurred:\n\n)"
                   r"^Traceback \(most recent call last\):\n(?:[ \t].*\n)+")
_CAUSE = r"\s*(?:\[cause\]|Caused by): "
_ERROR = (r"(?:\S+: |Uncaught |Exception in thread \S+ )?"
          r"[\w.$]*(?:[Ee]rror|ERROR|Exception)(?: \[\w+\])?: ")
_RETRIED = r"(?i:.*(?:\bretry|reconnecting|trying again|\battempt \d))"
# The beginnings of a line with the reason, the surest first, and which of several lines counts.
_REASONS = ((r"(?:\S+: |PHP )?(?i:fatal(?: error)?|panic): |thread .* panicked at ", -1),
            (_CAUSE, -1), ("%s(?!%s)" % (_ERROR, _RETRIED), 0), (_ERROR, -1))
# In a paragraph without such a line: the first line with a word of failure.
_FAILURE = (r"(?m)^(?!%s).*(?i:\b(?:failed|failure|cannot|can't|could not|unable to|not found"
            r"|no such|denied|refused|invalid|unknown)\b|\b\w*error\b(?!\())" % _RETRIED)
_SENTENCE = r"(?m)(?:[^.][.!?:]|[\u3002\uff01\uff1f\uff1a])[\"')\]]?$"  # also full-width
_LINE_OF_WORDS = r"(?m)^(?![ \t]).*\w"
SHORT_REASON = 3  # lines, of which the first may say why and the others more


def error_kind(text: str, status: Any = None) -> str:
    """Return the kind of an error, from its HTTP status if there is one, else from its words."""
    lowered = re.sub(_FILE_NAME, "", text[:MAX_REASON].lower())
    by_status = _KIND_BY_STATUS.get(status) if isinstance(status, int) else None
    for kind, pattern in _KIND_PATTERNS:
        if by_status is not None and kind not in _FINER_THAN_STATUS.get(status, ()):
            continue
        if re.search(pattern, lowered):
            # gemini calls its limit per minute a quota, too
            is_short = kind == "quota" and (
                "per minute" in lowered or 0 < (_stated_wait(text) or 0) < SHORT_WAIT_SECONDS)
            return "rate_limit" if is_short else kind
    return by_status or "backend"


def _stated_wait(text: str) -> Optional[float]:
    """Return the seconds that an error states as a duration, not as a time of day, if any."""
    wait = next(filter(None, (re.search(pattern, text[:MAX_REASON], re.I) for pattern in _WAITS)),
                None)
    if not wait:
        return None
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?) *([dhms]?)", wait.group(1).lower())
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)


def retry_after(text: str, now: Optional[float] = None) -> Optional[float]:
    """Return the seconds to wait that an error states, if any.

    Examples: `Please try again in 6.379s`, `Suggested retry after 60s.`, `Resets in 2h39m52s`,
    `"resets_in_seconds": 3600`, `limit reached|1753088400`, `resets 1pm (Europe/Lisbon)`,
    `resets Mon 4pm` and `try again at 1:21 PM` (local time), `retry after 2026-12-01T00:00:00Z`.
    """
    text, now = text[:MAX_REASON], time.time() if now is None else now
    seconds = _stated_wait(text)
    moment = re.search(_MOMENT, text, re.I)
    date, time_of_day = (re.search(pattern, text, re.I) for pattern in (_DATE, _TIME_OF_DAY))
    if seconds is None and moment:
        seconds = max(0.0, float(moment.group(1)) - now)
    elif seconds is None and date:
        from datetime import datetime
        zone = date.group(2) if date.group(2) not in "zZ" else "+00:00"
        with contextlib.suppress(ValueError, OverflowError):
            seconds = max(0.0, datetime.fromisoformat(date.group(1) + zone).timestamp() - now)
    elif seconds is None and time_of_day:
        seconds = _until(time_of_day.groups(""), now)
    return seconds if seconds is not None and seconds < MAX_SECONDS else None


def _until(parts: Sequence[str], now: float) -> Optional[float]:
    """Return the seconds until a moment; None if it cannot be known.

    Without a day the next such moment counts; without a zone local time counts.  A moment that has
    just passed is not the next day's: what is stated is a minute, and was stated a while ago.
    """
    import datetime
    weekday, month, day, year, hour, minute, half, zone = parts  # "": not stated
    there = None
    if not 1 <= int(hour) <= 12:
        return None
    try:
        if zone:
            import zoneinfo  # novm  # Python 3.9; and the system may have no zones
            there = zoneinfo.ZoneInfo(zone)
        present = datetime.datetime.fromtimestamp(now, there)
        then = present.replace(hour=int(hour) % 12 + 12 * (half.lower() == "p"),
                               minute=int(minute or 0), second=0, microsecond=0)
        if month:
            then = then.replace(year=int(year or then.year),
                                month=_MONTHS.index(month.lower()) + 1, day=int(day))
        elif weekday:
            days = _WEEKDAYS.index(weekday.lower()) - then.weekday()
            then += datetime.timedelta(days=days % 7)
        passed = (present - then).total_seconds()
        if 0 <= passed < 60:
            return 60 - passed
        if passed > JUST_PASSED_SECONDS and not month:
            then += datetime.timedelta(days=7 if weekday else 1)
        elif passed > JUST_PASSED_SECONDS and not year:
            then = then.replace(year=then.year + 1)
        return max(0.0, then.timestamp() - now)
    except (ImportError, KeyError, ValueError, OSError, OverflowError):
        return None


def _failed(reply: Reply, error: str, kind: str = "", source: str = "") -> Reply:
    """Return the reply of a run that failed; `source` is the text to search for the kind."""
    error = without_secrets(error.strip())[:CHUNK]
    return reply._replace(error=error, error_kind=kind or error_kind(source or error),
                          retry_after_seconds=retry_after(source or error))


def _count(value: Any) -> int:
    """Return a number of tokens or turns; 0 for any other value."""
    return value if type(value) is int and 0 < value < 1 << 53 else 0


def _usage(total_input: int, cached: int, output: int, reasoning: int,
           written: int = 0) -> Optional[Dict[str, int]]:
    """Return token counts.  The input includes those of a cache, the output those of reasoning."""
    counts = {"input_tokens": total_input, "cached_input_tokens": cached, "output_tokens": output,
              "reasoning_output_tokens": reasoning, "total_tokens": total_input + output}
    if written:  # most backends do not state it
        counts["cache_write_input_tokens"] = written
    return counts if total_input or output else None


def _busiest(models: Dict[str, Any], count: str) -> str:
    """Return the model that did most of the work."""
    return max(models, key=lambda name: _count(_mapping(models[name]).get(count)), default="")


def _dollars(value: Any) -> Optional[float]:
    """Return a cost; None if there is none, which is not 0."""
    is_cost = type(value) in (int, float) and 0 <= value < 1e9
    return round(float(value), 9) if is_cost else None


def _parsed(data: bytes) -> Any:
    """Return the JSON value in `data`; None if there is none."""
    try:
        return loads(data)
    except (ValueError, RecursionError):
        return None


def _mapping(value: Any) -> Dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(value: Any) -> Iterator[Any]:
    """Return the items of a list, and nothing for any other value."""
    return iter(value) if isinstance(value, list) else iter(())


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def value_at(value: Any, path: _Path) -> Any:
    """Return the value at a path in a JSON value; None if there is none."""
    for step in path:
        if not isinstance(step, int):
            value = _mapping(value).get(step)
        elif isinstance(value, list) and -len(value) <= step < len(value):
            value = value[step]
        else:
            return None
    return value


def _tool_text(name: Any, values: Any) -> str:
    """Return `Bash: touch x`: the name of a tool and a telling value of its input."""
    names = ("command", "file_path", "url", "pattern", "query", "path", "description")
    texts = [one_line(_string(_mapping(values).get(name))) for name in names]
    return ": ".join([one_line(_string(name)), *filter(None, texts)][:2])


def last_words(stderr: str) -> str:
    """Return the last paragraph of stderr, where most programs write why they failed."""
    paragraphs = [part.strip() for part in stderr.replace("\r\n", "\n").split("\n\n")
                  if part.strip() and not part.lstrip().startswith("Stack backtrace:")]
    return visible(paragraphs[-1][-2000:]) if paragraphs else ""


def _reason_start(paragraph: str) -> int:
    """Return where the reason begins in a paragraph of stderr.

    A line with a word of failure comes first, then the beginning of a text that is short or has
    sentences.  Other lines are progress but for the last one, with what is indented below it.
    """
    found = re.search(_FAILURE, paragraph)
    if found:
        return found.start()
    starts = [line.start() for line in re.finditer(_LINE_OF_WORDS, paragraph)] or [0]
    is_text = len(starts) <= SHORT_REASON or re.search(_SENTENCE, paragraph)
    return 0 if is_text else starts[-1]


def _reason(stderr: str) -> str:
    """Return why a program failed, from stderr, without noise, usage text and stack traces."""
    text = stderr.replace("\r\n", "\n").replace("\n\nCaused by:\n", "\nCaused by:\n")
    text = re.sub(r"(?m)^.*\r(?=.)", "", text)  # progress, which the rest of the line replaced
    text = re.sub(_ROOT_TRACEBACK, "Caused by: ", text)
    text = re.sub(r"( panicked at \S+:)\n", r"\1 ", text)  # the first line is shown alone
    lines = [line for line in text.split("\n") if not re.match(_NOISE, line)]
    starts = [[number for number, line in enumerate(lines) if re.match(pattern, line)][which:][:1]
              for pattern, which in _REASONS]
    start = next(itertools.chain(*starts), 0)
    rest = "\n".join(itertools.takewhile(lambda line: not re.match(_AFTERMATH, line),
                                         lines[start:]))
    if not any(starts):
        words = last_words(rest) or last_words("\n".join(lines))
        start = _reason_start(words)  # nothing is to be said before it
        return words[start:].strip() if error_kind(words[:start]) == "backend" else words
    return visible(re.sub(_CAUSE, "", rest.partition("\n\n")[0], count=1)[:2000].strip())


def _no_result(reply: Reply, program: str, stdout: Capture, stderr: str, exit_code: int) -> Reply:
    """Return the reply of a program without a result; without a session all of stdout is kept."""
    error = _reason(stderr)
    if not reply.session_id:
        reply = reply._replace(output=None)
        error = error or last_words(stdout.tail())
    return _failed(reply, error or "%s printed no result" % program, "" if exit_code else "backend")


def with_damage(reply: Reply, capture: Capture, program: str, exit_code: int) -> Reply:
    """Return the reply with a warning of damaged lines; failed if a part of it may be missing."""
    def message(numbers: List[int]) -> str:
        return "line%s %s of what %s printed cannot be read" % (
            "s" if len(numbers) > 1 else "", first_of(numbers), program)

    if capture.damaged:
        reply = reply._replace(warnings=(*reply.warnings, message(capture.damaged)))
    if not capture.lost_lines:
        return reply
    lost = message(capture.lost_lines) + "; a part of the answer may be missing"
    if exit_code or reply.error_kind not in ("", "backend"):
        return reply._replace(warnings=(*reply.warnings, lost))
    error = "; ".join(filter(None, (reply.error, lost)))
    return reply._replace(error=error, error_kind="damaged_output")


def _toml(text: str) -> str:
    """Return a text as a TOML string: a JSON string without surrogates, and with DEL escaped."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return dumps(whole).decode("utf-8").replace("\x7f", "\\u007f")


# - claude -

SESSION_ID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_CLAUDE_READING = "Read,Glob,Grep,WebFetch,WebSearch"
_CLAUDE_RESUMES = ("--resume", "-r", "--continue", "-c", "--session-id", "--fork-session",
                   "--from-pr")
# The order of the keys of a result differs between versions.
_CLAUDE_ANSWER = (r'"type"\s*:\s*"(?:result|assistant)"|"(?:result|duration_api_ms|is_error)"\s*:|'
                  + _CUT_TYPE)
_CLAUDE_ENDS = {"max_turns": "max_turns", "error_max_turns": "max_turns",
                "error_max_structured_output_retries": "schema",
                "budget_exhausted": "budget", "error_max_budget_usd": "budget"}


def _claude_modes(sandbox: str, approval: str, tools: str) -> List[str]:
    """Return the options for a sandbox and an approval mode.

    What settings allow holds in every permission mode.  To keep a sandbox, they are not read
    (--restricted), or tools that change something are removed; a project's can name helpers to run.
    """
    if sandbox == "read-only":
        return ["--permission-mode", "dontAsk", "--setting-sources", "user", "--strict-mcp-config",
                "--settings", '{"disableAllHooks":true}', "--tools", tools]
    modes = {"auto": "acceptEdits", "none": "bypassPermissions", "always": "dontAsk"}
    mode = modes.get(approval, "")
    if sandbox == "workspace":
        return ["--permission-mode", mode or "dontAsk", "--restricted", "--strict-mcp-config",
                "--tools", tools + ",Edit,Write,NotebookEdit,Bash"]
    reach = "/" if sandbox == "full" and approval == "auto" else ""
    return _options(("--permission-mode", mode), ("--add-dir", reach))


def _claude_sessions(job: Job) -> List[Tuple[str, ...]]:
    """Return where the files of sessions are, [] where `extra` chooses the session."""
    if _has_option(job, _CLAUDE_RESUMES):
        return []
    home = os.environ.get("CLAUDE_CONFIG_DIR") or os.path.expanduser("~/.claude")
    return [(home, "*"), (home, "*", "*")]


def _claude_command(job: Job) -> Command:
    task = job.task
    argv = ["claude", "-p", "--output-format", "stream-json", "--verbose"]
    if not (job.keep or _has_option(job, _CLAUDE_RESUMES)):
        argv.append("--no-session-persistence")
    argv += _options(("--resume", job.resume))
    argv += _claude_modes(sandbox_of(job), task.approval_mode,
                          "" if task.answer_only else _CLAUDE_READING)
    system = ("--append-system-prompt", task.system_prompt)
    if task.answer_only:  # the user's settings still count: a login can be in them
        argv.append("--safe-mode")
        system = ("--system-prompt", task.system_prompt or ANSWER_PROMPT)
    argv += _options(("--model", task.model), ("--effort", task.effort),
                     ("--json-schema", schema_text(task)),
                     ("--max-turns", str(task.max_turns or "")),
                     system)
    if job.budget_usd:  # in cents, rounded down; claude refuses 0
        argv += ["--max-budget-usd", "%.2f" % (max(1, int(job.budget_usd * 100 + 1e-6)) / 100)]
    environment = {}
    if task.max_tokens:
        environment["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = str(task.max_tokens)
    if job.literal:  # `@path` in the prompt puts no file there
        environment["CLAUDE_CODE_DISABLE_FILE_MENTIONS"] = "1"
        if sandbox_of(job) == "read-only":
            # Versions before 2.1.299 need this.  In other modes it would hide tools and skills.
            environment["CLAUDE_CODE_DISABLE_ATTACHMENTS"] = "1"
    if "bypassPermissions" in argv and os.geteuid() == 0:  # root needs this to bypass permissions
        environment["IS_SANDBOX"] = "1"
    preset = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1",
              "CLAUDE_CODE_MAX_RETRIES": "0" if job.retried else "2"}
    if task.schema:
        preset["MAX_STRUCTURED_OUTPUT_RETRIES"] = "2"
    return Command(tuple(argv) + task.extra, environment, preset)


def _read_claude(stdout: Capture, stderr: str, exit_code: int) -> Reply:
    """Read a line for each event, the last of them the result, or with other options only that.

    `is_error` decides, neither `subtype` (that of an API error is "success") nor the exit code.
    """
    results: List[Dict[str, Any]] = []  # background work that ends later makes another result
    session, text, retry, limit = "", "", {}, {}  # type: str, str, Dict[str, Any], Dict[str, Any]
    acted, usages = False, {}  # type: bool, Dict[str, Any]
    for event in stdout.events(b'"result"', b'"init"', b'"assistant"', b'"api_retry"',
                               b'"rate_limit_event"', answer=_CLAUDE_ANSWER):
        kind = event.get("type")
        session = _string(event.get("session_id")) or session
        if kind == "assistant":  # each event of a message repeats its usage
            acted = acted or any(part.get("type") == "tool_use" and (
                part.get("name") != "StructuredOutput") for part in _claude_parts(event))
            message = _mapping(event.get("message"))
            usages[_string(message.get("id"))] = message.get("usage")
        if kind == "result":
            results.append(event)
            if _string(event.get("result")).strip():
                stdout.spare_damaged()
        elif kind == "assistant" and not (event.get("parent_tool_use_id")  # of a subagent
                                          or event.get("is_api_error_message")):
            retry = {}
            said = _claude_text(event)
            text = said if said.strip() else text
        elif kind == "system" and event.get("subtype") == "api_retry":
            retry = event
        elif kind == "rate_limit_event":  # also of good turns
            limit = _mapping(event.get("rate_limit_info"))
    rest: Dict[str, Any] = {
        "session_id": session, "acted": acted, "limits": _claude_limits(limit)}
    if not results:
        waiting = _string(retry.get("error"))
        if _count(retry.get("error_status")):
            waiting += ", HTTP status %d" % retry["error_status"]
        reply = _claude_totals([{"usage": usage} for usage in usages.values()] or [{}], rest)
        return _no_result(reply._replace(output=text, waiting=waiting), "claude", stdout, stderr,
                          exit_code)
    result, reply = results[-1], _claude_totals(results, rest)
    subtype, output = _string(result.get("subtype")), _string(result.get("result"))
    failed = result.get("is_error") or subtype.startswith("error")  # older versions: only subtype
    if not failed and text and not output.strip():
        output, reply = text, reply._replace(warnings=reply.warnings + (_BLANK_END % "claude",))
    if not failed and not exit_code:
        return reply._replace(output=output, structured=result.get("structured_output"))
    error = "; ".join(map(str, _listed(result.get("errors"))))
    last = _BAD_EXIT % ("claude", exit_code)
    if failed:  # then the result is an error
        error, last = output or error, "claude failed: " + subtype
        output = text if text != output else ""
    error = error or _reason(stderr) or last
    kind = (_CLAUDE_ENDS.get(_string(result.get("terminal_reason"))) or _CLAUDE_ENDS.get(subtype)
            or error_kind(error, result.get("api_error_status")))
    if failed and kind == "backend" and limit.get("status") == "rejected" and (
            _count(limit.get("resetsAt")) and not limit.get("isUsingOverage")):
        kind = "quota"
    if result.get("stop_reason") == "refusal":  # the model does not answer
        kind = "invalid"
    return _with_claude_wait(_failed(reply._replace(output=output), error, kind), retry, limit)


def _claude_is_over(stdout: int) -> bool:
    """Return whether a result ended the last turn and no task is left in the background.

    claude ends a turn while such a task runs, and begins another turn after the task.
    """
    if not _ends_by("result")(stdout):
        return False
    running: Any = None
    for line in Capture(stdout).lines():
        event = _mapping(_parsed(line)) if b'"background_tasks_changed"' in line else {}
        if event.get("subtype") == "background_tasks_changed":
            running = event.get("tasks")
    return not running


def _claude_totals(results: List[Dict[str, Any]], rest: Dict[str, Any]) -> Reply:
    """Return the counts of all results, the model and the denials of the last, and the rest."""
    result, counts = results[-1], defaultdict(int)  # type: Dict[str, Any], Dict[str, int]
    for one in results:
        usage = _mapping(one.get("usage"))
        for name, value in usage.items():
            counts[name] += _count(value)
        counts["thoughts"] += _count(value_at(usage, ("output_tokens_details", "thinking_tokens")))
        counts["turns"] += _count(one.get("num_turns"))
    # These two count all runs of a session that was resumed.
    models, cost = _mapping(result.get("modelUsage")), result.get("total_cost_usd")
    since_last = [one["model_usage_since_last_result"] for one in results
                  if isinstance(one.get("model_usage_since_last_result"), dict)]
    if since_last:
        costs = [_dollars(_mapping(model).get("costUSD"))
                 for part in since_last for model in part.values()]
        known = [dollars for dollars in costs if dollars is not None]
        models, cost = since_last[-1], sum(known) if known or not costs else None
    cached, written = counts["cache_read_input_tokens"], counts["cache_creation_input_tokens"]
    denials = map(_mapping, itertools.islice(_listed(result.get("permission_denials")), 20))
    denied = (_tool_text(item.get("tool_name"), item.get("tool_input"))[:200] for item in denials)
    return Reply(
        usage=_usage(counts["input_tokens"] + cached + written, cached, counts["output_tokens"],
                     counts["thoughts"], written),
        cost_usd=_dollars(cost), num_turns=counts["turns"] or None,
        model=_busiest(models, "outputTokens"),
        warnings=tuple(map("permission denied: ".__add__, denied)), **rest)


def _claude_parts(event: Dict[str, Any]) -> Iterator[Dict[str, Any]]:
    return map(_mapping, _listed(_mapping(event.get("message")).get("content")))


def _claude_text(event: Dict[str, Any]) -> str:
    return "".join(_string(part.get("text")) for part in _claude_parts(event))


def _claude_limits(limit: Dict[str, Any]) -> Optional[Dict[str, Dict[str, Any]]]:
    """Return the limits of the account, by name, with what is a number; None if there are none."""
    limits: Dict[str, Dict[str, Any]] = {}
    for name, window in _mapping(limit.get("unifiedWindows")).items():
        for ours, theirs in ("utilization", "utilization"), ("resets_at", "resetsAt"):
            value: Any = _mapping(window).get(theirs)
            if type(value) in (int, float) and 0 <= value < 1e12:
                limits.setdefault(one_line(name), {})[ours] = value
    return limits or None


def _claude_saying(line: bytes) -> _Saying:
    event = _mapping(_parsed(line)) if b'"assistant"' in line else {}
    is_own = event.get("type") == "assistant" and not event.get("parent_tool_use_id")
    # The result has the texts of a synthetic message, too.
    is_synthetic = _mapping(event.get("message")).get("model") == "<synthetic>"
    return _claude_text(event) if is_own and not is_synthetic else "", True


def _claude_doing(line: bytes) -> _Doing:
    """Tell of a message, also of a subagent.  Each event of a message repeats its usage."""
    event = _mapping(_parsed(line)) if b'"assistant"' in line or b'"api_retry"' in line else {}
    if event.get("subtype") == "api_retry":
        return "", "waiting: " + _string(event.get("error")), 0
    message, action = _mapping(event.get("message")), ""
    if event.get("type") != "assistant":
        return "", "", 0
    for part in _claude_parts(event):
        action = _string(part.get("text")) or action
        if part.get("type") == "tool_use":
            action = _tool_text(part.get("name"), part.get("input"))
        elif part.get("type") in ("thinking", "redacted_thinking"):
            action = "thinking"
    counts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens",
              "output_tokens")
    tokens = sum(_count(value_at(message, ("usage", count))) for count in counts)
    return _string(message.get("id")), action, tokens


def _with_claude_wait(reply: Reply, retry: Dict[str, Any], limit: Dict[str, Any]) -> Reply:
    """Return the reply with the wait that the events state: for a limit, or before a retry."""
    seconds, milliseconds = MAX_SECONDS, _count(retry.get("retry_delay_ms"))
    if reply.error_kind not in ("rate_limit", "quota", "overloaded"):
        return reply
    if limit.get("status") == "rejected" and _count(limit.get("resetsAt")):
        seconds = max(0.0, float(limit["resetsAt"]) - time.time())
    elif retry.get("error_status") in (429, 529) and milliseconds >= 2000:  # its own are shorter
        seconds = milliseconds / 1000
    return reply._replace(retry_after_seconds=seconds) if seconds < MAX_SECONDS else reply


# - codex -

_CODEX_SANDBOX = {
    # Rules of the user or the project would let commands out of the sandbox.  /tmp has the files of
    # other tasks.
    "read-only": ["-s", "read-only", "--ignore-rules"],
    "workspace": ["-s", "workspace-write", "--ignore-rules",
                  "-c", "sandbox_workspace_write.exclude_slash_tmp=true",
                  "-c", "sandbox_workspace_write.writable_roots=[]"],
    "full": ["-s", "danger-full-access"],
}
# A codex that does not know one of these warns and goes on.
_CODEX_SETTINGS = ("sandbox_workspace_write", "developer_instructions")
# A schema with others, or with optional properties, is refused by the API.
_CODEX_KEYWORDS = ("type", "enum", "const", "properties", "required", "additionalProperties",
                   "items", "minItems", "maxItems", "pattern", "minimum", "maximum",
                   "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "anyOf", "$ref", "$defs",
                   "title", "description", "default", "format", "$schema")
_CODEX_THOUGHTS = ("agent_message", "reasoning", "error", "todo_list")  # items that are not tools
_CODEX_DOES = {"reasoning": "thinking", "todo_list": "planning"}
CODEX_COUNTS = "codex counts the tokens of the whole session that it resumed"
_UNASKED = ('codex exec never asks, so with sandbox_mode "%s" it would write unasked: '
            'use sandbox_mode "read-only", or another approval_mode')
_CODEX_REFUSALS = {(sandbox, "always"): _UNASKED % sandbox for sandbox in ("workspace", "full")}
_CODEX_REFUSALS["full", "auto"] = (
    'codex exec never asks, so with sandbox_mode "full" it would run every command, '
    'not only edit files: use sandbox_mode "workspace", or approval_mode "none"')
_CODEX_ANSWER = (r'"type"\s*:\s*"agent_message"'
                 r'|"item\.completed"(?![^{]*\{[^{}]*"type"\s*:\s*"\w+")|' + _CUT_TYPE)


def _codex_home() -> str:
    return os.environ.get("CODEX_HOME") or os.path.expanduser("~/.codex")


def _codex_sessions(job: Job) -> List[Tuple[str, ...]]:
    """Return where the files of sessions are, [] where `extra` chooses the session.

    An answer-only task has a home of its own, in which no session stays.
    """
    is_chosen = {"resume", "fork"}.intersection(job.task.extra)
    return [(_codex_home(), "*", "*", "*", "*")] * (not is_chosen and not job.task.answer_only)


# With these codex offers no tool but apply_patch, and adds nothing to the prompt.
_CODEX_ANSWERS = (
    "features={%s}" % ",".join(map("%s=false".__mod__, (
        "apps", "goals", "hooks", "image_generation", "multi_agent", "plugins", "shell_tool",
        "skill_search", "tool_suggest", "view_image"))),
    "skills={include_instructions=false,bundled={enabled=false}}", 'web_search="disabled"',
    "tools={experimental_request_user_input={enabled=false}}", "project_doc_max_bytes=0",
    "include_permissions_instructions=false", "include_environment_context=false", "notify=[]",
    'developer_instructions=""')
_CODEX_SERVER = r"""(?m)^\s*\[?\s*mcp_servers\s*\.\s*("[^"\n]*"|'[^'\n]*'|[\w-]+)"""


def _codex_answers(job: Job) -> Command:
    """Return what makes codex answer only: settings, and a home without the user's instructions.

    An option cannot remove MCP servers, but each can be disabled by its name.
    """
    home, problem = _codex_home(), ""
    settings = ["instructions=" + _toml(job.task.system_prompt or ANSWER_PROMPT), *_CODEX_ANSWERS]
    with contextlib.suppress(OSError), open(os.path.join(home, "config.toml"), "rb") as file:
        text = to_text(file.read())
        servers = re.findall(_CODEX_SERVER, text)
        if servers:
            settings.append("mcp_servers={%s}" % ",".join(
                map("%s={enabled=false}".__mod__, dict.fromkeys(servers))))
        if re.search(r"(?m)^\s*(\[\s*mcp_servers\s*\]|mcp_servers\s*=)", text):
            problem = ("the MCP servers in %s cannot be disabled: write each as a table "
                       "[mcp_servers.NAME]" % file.name)
    paths = {name: os.path.abspath(os.path.join(home, name)) for name in (
        "auth.json", "config.toml")}
    return Command(
        tuple(word for setting in settings for word in ("-c", setting)),
        {"CODEX_HOME": SCRATCH + "/codex"}, problem=problem, apart=True,
        links={"codex/" + name: path for name, path in paths.items() if os.path.exists(path)})


def _codex_schema_problem(schema: Any) -> str:
    """Return a warning if the strict mode of the API refuses the schema, else ""."""
    for path, inner in schemas_in(schema):
        problem = _not_strict(inner)
        if problem and not (inner is False and path[-1:] == ("additionalProperties",)):
            return ("codex takes no schema in which %s %s; it is asked for the schema in the prompt"
                    % (path_text(path) or "the top", problem))
    return ""


def _not_strict(schema: Any) -> str:
    if isinstance(schema, bool):
        return "is %s" % quoted(schema)
    other = next((name for name in schema if name not in _CODEX_KEYWORDS), "")
    if other:
        return "has %s" % other
    if not {"type", "$ref", "anyOf"}.intersection(schema):
        return "has no type"
    if "object" in schema.get("type", ()):
        if schema.get("additionalProperties") is not False:
            return 'has no "additionalProperties": false'
        optional = set(schema.get("properties", ())).difference(schema.get("required", ()))
        if optional:
            return "does not require %s" % quoted(min(optional))
    return ""


def _codex_command(job: Job) -> Command:
    task, sandbox = job.task, sandbox_of(job)
    answers = _codex_answers(job) if task.answer_only else Command(())
    argv = ["codex", "exec", "--json", "--skip-git-repo-check"]
    if not job.keep:
        argv.append("--ephemeral")
    if sandbox == "default" and task.approval_mode == "always":
        sandbox = "read-only"
    argv += ["--color", "never", *_CODEX_SANDBOX.get(sandbox, ()), *_options(("-m", task.model))]
    if task.effort:
        argv += ["-c", "model_reasoning_effort=" + task.effort]
    if task.system_prompt and not task.answer_only:
        argv += ["-c", "developer_instructions=" + _toml(task.system_prompt)]
    files = {}
    if task.schema and not _codex_schema_problem(task.schema):
        argv += ["--output-schema", "%s/%s" % (SCRATCH, SCHEMA_FILE)]
        files[SCHEMA_FILE] = schema_text(task)
    resume = _options(("resume", job.resume))  # some options are refused after it
    return answers._replace(argv=(*argv, *answers.argv, *task.extra, *resume, "-"), files=files)


def _codex_saying(line: bytes) -> _Saying:
    event = _mapping(_parsed(line)) if b'"agent_message"' in line else {}
    item = _mapping(event.get("item"))
    is_text = event.get("type") == "item.completed" and item.get("type") == "agent_message"
    return _string(item.get("text")) if is_text else "", True


def _codex_doing(line: bytes) -> _Doing:
    """Tell of an item or a retry; the only tokens are those at the end of the turn."""
    event = _mapping(_parsed(line))
    item, usage = _mapping(event.get("item")), _mapping(event.get("usage"))
    if event.get("type") == "error":
        return "", _string(event.get("message")), 0
    kind = _string(item.get("type"))
    action = _CODEX_DOES.get(kind) or _string(item.get("text"))
    if kind not in _CODEX_THOUGHTS:
        command = re.sub(r"(?s)\S*sh -l?c (['\"]?)(.*)\1", r"\2", _string(item.get("command")))
        path = value_at(item, ("changes", 0, "path"))
        action = _tool_text(item.get("tool") or kind, dict(item, command=command, path=path))
    return "", action, _count(usage.get("input_tokens")) + _count(usage.get("output_tokens"))


def _read_codex(stdout: Capture, stderr: str, exit_code: int) -> Reply:
    """Read JSON Lines.  Only `turn.failed` and the exit code are final: errors can be progress."""
    answer, session, failed, progress, ignored = "", "", "", "", ""
    usage, warnings = {}, []  # type: Dict[str, Any], List[str]
    completed = blank = acted = False
    for event in stdout.events(b'"thread.started"', b'"agent_message"', b'"error"', b'"turn.',
                               b'"item.started"', answer=_CODEX_ANSWER):
        kind, item = event.get("type"), _mapping(event.get("item"))
        acted = acted or kind == "item.started" and item.get("type") not in _CODEX_THOUGHTS
        stdout.complete = kind == "turn.completed"
        if kind == "thread.started":
            session = _string(event.get("thread_id"))
        elif kind == "item.completed" and item.get("type") == "agent_message":
            text, progress = _string(item.get("text")), ""
            blank = not text.strip()
            if not blank:
                answer = text
                stdout.spare_damaged()
        elif kind == "item.completed" and item.get("type") == "error":
            message = _string(item.get("message"))
            warnings.append(one_line(message))
            unknown = (name for name in _CODEX_SETTINGS if "session-flags: `" + name in message)
            ignored = ignored or next(unknown, "")
        elif kind == "turn.completed":
            completed, usage = True, _mapping(event.get("usage"))
        elif kind == "turn.failed":
            message = _string(_mapping(event.get("error")).get("message"))
            failed = message or "codex: the turn failed"
        elif kind == "error":
            progress = _string(event.get("message"))
    del warnings[20:]
    if blank and answer:
        warnings.append(_BLANK_END % "codex")
    names = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_output_tokens",
             "cache_write_input_tokens")
    reply = Reply(answer, session_id=session, warnings=tuple(warnings),
                  usage=_usage(*(_count(usage.get(name)) for name in names)),
                  waiting="" if completed else progress, usage_is_cumulative=True, acted=acted)
    if ignored:
        ignored = "codex does not know the setting " + ignored
        return _failed(reply, UNKEPT % ignored, "permission")
    if completed and not failed and not exit_code:
        return reply
    bad_exit = completed and _BAD_EXIT % ("codex", exit_code)
    error = (failed or progress or _reason(stderr) or bad_exit
             or "codex ended before its turn was complete")
    # The error of a bad request is the JSON that the API sent.
    inner = _mapping(_mapping(_parsed(to_bytes(error))).get("error")).get("message")
    return _failed(reply, _string(inner) or error, source=error)


# - gemini -

_GEMINI_DENIAL = """[[rule]]
toolName = "*"
decision = "deny"
priority = 997
"""
_GEMINI_POLICY = _GEMINI_DENIAL + """[[rule]]
toolName = ["list_directory","read_file","read_many_files","grep_search","search_file_content",\
"glob","google_web_search"]
decision = "allow"
priority = 998
"""
# What an answer-only task keeps of the user's ~/.gemini: how to log in, not what to add or run.
_GEMINI_SETTINGS = ("security", "general", "privacy", "telemetry", "billing", "model",
                    "modelConfigs")
_COMMENT = rb'(?s)("(?:[^"\\]|\\.?)*"?)|//[^\n]*|/\*.*?(?:\*/|\Z)'  # or a string, without any
_GEMINI_LOGIN = ("oauth_creds.json", "google_accounts.json", "gemini-credentials.json", ".env")
_UNCONFINED = {("workspace", "none"): "without approval nothing would keep it in the workspace: "
               'use approval_mode "auto", or sandbox_mode "full"'}
_GEMINI_ANSWER = (r'"role"\s*:\s*"assistant"|"type"\s*:\s*"tool_use"'
                  r'|"type"\s*:\s*"message"(?![^{}]*"role"\s*:\s*"user")|' + _CUT_TYPE)
# Other exit codes are an HTTP status modulo 256.
_GEMINI_EXIT_KINDS = {41: "auth", 42: "invalid", 44: "backend", 52: "invalid", 53: "max_turns",
                      55: "permission"}


def _gemini_policy(writes: bool, inside: str) -> str:
    """Return a policy under which gemini only reads, or also `writes` in the directory `inside`.

    What settings allow would hold in every mode, and they could make more directories a workspace.
    """
    def rule(decision: str, priority: int, pattern: str) -> str:
        return ('[[rule]]\ntoolName = ["write_file","replace"]\ndecision = "%s"\npriority = %d\n'
                "argsPattern = %s\n" % (decision, priority, _toml('"file_path":"' + pattern)))

    if not writes or deleted_directory(inside):  # where no task can start
        return _GEMINI_POLICY
    ways = sorted({absolute(inside), os.path.realpath(inside)})
    if "/" in ways:
        return _GEMINI_POLICY + rule("allow", 998, "")
    here = "|".join(re.escape(dumps(way).decode("utf-8")[2:-1]).replace("/", "\\/") for way in ways)
    # gemini drops a rule whose pattern has a repetition in a repetition, so a name with a backslash
    # is outside, too.  It drops a rule of more than 2,048 characters: then both of these.
    outside = r'\/(?!(%s)\/)|[^"]*\.\.(\/|")|[^"]*\\' % here
    rules = rule("allow", 998, "(?!%s)" % outside) + rule("deny", 999, "(%s)" % outside)
    return _GEMINI_POLICY + rules


def _gemini_unkept(task: Task) -> str:
    """Return why gemini could not be held to a policy here; "" if it can."""
    try:
        where, here = os.path.abspath(temporary_directory()), os.path.abspath(task.workdir)
    except OSError as error:
        return "the working directory: %s" % error.strerror
    if "," in where:
        return ("gemini cuts the name of its policy at the comma of TMPDIR, %s: set TMPDIR to "
                "another directory" % quoted(where))
    for path in (where, here, os.path.realpath(here)):
        if path != to_bytes(path).decode("utf-8", "replace"):
            return "gemini cannot find %s: the name is not valid UTF-8" % quoted(path)
    return ""


def _gemini_home() -> str:
    home = os.environ.get("GEMINI_CLI_HOME") or os.path.expanduser("~")
    return os.path.join(home, ".gemini")


def _gemini_sees_more(job: Job) -> bool:
    """Return whether directories besides that of the task can be part of gemini's workspace."""
    if any(word.startswith("--include") for word in _gemini_command(job).argv):
        return True
    if job.task.answer_only:
        return False
    settings = os.path.join(_gemini_home(), "settings.json")
    with contextlib.suppress(OSError), open(settings, "rb") as file:
        return b"includeDirectories" in file.read()
    return False


def _gemini_text(job: Job) -> str:
    """Return the prompt; a literal one with a backslash before each `@` that could lead elsewhere.

    gemini takes files from its workspace, and also from where it keeps its conversations.  A name
    without a slash, also that of a symbolic link, does not lead there; a quoted or escaped one can.
    """
    text = _prompt_without_command(job)
    if not job.literal or "@" not in text:
        return text
    sees_more = _gemini_sees_more(job)
    if job.task.answer_only and not sees_more:  # there is no file in its directory
        return text
    could_lead_elsewhere = re.compile("" if sees_more else r'[/\\"]').search

    def escaped(match: Match[str]) -> str:
        word = match.group()
        return re.sub(r"(?<!\\)@", r"\\@", word) if could_lead_elsewhere(word) else word

    return re.sub(r"(?<!\\)@[^ \t\n\r,;!?()\[\]{}]+", escaped, text)


def _gemini_answers(job: Job) -> Command:
    """Return what makes gemini answer only: a home without what the user added to it.

    Whatever the settings are, it adds GEMINI.md of its home and of its directory to the prompt.
    """
    home, settings, problem = _gemini_home(), {}, ""  # type: str, Any, str
    try:
        with open(os.path.join(home, "settings.json"), "rb") as file:
            settings = loads(re.sub(_COMMENT, rb"\1", file.read()))
        problem = "" if isinstance(settings, dict) else "it is no object"
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RecursionError) as error:
        problem = getattr(error, "strerror", "") or str(error)
    if problem:
        settings = {}
        problem = "the settings in %s/settings.json cannot be read: %s" % (home, problem)
    kept = {name: settings[name] for name in _GEMINI_SETTINGS if name in settings}
    kept["tools"] = {"useRipgrep": False}  # which it would fetch
    paths = {name: os.path.abspath(os.path.join(home, name)) for name in _GEMINI_LOGIN}
    return Command(
        ("--approval-mode", "default", "--policy", SCRATCH + "/policy.toml",
         "-e", "none", "--allowed-mcp-server-names", "none"),
        {"GEMINI_CLI_HOME": SCRATCH}, apart=True,
        problem=problem or _gemini_unkept(job.task),
        files={"policy.toml": _GEMINI_DENIAL, ".gemini/settings.json": dumps(kept).decode("utf-8")},
        links={".gemini/" + name: path for name, path in paths.items() if os.path.exists(path)})


def _gemini_command(job: Job) -> Command:
    task, command = job.task, Command(())
    if task.answer_only:
        command = _gemini_answers(job)
    elif task.sandbox_mode in ("read-only", "workspace"):
        writes = task.sandbox_mode == "workspace" and task.approval_mode == "auto"
        command = Command(
            ("--approval-mode", "auto_edit" if writes else "default",
             "--policy", SCRATCH + "/policy.toml"), problem=_gemini_unkept(task),
            files={"policy.toml": _gemini_policy(writes, task.workdir)})
    elif task.approval_mode != "default":
        modes = {"auto": "auto_edit", "none": "yolo", "always": "default"}
        is_everywhere = task.sandbox_mode == "full" and task.approval_mode in ("auto", "none")
        command = Command(("--approval-mode", modes[task.approval_mode],
                           *_options(("--include-directories", "/" * is_everywhere))))
    # the process that relaunches ignores signals
    environment = dict(command.environment, GEMINI_CLI_NO_RELAUNCH="1")
    files, system = command.files, task.system_prompt or ANSWER_PROMPT * task.answer_only
    if system:
        files = {**files, "system.md": system}
        environment["GEMINI_SYSTEM_MD"] = SCRATCH + "/system.md"
    options = _options(("-m", task.model), ("--resume", job.resume))
    return command._replace(
        argv=("gemini", "--skip-trust", "-o", "stream-json", *command.argv, *options, *task.extra),
        environment=environment, files=files)


def _gemini_saying(line: bytes) -> _Saying:
    event = _mapping(_parsed(line)) if b'"assistant"' in line or b'"tool_use"' in line else {}
    if event.get("type") == "message" and event.get("role") == "assistant":
        return _string(event.get("content")), False
    return "", event.get("type") == "tool_use"


def _gemini_doing(line: bytes) -> _Doing:
    """Tell of a tool, or that a text comes: a piece of the text could hold half a secret."""
    event = _mapping(_parsed(line))
    kind, stats, action = event.get("type"), _mapping(event.get("stats")), ""
    if kind == "message" and event.get("role") == "assistant":
        action = "answering"
    elif kind == "tool_use":
        action = _tool_text(event.get("tool_name"), event.get("parameters"))
    return "", action, _count(stats.get("total_tokens"))


def _read_gemini(stdout: Capture, stderr: str, exit_code: int) -> Reply:
    """Read a line for each event, the last of them the result.

    Exit code 0 is not success: a stream that was cut off ends so, and only the events show it.
    """
    session, model, problem, before = "", "", "", ""
    tools_came = acted = False  # the answer is the text after the last tool
    text, warnings, result = [], [], {}  # type: List[str], List[str], Dict[str, Any]
    for event in stdout.events(b'"init"', b'"assistant"', b'"tool_use"', b'"error"', b'"result"',
                               answer=_GEMINI_ANSWER):
        kind = event.get("type")
        stdout.complete = kind == "result"
        if kind == "init":
            session, model = _string(event.get("session_id")), _string(event.get("model"))
        elif kind == "message" and event.get("role") == "assistant":
            if tools_came:
                before = "".join(text) if any(map(str.strip, text)) else before
                text.clear()
                tools_came = False
                stdout.spare_damaged()
            text.append(_string(event.get("content")))
        elif kind == "tool_use":
            tools_came = acted = True
        elif kind == "error":
            problem = _string(event.get("message"))
            warnings.append(one_line(problem))
        elif kind == "result":
            result = event
    del warnings[20:]
    output = "".join(text)
    if before and not output.strip():
        output = before
        warnings.append(_BLANK_END % "gemini")
    stats = _mapping(result.get("stats"))
    total_input, stated = _count(stats.get("input_tokens")), _count(stats.get("output_tokens"))
    # The output that gemini states excludes the thoughts.
    thoughts = max(0, _count(stats.get("total_tokens")) - total_input - stated)
    reply = Reply(
        output, warnings=tuple(warnings), acted=acted,
        model=_busiest(_mapping(stats.get("models")), "total_tokens") or model,
        usage=_usage(total_input, _count(stats.get("cached")), stated + thoughts, thoughts))
    if result.get("status") == "success" and not exit_code:
        return reply._replace(session_id=session)
    end = result or _last_object(stderr)
    error = _mapping(end.get("error"))
    reply = reply._replace(session_id=session or _string(end.get("session_id")))
    if result or error:
        bad_exit = result.get("status") == "success" and _BAD_EXIT % ("gemini", exit_code)
        problem = problem or _reason(stderr) or bad_exit or "gemini failed"
        reply = _gemini_failed(reply, error, problem, exit_code)
    else:
        attempts = [line for line in stderr.splitlines() if line.startswith("Attempt ")]
        if not (text or tools_came):
            reply = reply._replace(waiting="".join(attempts[-1:]))
        reply = _no_result(reply, "gemini", stdout, stderr, exit_code)
        reply = reply._replace(error_kind=_GEMINI_EXIT_KINDS.get(exit_code) or reply.error_kind)
    return _with_login_advice(reply, stderr)


def _gemini_failed(reply: Reply, error: Dict[str, Any], reason: str, exit_code: int) -> Reply:
    """Return the reply of a run that failed with this error object, or for another reason."""
    whole = _string(error.get("message")) or reason
    # gemini adds its own advice on quotas to each status 429
    message = whole.partition("\nPlease wait and try again later.")[0]
    # The message can contain the JSON that the API sent.
    block = _parsed(to_bytes(message[message.find("{"):message.rfind("}") + 1]))
    inner = _mapping(_mapping(block).get("error"))
    message = _string(inner.get("message")) or message
    by_exit = (status for status in _KIND_BY_STATUS if status % 256 == exit_code)
    status = inner.get("code") or next(by_exit, None) or error.get("code")
    kind = _GEMINI_EXIT_KINDS.get(exit_code) or error_kind(message, status)
    if not error:
        reply = reply._replace(warnings=())
    return _failed(reply, message, kind, source=whole)


def _with_login_advice(reply: Reply, stderr: str) -> Reply:
    """Return the reply of a failed run with advice if the login of a personal account failed."""
    refusal = r"(?i)no longer supported for\s+gemini code assist"
    if not re.search(refusal, reply.error + "\n" + stderr):
        return reply
    advice = ("gemini does not accept the login of a personal account any more, "
              "use an API key (GEMINI_API_KEY): ")
    return reply._replace(error=advice + reply.error, error_kind="auth", retry_after_seconds=None)


def _last_object(stderr: str) -> Dict[str, Any]:
    """Return the JSON object with an error that ends the text; {} if there is none."""
    starts = [match.start() for match in re.finditer(r"^\{", stderr, re.M)]
    for start in reversed(starts[-20:]):
        block = _mapping(_parsed(to_bytes(stderr[start:])))
        if "error" in block:
            return block
    return {}


def _gemini_leftovers(job: Job, reply: Reply) -> List[str]:
    """Return the records of the conversation, which gemini has no option to prevent."""
    import glob
    session = reply.session_id
    if job.keep or not re.fullmatch(SESSION_ID, session) or _has_option(
            job, ("--resume", "-r", "--session-id", "--session-file")):
        return []
    base = glob.escape(os.path.join(_gemini_home(), "tmp"))
    chats = glob.glob("%s/*/chats/session-*%s*" % (base, session[:8]))
    own = [path for path in chats if _is_record_of(path, session)]
    return own + glob.glob("%s/*/*/*%s*" % (base, session))


def _is_record_of(path: str, session: str) -> bool:
    """Return whether a record names this session, or none because another run has cut it."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        names = re.findall(rb'"sessionId": ?"([^"]*)"', file.read(CHUNK))
        return not names or session.encode() in names
    return False


# - commands of the user's own -

_USAGE_NAMES = {  # in the order of the parameters of _usage
    "input": ("input_tokens", "prompt_tokens", "prompt_eval_count", "input", "promptTokenCount"),
    "cached": ("cached_input_tokens", "cache_read_input_tokens", "cached_tokens", "cached",
               "cachedContentTokenCount"),
    "output": ("output_tokens", "completion_tokens", "eval_count", "output",
               "candidatesTokenCount"),
    "reasoning": ("reasoning_output_tokens", "reasoning_tokens", "thinking_tokens", "reasoning",
                  "thoughtsTokenCount"),
    "written": ("cache_write_input_tokens", "cache_creation_input_tokens", "cache_write_tokens"),
}
MAX_ARGUMENT_BYTES = (1 << 17) - 1  # the limit of Linux
_NO_SANDBOX = 'clinvk cannot keep this program in sandbox_mode "%s"; only "full" is possible'
_NO_APPROVAL = 'clinvk cannot give this program the approval_mode "%s"; only "none" is possible'
_CUSTOM_REFUSALS = dict(
    [((sandbox, approval), _NO_SANDBOX % sandbox)
     for sandbox in ("read-only", "workspace") for approval in APPROVAL_MODES]
    + [((sandbox, approval), _NO_APPROVAL % approval)
       for sandbox in ("default", "full") for approval in ("auto", "always")])


# aider runs what follows "!".
_agent_text = functools.partial(_prompt_without_command, signs=("/", "!"))


def _custom_command(definition: Definition, job: Job) -> Command:
    """Return the command; an argument without a value is left out, as is the option before it."""
    task, prompt = job.task, (_agent_text if definition.agent else _plain_prompt)(job)
    values = {name: str(getattr(task, name, "") or "") for name in PLACEHOLDERS}
    values["workdir"] = task.workdir and absolute(task.workdir)  # the program runs in it
    schema, schema_file = schema_text(task), "%s/%s" % (SCRATCH, SCHEMA_FILE)
    values.update(prompt=prompt, prompt_file=SCRATCH + "/prompt", schema=schema,
                  schema_file=schema_file if schema else "")
    argv: List[str] = []
    option_is_last = False
    elements = definition.argv + (task.answer_only and definition.answer_only or ())
    for element in elements:
        names = placeholders(element)
        if not all(values[name] for name in names):
            if option_is_last and not element.startswith("-"):
                argv.pop()
            option_is_last = False
            continue
        word = "".join(fill(element, lambda braces: values.get(
            braces[1:-1], braces[1:-1] if re.fullmatch(r"{{[a-z_]+}}", braces) else None)))
        is_option = element.startswith("-")
        if word.startswith("-") and not is_option:
            word = " " + word  # a value from the task is not an option
        argv.append(word)
        option_is_last = not names and len(element) > 1 and is_option and element != "--"
    if "/" in argv[0]:
        argv[0] = absolute(argv[0])  # relative to the directory of clinvk, not to the workdir
    used = {name for element in elements for name in placeholders(element)}
    files = {"prompt": prompt} if "prompt_file" in used else {}
    if schema and "schema_file" in used:
        files[SCHEMA_FILE] = schema
    return Command(tuple(argv) + task.extra, files=files,
                   by_stdin=used.isdisjoint(("prompt_file", "prompt")))


def _read_custom(definition: Definition, stdout: Capture, stderr: str, exit_code: int) -> Reply:
    """Read the answer, and find an error by the texts of the definition.

    In a run that failed such a text may be anywhere; otherwise it is an error only where it begins
    a line of the last paragraph.
    """
    reply = _read_text(stdout, stderr, exit_code)
    if definition.output != "text":
        reply = _read_paths(definition, stdout, stderr, exit_code)
    reply = reply._replace(acted=definition.agent)  # nobody knows which tools ran
    output = stdout.tail() if reply.output is None else reply.output[-CHUNK:]
    ends = [text.rstrip().rpartition("\n\n")[2] for text in (output, stderr)]
    for text, kind in definition.errors:
        if reply.error and any(text in said for said in (reply.error, output, stderr)):
            return reply._replace(error_kind=kind)
        for end in ends:
            start = ("\n" + end).rfind("\n" + text)
            if start >= 0 and not reply.error:
                return _failed(reply, end[start:], kind)
    return reply


def _read_paths(definition: Definition, stdout: Capture, stderr: str, exit_code: int) -> Reply:
    """Read what is at the paths of the definition, in JSON Lines the last value that is there."""
    if definition.output == "json" and len(stdout) > MAX_LINE_BYTES:
        return _failed(Reply(), "it printed {:,} bytes; an answer may have {:,}".format(
            len(stdout), MAX_LINE_BYTES), "backend")
    answers: List[str] = []
    paths = {name: getattr(definition, name)
             for name in ("error", "session_id", "usage", "structured")}
    paths["ok"] = definition.ok and definition.ok[0]
    kinds: Dict[str, Type[Any]] = {"session_id": str, "usage": dict}
    stated: Dict[str, Any] = dict.fromkeys(paths)
    some = blank = False
    keys = "|".join(re.escape(key) for key in definition.answer if isinstance(key, str))
    pattern = r'"(?:%s)"\s*:' % keys if keys else r'\[\s*["{\[]'
    lines = [stdout.read()] if definition.output == "json" else stdout.lines()
    for value in (value for line in lines for value in stdout.values(line, pattern, bool)):
        some = True
        answer = value_at(value, definition.answer)
        if answer is not None:
            text = as_text(answer)
            blank = not definition.join and not text.strip()
            if not (definition.join or blank):
                answers.clear()
                stdout.spare_damaged()
            if not (blank and answers):
                answers.append(text)
        for name, path in paths.items():
            item = value_at(value, path) if path else None
            if isinstance(item, kinds.get(name, object)) and (
                    item or item is not None and name in ("ok", "structured")):
                stated[name] = item
    error, usage = stated["error"], stated["usage"] or {}
    counts = (next(filter(None, (_count(usage.get(name)) for name in names)), 0)
              for names in _USAGE_NAMES.values())
    reply = Reply("".join(answers), session_id=stated["session_id"] or "",
                  usage=_usage(*counts), structured=stated["structured"])
    if blank and (reply.output or "").strip():
        reply = reply._replace(warnings=(_BLANK_END % "it",))
    if error or exit_code:
        message = _string(_mapping(error).get("message")) or error and as_text(error)
        return _failed(reply, message or _exit_reason(stderr, exit_code))
    if not some:
        return _failed(Reply(output=None), "what it printed is not JSON", "backend")
    state = dumps(stated["ok"]).decode("utf-8")
    if definition.ok and state != definition.ok[1]:
        place = path_text(definition.ok[0])
        return _failed(reply, "expected %s at %s, got %s" % (
            definition.ok[1], place if place.startswith("[") else "." + place,
            one_line(state)[:200]), "backend")
    return reply


@functools.lru_cache(maxsize=100)
def custom_backend(name: str, definition: Definition) -> Backend:
    """Return the row of a command that the user defined."""
    def saying(line: bytes) -> _Saying:
        event = _parsed(line) if definition.output == "jsonl" else None
        return _string(value_at(event, definition.answer)), not definition.join

    def is_over(stdout: int) -> bool:
        path, value = definition.done or ((), "")
        return _has_last_event(
            stdout, lambda event: dumps(value_at(event, path)).decode("utf-8") == value)

    names = {name for element in definition.argv for name in placeholders(element)} | {"extra"}
    if definition.answer_only is not None:
        names.add("answer_only")
    with_prompt = tuple(word for word in definition.argv if "prompt" in placeholders(word))
    others = max((len(to_bytes(word.replace("{prompt}", ""))) for word in with_prompt), default=0)
    return Backend(name, functools.partial(_custom_command, definition),
                   functools.partial(_read_custom, definition), frozenset(names),
                   _CUSTOM_REFUSALS, definition.stop_signal,
                   max_prompt=MAX_ARGUMENT_BYTES - others if with_prompt else 0,
                   prompt_arguments=with_prompt and tuple(
                       word for word in definition.argv if word in ("--", *with_prompt)),
                   saying=None if definition.output == "text" else saying,
                   text=_agent_text if definition.agent else _plain_prompt,
                   is_over=is_over if definition.done else None, is_agent=definition.agent,
                   needs_model=definition.needs_model,
                   takes_schema=not names.isdisjoint(("schema", "schema_file")),
                   states_data=bool(definition.structured))


# - the rows -

def _exit_reason(stderr: str, exit_code: int) -> str:
    stderr = re.sub(r"\x1b\[[0-9;]*m", "", stderr)  # colors, which opencode never leaves out
    return _reason(stderr) or last_words(stderr) or "exit status %d" % exit_code


def _read_text(stdout: Capture, stderr: str, exit_code: int) -> Reply:
    """Take all of stdout as the answer, and the exit code as the verdict."""
    reply = Reply(output=None)
    return _failed(reply, _exit_reason(stderr, exit_code)) if exit_code else reply


BACKENDS = {backend.name: backend for backend in (
    Backend("claude", _claude_command, _read_claude, frozenset(OPTIONAL_FIELDS), _UNCONFINED,
            max_prompt=10 * 1000 * 1000, ours=("--output-format",), resuming=("workdir",),
            install="npm install -g @anthropic-ai/claude-code",
            saying=_claude_saying, doing=_claude_doing, text=_prompt_without_command,
            is_over=_claude_is_over, states_cost=True, is_agent=True, takes_schema=True,
            states_data=True, sessions=_claude_sessions),
    Backend("codex", _codex_command, _read_codex,
            frozenset(("model", "effort", "answer_only", "system_prompt", "extra")),
            _CODEX_REFUSALS, stop_signal="SIGINT", max_prompt=1 << 20, max_prompt_unit="characters",
            install="npm install -g @openai/codex", cautions=(("resume", CODEX_COUNTS),),
            resuming=("workdir",), saying=_codex_saying, doing=_codex_doing,
            takes_schema=True, schema_problem=_codex_schema_problem,
            helpers=("git", "git-remote-http"),  # these look for plugins as long as they may
            is_over=_ends_by("turn.completed", "turn.failed"),
            is_agent=True, sessions=_codex_sessions),
    Backend("gemini", _gemini_command, _read_gemini,
            frozenset(("model", "answer_only", "system_prompt", "extra")),
            _UNCONFINED, max_prompt=8 << 20, leftovers=_gemini_leftovers,
            install="npm install -g @google/gemini-cli",
            ours=("-o", "--output-format", "--outputFormat"),
            resuming=("system_prompt",), saying=_gemini_saying, doing=_gemini_doing,
            rejection=b"Policy file error in policy.toml", text=_gemini_text,
            is_over=_ends_by("result"), is_agent=True),
    # For trying and testing pipelines without an AI program: a process that answers its prompt.
    Backend("echo", lambda job: Command(("cat",)), _read_text, frozenset(("answer_only",)),
            takes_schema=True),
)}
BUILT_IN.extend(BACKENDS)
# Programs that were driven with these options, and the version of each whose answers and errors
# were read.  ollama is a filter by its documentation.  None promises a sandbox.
KNOWN_VERSIONS = {"aider": "0.86.2", "copilot": "1.0.102", "llm": "0.36", "ollama": "",
                  "opencode": "1.18.33", "qwen": "0.24.4"}
KNOWN.update({
    "aider": Definition(
        ("aider", "--message-file", "{prompt_file}", "--model", "{model}", "--no-pretty",
         "--no-stream", "--no-check-update", "--no-show-release-notes", "--no-gitignore",
         "--no-show-model-warnings", "--no-detect-urls", "--no-suggest-shell-commands",
         "--chat-history-file", "/dev/null", "--input-history-file", "/dev/null"), agent=True,
        errors=(("litellm.AuthenticationError", "auth"), ("litellm.RateLimitError", "rate_limit"),
                ("litellm.ContextWindowExceededError", "context_length"),
                ("litellm.BadRequestError", "invalid"), ("litellm.NotFoundError", "invalid"),
                ("litellm.APIConnectionError", "network"), ("litellm.Timeout", "network"),
                ("litellm.ServiceUnavailableError", "overloaded"), ("litellm.", "backend"))),
    "copilot": Definition(
        ("copilot", "--silent", "--model", "{model}"), agent=True,
        errors=(("No authentication information found", "auth"),)),
    "llm": Definition(
        ("llm", "prompt", "--no-log", "-m", "{model}", "-s", "{system_prompt}"), answer_only=(),
        errors=(("Error: 'Unknown model", "invalid"),)),
    "ollama": Definition(("ollama", "run", "{model}"), needs_model=True),
    "opencode": Definition(
        ("opencode", "run", "--format", "json", "-m", "{model}"), "jsonl", ("part", "text"),
        ("error", "data", "message"), ("sessionID",), agent=True,
        done=(("part", "reason"), '"stop"'), errors=(("Session not found", "invalid"),)),
    "qwen": Definition(
        ("qwen", "-o", "stream-json", "-m", "{model}", "--append-system-prompt", "{system_prompt}",
         "--max-session-turns", "{max_turns}", "--json-schema", "{schema}"), "jsonl", ("result",),
        ("error", "message"), ("session_id",), ("usage",), structured=("structured_result",),
        ok=(("is_error",), "false"), done=(("type",), '"result"'), agent=True,
        errors=(("No saved session found", "invalid"), ("No auth type is selected", "auth"),
                ("Model produced plain text instead of calling", "schema"))),
})
# These make a program believe that it runs inside another agent's session, and refuse to start.
NESTING_VARIABLES = ("CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT", "CLAUDE_CODE_SESSION_ACCESS_TOKEN")


def backend_of(job: Job) -> Backend:
    """Return the row of the job's backend."""
    name = job.task.backend
    if job.definition is None and name in BACKENDS:
        return BACKENDS[name]
    return custom_backend(name, job.definition or KNOWN[name])


def command_of(job: Job) -> Command:
    """Return the command of a job, behind the words in which it is wrapped."""
    command = backend_of(job).command(job)
    if not job.wrap:
        return command
    workdir = HERE if command.apart else absolute(job.task.workdir or ".")
    values = {"{workdir}": workdir, "{scratch}": SCRATCH, "{task}": str(job.index)}
    words = ("".join(fill(word, values.get)) for word in job.wrap)
    return command._replace(argv=(*words, *command.argv))


def command_line(job: Job) -> str:
    """Return a line for bash or zsh that runs the job, with variables in place of secrets."""
    def word(text: str) -> str:
        parts = (itertools.starmap(shown, secret_pieces(part)) for part in text.split(SCRATCH))
        return '"$d"'.join(map("".join, parts)) or "''"

    def shown(piece: str, name: str) -> str:
        if not name:
            return shell_quoted(piece) if piece else ""
        is_value = name.isidentifier() and os.environ.get(name) == piece
        return '"$%s"' % name if is_value else shell_quoted("[%s]" % name)

    backend = backend_of(job)
    command, workdir = command_of(job), job.task.workdir
    nesting = [("-u", name) for name in NESTING_VARIABLES if name in os.environ]
    preset = {name: value for name, value in command.preset.items() if name not in os.environ}
    environment = dict(preset, **command.environment, NO_COLOR="1")
    words = ["env", *_options(*nesting)]
    words += ["%s=%s" % (name, word(value)) for name, value in sorted(environment.items())]
    words += map(word, command.argv)
    words.append("<<< " + word(backend.text(job)) if command.by_stdin else "< /dev/null")
    line = " ".join(words)
    if workdir or command.apart:
        line = "cd -- %s && %s" % (word(HERE if command.apart else workdir), line)
    if command.apart or command.files or SCRATCH in "".join(command.argv):
        puts = ["mkdir " + word(SCRATCH + "/" + name) for name in directories_of(command)]
        puts += ["ln -s %s %s" % (word(target), word(SCRATCH + "/" + name))
                 for name, target in sorted(command.links.items())]
        puts += ['printf %%s %s > "$d"/%s' % (word(text), name)
                 for name, text in sorted(command.files.items())]
        return '(d=$(mktemp -d) && %s; s=$?; rm -r "$d"; exit $s)' % " && ".join([*puts, line])
    return "(%s)" % line if workdir else line


def directories_of(command: Command) -> List[str]:
    """Return the directories in SCRATCH that the files, the links and HERE need."""
    names = {os.path.dirname(name) for name in (*command.files, *command.links)}
    return sorted(filter(None, names | {"here"} if command.apart else names))


# --- 7. Input ----------------------------------------------------------------

# The fields of the defaults in a batch, of a run and of a batch, with their checks.
DEFAULTS_FIELDS = {name: check for name, check in TASK_FIELDS.items()
                   if name not in ("prompt", "id", "name")}
RUN_FIELDS: Dict[str, _Check] = {
    "max_parallel": _jobs, "fail_fast": _truth, "output_dir": _path, "limits": _limits,
    **POLICY_FIELDS}

_TASK_HINTS = {name: "; it is for one task: put it into the task" + (
    " or into \"defaults\"" if name in DEFAULTS_FIELDS else "") for name in TASK_FIELDS}
# What to do instead of giving a field that a task, the defaults or a batch do not have.
FIELD_HINTS = {
    "files": "; name the files in the prompt, and their directory in \"workdir\"",
    "results": "; give the option --results", "resume": "; give the option --resume", **_TASK_HINTS,
    **dict.fromkeys(RUN_FIELDS, "; it is for the whole run: give the option, or the field of a "
                    "batch")}

BATCH_FIELDS: Dict[str, _Check] = {
    "tasks": _of_type(list, "a list of tasks"), "backends": _definitions, **RUN_FIELDS,
    "defaults": functools.partial(_checked, fields=DEFAULTS_FIELDS, what="an object",
                                  hint=FIELD_HINTS.get)}


# The modes that a ceiling can name, each below those that allow more.
_RANKS = {"sandbox_mode": ("read-only", "workspace", "full"),
          "approval_mode": ("always", "auto", "none")}


def parse_ceiling(text: str) -> Dict[str, str]:
    """Return the highest modes that a task may ask for, by field.  Raise ValueError.

    The text is such as `sandbox=workspace,approval=auto`.
    """
    modes: Dict[str, str] = {}
    for part in text.split(","):
        name, _, mode = (word.strip() for word in part.partition("="))
        if name + "_mode" in modes or mode not in _RANKS.get(name + "_mode", ()):
            raise expected("sandbox=MODE (%s), approval=MODE (%s) or both with a comma between"
                           % tuple(map(", ".join, _RANKS.values())), text)
        modes[name + "_mode"] = mode
    return modes


def _under_ceiling(task: Task, ceiling: Dict[str, str], is_text: bool) -> Task:
    """Return the task with modes that the ceiling allows.  Raise InvalidValue if it asks for more.

    The settings of a backend decide what `default` means, so `default` becomes a restricted mode.
    With `is_text` its program has no tools, so the modes have no effect.
    """
    if not ceiling:
        return task
    if task.extra:
        raise InvalidValue("the ceiling lets no task add options of its own", ("extra",))
    if is_text:
        return task
    for field, ranks in _RANKS.items():
        mode, highest = getattr(task, field), ceiling.get(field)
        if highest and mode != "default" and ranks.index(mode) > ranks.index(highest):
            raise InvalidValue("%s is above the ceiling, which is %s"
                               % (quoted(mode), quoted(highest)), (field,))
    if "sandbox_mode" in ceiling and task.sandbox_mode == "default":
        task = task._replace(sandbox_mode="read-only")
    approval = ceiling.get("approval_mode")
    is_contained = task.sandbox_mode == "read-only" or (  # in the workspace codex never asks
        task.sandbox_mode == "workspace" and approval != "always")
    if approval in ("always", "auto") and not is_contained:
        task = task._replace(approval_mode=task.approval_mode.replace("default", "always"))
    return task


def is_inside(path: str, root: str) -> bool:
    """Return whether a path leads into a directory, or to it, after all symbolic links."""
    try:
        real, real_root = os.path.realpath(path), os.path.realpath(root)
        return os.path.commonpath((real, real_root)) == real_root
    except OSError:  # a link that is being replaced
        return False


def outside_of(path: str, *roots: str) -> str:
    """Return, for a message, which of the roots a path leads out of, if any; ignore empty roots."""
    root = next((root for root in roots if root and not is_inside(path, root)), "")
    return "the current directory" if root == "." else root and quoted(root)


# The fields of a task that --matrix can vary.
MATRIX_FIELDS = ("backend", "model", "effort", "sandbox_mode", "system_prompt")
MAX_CELLS = 100


class Cell(NamedTuple):
    """One combination of the values of a matrix: the fields that it sets, and the first sample."""

    fields: Dict[str, Any] = {}
    sample: Sample = Sample(0)


def parse_axis(text: str) -> Tuple[str, Tuple[str, ...]]:
    """Return the field and the values of a text such as `model=opus,sonnet`.  Raise ValueError."""
    field, equals, rest = text.partition("=")
    if not equals:
        raise expected("FIELD=VALUE,... such as model=opus,sonnet", text)
    _one_of(MATRIX_FIELDS, "field")(field)
    values = _words(rest)
    for value in values:
        if not value or values.count(value) > 1:
            problem = "is there twice" if value else "is empty"
            raise ValueError("%s: a value %s: %s" % (field, problem, quoted(rest)))
        if field != "system_prompt":
            TASK_FIELDS[field](value)
        elif value in ("@", "@-") or not value.startswith("@"):
            raise expected("@FILE, a file with a system prompt", value)
    return field, tuple(values)


def cells_of(axes: Sequence[Tuple[str, Tuple[str, ...]]],
             read: Callable[[str], str]) -> Tuple[Cell, ...]:
    """Return the cells of a matrix: all combinations of the values of its fields.

    `read` returns the system prompt in a file.  Raise UserError.
    """
    fields = [field for field, _ in axes]
    for field in fields:
        if fields.count(field) > 1:
            raise UserError("--matrix: %s is given twice; commas separate its values" % field)
    combinations = list(itertools.islice(
        itertools.product(*(values for _, values in axes)), MAX_CELLS + 1))
    if len(combinations) > MAX_CELLS:
        raise UserError("--matrix: more than %d combinations of values" % MAX_CELLS)
    prompts = {value: read(value[1:]) for field, values in axes for value in values
               if field == "system_prompt"}
    slugs = ["-".join(map(plain_name, values)) for values in combinations]
    if len(set(slugs)) < len(slugs):
        slugs = ["cell-%d" % number for number in range(1, len(slugs) + 1)]
    cells = []
    for number, (values, slug) in enumerate(zip(combinations, slugs), 1):
        words = dict(zip(fields, values))
        own = {field: prompts[value] if field == "system_prompt" else value
               for field, value in words.items()}
        cells.append(Cell(own, Sample(0, cell=words, slug=slug, cell_number=number)))
    return tuple(cells)


NO_CELL = Cell()


class TaskPolicy(NamedTuple):
    """The settings for all tasks of a run, and how far its tasks are trusted.

    `overrides` are task fields and `run` are RUN_FIELDS from the command line.  `environment`
    contains CLINVK_BACKEND and CLINVK_*_MODEL.  `definitions` are the user's own commands; with
    `allow_commands` a batch may add some.  No workdir may leave the directory `root`.
    `needs_cost`: each backend has to state the cost of its tasks.  `wrap` and `repair_prompt` are
    those of each Job.
    `template`: the input has items, of which it makes tasks.  `cells` are those of the matrix, each
    of which makes a job of each task.
    """

    overrides: Dict[str, Any] = {}
    environment: Dict[str, str] = {}
    definitions: Dict[str, Definition] = {}
    allow_commands: bool = False
    ceiling: Dict[str, str] = {}
    root: str = ""
    run: Dict[str, Any] = {}
    configuration: Configuration = Configuration()
    needs_cost: bool = False
    wrap: Tuple[str, ...] = ()
    template: Optional[Template] = None
    cells: Tuple[Cell, ...] = (NO_CELL,)
    repair_prompt: str = ""

    def of_run(self, batch: Dict[str, Any]) -> Dict[str, Any]:
        """Return the RUN_FIELDS of a run; `batch` are those that its input sets."""
        file = self.configuration
        settings = {name: file.values.get("parallel." + name)
                    for name in (*POLICY_FIELDS, "fail_fast")}
        built_in = {name: file.get("parallel." + name) for name in POLICY_FIELDS}
        layers = [("command line", dict(self.run)), ("batch", dict(batch)),
                  ("configuration", settings),
                  ("built-in", dict(built_in, max_parallel=file.get("parallel.max_workers")))]
        first = next((layer for _, layer in layers if layer.get("fail_fast") is not None), {})
        if first.get("fail_fast"):  # true is another word for max_failures 1
            first["max_failures"] = first.get("max_failures") or 1
        fields = {name: value for name, (value, _) in merge_layers(layers, RUN_FIELDS).items()}
        limits = {key[len("backends."):-len(".max_parallel")]: value
                  for key, value in file.values.items() if key.endswith(".max_parallel")}
        for layer in (batch, self.run):
            limits.update(layer.get("limits", {}))
        return dict(fields, limits=limits)


def unknown_backend(name: str, definitions: Iterable[str] = ()) -> str:
    """Return the message about a backend that nobody has defined, "" for any other."""
    known = dict.fromkeys([*BACKENDS, *KNOWN, *definitions])
    if name in known:
        return ""
    hint = ""
    if find_program(name)[0]:
        hint = ("; to make this program a backend, define it in CLINVK_BACKENDS or in the "
                "configuration")
    return "unknown backend %s%s; known are %s%s" % (
        quoted(name), nearest(name, known), ", ".join(known), hint)


def _merged(own: Dict[str, Any], defaults: Dict[str, Any], policy: TaskPolicy) -> Task:
    """Return the task of the fields in the input.  Raise InvalidValue.

    The first of these that sets a field counts: the task itself, the command line, the defaults of
    its batch, the environment, the configuration.
    """
    file, variables = policy.configuration, policy.environment
    stated = merge_layers([("task", own), ("command line", policy.overrides), ("batch", defaults),
                           ("environment", {"backend": variables.get("CLINVK_BACKEND")}),
                           ("configuration", {"backend": file.values.get("default_backend")}),
                           ("built-in", {"backend": "claude"})], Task._fields)
    name = str(stated["backend"][0])
    path = ("backend",) * ("backend" in own)
    problem = unknown_backend(name, policy.definitions)
    if problem:
        raise InvalidValue(problem, path)
    enabled = "backends.%s.enabled" % name
    if file.values.get(enabled) is False:
        raise InvalidValue("%s is disabled by %s" % (name, file.origin(enabled)), path)
    configured = file.task_fields(name)
    if stated.get("answer_only", (False,))[0]:
        configured["sandbox_mode"] = None  # what is right for agents
    others = merge_layers([("environment", {"model": variables.get(model_variable(name))}),
                           ("configuration", configured)], Task._fields)
    fields = {field: value for field, (value, _) in {**others, **stated}.items()}
    if policy.overrides.get("dry_run"):  # starts nothing, even if a task has `"dry_run": false`
        fields["dry_run"] = True
    return Task(**dict(fields, backend=name))


def _refused_tree(task: Task) -> str:
    """Return why the changes of a task cannot be seen; "" if they can, or need not."""
    if not judges_changes(task):
        return ""
    if not work_tree(task.workdir):
        return "%s is in no git work tree, which require_change and protect need" % (
            quoted(task.workdir) if task.workdir else "the current directory")
    return "" if find_program("git")[0] else "require_change and protect need git, which is missing"


def _permitted(task: Task, policy: TaskPolicy) -> Job:
    """Return the job of a task that the policy and its backend permit.  Raise InvalidValue."""
    if task.model.startswith("-"):  # the program would take it for an option
        raise InvalidValue("no model begins with -, as %s does" % quoted(task.model), ("model",))
    if task.answer_only and task.sandbox_mode in ("workspace", "full"):
        raise InvalidValue("answer_only allows no tools, so there is no mode %s: leave one out"
                           % quoted(task.sandbox_mode), ("sandbox_mode",))
    job = Job(-1, task, policy.definitions.get(task.backend), wrap=policy.wrap,
              repair_prompt=policy.repair_prompt)
    is_text = answers_only(job)
    task = _under_ceiling(task, policy.ceiling, is_text)
    extra = policy.configuration.extra(task.backend, sandbox_of(job))
    task = task._replace(extra=extra + task.extra) if extra else task
    if policy.root and not is_inside(task.workdir or ".", policy.root):
        where = quoted(task.workdir) if task.workdir else "the current directory"
        raise InvalidValue("%s is outside of %s" % (where, quoted(policy.root)), ("workdir",))
    is_literal = bool(policy.ceiling or policy.root) or task.literal or task.answer_only
    job = job._replace(task=task, literal=is_literal,
                       root=os.path.realpath(policy.root) if policy.root else "")
    backend = backend_of(job)
    modes = (task.sandbox_mode, task.approval_mode)
    refused = not is_text and backend.impossible_modes.get(modes)
    for field, problem in (("sandbox_mode", refused and "%s: %s" % (backend.name, refused)),
                           ("workdir", _refused_tree(task)),
                           ("require_change", task.require_change and sandbox_of(job) == "read-only"
                            and "a task that may change nothing (%s) would always fail: leave one "
                                "out" % ("answer_only" if is_text else "sandbox_mode read-only")),
                           ("extra", refused_extra(backend, task.extra)),
                           ("backend", backend.needs_model and not (task.model or task.extra)
                            and "%s needs a model: give --model, the field model or %s"
                                % (backend.name, model_variable(backend.name))),
                           ("backend", policy.needs_cost and not backend.states_cost
                            and "%s states no cost, so max_cost cannot be kept; "
                                "--allow-unknown-cost runs its tasks all the same" % backend.name),
                           ("prompt", refused_prompt(backend, backend.text(job)))):
        if problem:
            raise InvalidValue(problem, (field,))
    return job


def _job(value: Any, defaults: Dict[str, Any], policy: TaskPolicy, cell: Cell = NO_CELL) -> Job:
    """Return the job of a task in the input, without its index.  Raise InvalidValue."""
    own = _checked(value, TASK_FIELDS, "a task (an object)", FIELD_HINTS.get)
    if "prompt" not in own:
        raise InvalidValue("a task needs a prompt")
    _refuse_commands(policy, own, "check", "a task")
    if cell.fields:
        for field in cell.fields:
            if field in own:
                raise InvalidValue("--matrix varies this field, so no task can set it", (field,))
        policy = policy._replace(overrides={**policy.overrides, **cell.fields})
    task = _merged(own, defaults, policy)
    try:
        return _permitted(task, policy)
    except InvalidValue as error:
        if error.path and error.path[0] not in own:  # from the command line or the defaults
            raise InvalidValue(str(error)) from None
        raise


def _refuse_commands(policy: TaskPolicy, fields: Dict[str, Any], name: str, what: str) -> None:
    """Raise InvalidValue for commands in the input, unless the user allows them."""
    if name in fields and not policy.allow_commands:
        raise InvalidValue("commands that %s defines are only run with --allow-commands" % what,
                           (name,))


def _with_commands(policy: TaskPolicy, fields: Dict[str, Any], what: str) -> TaskPolicy:
    """Return the policy with the commands that a batch or a chain defines.  Raise InvalidValue."""
    _refuse_commands(policy, fields, "backends", what)
    with path_context("defaults"):
        _refuse_commands(policy, fields.get("defaults", {}), "check", what)
    return policy._replace(definitions={**policy.definitions, **fields.get("backends", {})})


def _with_costs(policy: TaskPolicy, run: Dict[str, Any]) -> TaskPolicy:
    """Return the policy for a value of the input that sets these RUN_FIELDS."""
    fields = policy.of_run(run)
    return policy._replace(
        needs_cost=bool(fields["max_cost"]) and not fields["allow_unknown_cost"])


class _Batch(NamedTuple):
    """A JSON value of the input.  `path` leads to the list of its items.

    `first` is the position in the run, from 0, of the first of them.
    """

    items: List[Any]
    policy: TaskPolicy
    path: _Path = ()
    defaults: Dict[str, Any] = {}
    run: Dict[str, Any] = {}  # the RUN_FIELDS
    is_task: bool = False  # the value is the only item
    first: int = 0


def _batch(value: Any, policy: TaskPolicy) -> _Batch:
    """Return a JSON value as a batch whose items are not checked yet.  Raise InvalidValue."""
    if isinstance(value, list):
        return _Batch(value, policy)
    if policy.template:
        return _Batch([value], policy, is_task=True)
    if not isinstance(value, dict) or "tasks" not in value:
        _refuse_no_task(value)
        return _Batch([value], policy, is_task=True)
    fields = _checked(value, BATCH_FIELDS, "a batch", FIELD_HINTS.get)
    if "tasks" not in fields:
        raise expected("a list of tasks", None, ("tasks",))
    run = {name: fields[name] for name in RUN_FIELDS if name in fields}
    if "output_dir" in run and "output_dir" not in policy.run:
        outside = outside_of(run["output_dir"], ".", policy.root)
        if outside:
            raise InvalidValue("%s is outside of %s: only --output-dir can name it"
                               % (quoted(run["output_dir"]), outside), ("output_dir",))
    policy = _with_costs(_with_commands(policy, fields, "a batch"), run)
    for name in run.get("limits", ()):
        problem = unknown_backend(name, policy.definitions)
        if problem:
            raise InvalidValue(problem, ("limits",))
    return _Batch(fields["tasks"], policy, ("tasks",), fields.get("defaults", {}), run)


def _refuse_no_task(value: Any) -> None:
    """Raise InvalidValue for a value that looks like a chain or like a batch without tasks."""
    if isinstance(value, dict) and "prompt" not in value:
        if "steps" in value:
            raise InvalidValue("this is a chain: run it with `clinvk chain`", ("steps",))
        for name in value:
            if name in BATCH_FIELDS and name not in TASK_FIELDS:
                raise InvalidValue("a batch needs a list of tasks")
            if name not in TASK_FIELDS and known_as(name, BATCH_FIELDS):
                raise InvalidValue("unknown field%s" % known_as(name, BATCH_FIELDS), (name,))


# - pieces of the input and their errors -


def _skip(pattern: Any, text: Any, position: int = 0) -> int:
    """Return the end of what a pattern, which may match nothing, matches at a position."""
    match = re.compile(pattern).match(text, position)
    return match.end() if match else position


def _line_of(data: Union[bytes, bytearray], path: _Path) -> int:
    """Return on which line, from 0, of a JSON text the value at `path` is.

    If an object has a key twice, the last counts.  Text behind the value need not be valid.
    """
    text, between, decode = to_text(data), r"[ \t\r\n,:]*", json.JSONDecoder().raw_decode
    target = _skip(between, text)
    with contextlib.suppress(RecursionError, ValueError, IndexError):
        for step in path:
            position, keys = _skip(between, text, target + 1), itertools.count()
            while text[position] not in "]}":
                key: Any = next(keys)
                if isinstance(step, str):
                    key, position = decode(text, position)
                    position = _skip(between, text, position)
                target = position if key == step else target
                position = _skip(between, text, decode(text, position)[1])
    return text.count("\n", 0, target)


MAX_VALUE_BYTES = 256 << 20  # of one JSON value, which is kept in memory until it was checked
LARGE_BYTES = CHUNK  # the elements of an array of more bytes are parsed one by one


class InputPiece(NamedTuple):
    """The bytes of one JSON value of the input, or of something else between values.

    `line` counts from 1.  `problem` says why the piece is not a value.  `value` is the parsed
    value, where known.  `torn`: the input ends inside of it.  `array` is where the content begins
    and ends of its largest array: of the value itself, or of a field.
    """

    line: int
    data: Union[bytes, bytearray]
    problem: str = ""
    value: Any = None
    torn: bool = False
    array: Tuple[int, int] = (0, 0)

    def parsed(self) -> Any:
        """Return the value.  Raise ValueError or RecursionError."""
        if self.problem:
            raise InvalidValue(self.problem)
        return loads_unique(self.data) if self.value is None else self.value

    def without_array(self) -> InputPiece:
        """Return the piece without the elements of its largest array, but with all lines."""
        start, end = self.array
        lines = b"\n" * self.data.count(b"\n", start, end)
        return self._replace(data=bytes(self.data[:start]) + lines + bytes(self.data[end:]))

    def elements(self) -> Iterator[Tuple[int, Union[bytes, bytearray]]]:
        """Yield the start and the bytes of each element of the largest array.

        An element may be anything but valid.  Raise JSONDecodeError where a comma is missing.
        """
        data, (start, end), blank = self.data, self.array, rb"[ \t\r\n]*"
        for number in itertools.count():
            start = _skip(blank, data, start)
            if start == end:
                return
            if number and data[start] != 0x2C:
                raise json.JSONDecodeError("Expecting ',' delimiter", to_text(data),
                                           len(to_text(data[:start])))
            start = _skip(blank, data, start + 1) if number else start
            if data[start] in b"{[":
                end_of_element = ValueScanner(start).end(data)[0]
            else:
                end_of_element = _skip(rb'"(?:[^"\\]|\\.)*"|[^\s,\]"]*', data, start)
            yield start, data[start:end_of_element]
            start = end_of_element

    def explain(self, error: Exception, path: _Path, start: int = 0) -> str:
        """Return the line and the message of an error in the value at `path`, or at `start`."""
        line = 0
        if isinstance(error, InvalidValue):
            line = _line_of(self.data, path + error.path)
            message = str(InvalidValue(error.message, path + error.path))
        elif isinstance(error, UnicodeDecodeError):
            line = self.data.count(b"\n", 0, start + error.start)
            message = "not valid UTF-8 (byte 0x%02x)%s" % (
                self.data[start + error.start], wide_encoding(self.data))
        elif isinstance(error, json.JSONDecodeError):
            before, text = to_text(self.data[:start]), to_text(self.data[start:])
            before, text = before + text[:error.pos], text[error.pos:]
            line = before.count("\n")
            repair = _repair(self.data, "torn: " * self.torn + error.msg, before, text)
            message = "not valid JSON: %s (column %d)%s" % (
                error.msg, len(before) - before.rfind("\n"), repair)
            if self.torn:
                message += "; the input ends inside of the value that begins in line %d" % self.line
        else:
            message = "not valid JSON: %s" % error if isinstance(error, ValueError) else (
                "nested too deep")
        return "%d: %s" % (self.line + line, message)


def piece_context(name: str, piece: InputPiece, path: _Path = ()) -> Instead:
    """Turn an error in a piece of the input into a UserError with file, line and path."""
    return Instead((ValueError, RecursionError), lambda error: UserError(
        "%s:%s" % (name, piece.explain(error, path))))


# - values in a stream -

_MARK = b"\xef\xbb\xbf"  # the byte order mark
_DEEPEST_OPEN = 10000  # brackets; no JSON program goes so deep


def without_mark(data: bytes) -> bytes:
    """Return a text without the byte order mark at its start."""
    return data[len(_MARK):] if data.startswith(_MARK) else data


class ValueScanner:
    """Finds the end of the JSON object or array that begins at `position` of data that may grow.

    It looks at each byte once, and only at brackets and strings.
    """

    def __init__(self, position: int = 0) -> None:
        self.position = position     # up to here the data was looked at
        self.open: List[bytes] = []  # the open brackets
        self.array = (0, 0)  # the content of the largest array: of the value, or of a field
        self._array_start = 0
        self._last = b""          # the last token outside of strings
        self._in_string = False
        self._token = re.compile(rb'["{}\[\],:]|[^ \t\r\n"{}\[\],:]+').search
        self._in_string_token = re.compile(rb'["\n]|\\[^\n]?').search

    def end(self, data: Union[bytes, bytearray]) -> Tuple[int, bool]:
        """Return the end of the value, -1 if it comes later; and whether the value seems whole.

        A value is torn where a line ends inside of a string, brackets do not match, or a value
        begins where none can.
        """
        while True:
            search = self._in_string_token if self._in_string else self._token
            match = search(data, self.position)
            if match is None or match.group() == b"\\" and match.end() == len(data):
                self.position = match.start() if match else len(data)
                return -1, False
            token, start, self.position = match.group(), match.start(), match.end()
            if self._in_string:
                if token == b"\n":
                    return start, False
                self._in_string = token != b'"'
                continue
            if token in (b"{", b"["):
                if self.open and self._last != b":" and (
                        self.open[-1] == b"{" or self._last not in (b"[", b",")):
                    newline = data.rfind(b"\n", 0, start)  # the bracket may begin another value
                    begins_line = not data[newline + 1:start].strip(_MARK + b"\x1e")
                    return newline if begins_line else self.position, False
                if token == b"[" and self.open in ([], [b"{"]):
                    self._array_start = self.position
                self.open.append(token)
            elif token in (b"}", b"]"):
                if self.open.pop() != (b"{" if token == b"}" else b"["):
                    return self.position, False
                if token == b"]" and self.open in ([], [b"{"]):
                    self.array = max(self.array, (self._array_start, start),
                                     key=lambda span: span[1] - span[0])
                if not self.open:
                    return self.position, True
            self._in_string, self._last = token == b'"', token


class ValueSplitter:
    """Cuts the chunks of a stream of JSON values into pieces.

    A value of any size takes linear time, and is handed out before another chunk is asked for.
    After something that is not JSON the next value is the one on the next line that starts with `{`
    or `[`, so a torn line of JSON Lines costs only that line.  Byte order marks and record
    separators (RFC 7464) between values are skipped.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._buffer = bytearray()
        self._line = 1  # of the buffer's first byte

    def __iter__(self) -> Iterator[InputPiece]:
        while self._begins_piece():
            if self._buffer[0] in b"{[":
                yield from self._value()
                continue
            while b"\n" not in self._buffer and len(self._buffer) < CHUNK and self._more():
                pass
            piece = self._take(self._buffer.find(b"\n"))
            text = to_text(piece.data[:CHUNK]).strip(" \t\r\n")
            yield piece._replace(problem="expected a JSON object or array, got %s%s" % (
                quoted(text), _repair(piece.data, "between", "", text)))
            self._skip_lines()

    def _more(self) -> bool:
        chunk = next(self._chunks, None)
        self._buffer += chunk or b""
        return chunk is not None

    def _take(self, count: int, value: Any = None) -> InputPiece:
        """Take bytes from the buffer, all of them for -1.  A large value is not copied."""
        line, data = self._line, self._buffer
        count = len(data) if count < 0 else count
        self._line += data.count(b"\n", 0, count)
        self._buffer = data[count:]
        del data[count:]
        return InputPiece(line, data, value=value)

    def _begins_piece(self) -> bool:
        """Drop what may be between values.  Return whether something is left."""
        while True:
            self._take(_skip(rb"(?:[ \t\r\n\x1e]+|\xef\xbb\xbf)*", self._buffer))
            if self._buffer and not _MARK.startswith(self._buffer) or not self._more():
                return bool(self._buffer)

    def _skip_lines(self) -> None:
        """Drop the rest of a line, and all lines up to one that starts a value."""
        line = re.compile(rb"\n(?:\x1e|\xef\xbb\xbf){0,9}([{\[]|\xef?\xbb?\Z)")
        while True:
            match = line.search(self._buffer)
            if match and match.group(1) in (b"{", b"["):
                self._take(match.start(1))
                return
            self._take(match.start() if match else -1)
            if not self._more():
                self._take(-1)
                return

    def _torn_end(self, end: int) -> int:
        """Return the end of a torn value, which may have taken the last whole value before `end`.

        Where the input ends (-1), that can be a part of a batch: only a torn task has lost it.
        """
        most = end if end >= 0 else len(self._buffer)
        start = max(self._buffer.rfind(b"\n{", 0, most), self._buffer.rfind(b"\n[", 0, most))
        line = self._buffer[:self._buffer.find(b"\n") + 1]
        if end < 0 and (start + 1 != len(line) or line[:1] == b"[" or b'"tasks"' in line):
            return end
        with contextlib.suppress(ValueError, RecursionError):
            if start > 0:
                value_end, is_whole = ValueScanner(start + 1).end(self._buffer)
                if is_whole and not self._buffer[value_end:value_end + 1].strip():
                    loads_unique(self._buffer[start:value_end])
                    return start
        return end

    def _value(self) -> Iterator[InputPiece]:
        """Yield the value at the start of the buffer, or why it is refused."""
        line_end = self._buffer.find(b"\n", 0, LARGE_BYTES)
        with contextlib.suppress(ValueError, RecursionError):
            if line_end > 0:  # JSON Lines at the speed of the JSON module
                value = loads_unique(self._buffer[:line_end])
                yield self._take(line_end, value)
                return
        scanner, is_refused = ValueScanner(), False
        while True:
            end, is_whole = scanner.end(self._buffer)
            if end >= 0:
                break
            is_deep = len(scanner.open) > _DEEPEST_OPEN
            if not is_refused and (is_deep or len(self._buffer) > MAX_VALUE_BYTES):
                is_refused = True
                yield InputPiece(self._line, b"", "nested too deep" if is_deep else (
                    "the JSON value that begins here is larger than %d MB; write tasks on lines of "
                    "their own, without an array around them" % (MAX_VALUE_BYTES >> 20)))
            if is_deep:
                break
            if is_refused:  # look for its end, so that no part of it passes for a value
                kept = max(0, scanner.position - 9)  # the scanner looks back for a line's start
                scanner.position -= kept
                self._take(kept)
            if not self._more():
                break
        if not (is_whole or is_refused):
            end = self._torn_end(end)
        piece = self._take(end)
        if end < 0 and len(piece.data) > SMALL_FILE_BYTES:  # parsing would double the memory
            piece = InputPiece(piece.line, b"",
                               "the input ends inside of the JSON value that begins here")
        if not is_refused:
            yield piece._replace(torn=end < 0, array=scanner.array)
        if not is_whole:
            self._skip_lines()


# - supplies of jobs -

NOT_READY, END = "not ready", "end"  # of Supply.next_job


class Supply:
    """The source of a run's jobs.  The scheduler asks for them, in one thread.

    `total` is the number of jobs, None where it is not known.  `reads_ahead`: a job may be asked
    for before the one before it has ended.  `at_end`: no input is left that was not read.
    `on_ready` is set by the scheduler, and may be called from another thread, after NOT_READY, when
    there is a job.
    """

    total: Optional[int] = None
    at_end = True
    reads_ahead = True
    on_ready: Callable[[], None] = do_nothing
    _jobs: Iterator[_Next] = iter(())

    def next_job(self) -> _Next:
        """Return the next Job, a Result for input that is no task, NOT_READY or END.

        Indexes count from 0, in the order of the input.
        """
        return next(self._jobs, END)

    def stop(self) -> None:
        """Read no more: from now on only the jobs that were read are asked for."""

    def arrived(self, result: Result) -> Result:
        """Take note of the result of a job, and return the result that its user should see."""
        return result


def first_sample(job: Job, position: int, cell: Cell = NO_CELL) -> Job:
    """Return the job of the first sample of a task.  It has no Sample where it is the only job."""
    if job.task.repeat < 2 and not cell.fields:
        return job
    sample = cell.sample._replace(index=position, samples=max(1, job.task.repeat))
    return job._replace(task=job.task._replace(sample=sample))


def with_samples(items: Iterable[_Next], next_index: Callable[[], int]) -> Iterator[_Next]:
    """Yield the items of an input, then the second samples of all its tasks, then the third ...

    Jobs of more samples wait in a file for the end of the items.  `next_index` is called then.
    Raise OutputError.
    """
    file: Any = None
    most = 1  # samples of a task
    with contextlib.ExitStack() as cleanup:
        for item in items:
            yield item  # also where it cannot be kept
            if isinstance(item, Job) and item.task.repeat > 1:
                import pickle
                with writing("the samples"):
                    file = file or cleanup.enter_context(
                        open(nameless_file(temporary_directory()), "rb"))
                    write_all(file.fileno(), pickle.dumps(item))
                most = max(most, item.task.repeat)
        indexes = itertools.count(next_index())
        for number in range(2, most + 1):
            file.seek(0)
            while file.peek(1):
                job = pickle.load(file)
                if number <= job.task.repeat:
                    sample = job.task.sample._replace(sample=number)
                    yield job._replace(index=next(indexes), task=job.task._replace(sample=sample))


class JobList(Supply):
    """Tasks or jobs that are given as an iterable."""

    def __init__(self, items: Iterable[Union[Task, Job]]) -> None:
        if isinstance(items, (list, tuple)):
            self.total = sum(max(1, item.task.repeat if isinstance(item, Job) else item.repeat)
                             for item in items)
        self.reads_ahead = self.total is not None  # a generator may look at results first
        indexes = itertools.count()
        self._jobs = with_samples(map(self._first, items, indexes), indexes.__next__)

    @staticmethod
    def _first(item: Union[Task, Job], index: int) -> _Item:
        if isinstance(item, Job):
            return first_sample(item._replace(index=index), index)
        job = Job(index, item, literal=item.literal or item.answer_only)
        try:
            return first_sample(job._replace(task=_checked_task(item)), index)
        except InvalidValue as error:
            return unfinished(job, "failed", str(error), "invalid", exit_code=1)


def _checked_task(task: Task) -> Task:
    """Return a task that a program has made, its fields checked as those of an input.

    Raise InvalidValue.
    """
    fields: Dict[str, Any] = {}
    for name, check in TASK_FIELDS.items():
        value = getattr(task, name, None)
        if value or name in ("backend", "prompt"):
            with path_context(name):
                value = check(list(value) if isinstance(value, tuple) else value)
            fields[name] = tuple(value) if isinstance(value, list) else value
    problem = unknown_backend(task.backend)
    if problem:
        raise InvalidValue(problem, ("backend",))
    return task._replace(**fields)


class JobReader:
    """Turns the JSON values of an input, or its items by a template, into jobs.

    `run` is what the values state about the run (RUN_FIELDS); the first to set a field counts.
    Once tasks have `started`, values cannot set more.  `has_ids`: every task so far has an id.
    `again`: the input was validated before.  `tasks` is the number of tasks so far.  Each is a job
    for each cell of the matrix.  `size` is how many samples those of the shard have in all.
    """

    def __init__(self, name: str, policy: TaskPolicy, warn: Callable[[str], None],
                 shard: Shard) -> None:
        self.run: Dict[str, Any] = {}
        self.started, self.again, self.has_ids = False, False, True
        self.tasks = self.size = 0
        self._name, self._policy, self._warn, self._shard = name, policy, warn, shard
        fields = policy.template.fields if policy.template else {}
        # Whether the jobs may be much larger than the input.
        self._grows = len(policy.cells) > 1 or "{@}" in "".join(fields.values())
        self._ids: Set[Tuple[str, str]] = set()  # (field, what no other task may have in it)

    def _jobs_of(self, value: Any, position: int, batch: _Batch) -> List[Job]:
        """Return the jobs of the task at a position of the run.  Raise InvalidValue."""
        template, cells, path = self._policy.template, self._policy.cells, None
        if template:
            value = template.task(value, position + 1, self._policy.root)
            path = value.pop("write_to", None)
        jobs = [first_sample(_job(value, batch.defaults, batch.policy, cell)._replace(
            index=position * len(cells) + number), position, cell)
            for number, cell in enumerate(cells)]
        if path is None:
            return jobs
        with path_context("write_to"):
            path = self._checked_file(path, position)
        return [job._replace(task=job.task._replace(write_to=path)) for job in jobs]

    def _checked_file(self, path: str, position: int) -> str:
        """Return the path of a file for an answer.  Raise ValueError."""
        path, root, template = _path(path), self._policy.root, self._policy.template
        outside = outside_of(path, root or ".")
        if outside:
            raise ValueError("%s is outside of %s%s" % (
                quoted(path), outside, "" if root else
                "; --root DIR, with the current directory below DIR, allows it"))
        if os.path.basename(path) in ("", ".", "..") or os.path.isdir(path):
            raise ValueError("%s is a directory; expected the name of a file" % quoted(path))
        above = existing_part(os.path.dirname(path))
        if above and not os.path.isdir(above):
            raise ValueError("%s is not a directory" % quoted(above))
        may_exist = template and template.may_exist or not self._shard.has(position)
        if not may_exist and os.path.lexists(path):
            raise ValueError("%s exists; --overwrite replaces it" % quoted(path))
        return path

    def size_of(self, item: _Item) -> int:
        """Return how many samples the shard has of the task of an item; 0 if it is another's."""
        if not self._shard.has(sample_of(item).index):
            return 0
        return max(1, item.task.repeat if item.task else 1)

    def values(self, chunks: Iterable[bytes], *, is_strict: bool) -> Iterator[Iterator[_Item]]:
        """Yield the tasks of each value as jobs.

        The first value that is bad, or each with `is_strict`, raises UserError.  Another bad value
        becomes a failed Result.
        """
        is_lenient, self.tasks = self.again, 0
        try:
            for piece in _pieces(chunks, self._policy.template, self._name):
                try:
                    value = self._value(piece)
                except UserError as error:
                    value = self._bad_value(error, is_lenient)
                is_lenient = not is_strict
                yield value
        except (OSError, UserError) as error:  # UserError: the file was changed
            problem = error if isinstance(error, UserError) else UserError(
                "%s: %s" % (self._name, error.strerror))
            while not self._shard.has(self.tasks):  # no shard has all of its tasks
                self.tasks += 1
            yield self._bad_value(problem, is_lenient)

    def _bad_value(self, error: UserError, is_lenient: bool) -> Iterator[_Item]:
        if not is_lenient:
            raise error from None
        self.has_ids = False
        item = self._bad_task(error, self.tasks)
        self.tasks += 1
        self.size += self.size_of(item)
        return iter([item])

    def _bad_task(self, error: UserError, position: int) -> Result:
        """Return the Result of what is not a task."""
        cells, now = len(self._policy.cells), time.time()
        return Result(position * cells, "", "failed", 1, error=without_secrets(str(error)),
                      error_kind="invalid", attempts=0, start_time=now, end_time=now,
                      task=Task("", "", sample=Sample(position)) if cells > 1 else None)

    def _value(self, piece: InputPiece) -> Iterator[_Item]:
        """Return the tasks in a piece of the input as jobs.  Raise UserError.

        Jobs that may be much larger than the input, and those of a large value, are made one by
        one: once to validate all, then to run them.
        """
        is_large = piece.value is None and piece.array[1] - piece.array[0] > LARGE_BYTES
        outline = piece.without_array() if is_large else piece
        with piece_context(self._name, outline):
            batch = _batch(outline.parsed(), self._policy)._replace(first=self.tasks)
        if is_large and batch.items:  # the array is not that of the tasks
            return self._value(piece._replace(array=(0, 0)))
        if self.again:
            return self._jobs(piece, batch, is_large)
        ids: Set[Tuple[str, str]] = set()
        kept: List[_Item] = []
        size, tasks, is_made_again = 0, batch.first, is_large or self._grows
        for item in self._jobs(piece, batch, is_large, ids):
            size += self.size_of(item)
            tasks = sample_of(item).index + 1
            if not is_made_again:
                kept.append(item)
        if tasks == batch.first:
            with piece_context(self._name, outline, batch.path):
                raise InvalidValue("no tasks: the list is empty")
        self._ids.update(ids)
        self.tasks = tasks
        self.size += size
        self._note_run(piece, batch.run)
        return self._jobs(piece, batch, is_large) if is_made_again else iter(kept)

    def _jobs(self, piece: InputPiece, batch: _Batch, is_large: bool,
              ids: Optional[Set[Tuple[str, str]]] = None) -> Iterator[_Item]:
        """Yield the tasks of a value as jobs.

        With `ids`, a set for the ids in the value, a bad task raises UserError.  Without, the tasks
        were validated; a task that is bad since then becomes a failed Result.
        """
        elements = piece.elements() if is_large else ((0, item) for item in batch.items)
        with piece_context(self._name, piece, batch.path):
            for place, (start, item) in enumerate(elements):
                path = batch.path if batch.is_task else (*batch.path, place)
                position = batch.first + place
                try:
                    value = loads_unique(item) if is_large else item
                    made = self._jobs_of(value, position, batch)
                    self._claim(made[0].task, ids)
                    jobs: Sequence[_Item] = made
                except (ValueError, RecursionError) as error:
                    bad = UserError("%s:%s" % (self._name, piece.explain(error, path, start)))
                    if ids is not None:
                        raise bad from None
                    jobs = [self._bad_task(bad, position)]  # a link was changed, or a file
                if self.again:
                    self.tasks = position + 1
                yield from jobs

    def _claim(self, task: Task, ids: Optional[Set[Tuple[str, str]]]) -> None:
        """Add the task's id and file to those of its value.  Raise InvalidValue for a double."""
        self.has_ids = self.has_ids and bool(task.id)
        if ids is None or not (task.id or task.write_to):
            return
        taken = ids

        def is_taken(*one: str) -> bool:
            return one in self._ids or one in taken

        file = task.write_to and os.path.realpath(task.write_to)
        for field, value in (("id", task.id), ("write_to", file)):
            if is_taken(field, value):
                raise InvalidValue("another task of this run has the %s %s" % (
                    field.replace("write_to", "file"), quoted(getattr(task, field))), (field,))
            if value:
                taken.add((field, value))
        problem = "%s has to be a directory for the file of another task" * is_taken("above", file)
        place = os.path.dirname(file)
        while place.strip("/") and not (problem or is_taken("above", place)):
            problem = "%s is below the file of another task" * is_taken("write_to", place)
            taken.add(("above", place))
            place = os.path.dirname(place)
        if problem:
            raise InvalidValue(problem % quoted(task.write_to), ("write_to",))

    def _note_run(self, piece: InputPiece, run: Dict[str, Any]) -> None:
        for name, value in run.items():
            if not self.started:
                self.run.setdefault(name, value)
            if self.run.get(name) != value:
                reason = "this run began without it" if name not in self.run else (
                    "an earlier batch of this run set " + quoted(self.run[name]))
                self._warn("%s:%d: %s: %s is not applied: %s" % (
                    self._name, piece.line, name, quoted(value), reason))


# - items and templates -

ITEM_PARTS = ("{}", "{/}", "{//}", "{.}", "{/.}", "{@}")
_LIKE_PLACEHOLDER = r"\{[^\W\d][\w-]*\}|\{\.[^\W\d]"
NO_QUOTES = "a template of several words needs quotes"
_ITEM_FIELD = r"\{(\.[\w-]+(?:\.[\w-]+|\[-?\d{1,9}\])*)\}"


class Template(NamedTuple):
    """How the items of the input become tasks.

    `fields` are fields of a task, with placeholders for the item.  `form` is that of the items:
    lines, null (a NUL byte ends each), json, csv or tsv.  `words` are the items, if they are not
    read.  `may_exist`: a file of `write_to` may exist before its task has run.
    """

    fields: Dict[str, str]
    form: str = "lines"
    words: Tuple[str, ...] = ()
    may_exist: bool = False

    def checked(self, columns: Sequence[str] = (), source: str = "") -> Template:
        """Return the template with the form that its placeholders need.  Raise UserError.

        `columns` are those of csv and tsv, in the file `source`.
        """
        used = {braces: field for field, text in self.fields.items()
                for braces in re.findall(TEMPLATE_PLACEHOLDER, text)}
        names = ["{%s}" % column for column in columns]
        fields = [braces for braces in used
                  if re.fullmatch(_ITEM_FIELD, braces) and braces not in names]
        if "{#}" in used and "{#}" in names:
            raise UserError("{#} in a template is the number of the task, but a column has the "
                            "name #; give the column another name")
        if fields and self.form != "lines":
            kind = "rows" if columns else "texts that NUL bytes separate"
            raise UserError("%s in a template is a field of JSON values, but the items are %s" % (
                fields[0], "arguments" if self.words else kind))
        known = ["{}", "{#}", *names]
        kind = "JSON values"
        if columns:
            kind = "its columns are: " + first_of(columns, one_line)
            is_joined = len(columns) == 1 and re.search("[;,\t]", columns[0])
            if is_joined:
                kind = "its only column is %s: perhaps other characters part the fields" % (
                    quoted(columns[0]))
        elif not fields:
            known += ITEM_PARTS
            kind = "texts: a column needs --csv or --tsv, a field of JSON values is {.NAME}"
        for braces, field in used.items():
            is_word = len(braces) < 100 and re.match(r"\{\s*\.?[^\W\d]", braces)
            word = braces[1:-1].strip()
            if braces not in known + fields and (
                    is_word and nearest(word, columns) or braces in ITEM_PARTS
                    or re.match(_LIKE_PLACEHOLDER, braces)):
                fault = " in a template is no placeholder; the items are "
                if columns:
                    near = "" if is_joined else nearest("{%s}" % word, names)
                    fault = " is no column of %s%s; " % (source, near)
                raise UserError("%s%s%s; the text itself is {%s" % (
                    field + ": " + quoted(braces) if columns else braces, fault, kind, braces))
        if not fields and not set(known).intersection(used):
            is_cut = re.search(r"\{[^{}\n]*\}", "".join(self.words[:1]))
            raise UserError("the template %s does not use the items; write %s where an item "
                            "belongs%s" % (quoted(self.fields["prompt"]),
                                           "{COLUMN}" if columns else "{}",
                                           "; " + NO_QUOTES if is_cut else ""))
        return self._replace(form="json") if fields else self

    def task(self, item: Any, number: int, root: str = "") -> Dict[str, Any]:
        """Return the fields of the task for an item.  Raise InvalidValue.

        No file outside of `root`, where there is one, is read.
        """
        def value_of(braces: str) -> Optional[str]:
            if braces in ("{{", "{#}"):
                return "{" if braces == "{{" else str(number)
            if self.form in ("csv", "tsv") and braces != "{}":
                column: Optional[str] = item.get(braces[1:-1])
                return column
            if braces == "{@}":
                return _content(item, root)
            if braces in ITEM_PARTS:
                return _part(item, braces) if isinstance(item, str) else as_text(item)
            match = re.fullmatch(_ITEM_FIELD, braces)
            if match is None:
                return None
            path = _value_path(match.group(1))
            value = value_at(item, path)
            if value is None:
                near = "" if path[0] in _mapping(item) else nearest(str(path[0]), _mapping(item))
                raise InvalidValue("the item has no field %s%s" % (match.group(1), near))
            return as_text(value)

        fields = {name: "".join(fill(text, value_of, TEMPLATE_PLACEHOLDER))
                  for name, text in self.fields.items()}
        return dict(fields, literal=True)


def _part(item: str, braces: str) -> str:
    """Return the part of a path for a placeholder, as basename(1) and dirname(1) do."""
    name = item.rstrip("/") or item[:1]
    if braces == "{//}":
        return re.sub(r"\A/+\Z", "/", os.path.dirname(name)) or "."
    name = os.path.basename(name) or name if "/" in braces else item
    return os.path.splitext(name)[0] if "." in braces else name


MAX_CONTENT_BYTES = 1 << 20  # of a file that becomes a part of a prompt


def _content(path: str, root: str) -> str:
    """Return the text in a file.  Raise InvalidValue."""
    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)  # a pipe does not block

    try:
        real = os.path.realpath(path)
        with open(path, "rb", opener=opener) as file:
            if root and not (is_inside(real, root) and is_same(file.fileno(), real)):
                raise InvalidValue("%s is outside of %s" % (quoted(path), quoted(root)))
            if not _is_regular(file.fileno()):
                raise InvalidValue("%s is not a regular file" % quoted(path))
            data = file.read(MAX_CONTENT_BYTES + 1)
    except OSError as error:
        raise InvalidValue("%s: %s" % (quoted(path), error.strerror)) from None
    if len(data) > MAX_CONTENT_BYTES:
        raise InvalidValue("%s is larger than %d MiB; name the file in the prompt with {}"
                           % (quoted(path), MAX_CONTENT_BYTES >> 20))
    try:
        text = without_mark(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidValue("%s is not text: byte 0x%02x in line %d is not UTF-8%s" % (
            quoted(path), error.object[error.start], error.object.count(b"\n", 0, error.start) + 1,
            wide_encoding(data))) from None
    if "\0" in text:
        raise InvalidValue("%s is not text: it contains a NUL byte%s" % (
            quoted(path), wide_encoding(data)))
    return text


def _separated(chunks: Iterable[bytes], separator: bytes) -> Iterator[Optional[bytes]]:
    """Yield what separators part; None in the place of what is too large.

    Lines do not begin with a byte order mark.
    """
    parts: List[bytes] = []  # of what has not ended
    size, may_have_mark = 0, separator == b"\n"
    for chunk in itertools.chain(chunks, [separator]):
        *ends, rest = chunk.split(separator)
        for end in ends:
            data = b"".join([*parts, end])
            data = without_mark(data) if may_have_mark else data
            yield data if size + len(end) <= MAX_VALUE_BYTES else None
            parts.clear()
            size, may_have_mark = 0, False
        size += len(rest)
        if size <= MAX_VALUE_BYTES:
            parts.append(rest)


def split_items(chunks: Iterable[bytes], separator: bytes) -> Iterator[InputPiece]:
    """Cut the chunks of a stream into items.  Leave out blank items, and the CR of a CRLF."""
    for number, data in enumerate(_separated(chunks, separator), 1):
        if data is None:
            yield InputPiece(number, b"", "the item is larger than %d MB" % (MAX_VALUE_BYTES >> 20))
            continue
        if separator == b"\n" and data.endswith(b"\r"):
            data = data[:-1]
        if b"\0" in data:
            yield InputPiece(number, b"", "the line contains a NUL byte; -0 reads items that NUL "
                             "bytes separate, and `iconv -t UTF-8` converts UTF-16")
        elif data.strip():
            yield InputPiece(number, data, value=to_text(data))


MAX_FIELD = 16 << 20  # characters; a field whose quote is not closed would go on to the end


def split_rows(chunks: Iterable[bytes], delimiter: str) -> Iterator[Tuple[int, List[str], str]]:
    """Yield the line, the fields and a problem of each row that is not empty."""
    import csv
    csv.field_size_limit(MAX_FIELD)
    lines = _separated(chunks, b"\n")
    first = next(lines)
    encoding = wide_encoding(first or b"")
    texts = ("\0" if line is None else to_text(line) + "\n"
             for line in itertools.chain([first], lines))
    rows = csv.reader(texts, delimiter=delimiter, strict=True)
    while True:
        start, row, problem = rows.line_num + 1, [], ""  # type: int, List[str], str
        try:
            row = next(rows)
            if b"\0" in "".join(row).encode("utf-8"):
                raise csv.Error("a NUL byte, or a line of more than %d MB"
                                % (MAX_VALUE_BYTES >> 20))
        except StopIteration:
            return
        except csv.Error as error:
            problem = "the row cannot be read%s" % (encoding or ": %s" % error).replace(
                "unexpected end of data", 'a field that begins with " does not end')
        except UnicodeEncodeError:
            problem = "not valid UTF-8" + (
                encoding or "; `iconv -f WINDOWS-1252 -t UTF-8` converts texts of Windows")
        if row or problem:
            yield start, row, problem


def _pieces(chunks: Iterable[bytes], template: Optional[Template],
            name: str) -> Iterable[InputPiece]:
    """Return the JSON values of an input, or its items in the form of the template."""
    if not template or template.form == "json":
        return ValueSplitter(chunks)
    if template.form in ("csv", "tsv"):
        rows = split_rows(chunks, "," if template.form == "csv" else "\t")
        return _rows(rows, template, name)
    return split_items(chunks, b"\n" if template.form == "lines" else b"\0")


def _rows(rows: Iterator[Tuple[int, List[str], str]], template: Template,
          name: str) -> Iterator[InputPiece]:
    """Yield each row behind the header as an object.  Raise UserError for a bad header."""
    line, columns, problem = next(rows, (1, [], "there is no row with the names of columns"))
    twice = [column for column, count in Counter(columns).items() if column and count > 1]
    if twice:
        problem = "two columns have the name %s" % quoted(twice[0])
    if problem:
        raise UserError("%s:%d: %s" % (name, line, problem))
    template.checked(columns, name)
    row = columns
    for line, row, problem in rows:
        if not problem and len(row) != len(columns):
            problem = "the row has %s, but there are %s" % (
                counted(len(row), "field"), counted(len(columns), "column"))
        yield InputPiece(line, b"", problem, None if problem else dict(zip(columns, row)))
    if row is columns:
        raise UserError("%s: no tasks: there is no row below the names of the columns" % name)


# - shards -


class Shard(NamedTuple):
    """The tasks whose position, divided by `shards`, leaves `position` (from 0) as the remainder.

    A task has all its samples and cells in one shard.
    """

    position: int = 0
    shards: int = 1
    source: str = ""  # the environment variable that stated the position

    def has(self, position: int) -> bool:
        return position % self.shards == self.position

    def __str__(self) -> str:
        return "%d/%d" % (self.position + 1, self.shards)


WHOLE = Shard()


class _ShardVariables(NamedTuple):
    """The environment variables by which a system states the place of a job among equal jobs.

    `first` is the place of the first job, or the variable that has the place.  `last` and `step`
    are variables too.  `shards` is the variable with the number of jobs.  `none` is the value of
    `place` in a job that has no place.
    """

    place: str
    first: str = "0"
    shards: str = "CLINVK_SHARDS"
    last: str = ""
    step: str = "1"
    none: str = ""


# From the manuals of: Slurm, Kubernetes, AWS Batch, PBS Pro, Torque, LSF, Grid Engine, Nomad;
# GitLab, CircleCI, Buildkite, Azure Pipelines.
SHARD_VARIABLES = (
    _ShardVariables("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT",
                    "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP"),
    _ShardVariables("JOB_COMPLETION_INDEX"),
    _ShardVariables("AWS_BATCH_JOB_ARRAY_INDEX"),
    _ShardVariables("PBS_ARRAY_INDEX"),
    _ShardVariables("PBS_ARRAYID"),
    _ShardVariables("LSB_JOBINDEX", "1", last="LSB_JOBINDEX_END", step="LSB_JOBINDEX_STEP",
                    none="0"),
    _ShardVariables("SGE_TASK_ID", "SGE_TASK_FIRST", last="SGE_TASK_LAST",
                    step="SGE_TASK_STEPSIZE", none="undefined"),
    _ShardVariables("NOMAD_ALLOC_INDEX"),
    _ShardVariables("CI_NODE_INDEX", "1", "CI_NODE_TOTAL"),
    _ShardVariables("CIRCLE_NODE_INDEX", shards="CIRCLE_NODE_TOTAL"),
    _ShardVariables("BUILDKITE_PARALLEL_JOB", shards="BUILDKITE_PARALLEL_JOB_COUNT"),
    _ShardVariables("SYSTEM_JOBPOSITIONINPHASE", "1", "SYSTEM_TOTALJOBSINPHASE"),
)


def parse_shard(text: str) -> Optional[Shard]:
    """Return the shard `K/N`; None for `auto`.  Raise ValueError."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
    if match and 1 <= int(match.group(1)) <= int(match.group(2)):
        return Shard(int(match.group(1)) - 1, int(match.group(2)))
    if text != "auto":
        raise expected("K/N, the number of the shard, from 1, and of all shards, or auto", text)
    return None


def shard_of_environment(environment: Dict[str, str]) -> Shard:
    """Return the shard that the array of jobs around this process states.  Raise UserError."""
    found = [_stated_shard(row, environment) for row in SHARD_VARIABLES
             if environment.get(row.place, "") not in ("", row.none)]
    if not found:
        raise UserError("--shard auto: no environment variable states the place of this job in an "
                        "array; give --shard K/N.  Known are " + ", ".join(
                            row.place for row in SHARD_VARIABLES))
    for other in found[1:]:
        if other[:2] != found[0][:2]:
            raise UserError("--shard auto: " + " and ".join(
                "%s states %s" % (shard.source, shard) for shard in (found[0], other))
                + "; give --shard K/N")
    return found[0]


def _stated_shard(row: _ShardVariables, environment: Dict[str, str]) -> Shard:
    def number(name: str) -> int:
        value = name if name.isdigit() else environment.get(name, "")
        if not re.fullmatch(r"\d{1,9}", value, re.ASCII):
            beside = "" if name == row.place else ", because %s is set" % row.place
            raise UserError("--shard auto: %s is %s; expected a whole number%s" % (
                name, quoted(value) if value else "not set", beside))
        return int(value)

    place, first, step = number(row.place), number(row.first), number(row.step)
    counts = {name: number(name) for name in (row.shards, "CLINVK_SHARDS")
              if environment.get(name) or name == row.shards and not row.last}
    if row.last:
        counts[row.last] = (number(row.last) - first) // max(step, 1) + 1
    if len(set(counts.values())) > 1:
        raise UserError("--shard auto: the variables do not agree on the number of shards (%s); "
                        "give --shard K/N" % ", ".join(
                            "%d by %s" % (count, name) for name, count in counts.items()))
    position, rest = divmod(place - first, max(step, 1))
    count = max(counts.values())
    if rest or not 0 <= position < count:
        raise UserError("--shard auto: %s is %d, which is none of %d places from %d on; "
                        "give --shard K/N" % (row.place, place, count, first))
    return Shard(position, count, row.place)


# - tasks of files and pipes -

SMALL_FILE_BYTES = 1 << 20  # the tasks of a larger file are not kept, but read again


class TaskStream(Supply):
    """The tasks of a file or a pipe.  Raises UserError for input without a task.

    A regular file is validated as a whole; a large file is then read again, one value at a time, so
    that memory does not grow with the number of values; if it has changed, its rest is one bad
    value.  `total` is known of a file, and of a pipe
    whose writer has finished.  From another pipe tasks come as their values arrive.  Of all tasks
    only those of the `shard` are asked for and counted.  Further samples come after the first ones
    of all tasks, so not before the end of the input.
    """

    def __init__(self, file: int, name: str, policy: TaskPolicy, warn: Callable[[str], None],
                 shard: Shard = WHOLE) -> None:
        self._stopped = False
        reader = JobReader(name, policy, warn, shard)
        if policy.template and policy.template.words:
            words = b"\0".join(map(to_bytes, policy.template.words))
            values = reader.values([words], is_strict=True)
            firsts: Iterator[_Next] = self._kept(values, reader)
        elif _is_regular(file):
            firsts = self._open_regular(file, reader, name)
        else:
            firsts = self._open_pipe(file, reader)
        self._jobs = with_samples(self._of_shard(firsts, reader),
                                  lambda: reader.tasks * len(policy.cells))
        self.run, self.has_ids = reader.run, reader.has_ids
        if not reader.tasks:
            raise UserError("%s: no tasks: the input is empty" % name)

    def _open_regular(self, file: int, reader: JobReader, name: str) -> Iterator[_Next]:
        start = os.lseek(file, 0, os.SEEK_CUR)
        hashes: List[int] = []

        def chunks() -> Iterator[bytes]:
            for chunk in file_chunks(file, start):
                hashes.append(hash(chunk))
                yield chunk

        def same_chunks() -> Iterator[bytes]:
            for chunk, known in itertools.zip_longest(file_chunks(file, start), hashes):
                if chunk is None or hash(chunk) != known:
                    raise UserError("%s: the file changed during the run, and the rest of it was "
                                    "not read; run again, with --results and --resume only for "
                                    "what is left, or give a copy of the file" % name)
                yield chunk

        values = reader.values(chunks(), is_strict=True)
        if os.fstat(file).st_size - start <= SMALL_FILE_BYTES:
            return self._kept(values, reader)
        for _ in values:
            pass
        self.total, reader.again = reader.size, True
        return itertools.chain.from_iterable(reader.values(same_chunks(), is_strict=False))

    def _open_pipe(self, file: int, reader: JobReader) -> Iterator[_Next]:
        ready: List[bytes] = []  # what was read before it was needed
        values = reader.values(iter(lambda: ready.pop(0) if ready else read_some(file), b""),
                               is_strict=False)
        first = list(itertools.islice(values, 1))
        reader.started = True
        size = 0
        with contextlib.suppress(OSError):  # the next read raises it again
            while b"" not in ready[-1:] and size <= SMALL_FILE_BYTES and can_be_read(file):
                ready.append(read_some(file))
                size += len(ready[-1])
        if b"" in ready[-1:] or not first:  # the writer has finished
            return self._kept(itertools.chain(first, values), reader)
        self.at_end = False
        return itertools.chain(*first, self._arriving(values))

    def _kept(self, values: Iterable[Iterator[_Item]], reader: JobReader) -> Iterator[_Item]:
        kept = list(values)
        self.total = reader.size
        return itertools.chain.from_iterable(kept)

    def _of_shard(self, items: Iterable[_Next], reader: JobReader) -> Iterator[_Next]:
        total = 0
        for item in items:
            size = 0 if isinstance(item, str) else reader.size_of(item)
            total += size
            if size or isinstance(item, str):
                yield item
        self.total = total

    def _arriving(self, values: Iterator[Iterator[_Item]]) -> Iterator[_Next]:
        """Yield the items of values that another thread reads, NOT_READY while there are none.

        The thread starts with the first call of next, because workers should be forked before.
        """
        import queue
        import threading
        arrived: queue.Queue[Any] = queue.Queue(4)  # items of values, an exception, None at the end

        def read() -> None:
            try:
                for items in values:
                    arrived.put(items)
                    self.on_ready()
                    if self._stopped:
                        self.at_end = next(values, None) is None
                        break
                else:
                    self.at_end = True
                arrived.put(None)
            except BaseException as error:  # for the thread that asks for tasks
                arrived.put(error)
            self.on_ready()

        threading.Thread(target=read, name="clinvk-reader", daemon=True).start()
        while True:
            items = NOT_READY if arrived.empty() else arrived.get()
            if items is None:
                return
            if isinstance(items, BaseException):
                raise items
            yield from [items] if items == NOT_READY else items

    def stop(self) -> None:
        self._stopped = True


def _check_policy(policy: TaskPolicy) -> None:
    """Raise UserError for an unknown backend or a bad root that is not from the input."""
    for source, backend in (("CLINVK_BACKEND", policy.environment.get("CLINVK_BACKEND")),
                            ("--backend", policy.overrides.get("backend")),
                            *(("--matrix", cell.fields.get("backend")) for cell in policy.cells)):
        problem = backend and unknown_backend(backend, policy.definitions)
        if problem and not policy.allow_commands:
            raise UserError("%s: %s" % (source, problem))
    if policy.root and deleted_directory(policy.root):
        raise UserError("--root: " + deleted_directory(policy.root))
    if policy.root and not os.path.isdir(policy.root):
        raise UserError("--root: %s is not a directory" % policy.root)


def _open_input(path: Optional[str], policy: TaskPolicy, advice: str) -> Tuple[int, str]:
    """Open a file, or stdin where `path` is None or `-`.  Return it and its name.

    Raise UserError, also where the policy is not valid; `advice` is for stdin that is a terminal.
    """
    _check_policy(policy)
    file, name = 0, "stdin"
    if path in (None, "-"):
        if os.isatty(0):
            raise UserError("no input: stdin is a terminal; " + advice)
    else:
        name = str(path)
        try:
            file = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError("%s: %s" % (name or quoted(""), error.strerror)) from None
    if is_endless(file):
        raise UserError(NOT_A_DEVICE % name)
    return file, name


def single_job(prompt: str, policy: TaskPolicy) -> Job:
    """Return the job of a prompt that is given by itself.  Raise UserError."""
    _check_policy(policy)
    try:
        job = _job({"prompt": prompt}, {}, policy)._replace(index=0)
    except InvalidValue as error:
        raise UserError(str(error)) from None
    if deleted_directory(job.task.workdir):
        raise UserError(deleted_directory(job.task.workdir))
    return job


def open_tasks(path: Optional[str], policy: TaskPolicy, warn: Callable[[str], None],
               shard: Shard = WHOLE) -> TaskStream:
    """Return the tasks in a file, or on stdin where `path` is None or `-`.  Raise UserError.

    With a template in the policy the input has items.  `warn` is called with each warning for the
    user.
    """
    advice = "give a task file with --file, or pipe tasks in (`clinvk parallel --help` shows how)"
    if policy.template:
        advice = "give the items as arguments behind --, with --items, or by a pipe"
    if policy.template and policy.template.words:
        _check_policy(policy)
        file, name = -1, "arguments"
    else:
        file, name = _open_input(path, policy, advice)
    return TaskStream(file, name, _with_costs(policy, {}), warn, shard)


# --- 8. Plans ----------------------------------------------------------------

# - chains -

CHAIN_FIELDS = {
    "steps": _of_type(list, "a list of steps"), "stop_on_failure": _truth,
    "pass_working_dir": _truth, **{name: BATCH_FIELDS[name] for name in ("defaults", "backends")}}
_CHAIN_HINTS = {**_TASK_HINTS, "repeat": "; a step of a chain runs once", **dict.fromkeys(
    ("retries", "retry_on", "retry_acted", "max_wait"),
    "; it is for the whole chain: give the option of that name")}
_REFERENCE = r"\{\{(?:previous|steps\.([^{}\n]+)\.output)\}\}"


def _parts(prompt: str, index: int, names: Dict[str, int]) -> Tuple[Union[str, int], ...]:
    """Return the prompt of the step with that index in parts.

    Raise ValueError for a placeholder without an answer.  `names` has the indexes of all names.
    """
    def source_of(placeholder: str) -> Optional[int]:
        match = re.fullmatch(_REFERENCE, placeholder)
        if match is None:
            return None
        name = match.group(1)
        source = names.get(name, -1) if name else index - 1
        if 0 <= source < index:
            return source
        earlier = [known for known in names if names[known] < index]
        raise ValueError("%s cannot be replaced: no earlier step %s" % (
            placeholder, "has that name" + nearest(name, earlier) if name else "exists"))

    return tuple(fill(prompt, source_of))


def _near_references(prompt: str, names: Iterable[str]) -> List[str]:
    """Return a warning for each text in a prompt that looks like a misspelt placeholder."""
    known = ["{{previous}}", *("{{steps.%s.output}}" % name for name in names)]
    texts = dict.fromkeys(re.findall(r"\{\{[^{}\n]{1,200}\}\}", prompt))
    hints = [(text, nearest("".join(text.split()), known))
             for text in itertools.islice(texts, 100)  # a prompt may be all templates
             if not re.fullmatch(_REFERENCE, text)]
    return ["%s is no placeholder and stays as it is%s" % hint for hint in hints if hint[1]]


def _chain(value: Any, policy: TaskPolicy, warn: Callable[[str], None]) -> Steps:
    """Return the chain of a JSON value.  Raise InvalidValue."""
    if isinstance(value, list) or "tasks" in value:
        raise InvalidValue("this is a batch: run it with `clinvk parallel`")
    if "prompt" in value and "steps" not in value:
        raise InvalidValue('a chain needs "steps": {"steps": [{"prompt": ...}]}')
    fields = _checked(value, CHAIN_FIELDS, "a chain", _CHAIN_HINTS.get)
    policy = _with_commands(policy, fields, "a chain")
    if not fields.get("steps"):
        raise InvalidValue("a chain needs a list of steps that is not empty", ("steps",))
    steps: List[Job] = []
    labels: Set[Tuple[str, str]] = set()  # ("name" or "id", its value)
    for index, item in enumerate(fields["steps"]):
        with path_context("steps", index):
            if fields.get("pass_working_dir") and steps and isinstance(item, dict):
                item = dict(item, workdir=item.get("workdir") or steps[-1].task.workdir or None)
            job = _job(item, fields.get("defaults", {}), policy)._replace(index=index)
            steps.append(job)
            if job.task.repeat:
                raise InvalidValue("a step of a chain runs once", ("repeat",))
            for field in ("model", "workdir", "system_prompt", "extra", "check"):
                if re.search(_REFERENCE, str(getattr(job.task, field))):
                    raise InvalidValue("placeholders are replaced only in prompts", (field,))
            for field, label in (("name", job.task.name), ("id", job.task.id)):
                if label and (field, label) in labels:
                    raise InvalidValue("another step has the %s %s"
                                       % (field, quoted(label)), (field,))
                labels.add((field, label))
    names = {job.task.name: job.index for job in steps if job.task.name}
    prompts = []
    for job in steps:
        with path_context("steps", job.index, "prompt"):
            prompts.append(_parts(job.task.prompt, job.index, names))
    return Steps(steps, prompts, fields.get("stop_on_failure", True), warn)


def read_chain(path: Optional[str], policy: TaskPolicy, warn: Callable[[str], None]) -> Steps:
    """Return the chain in a file, or on stdin where `path` is None or `-`.  Raise UserError.

    A chain is one JSON value, read to its end.
    """
    file, name = _open_input(path, policy, "give a chain with --file, or pipe one in "
                             "(`clinvk chain --help` shows how)")
    try:
        chunks = iter(lambda: read_some(file), b"")
        pieces = list(itertools.islice(ValueSplitter(chunks), 2))
    except OSError as error:
        raise UserError("%s: %s" % (name, error.strerror)) from None
    finally:
        if file:
            os.close(file)
    if not pieces:
        raise UserError("%s: no chain: the input is empty" % name)
    with piece_context(name, pieces[0]):
        chain = _chain(pieces[0].parsed(), policy, warn)
    for piece in pieces[1:]:
        with piece_context(name, piece):
            piece.parsed()
            raise InvalidValue("a chain is one JSON value, and here begins another")
    for step in chain.steps:
        names = [other.task.name for other in chain.steps[:step.index] if other.task.name]
        for text in _near_references(step.task.prompt, names):
            line = pieces[0].line + _line_of(pieces[0].data, ("steps", step.index, "prompt"))
            warn("%s:%d: steps[%d].prompt: %s" % (name, line, step.index, text))
    return chain


class Steps(Supply):
    """The steps of a chain, each of which can use the answers of those before it.

    `prompts` are the prompts of the steps in parts: a number stands for the answer of the step with
    that index.  The prompt of each is made when its turn comes.
    """

    reads_ahead = False

    def __init__(self, steps: Sequence[Job], prompts: Sequence[Tuple[Union[str, int], ...]],
                 stop_on_failure: bool, warn: Callable[[str], None]) -> None:
        self.steps, self.stop_on_failure = steps, stop_on_failure
        self.total: int = len(steps)
        self.failed_step = 0  # the first that failed, counted from 1
        self._prompts, self._warn = prompts, warn
        self._last_use = {part: index for index, parts in enumerate(prompts)
                          for part in parts if isinstance(part, int)}
        self._results: Dict[int, Result] = {}  # those that later steps use
        self._warnings: Tuple[str, ...] = ()  # about the step that runs
        self._left = iter(steps)
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def next_job(self) -> _Next:
        step = next(self._left, None)
        if step is None or self._stopped or step.task.dry_run:  # it uses no answers
            return step or END
        return self._completed(step)

    def _completed(self, step: Job) -> Union[Job, Result]:
        """Return the step with its prompt, or the failed Result of a step with a bad prompt."""
        parts = self._prompts[step.index]
        sources = sorted({part for part in parts if isinstance(part, int)})
        self._warnings = tuple("step %d has no answer (%s): its place in the prompt is empty"
                               % (source + 1, self._results[source].status)
                               for source in sources if self._results[source].status != "ok")
        for warning in self._warnings:
            self._warn("step %d: %s" % (step.index + 1, warning))
        answers = {source: self._results[source].answer if self._results[source].status == "ok"
                   else "" for source in sources}
        texts = tuple(part if isinstance(part, str) else answers[part] for part in parts)
        for source in sources:
            if self._last_use[source] == step.index:
                del self._results[source]
        backend, beginning = backend_of(step), beginning_of(texts)
        problem = refused_prompt(backend, *texts)
        if not beginning:
            problem = "the prompt is blank once its placeholders are replaced"
        elif not problem and (backend.max_prompt or backend.text is not _plain_prompt
                              or all(isinstance(text, str) for text in texts)):
            step = step._replace(task=step.task._replace(prompt="".join(texts_of(texts))))
            problem = refused_prompt(backend, backend.text(step))
        elif not problem:
            step = step._replace(task=step.task._replace(prompt=beginning),
                                 parts=(*texts, schema_request(step)))
        return unfinished(step, "failed", problem, "invalid", exit_code=1) if problem else step

    def arrived(self, result: Result) -> Result:
        if result.index in self._last_use:
            self._results[result.index] = result._replace(task=None)
        if result.status in FAILED_STATUSES:
            self.failed_step = self.failed_step or result.index + 1
        elif result.status == "canceled" and not result.attempts and (
                self.failed_step and self.stop_on_failure):
            result = result._replace(error="not run, because step %d failed" % self.failed_step)
        warnings, self._warnings = self._warnings, ()
        return result._replace(warnings=warnings + result.warnings)


# - comparisons -


def comparison(prompt: str, backends: Iterable[str], policy: TaskPolicy) -> List[Job]:
    """Return a job of one prompt for each of several backends.  Raise UserError."""
    jobs: List[Job] = []
    for name in backends:
        problem = unknown_backend(name, policy.definitions)
        if problem:
            raise UserError("--backends: " + problem)
        if any(job.task.backend == name for job in jobs):
            raise UserError("--backends: %s is named twice" % quoted(name))
        chosen = {**policy.overrides, "backend": name}
        jobs.append(single_job(prompt, policy._replace(overrides=chosen)))
    return jobs


def not_installed(job: Job) -> bool:
    """Return whether the program of the job's backend cannot be found."""
    return not find_program(command_of(job).argv[0])[0]


# --- 9. Processes ------------------------------------------------------------
#
# Everything here runs in a worker: a process of Pool's, or a thread where processes cannot be used.

GRACE_SECONDS = 5.0     # between asking a process to end and killing it; run_pool has `grace`
WATCH_SECONDS = 0.5     # between two looks at the output of a process
ACTION_COLUMNS = 60     # of what a program does, as it is shown
LINGER_SECONDS = 10.0   # for a program to end by itself after its last event
HANDOVER_SECONDS = 0.5  # for which a message between two processes may be on its way
# Processes that a shorter task left behind are ended at the end of the run: a sweep takes
# milliseconds, which is much for a task of `cat` and nothing for a task of an agent.
SWEEP_AFTER_SECONDS = 1.0
# The variable by which the processes of a run are found.  Each run has its own name, so that a
# clinvk inside a task keeps the name of the outer run as well.
RUN_MARK = "CLINVK_RUN_%s"
TASK_MARK = RUN_MARK + "=%d"
CANCELED_EARLY = "canceled before it started"
CANCELED_LATE = "canceled while it ran"


class WorkerState:
    """The run that a worker belongs to, its files, and the process that it runs now.

    `note(index, group)` writes to the ledger which job the worker holds.  It is called before a job
    may start anything (with group 0), and with the process group as soon as there is one.
    `note_output(size, quiet, action, tokens)` writes how much the process has printed, for how many
    seconds nothing, what it did last, and how many tokens it used.  `adopts`: orphaned descendants
    become children of this process, which has no other children.
    """

    def __init__(self, run_id: str, directory: str,
                 note: Callable[[int, int], None] = do_nothing, *,
                 note_output: Callable[[int, float, str, int], None] = do_nothing,
                 grace: float = GRACE_SECONDS, adopts: bool = False) -> None:
        from _thread import allocate_lock
        _secrets()  # imports, for which no file may be free when an error has to be redacted
        self.run_id, self.directory, self.note = run_id, directory, note
        self.grace, self.adopts, self.note_output = grace, adopts, note_output
        self.canceled = False
        self.told_to_end = False  # by a SIGTERM, while a job ran
        self.running: Optional[_Process] = None
        self.lock = allocate_lock()
        self.environment = {name: value for name, value in os.environ.items()
                            if name not in NESTING_VARIABLES}
        self.environment.update(NO_COLOR="1", CLINVK_RUN=run_id)
        self._scratch = ""
        self._scratches = 0
        self._files: List[int] = []

    def cancel(self) -> None:
        """Start nothing more here and stop the running process.  Return when it has ended."""
        with self.lock:
            self.canceled = True
            running = self.running
        if running is not None:
            running.stop("canceled")

    def watch(self, is_over: Callable[[float], Any]) -> None:
        """Look at the running process until `is_over`, which waits so many seconds for the end."""
        while not is_over(WATCH_SECONDS):
            self.look()

    def look(self) -> None:
        """Look at the output of the running process, and stop it where its limits say so.

        Whatever goes wrong is left to the next look: the thread has the lifeline to watch, too.
        """
        running = self.running
        if running is not None:
            with contextlib.suppress(Exception):
                running.look()

    def renew(self) -> None:
        """Make the run's directory again where a task removed it.  Raise OSError.

        A canceled run removes its directory itself.
        """
        with self.lock:
            if not self.canceled:
                renew_directory(self.directory)

    def is_canceled_soon(self) -> bool:
        """Return whether the parent cancels, too, after a SIGTERM to all processes of a run."""
        deadline = time.monotonic() + HANDOVER_SECONDS
        while not self.canceled and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.canceled

    def prepare(self) -> Tuple[str, List[int]]:
        """Return an empty directory for TMPDIR, and empty files for stdin, stdout and stderr.

        The files of the last job are used again where only this worker can still write to them:
        new files cost more than a fork.  Raise OSError.
        """
        if not os.path.isdir(self._scratch):  # the first job, or another task removed it
            self._scratches += 1
            name = "%d-%x-%d" % (os.getpid(), id(self), self._scratches)
            path = os.path.join(self.directory, name)
            self.renew()
            os.mkdir(path, 0o700)
            self._scratch = path
        while len(self._files) < 3:
            self._files.append(nameless_file(self.directory))
        return self._scratch, self._files

    def end_leftovers(self, index: int, process: _Process,
                      seconds: float) -> Tuple[bool, List[str]]:
        """End the processes that a job left behind; `seconds` is how long its process lived.

        Return whether certainly none is left, and the names of those that were killed.
        """
        killed: Dict[int, str] = {}
        none_left = self.adopts and end_children(killed)
        if self.adopts and not none_left:  # there is no /proc, or it belongs to another user
            process.end_group()
        elif not self.adopts and (process.verdict or seconds >= SWEEP_AFTER_SECONDS):
            sweep(TASK_MARK % (self.run_id, index), killed)
        return none_left, list(killed.values())

    def tidy(self, keep_files: bool) -> None:
        """Make ready for the next job."""
        try:
            if self._scratch and os.listdir(self._scratch):
                remove_tree(self._scratch)
                self._scratch = ""
        except OSError:  # the task removed it
            self._scratch = ""
        if not keep_files:
            self.drop_files()
        for file in [file for file in self._files if os.lseek(file, 0, os.SEEK_END)]:
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)

    def drop_files(self) -> None:
        while self._files:
            os.close(self._files.pop())


# - one process -


class Execution(NamedTuple):
    """One process to run.

    `files` are open files for its stdin, stdout and stderr.  `timeout` is in seconds, 0 for none.
    `workdir` is None for the current directory.  `idle_timeout` (seconds without output),
    `max_output` (bytes of stdout), `is_over` and `doing` (as in Backend) are for _Process.look.
    `action` is what it does, as it is shown, until an event says more.
    """

    argv: Tuple[str, ...]
    environment: Dict[str, str]
    files: Sequence[int]
    workdir: Optional[OpenDirectory] = None
    timeout: float = 0.0
    stop_signal: str = "SIGTERM"
    prompt_gate: Optional[_PromptGate] = None
    idle_timeout: float = 0.0
    max_output: int = 0
    is_over: Optional[Callable[[int], bool]] = None
    doing: Optional[Callable[[bytes], _Doing]] = None
    action: str = ""


class Ended(NamedTuple):
    """The end of a process.

    `code` is its exit status, or -n where signal n ended it.  `verdict` says why clinvk stopped the
    process: "timeout", "canceled", "unkept" (it did not read its policy), "stalled", "max_output",
    "over" (it did not end after its last event), or "" where it did not.
    `none_left`: certainly no process is left that could still write to its files.  `killed` are the
    names of the processes that it left behind.
    """

    code: int
    verdict: str = ""
    none_left: bool = False
    killed: Sequence[str] = ()


def execute(execution: Execution, state: WorkerState, index: int) -> Optional[Ended]:
    """Run one process to its end, and end what it leaves behind.

    `index` is that of the job for which the process runs.  The environment must hold the marks of
    the run (_environment).  A second process of a job needs files of its own (nameless_file).
    Return None where the run was canceled before the start.  Raise OSError where the program cannot
    be started.
    """
    with state.lock:
        if state.canceled:
            return None
        state.told_to_end = False
        started = time.monotonic()  # before the start: no process lives longer than is measured
        pid = start_session(execution.argv, execution.environment, execution.workdir,
                            execution.files)
        process = _Process(pid, execution, state)
        process.note_start()
        state.running = process
    state.note(index, pid)
    try:
        code = process.wait_until_timeout()
        if state.told_to_end and not process.verdict and state.is_canceled_soon():
            process.verdict = "canceled"  # the SIGTERM reached the process, too
    finally:
        state.running = None
        state.note(index, 0)
    none_left, killed = state.end_leftovers(index, process, time.monotonic() - started)
    return Ended(code, process.verdict, none_left, () if process.verdict else killed)


class _Activity:
    """Read from the events of a program, while they come, its last action and its tokens."""

    def __init__(self, doing: Optional[Callable[[bytes], _Doing]], action: str) -> None:
        self._doing = doing
        self._offset = 0  # of the first line that is not read
        self._last = ""  # the action as it was stated
        self.action = action and cut(one_line(action), ACTION_COLUMNS)  # as it can be shown
        self._tokens: Dict[str, int] = {}  # by message

    @property
    def tokens(self) -> int:
        return sum(self._tokens.values())

    def read(self, file: int, size: int) -> None:
        """Read the new whole lines of a file of that size, of many bytes only the last."""
        if not self._doing or size <= self._offset:
            return
        start, last = max(self._offset, size - LONG_LINE), self._last
        *lines, rest = os.pread(file, size - start, start).split(b"\n")
        self._offset = max(start, size - len(rest))
        for line in lines:
            key, action, tokens = self._doing(line)
            last = action if action.strip() else last
            if tokens:
                self._tokens[key] = tokens
        if last != self._last:
            self._last, self.action = last, cut(one_line(last), ACTION_COLUMNS)


class _Process:
    """A process that was started in a session of its own.

    While it lives, its files are open and its group is not that of another: `_lock` keeps it so.
    """

    def __init__(self, pid: int, execution: Execution, state: WorkerState) -> None:
        from _thread import allocate_lock
        self.pid = pid  # and its process group
        self.verdict = ""
        self._execution, self._state = execution, state
        self._lock = allocate_lock()
        self._alive = allocate_lock()  # held while the process lives
        self._alive.acquire()
        self._sizes = [0, 0]  # of stdout and stderr at the last look
        self._quiet = [0.0, 0.0]  # for how many seconds each did not grow
        self._looked = time.monotonic()
        self._activity = _Activity(execution.doing, execution.action)

    def note_start(self) -> None:
        """Note what the process does, in the place of what the one before it did last."""
        self._state.note_output(0, 0.0, self._activity.action, 0)

    def has_ended(self, seconds: float) -> bool:
        """Wait up to `seconds` for the end of the process, and return whether it has ended."""
        if self._alive.acquire(timeout=seconds):
            self._alive.release()
            return True
        return False

    def stop(self, verdict: str) -> None:
        """End the process group: by its stop signal and, after the grace, by SIGKILL.

        For another thread than the one that waits.
        """
        for name, seconds in ((self._execution.stop_signal, self._state.grace), ("SIGKILL", -1)):
            with self._lock:
                if not self._alive.locked():
                    return
                self.verdict = self.verdict or verdict
                send_signal(self.pid, getattr(signal, name))
                send_signal(self.pid, signal.SIGCONT)
            self.has_ended(seconds)

    def look(self) -> None:
        """Note what the process has printed, and have it stopped where its limits say so."""
        with self._lock:
            verdict = self._exceeded(time.monotonic()) if self._alive.locked() else ""
        if verdict and not self.verdict:
            import threading
            try:
                threading.Thread(target=self.stop, args=(verdict,), daemon=True).start()
            except RuntimeError:  # no more threads: nobody could wait for the grace
                self._kill(verdict)

    def _kill(self, verdict: str) -> None:
        with self._lock:
            if self._alive.locked():
                self.verdict = self.verdict or verdict
                self.end_group()

    def _exceeded(self, now: float) -> str:
        """Note what was printed.  Return which limit the process has reached, "" for none."""
        limits, files = self._execution, self._execution.files[1:]
        # While the worker was stopped, or the machine slept, the process was not idle.
        passed = min(now - self._looked, 2 * WATCH_SECONDS)
        sizes = [os.fstat(file).st_size for file in files]
        self._quiet = [quiet + passed if size == before else 0.0
                       for quiet, size, before in zip(self._quiet, sizes, self._sizes)]
        self._looked, self._sizes = now, sizes
        quiet = min(self._quiet)
        self._activity.read(files[0], sizes[0])
        self._state.note_output(sum(sizes), quiet, self._activity.action, self._activity.tokens)
        if 0 < limits.max_output < sizes[0]:
            return "max_output"
        is_stalled = 0 < limits.idle_timeout <= quiet
        lingers = self._quiet[0] - passed < LINGER_SECONDS <= self._quiet[0]
        if (is_stalled or lingers) and limits.is_over and limits.is_over(files[0]):
            return "over"
        return "stalled" if is_stalled else ""

    def end_group(self) -> None:
        send_signal(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for the end of the process, not of its group.  Return as code_of_status.

        The rest of the group is killed here, unless this worker adopts orphans:
        WorkerState.end_leftovers then kills it, which sees what was alive.
        """
        status = wait_for_end(self.pid)
        with self._lock:
            self._alive.release()
        if not self._state.adopts:
            self.end_group()
        return code_of_status(os.waitpid(self.pid, 0)[1] if status is None else status)

    def wait_until_timeout(self) -> int:
        """Wait for the end of the process, and stop it after its timeout.  Return as wait.

        Raise RuntimeError, after the end of the process, where there can be no more threads.
        """
        timeout, gate = self._execution.timeout, self._execution.prompt_gate
        if not timeout and not gate:
            return self.wait()
        import threading
        timer = threading.Timer(min(timeout, MAX_SECONDS), self.stop, ("timeout",))
        timer.daemon = True
        try:
            if gate:
                threading.Thread(target=gate.give_prompt, args=(self,), daemon=True).start()
                gate.is_given = True
            if timeout:
                timer.start()
        except RuntimeError:
            self.end_group()
            self.wait()
            raise
        try:
            return self.wait()
        finally:
            timer.cancel()


FILES_SECONDS = 30.0  # for a program to read its files, after it has begun to read its prompt


class _PromptGate:
    """Hold a prompt back until its program has read its files: a policy, a system prompt.

    gemini runs without a policy that it does not find.  It reads its files, then its prompt.  It
    gets the first character at once: when that was read, the files were.
    """

    def __init__(self, prompt: str, paths: Iterable[str]) -> None:
        self._files = [WatchedFile(path) for path in paths]
        self._first, self._rest = to_bytes(prompt[:1]), to_bytes(prompt[1:])
        self.is_open, self.is_given, self.problem = False, False, ""
        self._pipe = list(os.pipe())
        self.source, self._sink = self._pipe

    def find_problem(self) -> str:
        """Return what is wrong with the files; "" where nothing is."""
        return next(filter(None, (file.problem() for file in self._files)), "")

    def give_prompt(self, process: _Process) -> None:
        """Give the prompt to the program, or stop it.  For a thread of its own."""
        seconds = FILES_SECONDS
        try:
            write_all(self._sink, self._first)
            while seconds > 0:
                if not unread(self.source):
                    seconds = 0 if all(file.was_read() for file in self._files) else seconds - 0.01
                if process.has_ended(0.01):
                    return
            self.problem = self.find_problem()
            if self.problem:
                process.stop("unkept")
                return
            self.is_open = True
            os.close(self._pipe.pop(0))  # so that writing fails when the program has ended
            write_all(self._sink, self._rest)
        except BrokenPipeError:
            pass
        finally:
            self.close()

    def close(self) -> None:
        while self._pipe:
            os.close(self._pipe.pop())

    def close_unless_given(self) -> None:
        """Close the pipe where no thread was started for it: the thread closes the pipe itself."""
        if not self.is_given:
            self.close()


def _environment(job: Job, state: WorkerState, scratch: str,
                 workdir: Optional[OpenDirectory]) -> Dict[str, str]:
    """Return what a process of a job inherits: that of clinvk, with the marks of the run.

    Programs, checks and git get it.
    """
    environment = dict(state.environment, TMPDIR=scratch, CLINVK_TASK=str(job.index))
    environment[RUN_MARK % state.run_id] = str(job.index)
    if workdir:
        environment["PWD"] = workdir.real if job.root else absolute(job.task.workdir)
    return environment


def canceled(result: Result, error: str = CANCELED_LATE) -> Result:
    return result._replace(status="canceled", exit_code=-1, error=error, error_kind="canceled")


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def left_running(owner: str, names: Sequence[str]) -> Tuple[str, ...]:
    """Return a warning about processes that were killed because they outlived their owner."""
    if not names:
        return ()
    return ("%s left processes running, which were killed: %s" % (owner, first_of(names)),)


# --- 10. Checks --------------------------------------------------------------
#
# Commands of the user that judge what a program did, after the program has succeeded.

CHECK_SECONDS = 600.0
MOST_RULES, MANY_RULES = 1 << 20, 1000  # characters in a file with ignore rules; new rules
CANNOT_TELL, MAX_REPEATS = 75, 3  # the exit status of a check that could not decide
CHECK_BYTES = 16384  # of its output, for a repair; result_fields shows SHOWN_CHECK_BYTES


def with_checks(job: Job, result: Result, state: WorkerState, workdir: Optional[OpenDirectory],
                before: Optional[_TreeState]) -> Result:
    """Return the result of a task by the changes of its work tree and, if it is ok, by its checks.

    `before` is the git work tree before the program ran; None: its changes do not matter.  Those of
    a program that failed matter, too, because the next attempt could not see them any more.
    """
    try:
        if before and result.status != "canceled":
            after = _tree_state(job, state, before.earlier, before)
            result = _with_changes(job, result, before, after)
        if result.status != "ok" or not job.task.check:
            return result
        environment = _check_environment(job, result, state, workdir)
        for argv in job.task.check:
            if result.status == "ok":
                run = functools.partial(_run_check, argv, environment, job, state, workdir)
                result = _with_check(argv, job.task, result, run)
    except OSError as error:
        return result._replace(status="failed", exit_code=1, error_kind="check_error",
                               error="the check cannot be run: " + reason_of(error))
    return result


def _check_environment(job: Job, result: Result, state: WorkerState,
                       workdir: Optional[OpenDirectory]) -> Dict[str, str]:
    """Write CLINVK_OUTPUT and CLINVK_RESULT, and return the environment.  Raise OSError."""
    def fields_of(result: Result) -> Dict[str, Any]:
        return {name: value for name, value in result_fields(result).items()
                if name not in ("start_time", "end_time", "duration_seconds")}  # not known yet

    scratch, _ = state.prepare()
    if isinstance(result.answer, TextFile):
        result.answer.open()
    output, fields = (os.path.join(scratch, name) for name in ("check.output", "check.json"))
    write_whole(output, map(to_bytes, texts_of([result.answer])))
    write_whole(fields, encoded(result._replace(task=job.task, attempts=job.attempt), fields_of))
    return dict(_environment(job, state, scratch, workdir), CLINVK_TASK_ID=job.task.id,
                CLINVK_OUTPUT=output, CLINVK_RESULT=fields)


def _new_files(count: int, state: WorkerState, cleanup: contextlib.ExitStack) -> List[int]:
    """Return empty files, which nobody else has.  Raise OSError."""
    files = []
    for _ in range(count):
        files.append(nameless_file(state.directory))
        cleanup.callback(os.close, files[-1])
    return files


def _is_text(argv: Tuple[str, ...]) -> bool:
    """Return whether the user gave a command as a text for the shell."""
    return len(argv) == 3 and argv[:2] == ("sh", "-c")


def _command_text(argv: Tuple[str, ...]) -> str:
    return argv[2] if _is_text(argv) else " ".join(map(shell_quoted, argv))


def _with_check(argv: Tuple[str, ...], task: Task, result: Result,
                run: Callable[[], Tuple[Ended, str]]) -> Result:
    """Return the result after one check, which is run again while it cannot tell."""
    started, runs, warnings = time.monotonic(), 0, result.warnings
    ended = Ended(CANNOT_TELL)
    while ended[:2] == (CANNOT_TELL, "") and runs <= MAX_REPEATS:
        ended, output = run()
        warnings += left_running("the check", ended.killed)
        runs += 1
    if ended.verdict == "canceled":
        return canceled(result)._replace(warnings=warnings)
    status, error = _verdict_of(ended, task)
    command = _command_text(argv)
    code = EXIT_TIMEOUT if status == "timeout" else ended.code
    facts = {"status": status, "command": without_secrets(command),
             "exit_code": 128 - code if code < 0 else code,
             "output": last_bytes(output, CHECK_BYTES),
             "duration_seconds": round(time.monotonic() - started, 3), "runs": runs}
    result = result._replace(check=facts, warnings=warnings)
    if status == "passed":
        return result
    return result._replace(status="failed", exit_code=1,
                           error="the check %s: %s" % (error, one_line(command)),
                           error_kind="check" if status == "failed" else "check_error")


def _run_check(argv: Tuple[str, ...], environment: Dict[str, str], job: Job, state: WorkerState,
               workdir: Optional[OpenDirectory]) -> Tuple[Ended, str]:
    """Run a check once.  Return its end, and the end of what it printed.  Raise OSError."""
    task = job.task
    with contextlib.ExitStack() as cleanup:
        nothing, output = _new_files(2, state, cleanup)
        # The shell finds a relative path in the workdir.
        words = argv if _is_text(argv) else ("sh", "-c", 'exec "$@"', "sh", *argv)
        execution = Execution(
            words, environment, (nothing, output, output), workdir,
            task.check_timeout or CHECK_SECONDS, max_output=task.max_output or DEFAULT_MAX_OUTPUT,
            action="check: " + _command_text(argv))
        ended = execute(execution, state, job.index) or Ended(-1, "canceled")
        return ended, Capture(output).tail()


def _verdict_of(ended: Ended, task: Task) -> Tuple[str, str]:
    """Return the status of a check, and what is wrong with it, for a message."""
    code = ended.code if ended.code >= 0 else 128 - ended.code
    if ended.verdict == "timeout":
        return "timeout", "timed out after " + duration(task.check_timeout or CHECK_SECONDS)
    if ended.verdict:
        most = size_text(task.max_output or DEFAULT_MAX_OUTPUT)
        return "error", "printed more than " + most
    if code == CANNOT_TELL:
        return "error", "could not decide: exit status %d" % code
    if code in (EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND):
        return "error", "could not be run: exit status %d" % code
    name = signal_name(code - 128)
    if name != "unknown":  # also of a program that a shell has run
        return "error", "was ended by signal %d (%s)" % (code - 128, name)
    return ("failed", "failed: exit status %d" % code) if code else ("passed", "")


# - changes in a git work tree -
#
# The program can write to the directory of git.  So git lists names only, with settings that let it
# run nothing, and the contents are compared here.

_GIT_SETTINGS = ("core.fsmonitor=", "core.hooksPath=/dev/null", "core.untrackedCache=false",
                 "core.excludesFile=/dev/null", "core.ignoreCase=false", "submodule.recurse=false")


class _TreeState(NamedTuple):
    """The git work tree of a task before or after an attempt; `earlier` are the attempts before.

    `files` has the digest of each file that counts, "" where there is none: tracked files, others
    that are not ignored, those of an earlier state, and new ones that are only ignored by `rules`
    which an attempt has changed.  `listed` are the first two of these.  `names` are all files that
    are not tracked, also ignored ones.
    """

    earlier: Changes
    files: Dict[str, str]
    listed: Set[str]
    names: Set[str]
    rules: Dict[str, Tuple[str, ...]]  # the lines of the files with the rules for what is ignored
    new_rules: Tuple[str, ...]  # as in Changes

    @property
    def digest(self) -> str:
        """A digest of all files."""
        files = sorted((path, digest) for path, digest in self.files.items() if digest)
        return checksum(repr(files).encode()).hex()

    def changes(self, first: str) -> Changes:
        """Return what the next attempt needs to know after this state."""
        hidden = tuple(path for path in self.files if path not in self.listed)
        return Changes(self.earlier.tree, first, self.new_rules, hidden)


def tree_before(job: Job, state: WorkerState) -> Optional[_TreeState]:
    """Return the git work tree before an attempt, if its changes matter.  Raise OSError."""
    if not judges_changes(job.task):
        return None
    return _tree_state(job, state, job.changes or Changes(_tree_of(job.task.workdir)))


def _tree_of(workdir: str) -> Tuple[str, str]:
    """Return the git work tree around a directory, and the directory of its git.  Raise OSError."""
    top = work_tree(workdir)
    git = os.path.join(top, ".git")
    if os.path.isfile(git):  # of a linked work tree or a submodule
        with open(git, encoding="utf-8", errors="surrogateescape") as file:
            git = os.path.join(top, file.read(CHUNK).partition("gitdir: ")[2].rstrip("\n"))
    return top, os.path.realpath(git)


def _tree_state(job: Job, state: WorkerState, earlier: Changes,
                before: Optional[_TreeState] = None) -> Optional[_TreeState]:
    """Return the state of a work tree, None in a canceled run.  Raise OSError."""
    top, git = earlier.tree
    listed = _listed_by_git(
        job, state, earlier.tree, "--cached", "--others", "--exclude-standard")
    names = _listed_by_git(job, state, earlier.tree, "--others")
    if listed is None or names is None:
        return None
    exclude = os.path.join(git, "info", "exclude")
    with contextlib.suppress(OSError), open(os.path.join(git, "commondir"), "rb") as file:
        exclude = os.path.join(git, os.fsdecode(file.read(CHUNK)).rstrip(), "info", "exclude")
    rules = {path: _rules_in(os.path.join(top, path)) for path in {exclude, *listed, *names}
             if path == exclude or os.path.basename(path) == ".gitignore"}
    new_rules, paths = earlier.new_rules, listed.union(earlier.hidden)
    if before:
        new_rules += tuple(pattern for path in rules.keys() | before.rules.keys()
                           for pattern in _new_rules(path, before.rules.get(path, ()),
                                                     rules.get(path, ())))
        new_rules = new_rules if len(new_rules) <= MANY_RULES else ("*",)  # for the command line
        hidden = _listed_by_git(job, state, earlier.tree, "--others", "--ignored", *(
            "--exclude=" + pattern for pattern in new_rules)) if new_rules else set()
        if hidden is None:
            return None
        paths |= before.files.keys() | hidden - before.names
    try:
        with time_limit(CHECK_SECONDS):  # a sparse file can have any size
            files = _digests(top, paths)
    except TimeoutError as error:
        raise OSError(0, "its files cannot be compared: %s" % error, top) from None
    return _TreeState(earlier, files, listed, names, rules, new_rules)


def _listed_by_git(job: Job, state: WorkerState, tree: Tuple[str, str],
                   *options: str) -> Optional[Set[str]]:
    """Return the files that `git ls-files` lists, None in a canceled run.  Raise OSError."""
    path, git = tree
    settings = [word for setting in _GIT_SETTINGS for word in ("-c", setting)]
    argv = ("git", "--git-dir=" + git, "--work-tree=" + path, *settings, "ls-files", "-z",
            *options)
    with contextlib.ExitStack() as cleanup:
        files = _new_files(3, state, cleanup)
        top = open_directory(path)
        cleanup.callback(os.close, top.file)
        environment = {name: value for name, value in _environment(
            job, state, state.directory, top).items() if not name.startswith("GIT_")}
        environment.update(GIT_OPTIONAL_LOCKS="0", GIT_CONFIG_NOSYSTEM="1", LC_ALL="C",
                           GIT_CONFIG_GLOBAL=os.devnull, PWD=path)
        ended = execute(Execution(argv, environment, files, top, CHECK_SECONDS,
                                  action="check: git ls-files"), state, job.index)
        if ended is None or ended.verdict == "canceled":
            return None
        if ended.code or ended.verdict:
            reason = _reason(Capture(files[2]).tail()) or ended.verdict or "it failed"
            raise OSError(0, "git cannot list its files: " + reason, path)
        paths = set(map(os.fsdecode, Capture(files[1]).read().split(b"\0"))) - {""}
        paths.update(re.findall("^warning: could not open directory '(.*)': ",
                                Capture(files[2]).tail(), re.M))  # it may hide files
        return paths | _inner_files(path, (
            one for one in paths if "--cached" in options or one.endswith("/")))


def _rules_in(path: str) -> Tuple[str, ...]:
    """Return the lines of a file with ignore rules, after a comment: whether it is a link."""
    with contextlib.suppress(OSError):
        if os.path.isfile(path):
            with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
                return "#%s" % os.path.islink(path), *file.read(MOST_RULES).split("\n")
    return ()


def _new_rules(path: str, before: Sequence[str], after: Sequence[str]) -> Tuple[str, ...]:
    """Return patterns of git that match whatever only the new rules of a file ignore.

    They are the added rules, if these are for the whole work tree and no rule was removed.
    """
    directory = "" if os.path.isabs(path) else os.path.dirname(path)
    old, added = iter(before), []
    expected = next(old, None)
    for line in after:
        if line == expected:
            expected = next(old, None)
        elif line not in ("", "\r") and line[0] not in "#!":
            plain = re.fullmatch("([ -~]*[!-~])\r?", line)  # git changes others in a file
            added.append(plain.group(1) if plain else "*")
    if expected is None and not (directory and added):
        return tuple(added)
    return re.sub(r"([\\*?[ ])", r"\\\1", "/%s/" % directory if directory else "") + "*",


def _inner_files(top: str, paths: Iterable[str]) -> Set[str]:
    """Return the files in those of the paths that are directories: repositories of their own.

    Git lists only the directory of a submodule, and of any other repository in a work tree.
    """
    files: Set[str] = set()
    places = [os.path.join(top, path) for path in paths]
    directories = [place for place in places if not os.path.islink(place)]
    while directories:
        with contextlib.suppress(OSError), os.scandir(directories.pop()) as entries:
            for entry in entries:
                if entry.name != ".git" and entry.is_dir(follow_symlinks=False):
                    directories.append(entry.path)
                elif entry.name != ".git":
                    files.add(os.path.relpath(entry.path, top))
    return files


def _digests(top: str, paths: Iterable[str]) -> Dict[str, str]:
    """Return the digests of files; "" where there is none, or a part of the path is a link."""
    real: Dict[str, bool] = {}  # whether a directory is reached without a link
    digests = {}
    for path in paths:
        place = os.path.join(top, path)
        directory = os.path.dirname(place)
        if directory not in real:
            real[directory] = os.path.realpath(directory) == directory
        digests[path] = _digest_of(place) if real[directory] else ""
    return digests


def _digest_of(path: str) -> str:
    """Return the kind of a file, whether it can be executed, and a digest of its content."""
    import hashlib
    try:
        status = os.lstat(path)
    except OSError:
        return ""
    digest = hashlib.sha256()
    try:
        if stat.S_ISLNK(status.st_mode):
            digest.update(os.fsencode(os.readlink(path)))
        elif stat.S_ISREG(status.st_mode):
            with opened(path, os.O_NOFOLLOW) as file:
                for piece in file_chunks(file):
                    digest.update(piece)
    except TimeoutError:
        raise
    except OSError as error:  # of another user: its status has to do
        digest.update(str((error.errno, status.st_size, status.st_mtime_ns,
                           status.st_ctime_ns)).encode())
    return "%o %s" % (stat.S_IFMT(status.st_mode) | status.st_mode & 0o100, digest.hexdigest())


def _matches(path: str, pattern: str) -> bool:
    """Return whether a pattern matches a path or a directory on it; `*` also matches `/`.

    `**/` also matches nothing.
    """
    from fnmatch import fnmatchcase
    pattern = pattern.rstrip("/")
    return fnmatchcase(path.rstrip("/"), pattern) or fnmatchcase(path, pattern + "/*") or any(
        _matches(path, pattern[:found.start()] + pattern[found.end():])
        for found in re.finditer(r"(?<![^/])\*\*/", pattern))


def _shown_path(path: str) -> str:
    return shell_quoted(without_secrets(path))


def _with_changes(job: Job, result: Result, before: _TreeState,
                  after: Optional[_TreeState]) -> Result:
    """Return the result of a task by the changes in its work tree.

    It has `changes` unless a protected path was changed.
    """
    if after is None:
        return canceled(result) if result.status == "ok" else result
    changed = [path for path, digest in after.files.items()
               if digest != before.files.get(path, "")]
    ignored = before.names - before.files.keys()
    hits = sorted(path for path in changed if path not in ignored
                  and any(_matches(path, pattern) for pattern in job.task.protect))
    if hits:
        return result._replace(
            status="failed", exit_code=result.exit_code or 1, error_kind="protected",
            error="protected paths were changed: " + first_of(hits, _shown_path))
    first = before.earlier.first or (before.digest if changed else "")
    result = result._replace(changes=after.changes(first))
    if job.task.require_change and result.status == "ok" and first in ("", after.digest):
        return result._replace(
            status="failed", exit_code=1, error_kind="no_change",
            error="nothing was changed in the git work tree " + _shown_path(before.earlier.tree[0]))
    return result


# - another attempt -

ANSWER_BYTES = 32768  # of an answer, for a new conversation
_BEFORE = """

This task was tried before. The answer was:

%s

"""
_CHECK_PROMPT = """\
The check of this task failed with exit status {{check.exit_code}}: {{check.command}}
The end of its output:

{{check.output}}

Correct the cause so that the check passes. Do not change the check."""
_SCHEMA_PROMPT = """\
This answer is not valid by the JSON Schema of the task:

{{error}}

Give the whole answer again, corrected."""
REPAIR_PLACEHOLDERS = ("{{check.exit_code}}", "{{check.command}}", "{{check.output}}")


class Repair(NamedTuple):
    """A way to ask a task again after a judgement that failed.

    `most` returns how often at most.  `prompt` has REPAIR_PLACEHOLDERS and {{error}}.
    """

    most: Callable[[Task], int]
    prompt: str


# By error_kind.
REPAIRS = {"check": Repair(lambda task: task.attempts - 1 if task.check else 0, _CHECK_PROMPT),
           "schema": Repair(lambda task: task.schema_retries if task.schema and
                            task.backend != "echo" else 0, _SCHEMA_PROMPT)}


def may_repair(job: Job) -> bool:
    """Return whether a job may be asked again in its session, which therefore has to be kept."""
    is_wanted = any(repair.most(job.task) > 0 for repair in REPAIRS.values())
    return is_wanted and bool(backend_of(job).sessions(job))


def can_repair(task: Task, tries: Sequence[Result], result: Result) -> bool:
    """Return whether a task may be asked again after its last result."""
    return (result.status == "failed" and result.error_kind in REPAIRS
            and sum(one.error_kind == result.error_kind for one in tries)
            < REPAIRS[result.error_kind].most(task))


def fails_again(tries: Sequence[Result], result: Result) -> bool:
    """Return whether a check has failed just as it did before."""
    def essence(one: Result) -> Any:
        facts = one.check or {}
        return (facts.get("command"), facts.get("exit_code"),
                re.sub("[0-9]+", "", facts.get("output", "")))

    before = [one for one in tries if one.error_kind == result.error_kind == "check"]
    return bool(before) and essence(before[-1]) == essence(result)


def repaired_job(job: Job, result: Result) -> Job:
    """Return the job of the attempt after a judgement that failed.

    It continues the conversation where the backend can, else a new one has the answer.  What it
    adds to the prompt is not trusted.
    """
    facts = result.check or {}
    values = {"{{check.%s}}" % name: str(value) for name, value in facts.items()}
    prompt = REPAIRS[result.error_kind].prompt
    if result.error_kind == "check":
        prompt = job.repair_prompt or prompt
    text = "".join(fill(prompt, dict(values, **{"{{error}}": result.error}).get))
    if re.fullmatch(SESSION_ID, result.session_id) and backend_of(job).sessions(job):
        return job._replace(repair=text, resume=result.session_id, literal=True)
    answer = ""
    for piece in texts_of([result.answer]):
        answer = last_bytes(answer + piece, ANSWER_BYTES)
    return job._replace(repair=_BEFORE % answer + text, literal=True)


def asked_job(job: Job) -> Job:
    """Return a job with the prompt of its attempt."""
    if not job.repair:
        return job
    if job.resume:
        return job._replace(task=job.task._replace(prompt=job.repair), parts=(), repair="")
    task = job.task._replace(prompt=job.task.prompt + job.repair)
    return job._replace(task=task, parts=job.parts and (*job.parts, job.repair), repair="")


def refused_repair(job: Job) -> str:
    """Return why the program cannot take the prompt of a further attempt; "" if it can."""
    job, backend = asked_job(job), backend_of(job)
    return refused_prompt(backend, *(job.parts or [backend.text(job)]))


def session_files(places: Iterable[Tuple[str, ...]], sessions: Container[str]) -> List[str]:
    """Return the files of these sessions in such places as Backend.sessions has."""
    import glob
    return [path for home, *levels in places
            for path in glob.iglob(os.path.join(glob.escape(home), *levels, "*"))
            if any(id.group() in sessions
                   for id in re.finditer(SESSION_ID, os.path.basename(path)))]


# --- 11. Worker --------------------------------------------------------------
#
# A job in a worker: its files, its verdict, its log.

# An answer up to here travels in the Result, a larger one as a file; with_answer reads the file
# back up to CHUNK.
INLINE_BYTES = 3000
SCHEMA_SECONDS = 10.0  # for the check of an answer by its schema
OVERSTAYED = "%s did not end by itself and was ended %s after its last event"


def planned(job: Job) -> Result:
    """Return the result of a job that is not to be run: its command line."""
    problem = deleted_directory(job.task.workdir)
    if problem:
        return unfinished(job, "failed", problem, "invalid", exit_code=1)
    return unfinished(job, "skipped", "", "", exit_code=0)._replace(
        answer=command_line(job), warnings=option_warnings(job))


def run_job(job: Job, state: Optional[WorkerState] = None) -> Result:
    """Run one job to its end.  Never raise: whatever goes wrong is a Result that says so.

    Without a state, make one, and leave nothing running and no file behind.
    """
    if job.task.dry_run or deleted_directory(job.task.workdir):
        return planned(job)
    if state is None:
        return _run_alone(job)
    started, clock_started = time.time(), time.monotonic()
    try:
        result = _run(job, state)
    except Exception:  # it is a failure of this job and of no other
        import traceback
        error = "clinvk failed: " + traceback.format_exc().strip()
        result = unfinished(job, "failed", error, "backend", exit_code=1, attempts=1)
    return with_log(job, redacted(result)._replace(
        # by the clock that nobody sets back
        start_time=started, end_time=started + time.monotonic() - clock_started, task=job.task,
        attempts=result.attempts and job.attempt))


def _run_alone(job: Job) -> Result:
    try:
        directory = make_private_directory()
    except OutputError as error:
        return unfinished(job, "failed", str(error), "backend", exit_code=1)
    import threading
    state, ended = WorkerState(new_run_id(), directory), threading.Event()
    try:
        with contextlib.suppress(RuntimeError):  # no more threads: there is no watch then
            threading.Thread(target=state.watch, args=(ended.wait,), daemon=True).start()
        return with_answer(run_job(job, state))
    finally:
        ended.set()
        state.drop_files()
        sweep(RUN_MARK % state.run_id)
        remove_tree(directory)


def with_answer(result: Result) -> Result:
    """Return a result whose answer is a text up to CHUNK, else a file without a name."""
    if not isinstance(result.answer, TextFile):
        return result
    try:
        text = result.answer.take()
        return result._replace(answer="".join(text)) if len(text) <= CHUNK else result
    except OSError as error:
        return result._replace(status="failed", exit_code=result.exit_code or 1, answer="",
                               error_kind="backend",
                               error="cannot read the answer back: " + reason_of(error))


def followed_path(directory: str, index: int) -> str:
    """Return the file in a run's directory to which a job that is followed writes its stdout."""
    return os.path.join(directory, "%d.stdout" % index)


def new_run_id() -> str:
    return "%d_%s" % (os.getpid(), os.urandom(6).hex())


def _run(job: Job, state: WorkerState) -> Result:
    """Return the result of one launch, from its files to its verdict."""
    result: Optional[Result] = None
    ended: Optional[Ended] = None
    program = ""
    with contextlib.ExitStack() as cleanup:
        try:
            workdir = _open_workdir(job, cleanup)
            named = job
            if workdir and job.root:  # a link in its place could later lead out of the root
                named = job._replace(task=job.task._replace(workdir=workdir.real))
            command = command_of(named)
            if command.problem:
                problem = UNKEPT % command.problem
                return unfinished(job, "failed", problem, "permission", exit_code=1)
            program = command.argv[0]
            execution = _execution(job, command, state, workdir, cleanup)
            before = tree_before(job, state)
            ended = execute(execution, state, job.index)
            if ended is None:
                return unfinished(job, "canceled", CANCELED_EARLY, "canceled")
            with writing("the answer"):
                result = _judge(job, ended, execution, functools.partial(
                    _store, state, job.index, ended.none_left and not job.log))
                result = by_schema(job, result)
            names = [name for name in ended.killed if name not in backend_of(job).helpers]
            if names:
                warnings = left_running(result.backend, names)
                result = result._replace(warnings=result.warnings + warnings)
            return with_checks(job, result, state, workdir, before)
        except OutputError as error:
            return unfinished(job, "failed", str(error), "backend", exit_code=1, attempts=1)
        except OSError as error:
            return _not_started(job, program, error)
        finally:
            # A file that holds an answer on its way is not for the next job; nor is a file to which
            # a process may still write.
            is_answer = result is not None and isinstance(result.answer, TextFile)
            state.tidy(keep_files=ended is not None and ended.none_left and not is_answer)


def _open_workdir(job: Job, cleanup: contextlib.ExitStack) -> Optional[OpenDirectory]:
    """Return the directory in which a job is to run, None for the current one.  Raise OSError."""
    if not job.task.workdir:
        return None
    workdir = open_directory(job.task.workdir)
    cleanup.callback(os.close, workdir.file)
    # It was inside the root when the task was read.  /proc/PID/root leads to other directories of
    # the same names.
    if job.root and not (is_inside(workdir.real, job.root) and is_same(workdir.file, workdir.real)):
        raise OSError(0, "is outside of %s" % job.root, os.path.join(job.task.workdir, "."))
    return workdir


def _large_prompt(job: Job) -> Optional[TextFile]:
    """Return the file that Pool._message wrote for `parts`, else None.  Raise OSError."""
    return next((part.take() for part in job.parts if isinstance(part, TextFile)), None)


def _execution(job: Job, command: Command, state: WorkerState, workdir: Optional[OpenDirectory],
               cleanup: contextlib.ExitStack) -> Execution:
    """Return the process of a job, its files written.  Raise OutputError where they cannot be."""
    task, backend, gate = job.task, backend_of(job), None
    with writing("temporary files"):
        scratch, files = state.prepare()
    files = _named_outputs(job, state.directory, files, cleanup)
    if command.files or command.links or command.apart:
        _write_files(job, command, scratch)
    if command.apart:
        workdir = open_directory(os.path.join(scratch, "here"))
        cleanup.callback(os.close, workdir.file)
    paths = [os.path.join(scratch, name) for name in command.files if name != SCHEMA_FILE]
    if command.by_stdin and paths:
        gate = _PromptGate(backend.text(job), paths)
        cleanup.callback(gate.close_unless_given)
        files = [gate.source, *files[1:]]
    elif command.by_stdin:
        with writing("the prompt"):
            large = _large_prompt(job)
            if large:
                files = [os.dup(large.file), *files[1:]]
                cleanup.callback(os.close, files[0])
            else:
                write_all(files[0], to_bytes(backend.text(job)))
                os.lseek(files[0], 0, os.SEEK_SET)
    environment = dict(command.preset, **_environment(job, state, scratch, workdir))
    if command.apart:
        environment["PWD"] = os.path.join(scratch, "here")
    for name, value in command.environment.items():
        environment[name] = value.replace(SCRATCH, scratch)
    argv = tuple(word.replace(SCRATCH, scratch) for word in command.argv)
    return Execution(
        argv, environment, files, workdir, task.timeout, backend.stop_signal, gate,
        task.idle_timeout, task.max_output or DEFAULT_MAX_OUTPUT, backend.is_over, backend.doing)


def _write_files(job: Job, command: Command, scratch: str) -> None:
    """Make the directories, the links and the files of a command.  Raise OutputError."""
    with writing("temporary files"):
        for name in directories_of(command):
            os.mkdir(os.path.join(scratch, name), 0o700)
        for name, target in command.links.items():
            os.symlink(target, os.path.join(scratch, name))
    for name, text in command.files.items():
        with writing("the prompt" if name == "prompt" else "the file " + name):
            large = _large_prompt(job) if name == "prompt" else None
            pieces = large.pieces() if large else [to_bytes(text)]
            write_whole(os.path.join(scratch, name), pieces)


def _named_outputs(job: Job, directory: str, files: List[int],
                   cleanup: contextlib.ExitStack) -> List[int]:
    """Return the files of a process, with those that others can read while it writes them."""
    if not (job.log or job.follow):
        return files
    paths = log_files(job.log) if job.log else [followed_path(directory, job.index)]
    outputs = []
    for path in paths:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with writing("the output"):
            outputs.append(os.open(path, flags, 0o600))
        cleanup.callback(os.close, outputs[-1])
    return [files[0], *outputs, *files[1 + len(outputs):]]


def _not_started(job: Job, program: str, error: OSError) -> Result:
    """Return the Result of a launch that failed: which file, and why."""
    kinds = {errno.EACCES: "permission", errno.EPERM: "permission", errno.ENOENT: "not_found",
             errno.E2BIG: "invalid"}
    reason, workdir = error.strerror or str(error), job.task.workdir
    if workdir and error.filename == os.path.join(workdir, "."):  # which open_directory opens
        text, code, kind = "workdir %s: %s" % (workdir, reason), 1, "invalid"
    elif error.filename not in (None, program):
        text, code, kind = "%s: %s" % (error.filename, reason), 1, "backend"
    elif error.errno in (errno.ENOENT, errno.EACCES) and not any(
            map(os.path.exists, candidates(program))):
        hint = "--wrap names it" if job.wrap else "`clinvk doctor` shows what can be used"
        text = "%s: not found: it is not installed, or not on the PATH; %s" % (program, hint)
        code, kind = 127, "not_found"
    elif error.errno == errno.ENOENT:
        text = "%s: cannot be executed: the interpreter it names does not exist" % program
        code, kind = 126, "not_found"
    else:
        text, code = "%s: cannot be started: %s" % (program, reason), 126
        kind = kinds.get(error.errno or 0, "backend")
    return unfinished(job, "failed", text, kind, exit_code=code, attempts=1)


def _lapse(job: Job, gate: Optional[_PromptGate], stderr: int, failed: bool) -> str:
    """Return why a program may have run without its files; "" where it did not."""
    if not gate:
        return ""
    backend, problem = backend_of(job), gate.problem
    is_confined = sandbox_of(job) in ("read-only", "workspace")
    if gate.is_open and is_confined:
        is_rejected = any(backend.rejection in line for line in Capture(stderr).lines())
        problem = backend.name + " rejected its policy" if is_rejected else gate.find_problem()
    elif not gate.is_open and not problem and not failed:
        problem = backend.name + " did not wait for its prompt"
    return problem and (UNKEPT if is_confined else "the system prompt was not given: %s") % problem


def _judge(job: Job, ended: Ended, execution: Execution,
           store: Callable[[Optional[str], Capture], Union[str, TextFile]]) -> Result:
    """Return the verdict on a program that ended.  `store` is _store for this job.

    First counts why clinvk stopped it, then what its events say, then its exit status.
    """
    backend, code, stopped = backend_of(job), ended.code, ended.verdict
    warnings = option_warnings(job)
    _, stdout, stderr = execution.files
    capture = Capture(stdout)
    if 0 < execution.max_output < len(capture):
        os.ftruncate(stdout, execution.max_output)
        capture, stopped = Capture(stdout), stopped or "max_output"
    if stopped == "over":
        code, stopped = 0, ""
        warnings += (OVERSTAYED % (backend.name, duration(LINGER_SECONDS)),)
    reply = backend.read(capture, Capture(stderr).tail(), code)
    if code >= 0 and not stopped:  # else the end of the output is damaged by that
        reply = with_damage(reply, capture, backend.name, code)
    for leftover in backend.leftovers(job, reply):
        remove_tree(leftover)
    exit_code = 128 - code if code < 0 else code
    error, kind = "".join(capture.text_of(reply.error))[:CHUNK], reply.error_kind
    is_data = job.task.schema and reply.structured is not None  # with any text
    blank = not is_data and (
        capture.is_blank() if reply.output is None else not reply.output.strip())
    lapse = _lapse(job, execution.prompt_gate, stderr, bool(error or code or blank))
    status = "failed"
    if stopped in ("timeout", "stalled"):
        status, exit_code, kind = "timeout", 124, stopped
        error = _overdue(job.task, stopped, reply.waiting)
    elif stopped == "canceled":
        status, exit_code, error, kind = "canceled", -1, CANCELED_LATE, "canceled"
    elif lapse:
        exit_code, error, kind = exit_code or 1, lapse, "permission"
    elif stopped == "max_output":
        exit_code, kind = exit_code or 1, stopped
        error = ("it printed more than %s; max_output (--max-output) allows more"
                 % size_text(execution.max_output))
    elif code < 0:
        error, kind = "ended by signal %d (%s)" % (-code, signal_name(-code)), "signal"
    elif kind in ("", "backend") and (error or blank or reply.output is None) and is_full(stdout):
        exit_code, kind = exit_code or 1, "backend"
        place = os.path.dirname(job.log) if job.log else temporary_directory()
        error = "cannot write the answer to %s: %s%s" % (
            place, os.strerror(errno.ENOSPC), error and " (%s)" % error)
    elif error:
        exit_code = exit_code or 1
    elif blank:
        exit_code, kind = 1, "no_output"
        error = "%s ended well but gave no answer" % backend.name
    else:
        status = "ok"
    return Result(
        job.index, backend.name, status, exit_code, store(reply.output, capture), error, kind,
        retry_after_seconds=None if stopped else reply.retry_after_seconds, limits=reply.limits,
        warnings=warnings + reply.warnings, model=reply.model or job.task.model,
        session_id=reply.session_id, usage=reply.usage, cost_usd=reply.cost_usd,
        num_turns=reply.num_turns, usage_is_cumulative=reply.usage_is_cumulative,
        acted=reply.acted and not answers_only(job), data=capture.whole(reply.structured))


def by_schema(job: Job, result: Result) -> Result:
    """Return the result of a job with its data, or failed if the answer is not as its schema."""
    if not job.task.schema or result.status != "ok":
        return result if result.data is None else result._replace(data=None)
    data = result.data
    try:
        if len(result.answer) > MAX_DATA_BYTES:
            raise ValueError("the answer has {:,} bytes; with a schema {:,} are allowed".format(
                len(result.answer), MAX_DATA_BYTES))
        if backend_of(job).states_data and data is None:
            raise ValueError("%s ended well but gave no answer by the schema" % result.backend)
        with time_limit(SCHEMA_SECONDS):  # also for fences: each that has no end costs the rest
            if not backend_of(job).states_data:
                if isinstance(result.answer, TextFile):
                    result.answer.open()
                data = json_in(result.output)
            errors = validate(data, job.task.schema)
    except ValueError as error:
        errors = [str(error)]
    except TimeoutError as error:
        errors = ["the answer cannot be checked by the schema: %s" % error]
    if not errors:
        return result._replace(data=data)
    return result._replace(status="failed", exit_code=result.exit_code or 1, error_kind="schema",
                           error=first_of(errors, separator="; "), data=None)


def _overdue(task: Task, stopped: str, waiting: str) -> str:
    """Return the error of a task that took too long; `waiting`: for what its program waited."""
    error = "timed out after %gs" % task.timeout
    if stopped == "stalled":
        error = "stalled: no output for " + duration(task.idle_timeout)
    return error + (" (it was waiting: %s)" % one_line(waiting) if waiting else "")


def _store(state: WorkerState, index: int, none_left: bool, output: Optional[str],
           capture: Capture) -> Union[str, TextFile]:
    """Return the answer as it travels to the parent: as a text or, where it is large, as a file.

    `output` is None where all of stdout is the answer.  Its file is then the answer, if certainly
    no process is left that could write to it; otherwise it is copied.
    """
    size = len(capture) if output is None else len(output)
    if size <= INLINE_BYTES and not (output and capture.has_names(output)):
        return to_text(capture.read()) if output is None else output
    path = os.path.join(state.directory, "%d.out" % index)
    state.renew()
    if output is not None:
        return write_text(path, (to_bytes(text[start:start + CHUNK])
                                 for text in capture.text_of(output)
                                 for start in range(0, len(text), CHUNK)))
    # A file that filled the disk is copied, too, which fails: the other jobs need the room.
    if none_left and not is_full(capture.file):
        with contextlib.suppress(OSError):
            give_name(capture.file, path)
            return TextFile(path, size)
    return write_text(path, capture.pieces())


# - logs -

_CUT_LINES = ('{"type":"clinvk.cut","missing_bytes":%d}\n', "[clinvk: %d bytes are missing here]\n")
CUT_BYTES = 100  # for such a line


def log_files(path: str) -> List[str]:
    """Return the files of a log: for stdout and for stderr."""
    return [path + ".jsonl", path + ".err"]


def with_log(job: Job, result: Result) -> Result:
    """Close the log of an attempt, and return its result with the names of the files.

    Remove the log of a job that was not started.
    """
    if not job.log:
        return result
    warnings = []
    for path, cut_line in zip(log_files(job.log), _CUT_LINES):
        try:
            if result.attempts:
                _close_log(path, job.log_max, cut_line)
            else:
                os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            warnings.append("cannot cut %s or hide its secrets: %s" % (path, error.strerror))
    if not result.attempts:
        return result
    stdout, stderr = (path if os.path.lexists(path) else "" for path in log_files(job.log))
    return result._replace(log=stdout, log_stderr=stderr, warnings=(*result.warnings, *warnings))


def _close_log(path: str, most: int, cut_line: str) -> None:
    """Hide the secrets in a file, and keep only its head and its tail where it is too large.

    A file without secrets that is small enough stays the same file.  Raise OSError.
    """
    with opened(path, os.O_NOFOLLOW) as file:
        size = os.fstat(file).st_size
        head, tail = _kept_of(file, size, most)
        if head < tail or any(block != without_secrets(block) for block in _blocks(file, 0, size)):
            cut_lines = [cut_line % (tail - head)] * (head < tail)
            blocks = itertools.chain(_blocks(file, 0, head), cut_lines, _blocks(file, tail, size))
            write_whole(path, (to_bytes(without_secrets(block)) for block in blocks))


def _kept_of(file: int, size: int, most: int) -> Tuple[int, int]:
    """Return where the head of a log ends and its tail begins, at ends of lines; no line is cut."""
    if size <= max(most, CUT_BYTES):
        return size, size
    half = max(0, most - CUT_BYTES) // 2
    head, tail = half, size - half - 1
    while head > 0:
        start = max(0, head - CHUNK)
        newline = os.pread(file, head - start, start).rfind(b"\n")
        head = start + newline + 1
        if newline >= 0:
            break
    for piece in file_chunks(file, tail, size):
        newline = piece.find(b"\n")
        tail += newline + 1 if newline >= 0 else len(piece)
        if newline >= 0:
            break
    return head, tail


def _blocks(file: int, start: int, end: int) -> Iterator[str]:
    """Yield the text of a part of a file in blocks that part no secret.

    They end at ends of lines, in a long line before a secret.
    """
    rest = ""
    for text in text_chunks(file_chunks(file, start, end)):
        rest += text
        place = rest.rfind("\n") + 1
        if not place and len(rest) > LONG_LINE:
            place, before = len(rest) - CHUNK, 0
            for piece, name in secret_pieces(rest):
                if name and before < place < before + len(piece):
                    place = before
                before += len(piece)
        if place:
            yield rest[:place]
            rest = rest[place:]
    yield rest


# --- 12. Pool ----------------------------------------------------------------
#
# multiprocessing.Pool gives the workers and carries the messages.  Its user has to add:
#
#  * A worker that is killed takes its job with it, and Pool waits for that job without end
#    (cpython#66587).  So each worker notes in a ledger in shared memory which job it holds and
#    which process group it started, before anyone can kill it.  The parent ends the group of a dead
#    worker and answers its job.
#  * A worker killed inside a lock of one of Pool's queues blocks all the others.  So the locks are
#    KernelLocks, and a message in a queue is one small atomic write; anything larger is a file
#    (_pack).  A worker killed between reading the head and the body of a message still damages the
#    queue.  A pool that does nothing after a death is retired: it finishes the jobs that it has
#    begun, and another pool gets the rest.
#  * If the parent dies, workers and programs live on.  So there is a lifeline: a pipe whose only
#    write end is the parent's.  At its end each worker stops its program.
#  * If the parent and all workers die at once, no process is left that could notice.  So there is
#    a guard (start_guard): a process that sees the end of a pipe whose write ends are the parent's
#    and the workers'.
#  * Pool takes all jobs that it can get.  So it is fed by hand, and a retired or canceled pool
#    returns the jobs that no worker has begun.

TICK_SECONDS = 0.25     # between two looks at the workers, and between two calls of on_tick
STALL_TICKS = 20        # looks at an unclaimed job, after a worker's death, that condemn its pool
START_TICKS = 240       # the same where no worker has started; a stopped process counts no looks
KILLED_SECONDS = 2.0    # for workers to answer after their programs were killed
SEARCH_SHARE = 0.05     # of the time, at most, is for the search of sessions to remove
MESSAGE_BYTES = 3500    # with Pool's own bytes below 4096, which a pipe takes in one piece

START_METHODS = ("fork", "spawn", "thread")


class Ledger:
    """A slot for each worker, in memory that all processes of a run share.

    A slot has one writer: its worker or, after its death, the parent.  So writing needs no lock.
    """

    _HEAD = 3   # retired; canceled; how many workers have started
    # pid; 1 + index of the job held last; the process group that runs for it; when the job began,
    # how many bytes this process has printed, when it last printed some (milliseconds); the
    # attempt at the job; the tokens that it used, a number that is odd during a change of what
    # it did last, the size of that in bytes, and the bytes
    _WIDTH = 10 + 16

    def __init__(self, file: Any) -> None:
        import mmap
        self._file: int = file if isinstance(file, int) else file.detach()  # of a spawned process
        self._words = memoryview(mmap.mmap(self._file, os.fstat(self._file).st_size)).cast("q")

    @classmethod
    def create(cls, directory: str, count: int) -> Ledger:
        """Make a ledger in a file without a name, which no task can remove.  Raise OSError."""
        file = nameless_file(directory)
        try:  # written, not extended: a full disk should fail here and not as SIGBUS later
            write_all(file, bytes(8 * (cls._HEAD + cls._WIDTH * count)))
            return cls(file)
        except OSError:
            os.close(file)
            raise

    def __reduce__(self) -> Tuple[Type[Ledger], Tuple[Any]]:
        from multiprocessing.reduction import DupFd
        return Ledger, (DupFd(self._file),)

    def fileno(self) -> int:
        """Return the file, of which the workers' locks are bytes."""
        return self._file

    def close(self) -> None:
        """Close the file, in the parent, after the last worker: this drops all locks on it."""
        os.close(self._file)

    def __iter__(self) -> Iterator[Tuple[int, int, int, int]]:
        """Yield (slot, pid, job index or -1, process group or 0) for each slot that is taken."""
        for slot in range(self._HEAD, len(self._words), self._WIDTH):
            pid, index, group = self._words[slot:slot + 3]
            if pid:
                yield slot, pid, index - 1, group

    def running(self) -> Iterator[Tuple[int, int, float, int, float, str, int]]:
        """Yield for each job held last: its index, attempt and seconds, bytes printed, seconds
        since then; what was done last, "" where that changes right now, and tokens."""
        now = time.monotonic()
        for slot, _, index, _ in self:
            begun, size, printed, attempt, tokens, number, length = self._words[slot + 3:slot + 10]
            action = bytes(self._words[slot + 10:slot + self._WIDTH])[:length]
            is_whole = not number % 2 and self._words[slot + 8] == number
            if self._words[slot + 1] == index + 1 and self._words[slot + 6] == attempt:
                yield (index, attempt, now - begun / 1000, size, now - printed / 1000,
                       action.decode("utf-8", "replace") if is_whole else "", tokens)

    @property
    def retired(self) -> bool:
        """Whether workers are to begin nothing more."""
        return bool(self._words[0])

    def retire(self) -> None:
        self._words[0] = 1

    @property
    def canceled(self) -> bool:
        return bool(self._words[1])

    def cancel(self) -> None:
        """Retire the pool, and note that the parent is about to end the lifeline on purpose."""
        self._words[0] = self._words[1] = 1

    @property
    def started(self) -> int:
        """How many workers have started."""
        return self._words[2]

    def take(self) -> int:
        """Take a free slot for this process.  The caller holds the lock of the workers."""
        for slot in range(self._HEAD, len(self._words), self._WIDTH):
            if not self._words[slot]:
                self._words[slot] = os.getpid()
                self._words[2] += 1
                return slot
        raise OSError("no free slot")

    def claim(self, slot: int, job: Job) -> None:
        words = self._words
        words[slot + 4] = words[slot + 7] = words[slot + 9] = 0  # no bytes, tokens and action
        words[slot + 6] = job.attempt
        words[slot + 3] = words[slot + 5] = int(time.monotonic() * 1000)
        self.note(slot, job.index, 0)

    def attempt(self, slot: int) -> int:
        return self._words[slot + 6]

    def note(self, slot: int, index: int, group: int) -> None:
        self._words[slot + 1] = index + 1
        if group:
            self._words[slot + 5] = int(time.monotonic() * 1000)
            self._words[slot + 4] = 0
        self._words[slot + 2] = group

    def note_output(self, slot: int, size: int, quiet: float, action: str, tokens: int) -> None:
        self._words[slot + 4] = size
        self._words[slot + 5] = int((time.monotonic() - quiet) * 1000)
        self._words[slot + 7] = tokens or self._words[slot + 7]  # a check uses none
        space = self._words[slot + 10:slot + self._WIDTH].cast("B")
        data = action.encode("utf-8", "replace")[:len(space)].decode("utf-8", "ignore").encode()
        self._words[slot + 8] |= 1
        space[:len(data)] = data
        self._words[slot + 9] = len(data)
        self._words[slot + 8] += 1

    def free(self, slot: int) -> None:
        self._words[slot + 1] = self._words[slot + 2] = 0
        self._words[slot] = 0


def semaphores_work() -> bool:
    """Return whether multiprocessing's own locks can be used.  clinvk does without them."""
    try:
        import multiprocessing
        multiprocessing.Semaphore()
        return True
    except (ImportError, OSError):
        return False


def _pack(value: Any, directory: str, name: str, renew: Callable[[], None]) -> _Message:
    """Return `value` as a message of at most MESSAGE_BYTES.

    A larger value goes to a file of that name, in the directory, which `renew` makes again.
    """
    import pickle
    data = pickle.dumps(value, 4)
    if len(data) <= MESSAGE_BYTES:
        return data
    renew()
    path = os.path.join(directory, name)
    write_whole(path, [data])
    return path, checksum(data)


def _unpack(message: _Message) -> Any:
    """Return the value of a message.  Raise OSError where its file is gone or was changed.

    A task may write to the file: bytes of a task must not be unpickled.
    """
    import pickle
    if isinstance(message, bytes):
        return pickle.loads(message)
    path, digest = message
    with open(path, "rb") as file:
        os.unlink(path)
        data = file.read()
    if checksum(data) != digest:
        raise OSError("%s was changed by another process" % path)
    return pickle.loads(data)


# - worker side -


class _WorkerSettings(NamedTuple):
    """The values that a worker gets when it starts.  Picklable."""

    run_id: str
    directory: str
    lifeline: Any
    guard_line: Any  # held open, not used
    parent: int
    grace: float
    ledger: Any = None  # and its lock, of the pool of the worker
    lock: Any = None


class _Worker(NamedTuple):
    """The state of a worker.

    `claim` notes a job in the ledger.  `block_if_orphaned` does not return once the parent is gone:
    another thread then clears up.
    """

    state: WorkerState
    ledger: Ledger
    claim: Callable[[Job], None]
    block_if_orphaned: Callable[[], None]


_workers: Dict[int, _Worker] = {}  # of this process, by thread
_lifelines: List[Any] = []  # the write ends in this process; a forked worker closes its copies


def _enter_process(settings: _WorkerSettings) -> None:
    """Make a fresh process a worker."""
    import threading
    from multiprocessing import util
    reset_sigchld()
    close_on_exec_inherited()  # a spawned process was given some
    while _lifelines:
        _lifelines.pop().close()
    os.setpgid(0, 0)  # ^C, and whatever else is meant for the parent's group, is for the parent
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):  # SIG_IGN would be inherited
        signal.signal(number, lambda number, frame: None)
    if callable(signal.getsignal(signal.SIGTSTP)):  # the handler is for the parent's terminal
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # which drops a ^Z that was blocked
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    os.dup2(2, 1)  # only the parent keeps the reader of its stdout waiting
    worker = _take_slot(settings)
    state = worker.state

    def note_sigterm(number: int, frame: Optional[FrameType]) -> None:
        state.told_to_end = True

    # A service manager sends SIGTERM to all processes of a run.  The worker continues until the
    # parent stops its program.
    signal.signal(signal.SIGTERM, note_sigterm)
    state.adopts = adopt_orphans()
    holder = threading.Thread(target=_hold_lifeline, args=(settings, state), daemon=True)
    try:
        holder.start()
    except RuntimeError:  # no more threads: the parent notices that it has too few workers
        time.sleep(TICK_SECONDS)  # Pool replaces this worker at once, and the parent frees slots
        os._exit(1)               # only once a tick
    lifeline = select.poll()
    lifeline.register(settings.lifeline.fileno(), select.POLLIN)

    def block_if_orphaned() -> None:
        if lifeline.poll(0) and not worker.ledger.canceled:  # the parent is gone, or about to be
            holder.join()

    _workers[threading.get_ident()] = worker._replace(block_if_orphaned=block_if_orphaned)
    # A worker leaves by itself only at the end of its queues.  It stays until the holder has
    # cleared up, or until Pool ends it.
    util.Finalize(None, holder.join, exitpriority=1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _take_slot(settings: _WorkerSettings) -> _Worker:
    """Make this thread a worker."""
    from _thread import get_ident
    ledger = settings.ledger
    with settings.lock:
        slot = ledger.take()
    state = WorkerState(settings.run_id, settings.directory,
                        functools.partial(ledger.note, slot), grace=settings.grace,
                        note_output=functools.partial(ledger.note_output, slot))
    worker = _workers[get_ident()] = _Worker(
        state, ledger, functools.partial(ledger.claim, slot), do_nothing)
    return worker


def _hold_lifeline(settings: _WorkerSettings, state: WorkerState) -> None:
    """Wait, in a thread of each worker, for the end of the run or of the parent.

    Look at the running process meanwhile.
    """
    state.watch(functools.partial(can_be_read, settings.lifeline.fileno()))
    state.cancel()
    while os.getppid() == settings.parent:
        time.sleep(0.1)
    if state.adopts:
        end_children()
    sweep(RUN_MARK % settings.run_id)
    remove_tree(settings.directory)
    os._exit(1)


def _serve(message: _Message) -> Union[_Message, int]:
    """Run the job of a message and return its Result; only its index where it is not begun."""
    from _thread import get_ident
    state, ledger, claim, block_if_orphaned = _workers[get_ident()]
    job = _unpack(message)
    claim(job)
    # read after the claim is noted, because the parent looks for claims after it retires the pool
    if ledger.retired:  # also in a canceled run
        return int(job.index)
    result = run_job(job, state)._replace(task=None)
    block_if_orphaned()
    with writing("the result"):
        return _pack(result, state.directory, "%d.result" % job.index, state.renew)


# - parent side: one multiprocessing.Pool -

UNGUARDED = ("the start method spawn makes each worker import the main module again, which must "
             "not run clinvk again: put that code below `if __name__ == \"__main__\":`")


def _spawn_safely(spawn: Callable[..., Any], path: Any, args: Sequence[Any], files: Any) -> Any:
    """Call `spawn`, a function as spawnv_passfds of multiprocessing, for a safe command.

    multiprocessing starts its processes by `python -c`, which imports from the current directory
    before all else.  A `signal.py` in it would stop every worker, and the next worker would run,
    outside of any sandbox, whatever a program may write there.  This takes the directory off.
    """
    args = list(args)
    if "-c" in args:
        safe = "import sys; sys.path[:1] = filter(None, sys.path[:1]); "
        args[args.index("-c") + 1] = safe + args[args.index("-c") + 1]
    return spawn(path, args, files)


def _popen_or_end_thread(process: Any) -> Any:
    """Start a process; where it cannot be started, end the calling thread without a traceback."""
    try:
        return type(process)._Popen(process)
    except OSError:
        raise SystemExit from None


@run_once
def _process_pool_type() -> Any:
    """Return a Pool whose workers ignore SIGTERM, and which a dead worker cannot block.

    The methods are private ones of the standard library.  Where a later Python does not call one of
    them, the program gets slower, or leaves the end of a damaged pool to _WorkerPool.close.
    """
    import multiprocessing.pool

    class ProcessPool(multiprocessing.pool.Pool):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            self.processes: List[Any] = []  # all that were started
            try:
                super().__init__(*arguments, **named)
            except BaseException:  # not all processes or threads can be started
                handler = vars(self).get("_worker_handler")
                if handler and handler.is_alive():  # it would replace the workers
                    handler._state = multiprocessing.pool.TERMINATE
                    self._change_notifier.put(None)  # type: ignore[attr-defined]
                    handler.join()
                for process in self._pool:  # type: ignore[attr-defined]
                    process.kill()
                    process.join()
                raise

        def Process(  # type: ignore[override]  # of a static method
                self, context: Any, *arguments: Any, **named: Any) -> Any:
            process = context.Process(*arguments, **named)
            process.terminate = process.kill  # workers ignore SIGTERM
            if "_worker_handler" in vars(self):  # the thread that replaces workers calls this
                process._Popen = _popen_or_end_thread
            self.processes.append(process)
            return process

        def _get_sentinels(self) -> List[Any]:
            """Return what wakes the thread that replaces workers.

            Pool also wakes it for each result, which another thread reads, and the thread then
            spins until that is done: a third of the parent's time.
            """
            return [self._change_notifier._reader]  # type: ignore[attr-defined]

        @staticmethod
        def _help_stuff_finish(inqueue: Any, task_handler: Any, size: int) -> None:
            """Do nothing.

            Pool.terminate would wait for an idle worker to release the lock of the queue, and read
            the rest of the queue: without end, if the queue is damaged.
            """

    return ProcessPool


def _new_process_pool(jobs: int, method: str, settings: _WorkerSettings) -> Any:
    """Return a multiprocessing.Pool of `jobs` workers.

    Raise ImportError, OSError or RuntimeError where the processes, locks or threads cannot be made.
    """
    import multiprocessing
    import warnings
    ledger, positions = settings.ledger, itertools.count()
    lock = KernelLock(ledger, next(positions))
    with lock:  # not every file system has locks; better to learn it here than in each worker
        pass
    base: Any = type(multiprocessing.get_context(method))

    class Context(base):  # type: ignore[misc]
        """The source of a Pool's locks and processes."""

        def Lock(self) -> KernelLock:
            return KernelLock(ledger, next(positions))

    if method == "spawn":  # whose tracker would undo the mask below when it is started
        from multiprocessing import resource_tracker
        resource_tracker.ensure_running()
    else:
        process_control()
        if sys.version_info >= (3, 12):
            # Pool replaces a dead worker from a thread; the child runs only functions of this file
            warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
    # A signal between fork and _enter_process waits until the worker can handle it; Pool's own
    # threads never take one.
    former = signal.pthread_sigmask(
        signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1,
                           signal.SIGTSTP))
    try:
        return _process_pool_type()(
            jobs, _enter_process, (settings._replace(lock=lock),), context=Context())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


class _WorkerPool:
    """One multiprocessing.Pool with its ledger.  Parent side."""

    def __init__(self, jobs: int, method: str, settings: _WorkerSettings) -> None:
        self.jobs = jobs
        self.lost_a_worker = False
        self.looks_unclaimed: Dict[int, int] = {}  # job index: for how many looks no worker had it
        self.ledger = Ledger.create(settings.directory, 2 * jobs + 16)
        settings = settings._replace(ledger=self.ledger)
        try:
            if method == "thread":
                import multiprocessing.pool
                from _thread import allocate_lock
                settings = settings._replace(lock=allocate_lock())
                self.pool: Any = multiprocessing.pool.ThreadPool(jobs, _take_slot, (settings,))
            else:
                self.pool = _new_process_pool(jobs, method, settings)
        except BaseException:
            self.ledger.close()
            raise

    def claimed(self, jobs: Dict[int, Tuple[Job, _WorkerPool, float]]) -> Set[int]:
        """Return the indexes of those jobs that live workers have begun."""
        return {index for slot, _, index, _ in self.ledger
                if index in jobs and jobs[index][0].attempt == self.ledger.attempt(slot)}

    def dead_slots(self) -> List[Tuple[int, int, int, int]]:
        """Return the slots whose worker is gone, and reap the worker if Pool has not yet.

        Continue a worker that was stopped, as its program can do.
        """
        for process in self.pool.processes:
            process.is_alive()  # which reaps it
        return [slot for slot in self.ledger if not process_exists(slot[1], signal.SIGCONT)]

    def has_failed(self) -> bool:
        """Return whether processes ended by an error before any was a worker."""
        return not self.ledger.started and any(
            process.exitcode == 1 for process in self.pool.processes)

    def how_it_ended(self, pid: int) -> str:
        """Return how a worker ended.  A kill for want of memory looks like any other SIGKILL."""
        processes = reversed(self.pool.processes)
        code = next((process.exitcode for process in processes if process.pid == pid), 0)
        if code and code < 0:
            return "killed by signal %d (%s)" % (-code, signal_name(-code))
        return "killed"

    def close(self) -> None:
        """End the pool, whatever state it is in.

        The workers are killed, because they ignore the SIGTERM of Pool.terminate.  If Pool's
        threads (all are daemons) do not end, they are left.
        """
        import threading
        ending = threading.Thread(target=self.pool.terminate, daemon=True)
        try:
            ending.start()
        except RuntimeError:  # no more threads
            self._kill_workers()
            self.pool.terminate()
        for _ in range(100):
            if not ending.is_alive():
                self.pool.join()
                self.ledger.close()
                return
            self._kill_workers()
            ending.join(0.02)

    def _kill_workers(self) -> None:
        for _, pid, _, _ in self.ledger:
            if pid != os.getpid():
                process_exists(pid, signal.SIGKILL)  # unless Pool has ended the worker meanwhile


# - parent side: all pools of a run -


class Running(NamedTuple):
    """A job that runs, for how many seconds, how much it has printed, and for how long nothing.

    `action` is what its program did last, as far as its events say, or the check that runs;
    `tokens` is what it used.
    """

    job: Job
    seconds: float
    size: int
    quiet: float
    action: str = ""
    tokens: int = 0


class Pool:
    """Jobs in, exactly one Result for each job out, whatever dies.

    At most `jobs` run at a time.  After `close` nothing of the run is left: no process, no file.
    Raise OutputError where there is no place for temporary files, UserError where so many workers
    cannot be started.
    """

    ahead = 1  # how many jobs more than run it takes, so that no worker waits for the parent

    def __init__(self, jobs: int, method: str = "", grace: float = GRACE_SECONDS,
                 notice: Callable[[str], None] = do_nothing) -> None:
        import multiprocessing
        import queue
        if getattr(multiprocessing.current_process(), "_inheriting", False):  # a worker's import
            raise UserError(UNGUARDED)
        self.jobs, self.method, self.grace = jobs, method or default_start_method(), grace
        self._notice = notice
        self.failure = ""  # why no more jobs can run
        self.run_id = new_run_id()
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()  # (pool, answer) or None
        self._in_flight: Dict[int, Tuple[Job, _WorkerPool, float]] = {}  # and since when
        # job index: until when its result may come, and why it may not
        self._awaiting_result: Dict[int, Tuple[float, str]] = {}
        self._pools: List[_WorkerPool] = []
        self._kept: Dict[Tuple[Tuple[str, ...], ...], Set[str]] = {}  # sessions, by place
        self._next_search = 0.0  # for them
        self._messages = 0
        self._sent_again: Set[int] = set()
        self._canceled, self._cancel_reason = False, ""
        self._kill_at = float("inf")  # when the programs of a canceled run are killed
        self._killed_at = float("inf")
        self._next_look = time.monotonic() + TICK_SECONDS
        try:
            self._reader, self._lifeline = multiprocessing.Pipe(duplex=False)
            watched, self._guard_line = multiprocessing.Pipe(duplex=False)
        except OSError as error:  # nothing is there yet to be cleared up
            raise _too_few(jobs, error.errno or 0) from None
        self.directory = make_private_directory()
        self._guard = start_guard(watched.fileno(), RUN_MARK % self.run_id, self.directory)
        watched.close()
        _lifelines.append(self._lifeline)
        self._spawns = self.method == "spawn"  # later the pool may go over to threads
        if self._spawns:
            import multiprocessing.util
            util: Any = multiprocessing.util
            util.spawnv_passfds = functools.partial(_spawn_safely, util.spawnv_passfds)
        try:
            self._add_first_pool()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """Return how many jobs have no result yet."""
        return len(self._in_flight)

    def _add_first_pool(self) -> None:
        try:
            self._add_pool()
        except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: no more threads
            number = _shortage(error)
            if number:
                raise _too_few(self.jobs, number) from None
            self.method = "thread"
            with writing("temporary files"):
                self._add_pool()
            reason = reason_of(error) if isinstance(error, OSError) else error
            self._notice("warning: cannot start worker processes (%s): tasks run in threads"
                         % reason)

    def _add_pool(self) -> None:
        # Both import; a worker forked during an import would wait for its lock.
        faster_json()
        _secrets()
        self._renew()
        allow_descriptors(100 + 3 * self.jobs * (len(self._pools) + 1))  # 3 for each worker
        settings = _WorkerSettings(self.run_id, self.directory, self._reader, self._guard_line,
                                   os.getpid(), self.grace)
        self._pools.append(_WorkerPool(self.jobs, self.method, settings))

    def _renew(self) -> None:
        """Make the run's directory again where a task removed it.

        Raise OutputError where that cannot be done; then no more jobs can run.
        """
        try:
            with writing("temporary files"):
                renew_directory(self.directory)
        except OutputError as error:
            self.failure = str(error)
            raise

    def start(self, job: Job) -> None:
        """Hand a job to a worker.  Whatever goes wrong is the job's Result."""
        pool = self._pools[-1]
        self._in_flight[job.index] = job, pool, time.monotonic()
        self._awaiting_result.pop(job.index, None)  # a worker that returned the job was killed
        self._messages += 1
        try:
            self._renew()
            with writing("the prompt"):
                message = self._message(job)
        except OutputError as error:
            self._fail(pool, job, error)
            return
        pool.pool.apply_async(
            _serve, (message,), callback=lambda answer: self._events.put((pool, answer)),
            error_callback=functools.partial(self._fail, pool, job))

    def _message(self, job: Job) -> _Message:
        """Return the message with a job, without the fields that only a check can see."""
        job, task = asked_job(job), job.task
        if not task.check and (task.name or task.tags or task.meta):
            job = job._replace(task=job.task._replace(name="", tags=(), meta=None))
        if job.parts:
            path = os.path.join(self.directory, "%d.prompt" % self._messages)
            large = write_text(path, map(to_bytes, texts_of(job.parts)))
            job = job._replace(task=job.task._replace(prompt=""), parts=(large,))
        return _pack(job, self.directory, "%d.task" % self._messages, self._renew)

    def _fail(self, pool: _WorkerPool, job: Job, error: BaseException) -> None:
        if isinstance(error, OSError) and job.index not in self._sent_again:
            self._sent_again.add(job.index)  # the task before it removed its file
            self._events.put((pool, job.index))
            return
        text = str(error)
        if not isinstance(error, OutputError):
            reason = reason_of(error) if isinstance(error, OSError) else error
            text = "cannot pass the task to a worker: %s" % reason
        self._events.put((pool, unfinished(job, "failed", text, "backend", exit_code=1)))

    def forget(self, job: Job, sessions: Iterable[str]) -> None:
        """Remove the sessions that were kept for the attempts of a job.

        The sessions of several jobs are removed together, because the search for them takes long
        in the home of a user with many projects.
        """
        if any(sessions):
            places = tuple(backend_of(job).sessions(job))
            self._kept.setdefault(places, set()).update(sessions)

    def _remove_sessions(self) -> None:
        started = time.monotonic()
        for places, sessions in self._kept.items():
            for path in session_files(places, sessions):
                remove_tree(path)
        self._kept.clear()
        self._next_search = started + (time.monotonic() - started) / SEARCH_SHARE

    def wake(self) -> None:
        """Make `wait` return, from another thread or a signal handler."""
        self._events.put(None)

    def cancel(self, reason: str = "") -> None:
        """Stop the jobs that run, politely at first, and begin none.  Their results come as usual.

        Each running program gets its stop signal and, after the grace, SIGKILL.  `reason` is for
        the results of the jobs that did not begin.
        """
        if self._canceled:
            return
        self._canceled, self._cancel_reason = True, reason
        self._kill_at = time.monotonic() + self.grace + KILLED_SECONDS
        for pool in self._pools:
            pool.ledger.cancel()
        _lifelines.remove(self._lifeline)
        self._lifeline.close()
        if self.method == "thread":
            import threading
            for state in self._states():
                threading.Thread(target=state.cancel, daemon=True).start()

    def _states(self) -> List[WorkerState]:
        """Return the states of the workers that are threads of this process."""
        return [worker.state for worker in list(_workers.values())
                if worker.state.run_id == self.run_id]

    def running(self) -> List[Running]:
        """Return the jobs that run, each with its `attempt`, in the order of their indexes."""
        found = {}
        for pool in self._pools:
            for facts in pool.ledger.running():
                job, its_pool, _ = self._in_flight.get(facts[0], (None, None, 0))
                if job and its_pool is pool and job.attempt == facts[1]:
                    found[job.index] = Running(job, *facts[2:])
        return [found[index] for index in sorted(found)]

    def kill(self) -> None:
        """Kill the programs that run.  KILLED_SECONDS later jobs without a result are given up."""
        if self._killed_at == float("inf"):
            self._killed_at = time.monotonic()
        for pool in self._pools:
            for _, _, _, group in pool.ledger:
                if group:
                    send_signal(group, signal.SIGKILL)
        sweep(RUN_MARK % self.run_id)

    def wait(self, seconds: float = TICK_SECONDS) -> List[Result]:
        """Return the next results, none after `seconds`.

        Raise UserError where the main module of the program starts clinvk without a guard, and
        where the workers cannot start.
        """
        import queue
        results: List[Result] = []
        with contextlib.suppress(queue.Empty):
            event = self._events.get(timeout=seconds)
            if event:
                self._take(event[0], event[1], results)
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + TICK_SECONDS
            if self._kept and now >= self._next_search:
                self._remove_sessions()
            for state in self._states():
                state.look()
            if self.method != "thread":
                for pool in self._pools:
                    self._reap_workers(pool, results)
        if now >= self._kill_at and self._killed_at > now:
            self.kill()
        if now >= self._killed_at + KILLED_SECONDS:  # do not wait for silent workers
            for index in list(self._in_flight):
                results.append(self._answer(self._lost(index, "")))
        return results

    def _take(self, pool: _WorkerPool, answer: Any, results: List[Result]) -> None:
        """Append to `results` the Result of an answer, if its job still waits for that pool."""
        result = answer if isinstance(answer, (Result, int)) else self._received(answer)
        index = result if isinstance(result, int) else result.index
        job, its_pool, _ = self._in_flight.get(index, (None, None, 0))
        if job is None or its_pool is not pool:
            return
        if isinstance(result, Result) and result.attempts not in (0, job.attempt):
            return  # of an attempt whose worker was killed after the answer left
        if isinstance(result, int):  # not begun: the pool was stopped, or the file is gone
            if not (self._canceled or self.failure):
                self.start(job)
                return
            result = self._unstarted(job)
        results.append(self._answer(result))

    def _unstarted(self, job: Job) -> Result:
        if self._canceled:
            return unfinished(job, "canceled", CANCELED_EARLY, "canceled")
        return unfinished(job, "failed", self.failure, "backend", exit_code=1)

    def _received(self, message: _Message) -> Union[Result, int]:
        """Return the value of a worker's message, or a failed Result where the message is gone."""
        try:
            value: Union[Result, int] = _unpack(message)
            return value
        except OSError as error:  # somebody cleans up the temporary directory
            index = int(os.path.basename(str(message[0])).partition(".")[0])
            if index not in self._in_flight:
                return index
            return unfinished(self._in_flight[index][0], "failed",
                              "cannot read its result: " + reason_of(error), "backend",
                              exit_code=1, attempts=self._in_flight[index][0].attempt)

    def _answer(self, result: Result) -> Result:
        """Return the final form of a result, and forget its job."""
        job = self._in_flight.pop(result.index)[0]
        self._awaiting_result.pop(result.index, None)
        was_killed = result.error_kind == "signal" and result.exit_code == 137
        if was_killed and self._killed_at < float("inf"):  # the worker cannot know who killed it
            result = canceled(result)
        if result.error == CANCELED_EARLY and self._cancel_reason:
            result = result._replace(error="%s (%s)" % (CANCELED_EARLY, self._cancel_reason))
        if not result.log:  # no worker has closed it
            result = with_log(job, result)
        if result.error_kind == "backend":
            self._look_for_room(job)
        return with_answer(result)._replace(task=job.task)

    def _look_for_room(self, job: Job) -> None:
        """Let no more jobs run where a disk is full after a job has failed and left its room.

        A program that still runs may hold the room.  The answers of the next jobs could be lost
        all the same, and canceled jobs cost nothing.
        """
        logs = os.path.dirname(job.log) or "." if job.log else ""
        for what, place in (("temporary files", os.path.dirname(self.directory)), ("logs", logs)):
            with contextlib.suppress(OSError):
                if place and is_full(place):
                    self.failure = self.failure or "cannot write %s to %s: %s" % (
                        what, place, os.strerror(errno.ENOSPC))

    def _reap_workers(self, pool: _WorkerPool, results: List[Result]) -> None:
        """Free the slots of dead workers, and answer the jobs that they held."""
        now = time.monotonic()
        dead_slots = pool.dead_slots()
        if self.method == "spawn" and not self._canceled and pool.has_failed():
            self._in_flight.clear()  # no worker will answer, so `close` need not wait
            raise UserError(UNGUARDED)
        for slot, pid, index, group in dead_slots:
            if group:
                send_signal(group, signal.SIGKILL)
            how = pool.how_it_ended(pid)
            attempt = pool.ledger.attempt(slot)
            pool.ledger.free(slot)
            pool.lost_a_worker = True
            job, its_pool, _ = self._in_flight.get(index, (None, None, 0))
            if job and job.attempt != attempt:
                continue  # its result came, and the job is tried again
            if its_pool in (None, pool):  # else the worker had returned the job
                sweep(TASK_MARK % (self.run_id, index))
            if its_pool is pool:
                deadline = now + HANDOVER_SECONDS
                self._awaiting_result[index] = deadline, "its worker process was %s" % how
        self._retire_if_stalled(pool)
        for index, (deadline, why) in list(self._awaiting_result.items()):
            if now >= deadline:
                results.append(self._answer(self._lost(index, why)))

    def _retire_if_stalled(self, pool: _WorkerPool) -> None:
        """Retire a pool whose queue is damaged; another one gets the jobs that it has not begun."""
        claimed = pool.claimed(self._in_flight)
        jobs = {index for index, (_, its_pool, _) in self._in_flight.items() if its_pool is pool}
        idle = pool.jobs > len(claimed & jobs)  # with no idle worker a job has to wait
        pool.looks_unclaimed = {index: pool.looks_unclaimed.get(index, 0) + idle for index in jobs
                                if index not in claimed and index not in self._awaiting_result}
        for index in pool.looks_unclaimed:  # it has not begun until now
            self._in_flight[index] = self._in_flight[index][0], pool, time.monotonic()
        started = pool.ledger.started > 0
        looks = max(pool.looks_unclaimed.values(), default=0)
        if looks < (STALL_TICKS if started else START_TICKS) or started and not pool.lost_a_worker:
            return
        pool.ledger.retire()
        waiting = set(pool.looks_unclaimed) - pool.claimed(self._in_flight)
        try:
            if pool is self._pools[-1] and not self._canceled:
                if not started:
                    self._notice("warning: worker processes do not start: tasks run in threads")
                    self.method = "thread"
                self._add_pool()
        except (OSError, OutputError, RuntimeError) as error:  # RuntimeError: no more threads
            number = _shortage(error)
            if number and len(waiting) == len(self._in_flight) == self._messages:  # none has begun
                self._in_flight.clear()
                raise _too_few(self.jobs, number) from None
            self.failure = self.failure or "cannot start workers again: %s" % error
        for index in sorted(waiting):  # as if a worker had returned it
            self._events.put((pool, index))

    def _lost(self, index: int, why: str) -> Result:
        """Return the result of a job whose worker does not answer: lost, or else canceled."""
        job, pool, since = self._in_flight[index]
        started = time.time() - (time.monotonic() - since)
        if not self._canceled:
            lost = unfinished(job, "lost", why, "worker_lost", attempts=1, start_time=started)
            return lost._replace(acted=backend_of(job).is_agent and not answers_only(job))
        if index not in pool.claimed(self._in_flight) and index not in self._awaiting_result:
            return self._unstarted(job)
        return unfinished(job, "canceled", CANCELED_LATE, "canceled", attempts=1,
                          start_time=started)

    def close(self) -> None:
        """Stop whatever still runs, and remove everything that the run made."""
        self.cancel()
        was_killed = self._killed_at < float("inf")
        seconds = KILLED_SECONDS if was_killed else self.grace + KILLED_SECONDS
        deadline = time.monotonic() + seconds
        while self._in_flight and time.monotonic() < deadline:
            self.wait()
        if self._in_flight:
            self.kill()
        self._remove_sessions()
        remove_tree(self.directory)  # while workers live: they do it if the parent is killed now
        for pool in self._pools:
            pool.close()
        for ident, worker in list(_workers.items()):
            if worker.state.run_id == self.run_id:
                del _workers[ident]
        self._reader.close()
        sweep(RUN_MARK % self.run_id)
        remove_tree(self.directory)
        self._dismiss_guard()
        if self._spawns:
            import multiprocessing.util
            util: Any = multiprocessing.util
            util.spawnv_passfds = util.spawnv_passfds.args[0]  # one layer for each pool

    def _dismiss_guard(self) -> None:
        with contextlib.suppress(OSError):  # the guard was killed
            write_all(self._guard_line.fileno(), b"\n")
        self._guard_line.close()
        if self._guard:
            send_signal(self._guard, signal.SIGCONT)  # a stopped guard could not end
            with contextlib.suppress(ChildProcessError):  # the caller of this module reaped it
                os.waitpid(self._guard, 0)


def _shortage(error: BaseException) -> int:
    """Return the number of an error that means too few processes, files or memory; else 0."""
    number = errno.EAGAIN if isinstance(error, RuntimeError) else getattr(error, "errno", 0)
    shortages = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
    return number if number in shortages else 0


def _too_few(jobs: int, number: int) -> UserError:
    return UserError("cannot start %s: %s; try a smaller --max-parallel"
                     % (counted(jobs, "worker"), os.strerror(number)))


class DryPool:
    """A Pool that runs nothing: each Result is the command line of its job."""

    failure = directory = ""
    ahead = 0  # so that results are in the order of the input

    def __init__(self) -> None:
        import queue
        self._events: queue.SimpleQueue[Optional[Result]] = queue.SimpleQueue()
        self._in_flight = 0

    def __len__(self) -> int:
        return self._in_flight

    def start(self, job: Job) -> None:
        self._in_flight += 1
        self._events.put(planned(job))

    def wait(self, seconds: float = TICK_SECONDS) -> List[Result]:
        import queue
        results: List[Result] = []
        with contextlib.suppress(queue.Empty):
            results = list(filter(None, (self._events.get(timeout=seconds),)))
        self._in_flight -= len(results)
        return results

    def wake(self) -> None:
        self._events.put(None)

    def running(self) -> List[Running]:
        return []

    cancel = kill = close = forget = do_nothing


# --- 13. Scheduler -----------------------------------------------------------
#
# Which job starts next and when: order, retries, limits, bounds, the end of a run.  Pure logic over
# a supply, a pool and two clocks.  Each attempt is a job of the pool.  _again decides whether there
# is another attempt.  It starts when the Gate opens again after a limit, else after _retry_seconds.

MAX_HELD = 1000  # jobs that wait for their backend while others are read
SHORT_SECONDS = 0.1  # a job below that waits noticeably for the parent
RETRY_SECONDS, MAX_RETRY_SECONDS = 2.0, 120.0  # the first and the longest wait of a plain retry
PROBE_SECONDS, MAX_PROBE_SECONDS = 60.0, 1800.0  # the same for a limit that states no time
MAX_SLACK_SECONDS = 60.0  # that are added to a stated time: clocks differ
NOTICE_SECONDS = 60.0  # a shorter pause is not worth a message
FEW_FAILURES = 3  # a percentage of an unknown number of tasks counts from here on
MAX_TRIES = 100  # that a result lists
BYTES_A_TOKEN = 4  # of a text, roughly
SAVED_TOKENS = 2000  # a task with fewer tokens is not worth a message
MAX_REASON_COLUMNS = 200  # of an error, in the results of other tasks
# Limits that only a person can lift; the first also where the error states a time, of a month.
_SPENDING = r"(?i)\bspend|monthly"
_NEEDS_PERSON = _SPENDING + (
    r"|credit|balance|funds|payment|billing|admin|owner|refill|purchase|upgrade")


class Control:
    """Act on a run from outside its loop: from a signal handler or another thread."""

    def __init__(self) -> None:
        self.level = 0  # 1: begin nothing more, stop what runs; 2: kill what runs
        self.reason = ""  # why, for the results of the tasks that did not start
        self.directory = ""  # of the run's files, while it is under way
        self.failure = ""  # why the run could not continue
        # why a later run can do the rest (EXIT_LEFT): rate_limit, budget or unknown_cost
        self.left = ""
        self.unread = False  # whether the run ended before its input
        self.untried = False  # whether it ended before another try of a failed task
        self.limited: Dict[str, float] = {}  # backend: until when (epoch) its starts pause
        self.wake: Callable[[], None] = do_nothing
        self.running: Callable[[], List[Running]] = list  # of the pool, while the run is under way

    def limits(self) -> List[str]:
        """Return `claude limited until 14:05` for each backend that waits for that."""
        return ["%s limited until %s" % (backend, local_time(moment))
                for backend, moment in self.limited.items() if moment > time.time()]

    def cancel(self, reason: str = "interrupted") -> None:
        self.reason = self.reason or reason or "interrupted"
        self.level = max(self.level, 1)
        self.wake()

    def kill(self) -> None:
        self.reason = self.reason or "interrupted"
        self.level = 2
        self.wake()


def with_slack(seconds: float) -> float:
    """Return how long to wait where so many seconds are stated."""
    return seconds + min(1 + seconds / 10, MAX_SLACK_SECONDS)


def needs_person(result: Result) -> bool:
    """Return whether only a person can lift the limit that a job met."""
    by_time = result.retry_after_seconds is not None
    return bool(re.search(_SPENDING if by_time else _NEEDS_PERSON, result.error))


def tokens_saved(result: Result) -> Tuple[int, int]:
    """Return the input tokens of a task, and how many of them answer_only would leave out.

    0 of them where it used a tool or may need one, or where they are not worth a message.
    """
    task, row = result.task, BACKENDS.get(result.backend)
    total = (result.usage or {}).get("input_tokens", 0)
    if (not task or task.answer_only or task.sandbox_mode in ("workspace", "full") or result.acted
            or result.attempts != 1 or not row or not row.is_agent):
        return total, 0
    texts = (task.prompt, task.system_prompt, schema_text(task))
    needed = sum(len(to_bytes(text)) for text in texts) // BYTES_A_TOKEN
    return total, total - needed if total >= max(SAVED_TOKENS, 4 * needed) else 0


# The error kinds of attempts that cost nothing, because the program cannot be started.
_FREE_KINDS = frozenset(("not_found", "permission", "invalid"))


def lacks_cost(backend: str, attempts: int, cost: Optional[float], kind: str) -> bool:
    """Return whether a task has no cost, though it was started and its backend states costs."""
    row = BACKENDS.get(backend)
    return bool(row and row.states_cost and attempts and cost is None and kind not in _FREE_KINDS)


class Costs:
    """The costs of attempts in USD, or of tasks in earlier runs.

    An attempt that should state its cost and does not, because it was stopped, is `unknown`, and
    counts as the most that one has cost so far.
    """

    def __init__(self) -> None:
        self.stated = self.most = 0.0
        self.known = self.unknown = 0  # how many are

    def add(self, backend: str, attempts: int, cost: Optional[float], kind: str) -> None:
        if cost is not None:
            self.stated += cost
            self.most = max(self.most, cost)
            self.known += 1
        self.unknown += lacks_cost(backend, attempts, cost, kind)

    @property
    def mean(self) -> float:
        return self.stated / max(self.known, 1)


class Bounds:
    """The bounds of a run: failures, the canary, the cost, with the `costs` of earlier runs."""

    def __init__(self, policy: RunPolicy, costs: Costs, jobs: int,
                 notice: Callable[[str], None]) -> None:
        self.failed = ""  # why all is stopped: too many failures
        self.reached = ""  # why nothing more starts, while what runs continues
        self.kind = ""  # the error_kind of jobs that are not started for that
        self.left = "budget"  # that Control.left is then
        self._policy, self._jobs, self._notice = policy, jobs, notice
        self._ended = self._failures = 0
        self._costs, self._unknown_before = costs, costs.unknown
        self._canary: Set[int] = set()  # the indexes of the first jobs
        self._canaries: List[float] = []  # the seconds of those that succeeded
        self._tokens: List[Tuple[int, int]] = []  # their tokens_saved

    @property
    def awaits_canary(self) -> bool:
        """Whether the canary has started and not all of it has ended well."""
        return len(self._canaries) < self._policy.canary <= len(self._canary)

    def started(self, index: int) -> None:
        if len(self._canary) < self._policy.canary:
            self._canary.add(index)

    def spend(self, result: Result) -> None:
        """Count the cost of an attempt."""
        self._costs.add(result.backend, result.attempts, result.cost_usd, result.error_kind)

    @property
    def _unknown(self) -> int:
        return 0 if self._policy.allow_unknown_cost else self._costs.unknown

    @property
    def _spent(self) -> float:
        return self._costs.stated + self._unknown * self._costs.most

    def remainder(self, running: int) -> float:
        """Return the USD that one more job may cost; 0 for any."""
        if not self._policy.max_cost:
            return 0.0
        return max(0.01, self._policy.max_cost - self._spent - running * self._costs.mean)

    def affords(self, running: int) -> bool:
        """Return whether one more job, at the mean cost so far, stays within `max_cost`.

        Where it does not and none runs, the bound is `reached`.  Until a cost is known, no more
        attempts than run at once may end without one.
        """
        most = self._policy.max_cost
        is_known = self._costs.most or self._unknown - self._unknown_before < self._jobs
        more = max(self._costs.mean * (running + 1), 1e-6)  # each task costs something
        if not most or is_known and self._spent + more <= most + 1e-9:  # sums are rounded
            return True
        if not running:
            self.kind = "budget"
            unknown = counted(self._unknown, "attempt")
            if not is_known:
                self.left = "unknown_cost"
                self.reached = ("max_cost $%g cannot be kept without --allow-unknown-cost: no cost "
                                "is known after %s" % (most, unknown))
                return False
            self.reached = "$%.4f of max_cost $%g are spent" % (self._spent, most)
            if self._unknown:
                self.reached += ", $%.4f of it for %s of unknown cost" % (
                    self._spent - self._costs.stated, unknown)
            if self._costs.mean:
                self.reached += ", and a task costs $%.4f" % self._costs.mean
        return False

    def note(self, result: Result, total: Optional[int]) -> None:
        """Take note of the final result of a task."""
        most = self._policy.max_failures
        failed = result.status in FAILED_STATUSES and not result.resumed
        self._ended += 1
        self._failures += failed
        if isinstance(most, float):  # a share
            most = (share_of(most, total) if total is not None
                    else max(share_of(most, self._ended), FEW_FAILURES))
        if failed and most and self._failures >= most and not self.failed:
            self.failed = "fail-fast" if str(self._policy.max_failures) == "1" else (
                "max_failures: " + counted(self._failures, "task") + " failed")
        if result.index in self._canary:
            self._note_canary(result, total)

    def _note_canary(self, result: Result, total: Optional[int]) -> None:
        if result.status != "ok":
            if not self.reached:
                self.reached = "canary: task %s did not succeed" % number_of(result)
                self._notice(self.reached + ": the other tasks are canceled")
            return
        self._canaries.append(result.duration_seconds)
        self._tokens.append(tokens_saved(result))
        count = len(self._canaries)
        if count < self._policy.canary:
            return
        seconds = sum(self._canaries) / count
        price = " and $%.4f" % self._costs.mean if self._costs.known else ""
        text = "canary: %s succeeded; one takes %s%s on average" % (
            counted(count, "task"), clock(seconds), price)
        rest = 0 if total is None else total - self._ended
        if rest:
            price = " and $%.2f" % (self._costs.mean * rest) if price else ""
            text += "; the other %d take about %s%s" % (
                rest, clock(seconds * rest / min(rest, self._jobs)), price)
        self._notice(text)
        total, saved = (round(sum(counts) / count, -2) for counts in zip(*self._tokens))
        if all(one for _, one in self._tokens):
            self._notice("canary: about {:,.0f} of {:,.0f} input tokens a task are the program's "
                         "own; --answer-only leaves them out".format(saved, total))


class Gate:
    """The starts of one backend: how many run at once, and a pause after a limit.

    After the pause one job, the probe, goes ahead.  When it meets no limit, `room` grows by one
    with each success, up to `most`; each limit halves it.  The jobs that wait are in the Scheduler.
    """

    def __init__(self, most: int) -> None:
        self.room = self.most = most
        self.running = 0
        self.closed_since: Optional[float] = None  # by the clock, which cannot be set
        self.until = self.retry_at = 0.0  # the end of the pause: by the clock, and since the epoch
        self.given_up = self.kind = ""  # why no more jobs start, and their error_kind
        self._probe = -1  # its index
        self._pauses = 0  # in a row, of limits that state no time, or again one that is over

    def may_start(self, now: float, wall: float) -> bool:
        if self.closed_since is None:
            return self.running < self.room
        # The clock stands still while the machine sleeps; the time of day may be set.
        return self._probe < 0 and (now >= self.until or wall >= self.retry_at)

    def started(self, index: int) -> None:
        self.running += 1
        if self.closed_since is not None:
            self._probe = index

    def ended(self, index: int, succeeded: bool) -> None:
        self.running -= 1
        if index == self._probe:
            self._probe, self.closed_since, self._pauses = -1, None, 0
        if succeeded and self.closed_since is None:
            self.room = min(self.most, self.room + 1)

    def limit(self, index: int, seconds: Optional[float], now: float, wall: float) -> None:
        """Pause after a limit that the job of that index met; `seconds`: the time that it states.

        Of several jobs that run when the limit comes, the first closes the gate.
        """
        self.running -= 1
        pause = 0.0 if seconds is None else with_slack(seconds)
        if self.closed_since is None or index == self._probe:
            # A reset that is over and has changed nothing states no time, either.
            is_unknown = seconds is None or not seconds and index == self._probe
            if self.closed_since is None:
                self.closed_since = now
            self.room, self._probe, self.until = max(1, self.room // 2), -1, now
            if is_unknown:
                pause = min(PROBE_SECONDS * 2 ** self._pauses, MAX_PROBE_SECONDS)
                self._pauses += 1
        if now + pause > self.until:
            self.until, self.retry_at = now + pause, wall + pause


class _Entry(NamedTuple):
    """A job on its way to its final result.

    `ready` is when it may start, by the clock.  It waits for its `gate`, and until it is alone in
    its `directories`.  `tries` are the results of its attempts so far.  `used` is how many of them
    count against `retries`; `limit_waited` is the sum of its waits for limits.
    """

    ready: float
    index: int  # type: ignore[assignment]  # of tuple.index
    job: Job
    gate: Gate
    directories: FrozenSet[str]
    tries: Tuple[Result, ...] = ()
    used: int = 0
    limit_waited: float = 0.0

    def summed_up(self, result: Result) -> Result:
        """Return the job's result: that of its last attempt, with the sums over all."""
        if not self.tries:
            return result
        tries = (*self.tries, result) if result.attempts else self.tries
        if len(tries) > 1:
            result = result._replace(tries=tuple(map(try_fields, tries[-MAX_TRIES:])))
        usages: Dict[Any, Dict[str, int]] = {}  # of one session the last is that of all its runs
        for number, one in enumerate(tries):
            is_sum = one.usage_is_cumulative and one.session_id
            usages[one.session_id if is_sum else number] = one.usage or {}
        usage: Counter[str] = Counter()
        for one_usage in usages.values():
            usage.update(one_usage)
        costs = [one.cost_usd for one in tries if one.cost_usd is not None]
        return result._replace(
            attempts=len(tries), usage=dict(usage) or None, cost_usd=sum(costs) if costs else None)


def try_fields(result: Result) -> Dict[str, Any]:
    """Return the JSON fields of one of several attempts."""
    fields = {"status": result.status, "error_kind": result.error_kind, "error": result.error,
              "start_time": utc(result.start_time),
              "duration_seconds": round(result.duration_seconds, 3), "cost_usd": result.cost_usd,
              "log": result.log}
    return {name: value for name, value in fields.items() if value not in ("", None)}


def may_write(job: Job) -> bool:
    """Return whether a job may change files, or is expected to."""
    is_writer = backend_of(job).is_agent or judges_changes(job.task)
    return is_writer and sandbox_of(job) != "read-only"


class Scheduler:
    """Start the jobs of a supply on a pool, and yield exactly one final Result for each.

    Jobs start in the order of the input, at most `jobs` at a time, as far as the policy permits.
    While jobs take no time, one job more than can run is handed to the pool, so that no worker
    waits for the parent; not so where the result of one job decides whether the next may begin.
    After a limit such a job begins all the same.  `resume` returns the result of a job that an
    earlier run has done.  `on_start` is called before each attempt, and may return its job with
    more fields.  `on_tick` is called with the number of running jobs after each event, and every
    TICK_SECONDS.  `notice` is called with messages for the user.  `costs` are those of earlier
    runs of the same batch.
    """

    def __init__(self, supply: Supply, pool: Any, jobs: int, policy: RunPolicy = NO_POLICY, *,
                 control: Optional[Control] = None, costs: Optional[Costs] = None,
                 resume: Callable[[Job], Optional[Result]] = do_nothing,
                 on_start: Callable[[Job], Optional[Job]] = do_nothing,
                 on_tick: Callable[[int], None] = do_nothing,
                 notice: Callable[[str], None] = do_nothing,
                 clock: Callable[[], float] = time.monotonic,
                 wall: Callable[[], float] = time.time,
                 jitter: Optional[Callable[[], float]] = None) -> None:
        self._supply, self._pool, self._jobs, self._policy = supply, pool, jobs, policy
        self._resume, self._on_start, self._on_tick = resume, on_start, on_tick
        self._notice, self._clock, self._wall, self._jitter = notice, clock, wall, jitter
        self._control = control or Control()
        self._ahead = 0
        if supply.reads_ahead and not (policy.max_failures or policy.canary or policy.max_cost):
            self._ahead = pool.ahead
        self._last_seconds = float("inf")  # the duration of the last job
        self._gates: Dict[Tuple[str, Optional[Definition]], Gate] = {}
        self._running: Dict[int, _Entry] = {}  # what is in the pool
        self._waiting: List[_Entry] = []  # what waits for its time
        # jobs that wait for room, by what they wait for: their gate and their directories
        self._held: Dict[Tuple[Gate, FrozenSet[str]], List[_Entry]] = {}
        self._directories: Dict[str, int] = {}  # in which a job is alone now, and its index
        self._bounds = Bounds(policy, costs or Costs(), jobs, notice)
        self._trees: Dict[str, str] = {}  # the git work trees, by workdir
        self._has_warned = False  # of jobs that write in one of them
        self._exhausted = self._killed = False

    def results(self) -> Iterator[Result]:
        """Run all jobs.  After too many failures or a cancel, stop and begin nothing more.

        Each job that does not begin is answered as canceled, with the reason; so are the rest of
        the jobs when the pool has a `failure`, and when a bound is reached.
        """
        while True:
            if self._bounds.failed or self._control.level:
                self._pool.cancel(self._stop_reason())
            if self._control.level > 1 and not self._killed:
                self._killed = True
                self._pool.kill()
            yield from self._start_jobs()
            self._on_tick(min(len(self._pool), self._jobs))
            done = self._exhausted and not self._waiting and not self._held
            if not len(self._pool) and (done or self._stop_reason()):
                break
            results = self._pool.wait()
            while results:  # no variable holds a result that was yielded: it may be a large file
                yield from self._ended(results.pop(0))
        yield from self._cancel_rest()
        if not (self._exhausted and self._supply.at_end):
            self._control.unread = True
        if self._bounds.kind and (self._control.left or self._control.unread):
            self._control.left = self._bounds.left
            self._notice(self._bounds.reached + ": the other tasks are canceled")

    def _stop_reason(self) -> str:
        """Return why nothing more begins and the rest is canceled; "" where jobs may start."""
        return str(self._bounds.failed or self._pool.failure
                   or self._control.level and self._control.reason or self._bounds.reached)

    def _start_jobs(self) -> Iterator[Result]:
        """Start jobs while there is room.  Yield the results that need no start."""
        while not self._stop_reason():
            ahead = self._ahead if self._last_seconds < SHORT_SECONDS else 0
            running = len(self._pool)
            if running >= self._jobs + ahead or not self._bounds.affords(running):
                return
            item = self._next()
            if isinstance(item, Result):
                yield self._noted(item)
            elif isinstance(item, _Entry):
                self._start(item)
            else:
                return

    def _next(self) -> Union[_Entry, Result, str]:
        """Return a job that may start, a Result that needs no start, NOT_READY or END."""
        now = self._clock()
        for entry in [entry for entry in self._waiting if entry.ready <= now]:
            self._waiting.remove(entry)
            self._hold(entry)
        taken, wall = set(self._directories), self._wall()
        heads = (entries[0] for entries in self._held.values())
        for entry in sorted(heads, key=self._precedence):
            gate = entry.gate
            if self._bounds.awaits_canary and not entry.tries:
                break
            if gate.given_up:
                self._leave(self._unhold(entry))
                return self._unbegun(entry)
            if gate.may_start(now, wall):
                if self._owns_directories(entry) or taken.isdisjoint(entry.directories):
                    return self._unhold(entry)
                taken |= entry.directories  # so that no later job overtakes it
        while not (self._exhausted or self._bounds.awaits_canary) and self._may_read():
            item = self._read()
            if item == END:
                self._exhausted = True
            if not isinstance(item, Job):
                return item
            entry = self._entry(item)
            earlier = self._resume(item)
            if earlier or entry.gate.given_up:
                return earlier or self._unbegun(entry)
            if entry.gate.may_start(now, wall):
                if taken.isdisjoint(entry.directories):
                    return entry
                taken |= entry.directories
            self._hold(entry)
        return NOT_READY

    def _precedence(self, entry: _Entry) -> Tuple[bool, bool, int]:
        """Return the place of a held job: first those that have their directories already.

        Then come jobs that were tried before.
        """
        return not self._owns_directories(entry), not entry.tries, entry.index

    def _unhold(self, entry: _Entry) -> _Entry:
        """Take a job that is the first of those that wait for the same."""
        key = (entry.gate, entry.directories)
        del self._held[key][0]
        if not self._held[key]:
            del self._held[key]
        return entry

    def _may_read(self) -> bool:
        waiting = len(self._waiting) + sum(map(len, self._held.values()))
        return waiting < (MAX_HELD if self._supply.reads_ahead else self._jobs - len(self._pool))

    def _entry(self, job: Job) -> _Entry:
        """Return the entry of a job, with its gate and the directories in which it must be alone.

        Its git work tree is one where its changes are judged, its workdir with `one_per_workdir`.
        They stay what they were when the job was read, whatever a task does with a link.  One
        environment serves a whole run, so a name and a command have one account.
        """
        backend = job.task.backend
        gate = self._gates.get((backend, job.definition))
        if gate is None:
            most = min(self._policy.limits.get(backend, MAX_JOBS + 1), self._jobs + self._ahead)
            gate = self._gates[backend, job.definition] = Gate(most)
        workdir, directories = job.task.workdir, set()
        if judges_changes(job.task):
            directories.add(self._tree(workdir))
        if self._policy.one_per_workdir and not deleted_directory(workdir):
            directories.add(os.path.realpath(workdir or "."))
        return _Entry(0.0, job.index, job, gate, frozenset(directories))

    def _tree(self, workdir: str) -> str:
        if workdir not in self._trees:
            self._trees[workdir] = work_tree(workdir)
        return self._trees[workdir]

    def _leave(self, entry: _Entry) -> None:
        if self._owns_directories(entry):
            for directory in entry.directories:
                del self._directories[directory]

    def _owns_directories(self, entry: _Entry) -> bool:
        return any(self._directories.get(one) == entry.index for one in entry.directories)

    def _read(self) -> _Next:
        """Return what comes next; END where the input cannot be kept: then nothing more starts."""
        try:
            return self._supply.next_job()
        except OutputError as error:
            self._pool.failure = self._pool.failure or str(error)
            self._control.unread = True
            return END

    def _hold(self, entry: _Entry) -> None:
        """Let a job wait for room; one that was tried before goes first."""
        entries = self._held.setdefault((entry.gate, entry.directories), [])
        place = len(entries)
        if entry.tries:  # but after the one that has the directories
            place = int(bool(entries) and self._owns_directories(entries[0]))
        entries.insert(place, entry)

    def _start(self, entry: _Entry) -> None:
        job = entry.job
        self._directories.update(dict.fromkeys(entry.directories, entry.index))
        self._warn_of_writers(job)
        if entry.tries or self._policy.retries or self._policy.max_cost:
            retried = self._policy.retries > 0 and self._may_act_again(job)
            job = job._replace(attempt=len(entry.tries) + 1, retried=retried,
                               budget_usd=self._bounds.remainder(len(self._pool)))
        if entry.tries:
            job = job._replace(changes=entry.tries[-1].changes)
        job = job._replace(keep=True) if may_repair(job) else job
        entry.gate.started(job.index)
        self._bounds.started(job.index)
        self._running[job.index] = entry
        self._pool.start(self._on_start(job) or job)

    def _warn_of_writers(self, job: Job) -> None:
        """Warn, once, of two jobs that may write in one git work tree at the same time."""
        if self._has_warned or not may_write(job):
            return
        tree = self._tree(job.task.workdir)
        if tree and any(tree == self._trees.get(other.job.task.workdir) and may_write(other.job)
                        for other in self._running.values()):
            self._has_warned = True
            other_way = "" if self._policy.one_per_workdir else ", or --one-per-workdir"
            self._notice("warning: tasks that may write run at once in the git work tree %s; give "
                         "each a work tree of its own%s" % (quoted(tree), other_way))

    def _ended(self, result: Result) -> Iterator[Result]:
        """Take the result of an attempt.  Yield it unless the job is tried again."""
        entry = self._running.pop(result.index)
        self._bounds.spend(result)
        self._last_seconds = result.duration_seconds
        again = self._again(entry, result)
        waits = isinstance(again, _Entry) and again.ready > 0
        if not (waits and judges_changes(entry.job.task)):  # no other's changes come in between
            self._leave(entry)
        if isinstance(again, Result):
            yield self._noted(self._final(entry, again))
        elif again.ready:
            self._waiting.append(again)
        else:  # its gate knows until when
            self._hold(again)

    def _final(self, entry: _Entry, result: Result) -> Result:
        """Return the result of a task, of which nothing is left but that."""
        sessions: Dict[str, None] = {}
        if not entry.job.keep and may_repair(entry.job):
            sessions = dict.fromkeys(one.session_id for one in (*entry.tries, result))
        if sessions:
            self._pool.forget(entry.job, sessions)
        return entry.summed_up(result)

    def _may_act_again(self, job: Job) -> bool:
        return self._policy.retry_acted or sandbox_of(job) == "read-only"

    def _again(self, entry: _Entry, result: Result) -> Union[_Entry, Result]:
        """Return the entry of the next attempt, or the result that stays."""
        policy, now, stated = self._policy, self._clock(), result.retry_after_seconds
        gate, kind = entry.gate, result.error_kind
        only_a_person = kind == "quota" and needs_person(result)
        if kind == "quota" and not only_a_person:
            kind = "rate_limit"
        is_limit = kind == "rate_limit" and policy.retries > 0 and kind in policy.retry_on
        if is_limit:
            gate.limit(entry.index, stated, now, self._wall())
            self._note_pause(entry.job, gate)
        else:
            gate.ended(entry.index, result.status == "ok")
            if gate.closed_since is None:
                self._control.limited.pop(result.backend, None)
        if only_a_person and policy.retries:
            reason = cut(one_line(result.error), MAX_REASON_COLUMNS)
            self._give_up(gate, "quota", "%s: %s" % (result.backend, reason))
        if can_repair(entry.job.task, entry.tries, result):
            if self._stop_reason():
                self._control.untried = True
                return result
            job = repaired_job(entry.job, result)
            problem = ("the check failed twice with the same output"
                       if fails_again(entry.tries, result) else refused_repair(job))
            if not problem:
                return entry._replace(job=job, ready=0.0, tries=(
                    *entry.tries, result._replace(answer="", task=None)))
            result = result._replace(
                warnings=(*result.warnings, "not tried again, because " + problem))
        if (result.status not in FAILED_STATUSES or kind not in policy.retry_on
                or entry.used >= policy.retries and not is_limit):
            return result
        if judges_changes(entry.job.task) and not result.changes:
            return result._replace(warnings=(*result.warnings, "not tried again, because what it "
                                             "has changed is not known or not permitted"))
        if result.acted and not self._may_act_again(entry.job):
            return result._replace(warnings=(*result.warnings, "not tried again, because it may "
                                             "have acted already; --retry-acted tries again"))
        if self._stop_reason():
            self._control.untried = True
            return result
        wait = gate.until - now if is_limit else self._retry_seconds(entry.used, stated)
        waited = entry.limit_waited
        if is_limit or stated is not None:
            waited += max(0.0, wait)
        if waited > policy.max_wait or is_limit and gate.given_up:
            self._control.left = "rate_limit"
            return result._replace(retry_at=self._wall() + wait)
        tries = (*entry.tries, result._replace(answer="", task=None))
        return entry._replace(ready=0.0 if is_limit else now + wait, tries=tries,
                              used=entry.used + (not is_limit), limit_waited=waited)

    def _give_up(self, gate: Gate, kind: str, why: str) -> None:
        """Start no more jobs of a backend, for the first of several reasons."""
        if not gate.given_up:
            gate.kind, gate.given_up = kind, why
            self._notice(why + ": its other tasks are canceled")

    def _note_pause(self, job: Job, gate: Gate) -> None:
        """Tell of the pause of a backend; give its tasks up where it is longer than `max_wait`."""
        backend, pause = job.task.backend, gate.until - self._clock()
        moment = local_time(gate.retry_at)
        if gate.until - (gate.closed_since or 0.0) > self._policy.max_wait:
            self._give_up(gate, "rate_limit", "%s is limited until %s, which is longer than "
                          "max_wait (%s) permits"
                          % (backend, moment, duration(self._policy.max_wait)))
        elif pause >= NOTICE_SECONDS and (  # once for the limits that several jobs met
                moment != local_time(self._control.limited.get(backend, 0.0))):
            self._notice("%s is limited until %s: its tasks wait" % (backend, moment))
        self._control.limited[backend] = gate.retry_at

    def _retry_seconds(self, used: int, stated: Optional[float]) -> float:
        """Return how long a job waits for its next attempt after any failure but a limit."""
        if stated is not None:
            return with_slack(stated)
        if self._jitter is None:
            import random
            self._jitter = random.random
        return self._jitter() * float(min(RETRY_SECONDS * 2 ** used, MAX_RETRY_SECONDS))

    def _noted(self, result: Result) -> Result:
        self._bounds.note(result, self._supply.total)
        return self._supply.arrived(result)

    def _unbegun(self, entry: _Entry) -> Result:
        """Return the result of a job that is not started, or not again: canceled, and why."""
        gate = entry.gate
        kind, why = self._bounds.kind or "canceled", self._stop_reason()
        if gate.given_up:
            kind, why = gate.kind, gate.given_up
        if kind in ("rate_limit", "budget"):
            self._control.left = kind
        result = unfinished(entry.job, "canceled", "%s (%s)" % (CANCELED_EARLY, why), kind)
        if entry.tries:
            self._control.untried = True
            *tries, last = entry.tries
            entry = entry._replace(tries=tuple(tries))
            result = self._final(entry, last._replace(task=entry.job.task))
        return result._replace(retry_at=gate.retry_at if kind == "rate_limit" else 0.0)

    def _cancel_rest(self) -> Iterator[Result]:
        """Answer the jobs that did not begin, without waiting for more input."""
        for entry in itertools.chain(self._waiting, *self._held.values()):
            yield self._supply.arrived(self._unbegun(entry))
        self._supply.stop()
        deadline = self._clock() + TICK_SECONDS
        while not self._exhausted:
            item = self._read()
            if isinstance(item, Job):
                item = self._resume(item) or self._unbegun(self._entry(item))
            if isinstance(item, Result):
                yield self._supply.arrived(item)
            elif item == END or self._clock() >= deadline:
                self._exhausted = item == END
                return
            else:  # another thread may be about to hand over what it has read
                self._pool.wait(0.01)


def run_pool(tasks: Union[Iterable[Union[Task, Job]], Supply], jobs: int = 3, *,
             policy: RunPolicy = NO_POLICY, control: Optional[Control] = None,
             dry_run: bool = False, costs: Optional[Costs] = None,
             resume: Callable[[Job], Optional[Result]] = do_nothing,
             on_start: Callable[[Job], Optional[Job]] = do_nothing,
             on_tick: Callable[[int], None] = do_nothing,
             notice: Callable[[str], None] = do_nothing, start_method: str = "",
             grace: float = GRACE_SECONDS) -> Generator[Result, None, None]:
    """Run tasks, at most `jobs` at a time; yield exactly one Result for each, as they end.

    `tasks` are tasks or a Supply.  A generator of tasks is advanced in the caller's thread, only
    when there is room for a task, so that it can make the next task from the last result.

    After too many failures (`policy.max_failures`) or `control.cancel()` nothing more is started,
    what runs is stopped (its stop signal, `grace` seconds, SIGKILL), and each task that did not
    begin is answered as canceled.  So are these when the files of the run cannot be kept any more
    (`control.failure` is why).  Closing the generator stops what runs, too.  When the
    generator is closed or exhausted, nothing of the run is left: no process, no file.

    `start_method` is one of START_METHODS, by default `fork` on Linux.  With `dry_run` each result
    is a command line.  The other arguments are those of Scheduler.

    Raise ValueError where `jobs` is not from 1 to MAX_JOBS, OutputError where there is no place for
    temporary files, UserError where so many workers cannot be started.  Exceptions of `tasks` and
    `on_tick` pass through.
    """
    with path_context("jobs"):
        _jobs(jobs)
    control = control or Control()
    supply = tasks if isinstance(tasks, Supply) else JobList(tasks)
    if dry_run:  # the command lines show what is left to the programs
        jobs, policy = 1, RunPolicy(retries=policy.retries, max_cost=policy.max_cost)
    pool: Any = DryPool() if dry_run else Pool(jobs, start_method, grace, notice)
    scheduler = Scheduler(supply, pool, jobs, policy, control=control, costs=costs, resume=resume,
                          on_start=on_start, on_tick=on_tick, notice=notice)
    control.wake = supply.on_ready = pool.wake
    control.directory, control.running = pool.directory, pool.running
    try:
        yield from scheduler.results()
    finally:
        control.failure = pool.failure
        if control.level > 1:
            pool.kill()
        pool.close()
        # They would keep the files of the pool open.
        control.wake, supply.on_ready, control.running = do_nothing, do_nothing, list


# --- 14. Journal -------------------------------------------------------------
#
# The results file: its keys and lines, and the part of them that a later run takes over.

ONE_WRITE_BYTES = 1 << 20  # a line up to this size is one write; a longer one is not kept in memory


def in_one_write(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join pieces up to ONE_WRITE_BYTES."""
    joined = bytearray()
    for piece in pieces:
        joined += piece
        if len(joined) > ONE_WRITE_BYTES:
            yield bytes(joined)
            joined.clear()
    if joined:
        yield bytes(joined)


def task_label(task: Optional[Task], otherwise: str = "") -> str:
    """Return what the results file shows for a task, or for input that is none."""
    return one_line((task and (task.name or task.prompt)) or otherwise)[:400]


def job_label(task: Optional[Task], otherwise: str = "") -> str:
    """Return what the table shows for a job, such as `[opus] 2/3 review auth`."""
    sample, label = task and task.sample or Sample(0), task_label(task, otherwise)
    if sample.samples > 1:
        label = "%d/%d %s" % (sample.sample, sample.samples, label)
    if sample.cell:
        label = "[%s] %s" % (one_line(",".join(sample.cell.values())), label)
    return label


def never_started(result: Result) -> bool:
    return result.status == "canceled" and not result.attempts


# The answer of the program was bad by what the task asks for: no accident, and so a measurement.
JUDGED_KINDS = frozenset(("schema", "check", "no_change", "protected"))


def is_final(status: str, error_kind: str, is_sample: Any) -> bool:
    """Return whether a result answers its task for good.  Other tasks run again with --resume.

    A sample that was judged is not drawn again until it succeeds.
    """
    return status == "ok" or bool(is_sample) and error_kind in JUDGED_KINDS


# The fields of a task that determine its answer, and so its key.  A test names the others.
KEY_FIELDS = ("backend", "prompt", "model", "effort", "answer_only", "system_prompt", "workdir",
              "approval_mode", "sandbox_mode", "max_turns", "max_tokens", "extra", "schema",
              "check", "require_change", "protect")


def given(record: Any, names: Iterable[str]) -> Dict[str, Any]:
    """Return those of the named fields that a record has and that do not have their default."""
    defaults = type(record)._field_defaults
    return {name: getattr(record, name) for name in names
            if getattr(record, name, None) != defaults.get(name)}


def job_key(job: Job) -> str:
    """Return the SHA-256 of what determines the answer to a job.

    A field that has its default is left out, so that a field that is added later changes no key.
    """
    from hashlib import sha256
    fields = given(job.task, KEY_FIELDS)
    if job.definition:
        fields["definition"] = given(job.definition, Definition._fields)
    if job.literal:
        fields["literal"] = True
    if sample_of(job).sample > 1:  # the first is that of a run without samples
        fields["sample"] = sample_of(job).sample
    return sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def program_words() -> List[str]:
    """Return the words with which a shell starts this program as it was started."""
    path = "".join(sys.argv[:1])
    if os.path.basename(path) in ("", "clinvk"):
        return ["clinvk"]
    return [path] if os.sep in path and os.access(path, os.X_OK) else ["python3", path]


def continuing_command(arguments: Sequence[str], needs_input: bool) -> str:
    """Return, for a message, how to continue the run of a command line.

    `needs_input`: the command does not find its input where it was, as in a pipe.
    """
    words = list(arguments)
    end = words.index("--") if "--" in words else len(words)
    if "--resume" not in words[:end]:
        words.insert(end, "--resume")
    command = " ".join(map(shell_quoted, [*program_words(), *words]))
    return "the same input with: " + command if needs_input else command


def _check_facts(value: Any) -> Dict[str, Any]:
    facts = _free_object(value)
    texts = {name: _known_string(facts.get(name, "")) for name in ("status", "output")}
    return dict(facts, **texts)


# The fields that a later run reads from a line of the results file, with their checks.
LINE_FIELDS: Dict[str, Callable[[Any], Any]] = {
    "index": _free_value, "task_id": _free_value,
    "key": _known_string, "backend": _known_string, "model": _known_string,
    "status": _known_string, "exit_code": _of_type(int, "a whole number"),
    "output": _known_string, "error": _known_string, "error_kind": _known_string,
    "retry_after_seconds": _amount, "retry_at": parse_utc, "warnings": _list_of(_known_string),
    "session_id": _known_string, "usage": _token_counts, "cost_usd": _amount,
    "num_turns": _token_count, "limits": _free_object, "attempts": _token_count,
    "tries": _each(_free_object, "a list of objects"), "start_time": parse_utc,
    "end_time": parse_utc, "duration_seconds": _amount, "written": _known_string,
    "data": _free_object, "log": _known_string, "log_stderr": _known_string,
    "check": _check_facts, "samples": _token_count, "cell": _free_object,
}
WORKERS_END_SECONDS = 15.0  # after their parent was killed; they lock the results file until then
MAX_LABELS = 5  # in a message


def is_final_line(fields: Dict[str, Any]) -> bool:
    is_sample = fields.get("samples", 1) > 1 or fields.get("cell")
    return is_final(fields["status"], fields.get("error_kind", ""), is_sample)


class _EqualLines:
    """The lines of several tasks with one key, each of which answers one task."""

    def __init__(self) -> None:
        self._owners: Dict[int, Sequence[Tuple[str, Any]]] = {}  # by start, of lines not taken yet
        self._starts: Dict[Tuple[str, Any], int] = {}  # by owner; of several lines the last

    def add(self, start: int, fields: Dict[str, Any]) -> None:
        """Add the line that begins there; the file, the id and the index of its task own it."""
        owners = [(name, fields[name]) for name in ("written", "task_id", "index")
                  if type(fields.get(name)) in (str, int)]
        self._owners[start] = owners
        self._starts.update(dict.fromkeys(owners, start))

    def take(self, job: Job) -> Optional[int]:
        """Return where the line of a job begins, else that of another; None if there is none.

        A line with a file, which another task may need, is not taken for a job with another file.
        """
        task = job.task
        own = [self._starts.get(owner) for owner in (
            ("written", task.write_to), ("task_id", task.id), ("index", sample_of(job).index))]
        others = (start for start in reversed(self._owners)
                  if not (task.write_to and "written" in dict(self._owners[start])))
        starts: Iterator[Optional[int]] = itertools.chain(own, others)
        for start in starts:
            if start is not None and start in self._owners:
                del self._owners[start]
                return start
        return None


class _LineText(TextFile):
    """A large string in a line of the results file."""

    def __init__(self, capture: Capture, text: str) -> None:
        super().__init__("", 0)
        self._capture, self._text = capture, text

    def __len__(self) -> int:
        return sum(map(len, self.pieces()))

    def __iter__(self) -> Iterator[str]:
        return self._capture.text_of(self._text)

    def pieces(self) -> Iterator[bytes]:
        return map(to_bytes, self)


def line_spans(file: int, start: int, end: Optional[int] = None) -> Iterator[Tuple[int, int]]:
    """Yield the start and the end of each line of a results file, without its newline."""
    position = start
    for piece in file_chunks(file, start, end):
        newline = piece.find(b"\n")
        while newline >= 0:
            yield start, position + newline
            start = position + newline + 1
            newline = piece.find(b"\n", newline + 1)
        position += len(piece)
    if start < position:
        yield start, position


def known_fields(text: bytes, checks: Dict[str, Callable[[Any], Any]],
                 required: Sequence[str]) -> Dict[str, Any]:
    """Return the fields of a JSON object that have a check.  Raises ValueError."""
    try:
        value = _of_type(dict, "an object")(loads(text))
        known = {name: item for name, item in value.items() if name in checks}
        fields = _checked(known, checks, "an object")
    except RecursionError:
        raise ValueError("nested too deep") from None
    for name in required:
        if name not in fields:
            raise ValueError("%s is missing" % name)
    return fields


def line_fields(capture: Capture, checks: Dict[str, Callable[[Any], Any]] = LINE_FIELDS,
                required: Sequence[str] = ("key", "status")) -> Dict[str, Any]:
    """Return the known_fields of a line, with names for long strings.  Raises ValueError."""
    return known_fields(b"".join(capture.short_pieces(bool)), checks, required)


def whole_lines(file: int, path: str, warn: Callable[[str], None],
                fields_of: Callable[[Capture], Dict[str, Any]],
                ) -> Iterator[Tuple[int, int, Optional[Dict[str, Any]]]]:
    """Yield the start, the end and the fields of each line of a results file; not of blank lines.

    The fields of an incomplete last line are None.  Raises UserError for another damaged line.
    """
    size = os.fstat(file).st_size
    for number, (start, end) in enumerate(line_spans(file, 0, size), 1):
        capture = Capture(file, start, end)
        if end < size and capture.is_blank():
            continue
        try:
            yield start, end, fields_of(capture)
        except ValueError as error:
            if end < size:
                raise UserError("%s:%d: not a result: %s; correct or remove this line, "
                                "or give another file" % (path, number, error)) from None
            warn("%s:%d: the last line is incomplete and is left out" % (path, number))
            yield start, end, None


def result_of_line(index: int, fields: Dict[str, Any], capture: Capture) -> Result:
    """Return the Result in a line; `fields` are its line_fields."""
    kept = {name: capture.whole(value) for name, value in fields.items()
            if name in Result._fields and name not in ("index", "warnings")}
    output = fields.get("output", "")
    answer = _LineText(capture, output) if capture.has_names(output) else output
    start, end = kept.pop("start_time", 0.0), kept.pop("end_time", 0.0)
    seconds = fields.get("duration_seconds", end - start)
    if abs(end - start - seconds) > 0.01:  # the clock was set meanwhile, or a time is missing
        start = start or max(0.0, end - seconds)
        end = min(start + seconds, MAX_TIME)
    # Times and duration were rounded.  This makes all three what they are in the line.
    shift = 0.4 * (end - start - seconds)
    return Result(index, kept.pop("backend", ""), kept.pop("status"), kept.pop("exit_code", 0),
                  answer=answer, warnings=tuple(map(capture.whole, fields.get("warnings", ()))),
                  start_time=start + shift, end_time=end - shift, **kept)


def notes_path(results: str) -> str:
    """Return the file beside a results file with the tasks that run; "" where there is none."""
    return results and results + ".running"


class Journal:
    """The results file of a run: a line for each result, on the disk before anything shows it.

    The file is locked while the run lasts.  With `resume` it may contain the results of earlier
    runs.  Those that are final answer the jobs with their keys, each line one job.  `costs` are
    those of all.  `run`, the time of the start, is in each line.  PATH.running contains the
    tasks that were started, and is removed at an orderly end (close).  `continuing` is the end of
    the message that the file has results, unless they are not those of the `shard`.  With `dry_run`
    nothing is written, made or locked.

    Raises UserError where the file must not be used, OutputError where it cannot be written.
    """

    def __init__(self, path: str, *, resume: bool, continuing: str, warn: Callable[[str], None],
                 shard: Shard = WHOLE, dry_run: bool = False, tasks: Optional[int] = None) -> None:
        self._path, self._notes_path, self._warn = path, notes_path(path), warn
        self.costs, self.run = Costs(), utc(time.time())
        self._writes, self._shard = not dry_run, shard
        self._file = self._notes_file = -1
        self._keys: Dict[int, str] = {}  # of the jobs without a result, by index
        self._started: Set[int] = set()  # the jobs whose results are not in the file yet
        # Where the line begins that is final and not used yet, by the hash of its key: a hash takes
        # a third of the memory.  Several lines may have one key.
        self._ok: Dict[int, Union[int, _EqualLines]] = {}
        self._strangers = 0  # tasks without a final line, before the first that has one
        self._many = min(MAX_LABELS, tasks or MAX_LABELS)  # strangers, of all `tasks`
        self._left: Dict[str, int] = Counter()  # keys of tasks that a killed run left unanswered
        try:
            self._open()
            if self._file >= 0:
                self._continue(resume, continuing)
        except BaseException:
            self._release()
            raise

    @staticmethod
    def check(path: str, output_dir: str = "") -> None:
        """Raise UserError or OutputError where results cannot be written.  Makes nothing.

        The `output_dir`, and the directories above it, are made before the file.
        """
        refuse_irregular("--results", path)
        parent = os.path.dirname(path)
        is_made = bool(output_dir) and is_inside(absolute(output_dir), absolute(parent))
        refuse_unwritable("results to " + visible(path), parent, can_be_made=is_made)

    def _continue(self, resume: bool, continuing: str) -> None:
        """Take over what earlier runs left in the file."""
        if self._writes:
            self._lock()
        size = os.fstat(self._file).st_size
        if size and not resume:
            raise UserError("--results %s: it contains results of %s" % (
                self._path, self._other_shard() or "an earlier run; for other tasks give another "
                "name; to continue: " + continuing))
        since = next(self._notes(), {}).get("size")
        end, answered = self._read(size, since if isinstance(since, int) else size)
        if self._writes:
            left = self._left_running(answered)
            self._left.update(note["key"] for note in left)
            with writing("results", self._path):
                self._repair(size, end)
                self._begin_notes(end, left)

    def _other_shard(self) -> str:
        """Return the end of a message where the file has results, and none of this shard."""
        if self._shard.shards == 1:
            return ""
        fields_of = functools.partial(line_fields, checks={"index": _token_count}, required=())
        lines = whole_lines(self._file, self._path, do_nothing, fields_of)
        indexes = {fields["index"] for _, _, fields in lines if fields}
        if not indexes or any(map(self._shard.has, indexes)):
            return ""
        return "task %d, which is not in shard %s; give each shard a file of its own" % (
            min(indexes) + 1, self._shard)

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT if self._writes else os.O_RDONLY
        refuse_irregular("--results", self._path)
        with writing("results"):
            try:
                self._file = os.open(self._path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                if self._writes:
                    raise
                return
        for stream, name in ((1, "stdout"), (2, "stderr")):
            if is_same(stream, self._path):
                raise UserError("--results %s: %s is this file; choose another one"
                                % (self._path, name))

    def _lock(self) -> None:
        """Lock the file.  Where its run was killed, wait for the end of the workers."""
        deadline = time.monotonic() + WORKERS_END_SECONDS
        while not lock_file(self._file):
            holder = next(self._notes(), {})
            pid, host = holder.get("pid"), holder.get("host")
            is_dead = type(pid) is int and host == host_name() and not process_exists(pid)
            if not is_dead or time.monotonic() > deadline:
                who = " (pid %s on %s, since %s)" % (
                    pid, host, holder.get("start_time")) if holder else ""
                raise UserError("--results %s: another run writes to it%s%s" % (
                    self._path, visible(who),
                    "; give each shard a file of its own" * (self._shard.shards > 1)))
            time.sleep(0.05)

    def _read(self, size: int, since: int) -> Tuple[int, Dict[str, int]]:
        """Check all lines.  Return the end of the last whole one, and the keys behind `since`."""
        answered: Dict[str, int] = Counter()
        for start, _, fields in whole_lines(self._file, self._path, self._warn, line_fields):
            if fields is None:
                return start, answered
            key = fields["key"]
            if start >= since:
                answered[key] += 1
            self.costs.add(fields.get("backend", ""), fields.get("attempts", 0),
                           fields.get("cost_usd"), fields.get("error_kind", ""))
            if is_final_line(fields):
                same = self._ok.setdefault(hash(key), start)
                if same != start:
                    if isinstance(same, int):
                        first, same = same, _EqualLines()
                        self._ok[hash(key)] = same
                        same.add(first, self._fields_at(first)[0])
                    same.add(start, fields)
        return size, answered

    def _fields_at(self, start: int) -> Tuple[Dict[str, Any], Capture]:
        """Return the fields of the line that begins there.  Raise OSError or ValueError."""
        capture = Capture(self._file, *next(line_spans(self._file, start), (start, start)))
        return line_fields(capture), capture

    def _repair(self, size: int, end: int) -> None:
        """Remove an incomplete last line; end a whole last line that has no newline."""
        if end < size:
            os.ftruncate(self._file, end)
        elif size and os.pread(self._file, 1, size - 1) != b"\n":
            write_all(self._file, b"\n")
        put_on_disk(self._file)
        sync_directory(os.path.dirname(self._path) or ".")

    def _notes(self) -> Iterator[Dict[str, Any]]:
        """Yield the head of PATH.running, if there is such a file, and the tasks in it."""
        with contextlib.suppress(OSError), opened(self._notes_path, os.O_NOFOLLOW) as file:
            if _is_regular(file):
                yield from (_mapping(_parsed(line)) for line in open(file, "rb", closefd=False))

    def _left_running(self, answered: Dict[str, int]) -> List[Dict[str, Any]]:
        """Return the tasks that a killed run had started and not answered; tell the user."""
        left = []
        for note in itertools.islice(self._notes(), 1, None):
            key = str(note.get("key"))
            if answered[key]:
                answered[key] -= 1
            elif key == note.get("key"):
                left.append(note)
        if left:
            self._warn("%s %s running when the last run ended; %s again: %s" % (
                counted(len(left), "task"), "was" if len(left) == 1 else "were",
                "it runs" if len(left) == 1 else "they run",
                first_of(left, lambda note: cut(one_line(str(note.get("label"))), 60))))
        return left

    def _begin_notes(self, size: int, left: List[Dict[str, Any]]) -> None:
        """Write PATH.running.  Tasks that a killed run left stay in it until they are answered."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._notes_path)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._notes_file = os.open(self._notes_path, flags, 0o600)
        head = {"pid": os.getpid(), "host": host_name(), "start_time": self.run, "size": size}
        write_pieces(self._notes_file, (dumps(note) + b"\n" for note in [head, *left]))

    def resume(self, job: Job) -> Optional[Result]:
        """Return the result that an earlier run got for a job, None where the job has to run."""
        key = self._keys[job.index] = job_key(job)
        start = self._ok.pop(hash(key), None)
        if isinstance(start, _EqualLines):
            self._ok[hash(key)] = start
            start = start.take(job)
        if start is None:
            self._strangers += 1
            if self._strangers == self._many and self._ok:
                self._warn("%s has results, but none of the first %s: is it the file of "
                           "these tasks, with the same shard, backend, model and other options?"
                           % (self._path, counted(self._many, "task")))
            return None
        self._strangers = -sys.maxsize
        try:
            fields, capture = self._fields_at(start)
        except (OSError, ValueError):
            return None
        if fields["key"] != key or not is_final_line(fields):  # somebody has changed the file
            return None
        result = result_of_line(job.index, fields, capture)
        return result._replace(backend=job.task.backend, task=job.task, resumed=True)

    def started(self, job: Job) -> None:
        """Note that a job is about to run.  The note is lost if the disk is full."""
        key = self._keys.get(job.index, "")
        self._started.add(job.index)
        if job.attempt > 1 or not self._writes:
            return
        if self._left[key]:  # there is a note of it
            self._left[key] -= 1
        else:
            note = {"index": sample_of(job).index, "key": key, "label": job_label(job.task)}
            with contextlib.suppress(OSError):
                write_all(self._notes_file, dumps(note) + b"\n")

    def write(self, result: Result) -> None:
        """Append a result and its key to the disk.  After an OutputError the file is as before."""
        key = self._keys.pop(result.index, "")
        if result.resumed or not self._writes:
            return

        def fields_of(result: Result) -> Dict[str, Any]:
            return dict(result_fields(result), key=key, run=self.run,
                        label=task_label(result.task, result.error))

        with writing("results", self._path):
            status = os.fstat(self._file)
            if not status.st_nlink:
                raise FileNotFoundError(errno.ENOENT, "somebody has removed it")
            try:
                write_pieces(self._file, in_one_write(itertools.chain(encoded(result, fields_of),
                                                                      (b"\n",))))
                if not never_started(result):
                    put_on_disk(self._file)
            except OSError:
                os.ftruncate(self._file, status.st_size)
                raise
        self._started.discard(result.index)

    def close(self) -> None:
        """End the run, in order if the file has a result of each task that was started."""
        if self._writes and not self._started:
            with contextlib.suppress(OSError):
                os.unlink(self._notes_path)
        self._release()

    def _release(self) -> None:
        for file in (self._file, self._notes_file):
            if file >= 0:
                os.close(file)
        self._file = self._notes_file = -1

    __del__ = _release


# --- 15. Sinks ---------------------------------------------------------------
#
# A sink takes one Result at a time, in the order in which tasks end: `write(result)`.  form_of
# chooses the sink for stdout.  A sink raises OutputError when it cannot write.

MAX_NAME_COLUMNS = 60  # of the name before an answer
ETA_TASKS = 100  # of each backend, by which the time of the others is estimated
STATUS_SECONDS, QUIET_STATUS_SECONDS = 0.5, 5.0  # between two writes of the status file
TABLE_COLUMNS, TABLE_LINES = 60, 15  # of a terminal that has room for a table
DEFAULT_QUIET_SECONDS = 120.0
DRAW_SECONDS, MIN_DRAW_SECONDS = 1.0, 0.1  # between two tables, and at least
LINE_SECONDS = 30.0  # between two lines where there is no terminal
READER_LEFT = "the reader of stdout went away"


class Output:
    """stdout or stderr.

    Raises OutputError where stdout cannot be written.  An error on stderr is ignored, because there
    is nowhere left to report it.
    """

    def __init__(self, file: int) -> None:
        self.file, self.terminal = file, os.isatty(file)
        self.cursor = self.terminal and os.environ.get("TERM") != "dumb"  # obeys control sequences
        self.prepare: Callable[[], None] = do_nothing  # called before each write
        self._writing_since = 0.0

    def write(self, pieces: Iterable[bytes]) -> None:
        """Write bytes as they are, each piece in one write."""
        self.prepare()
        try:
            self._writing_since = time.monotonic()
            write_pieces(self.file, pieces)
        except OSError as error:
            if self.file != 2:
                is_gone = isinstance(error, BrokenPipeError)
                raise OutputError(READER_LEFT if is_gone else "cannot write to stdout: %s"
                                  % error.strerror, is_gone) from None
        finally:
            self._writing_since = 0.0

    def writing_for(self) -> float:
        """Return for how many seconds a write has been blocked.  For a signal handler."""
        return time.monotonic() - self._writing_since if self._writing_since else 0.0

    def text(self, text: str) -> None:
        self.texts((text,))

    def texts(self, texts: Iterable[str]) -> None:
        """Write a text in pieces.  On stderr, where clinvk's own messages go, without secrets."""
        if self.file == 2:
            texts = map(without_secrets, texts)
        self.write(in_one_write(map(to_bytes, map(visible, texts) if self.terminal else texts)))

    def json(self, pieces: Iterable[bytes]) -> None:
        """Write a JSON text.  On a terminal, control characters in the text are escaped."""
        if self.terminal:
            escapes = {code: "\\u%04x" % code for code in _controls() if code >= 0x7F}
            pieces = (text.translate(escapes).encode("utf-8") for text in text_chunks(pieces))
        self.write(in_one_write(pieces))


class Spool:
    """Keep records on disk, by task index, that are needed only at the end of a run."""

    def __init__(self) -> None:
        from array import array
        self._starts, self._sizes = array("q"), array("q")  # start -1: there is no record
        self._written = 0  # bytes in the file
        self._buffer = bytearray()  # the bytes after those
        with writing("results"):
            self._file = nameless_file(temporary_directory())

    def add(self, index: int, pieces: Iterable[bytes]) -> None:
        missing = index + 1 - len(self._starts)
        if missing > 0:
            self._starts.frombytes(b"\xff" * 8 * missing)
            self._sizes.frombytes(bytes(8 * missing))
        start = self._written + len(self._buffer)
        for piece in pieces:
            self._buffer += piece
            if len(self._buffer) > CHUNK:
                self._flush()
        self._starts[index] = start
        self._sizes[index] = self._written + len(self._buffer) - start

    def _flush(self) -> None:
        with writing("results"):
            write_all(self._file, bytes(self._buffer))  # a failed write keeps its view
        self._written += len(self._buffer)
        self._buffer = bytearray()

    def __contains__(self, index: int) -> bool:
        return index < len(self._starts) and self._starts[index] >= 0

    def __getitem__(self, index: int) -> Iterator[bytes]:
        """Yield the record of an index in pieces.  The end of the records may not fit on disk."""
        start, end = self._starts[index], self._starts[index] + self._sizes[index]
        yield from file_chunks(self._file, start, min(end, self._written))
        yield bytes(self._buffer[max(0, start - self._written):max(0, end - self._written)])

    def __iter__(self) -> Iterator[Iterator[bytes]]:
        """Yield the records in index order, each in pieces."""
        return (self[index] for index in range(len(self._starts)) if index in self)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


class JsonLines:
    """`--jsonl`: write a line for each result at once."""

    def __init__(self, output: Output, fields_of: _Fields = result_fields) -> None:
        self._output, self._fields_of = output, fields_of

    def write(self, result: Result) -> None:
        self._output.json(itertools.chain(encoded(result, self._fields_of), (b"\n",)))


def one_object(fields: Dict[str, Any], results: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    """Yield a JSON object with the fields and `results`, a result a line."""
    yield dumps(fields)[:-1] + b',"results":['
    separator = b"\n"
    for result in results:
        yield separator
        yield from result
        separator = b",\n"
    yield b"\n]}\n"


class JsonReport:
    """`--json` and summary.json: one object at the end."""

    def __init__(self, fields_of: _Fields = result_fields) -> None:
        self._spool, self._fields_of = Spool(), fields_of

    def write(self, result: Result) -> None:
        self._spool.add(result.index, encoded(result, self._fields_of))

    def pieces(self, totals: Dict[str, Any]) -> Iterator[bytes]:
        """Yield the object; `totals` are its other fields."""
        return one_object(totals, self._spool)


class Text:
    """Write answers and errors as tasks end.

    By default each starts with `[2 name] `.  With `title`, a line with the title comes before it,
    and a blank line between two tasks.
    """

    def __init__(self, output: Output, title: Optional[Callable[[Result], str]] = None) -> None:
        self._output, self._title = output, title
        self._gap = ""

    def write(self, result: Result) -> None:
        if never_started(result) or self._title and not result.answer and not result.error:
            return
        if self._title:
            head = "%s%s\n" % (self._gap, self._title(result))
            self._gap = "\n"
        else:
            words = [number_of(result)]
            if result.task:
                name = one_line(result.task.name or result.task.id)
                words += [cut(name, MAX_NAME_COLUMNS)] * bool(name)
                words += map(one_line, sample_of(result).cell.values())
            head = "[%s] " % " ".join(words)
        answer = result.answer
        failed = result.status not in ("ok", "skipped")
        if failed:
            partial = "answer:" if result.error_kind in JUDGED_KINDS else "partial output:"
            partial = partial + "\n" if self._title else head + partial + " "
            head = "%s%s: %s\n" % (head, result.status.upper(), visible(result.error.strip()))
            if isinstance(answer, str) and not answer.strip():
                answer = ""
            else:
                head += partial
        if failed or answer:
            self._output.texts(with_newline(texts_of((head, answer))))


def with_newline(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts, and a newline where the last of them does not end with one."""
    last = ""
    for text in texts:
        yield text
        last = text or last
    if not last.endswith("\n"):
        yield "\n"


class LiveText:
    """Show the answer to a single prompt while the backend prints it.

    `live_text` returns the text in a line of the backend's output; None: the output is the text.
    Where nothing was shown until the end, the answer is shown then.  `copy`: show all lines of the
    output as they are.
    """

    def __init__(self, output: Output, live_text: Optional[Callable[[bytes], _Saying]],
                 copy: bool = False) -> None:
        self._output, self._copy = output, copy
        self._live_text = None if copy else live_text
        self._lines = Lines()
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._path, self._file, self._offset = "", -1, 0
        self._shown = self._line_is_open = False

    def follow(self, directory: str) -> None:
        """Show what the backend has printed since the last call.  `directory`: that of the run."""
        self._path = followed_path(directory, 0)
        self._read()

    def write(self, result: Result) -> None:
        answer = result.answer
        end = None
        if self._live_text is None and not self._copy:  # a process left behind may still write
            end = len(to_bytes(answer)) if isinstance(answer, str) else len(answer)
        self._read(end)
        self._show(self._decode(b"", True))
        self._show_messages(self._lines.rest())
        for text in texts_of(() if self._shown else (answer,)):
            self._show(text)
        if self._line_is_open:
            self._show("\n")

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def _read(self, end: Optional[int] = None) -> None:
        """Show what is new in the first `end` bytes of the output."""
        if self._file < 0:
            try:
                self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:  # there is no output yet
                return
        size = os.fstat(self._file).st_size  # the file may grow as fast as it is read
        for piece in file_chunks(self._file, self._offset, size if end is None else min(size, end)):
            self._offset += len(piece)
            if self._live_text is None:
                self._show(self._decode(piece))
            else:
                self._show_messages(self._lines.feed(piece))

    def _show_messages(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self._show(*self._live_text(line))  # type: ignore[misc]

    def _show(self, text: str, is_whole: bool = False) -> None:
        """Show text; a whole message starts and ends a line, and is not blank."""
        if is_whole:
            text = "\n" * self._line_is_open + (text if text.strip() else "")
        if is_whole and text and not text.endswith("\n"):
            text += "\n"
        if text:
            self._output.text(text)
            self._shown, self._line_is_open = True, not text.endswith("\n")


class ToFunction(NamedTuple):
    """A sink that passes each result to a function."""

    write: Callable[[Result], Any]


MAX_WARNED = 20  # distinct warnings that a dry run prints


class CommandLines:
    """`--dry-run`: show the command lines, and with `warn` each warning about options once."""

    def __init__(self, output: Output, warn: Callable[[str], None] = do_nothing) -> None:
        self._output, self._warn = output, warn
        self._warned: Set[str] = set()

    def write(self, result: Result) -> None:
        if result.status == "skipped":
            self._output.text(result.output + "\n")
        for warning in result.warnings:
            if warning not in self._warned and len(self._warned) < MAX_WARNED:
                self._warned.add(warning)
                self._warn(warning)


class TaskLines:
    """`--emit-tasks`: write a JSON line for each task that would run, as input of another run."""

    def __init__(self, output: Output, configuration: Configuration) -> None:
        self._output, self._configuration = output, configuration
        self._emitted: Set[Tuple[int, str]] = set()  # tasks with several samples, and their cells

    def write(self, result: Result) -> None:
        task, sample = result.task, sample_of(result)
        one = (sample.index, sample.slug)
        if result.status == "skipped" and task and one not in self._emitted:
            if sample.samples > 1:  # the first may have been done by an earlier run
                self._emitted.add(one)
            # The other run adds the options of the configuration again.
            sandbox = "read-only" if task.answer_only else task.sandbox_mode
            added = len(self._configuration.extra(task.backend, sandbox))
            task = task._replace(extra=task.extra[added:])
            if task.id and sample.slug:  # an id is unique in a run
                task = task._replace(id="%s.%s" % (task.id, sample.slug))
            self._output.json([dumps(given(task, ("id", *TASK_FIELDS)), exact=True), b"\n"])


def refuse_outside(path: str, *roots: str) -> None:
    """Raise PermissionError where a path leads out of one of the roots."""
    outside = outside_of(path, *roots)
    if outside:
        raise PermissionError(0, "it is outside of " + outside)


_TASK_HEADS = (b'{"task":{', b'{"result":{', b'{"sample":')
_SUMMARY_HEADS = (b'{"total_tasks":',)


class Directory:
    """`output_dir`: write NNN_NAME.json as each task ends, and summary.json at the end.

    Behind NAME come the slug of the cell and the number of the sample, if that is not 1.

    Files have mode 0600 and appear whole.  The directory is opened once, so that a task cannot put
    a link in its place.  It must be inside of all `roots`, and is locked against other runs.  Only
    a file that clinvk wrote is replaced: for the same id, sample and cell, or for any task with
    `overwrite`.  Where a name is taken, the file gets another name, and `warn` is called.
    """

    def __init__(self, path: str, *, warn: Callable[[str], None], roots: Sequence[str] = (),
                 overwrite: bool = False, has_ids: bool = False) -> None:
        self._path, self._overwrite, self._warn = path, overwrite, warn
        self._directory = OpenDirectory(-1, "")
        self._report = JsonReport()
        self._earlier: Dict[str, List[str]] = {}  # files of earlier runs, by what follows NNN_
        try:
            make_directories(path)
            self._directory = open_directory(path, os.O_RDONLY)
            names = self._checked_names(roots)
        except OSError as error:
            raise OutputError("cannot write to output_dir %s: %s"
                              % (path, error.strerror)) from None
        for name in names:
            parts = re.fullmatch(r"\d{3,}_(([\w-]+(?:\.[\w-]+)*?)(?:\.\d+)?)\.json", name)
            if parts:
                for stem in set(parts.groups()):
                    self._earlier.setdefault(stem, []).append(name)
        heads = _TASK_HEADS + _SUMMARY_HEADS
        if not (overwrite or has_ids) and any(self._begins(name, heads) for name in names):
            raise UserError("output_dir %s: it contains results of an earlier run: "
                            "choose another directory, or replace them with --overwrite" % path)
        # The directory is locked: no other process writes these files now.
        remove_drafts(*((draft, self._directory.file) for name, draft in drafts_in(self._directory)
                        if re.fullmatch(r"(\d{3,}_[\w.-]+|summary)\.json", name)))

    def write(self, result: Result) -> None:
        name = _file_name(result)
        own_heads: Tuple[bytes, ...] = ()
        if result.task and result.task.id:
            own_heads = (_head_of(result)
                         + b'"task":{"id":%b,' % dumps(result.task.id, exact=True),)
        path = self._put(name, lambda: _task_and_result(result),
                         _TASK_HEADS if self._overwrite else own_heads)
        for other in self._earlier.get(name.partition("_")[2], ()):
            # The task may have had another number in an earlier run.
            if other != path and self._begins(other, own_heads):
                try:
                    os.unlink(other, dir_fd=self._directory.file)
                except OSError as error:
                    self._warn("cannot remove %s: %s" % (os.path.join(self._path, other),
                                                         error.strerror))
        self._report.write(result)

    def finish(self, totals: Dict[str, Any]) -> None:
        self._put("summary", lambda: self._report.pieces(totals), _SUMMARY_HEADS)

    def __del__(self) -> None:
        if self._directory.file >= 0:
            os.close(self._directory.file)

    def _checked_names(self, roots: Sequence[str]) -> List[str]:
        """Return the JSON files.  Raises OSError where the directory must not be used."""
        refuse_outside(self._directory.real, *roots)  # it was inside when the batch was read
        if not os.access(self._directory.path(), os.W_OK | os.X_OK):
            raise PermissionError(0, "Permission denied")
        if not lock_file(self._directory.file):
            raise PermissionError(0, "another clinvk is writing to it")
        names = [name for name in os.listdir(self._directory.file) if name.endswith(".json")]
        if "summary.json" in names and not self._begins("summary.json", _SUMMARY_HEADS):
            raise PermissionError(0, "clinvk did not write the summary.json in it; "
                                     "choose another directory")
        return names

    def _begins(self, name: str, heads: Tuple[bytes, ...]) -> bool:
        """Return whether a regular file in the directory begins with one of `heads`."""
        try:
            with opened(name, os.O_NOFOLLOW, self._directory.file) as file:
                longest = max(map(len, heads), default=0)
                return _is_regular(file) and os.pread(file, longest, 0).startswith(heads)
        except OSError:
            return False

    def _put(self, name: str, pieces: Callable[[], Iterable[bytes]],
             replaceable: Tuple[bytes, ...]) -> str:
        """Write NAME.json and return its name.

        A file that begins with none of `replaceable` is kept: then write NAME.1.json, and so on.
        """
        first = path = name + ".json"
        for number in itertools.count(1):
            replace = path == first and self._begins(path, replaceable)
            try:
                write_whole(path, in_one_write(pieces()), directory=self._directory.file,
                            replace=replace)
                break
            except FileExistsError:
                path = "%s.%d.json" % (name, number)
            except OSError as error:
                raise OutputError("cannot write %s: %s" % (os.path.join(self._path, path),
                                                           error.strerror)) from None
        if path != first:
            self._warn("output_dir %s: %s is kept, because clinvk did not write it for this task: "
                       "this result is in %s" % (self._path, first, path))
        return path


_STUCK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


class Answers:
    """`--write-to`: write the answer of each task that ended well to the file of the task.

    Files appear whole, inside of `root`.  A file that exists is replaced only with `overwrite`,
    and `others`, which the run reads or writes, never are.  Between `checked` and `put` the result
    gets into the results file: a file that a killed run has written is thus known there, and one
    that it has not is written with --resume.
    """

    def __init__(self, root: str, overwrite: bool, others: Sequence[Union[int, str]] = ()) -> None:
        self._root, self._overwrite, self._others = root, overwrite, others
        self.error: Optional[OutputError] = None  # about the first file that was not written
        self.is_stuck = False  # the disk or the directory takes no more files
        self._is_due = False  # of the result that was checked last
        self._problem = ""  # with its file
        self._left: Dict[str, List[Tuple[str, str]]] = {}  # drafts of a killed run, by directory
        self._own: Set[int] = set()  # files with answers of this run; hashes, which take less

    def refused(self, job: Job) -> Optional[Result]:
        """Return the Result of a job whose file cannot be written, before it costs anything."""
        path = job.task.write_to
        if not path:
            return None
        result = unfinished(job, "failed", "", "invalid", exit_code=1)
        problem = self._problem_of(self._check, result)
        try:
            refuse_unwritable(visible(path), os.path.dirname(path), True)
        except OutputError as error:
            problem = problem or str(error)
        return result._replace(error=problem) if problem else None

    def checked(self, result: Result) -> Result:
        """Return a result with the file into which `put` is to write its answer, if any.

        A problem with the file is of this run, so only `put` adds the warning.
        """
        path = result.task.write_to if result.task and result.status == "ok" else ""
        is_there = result.resumed and self._has(path, result)
        if is_there:
            self._note(path)
        self._is_due = bool(path) and not is_there
        self._problem = self._problem_of(self._check, result) if self._is_due else ""
        return result._replace(written="" if self._problem else path) if path else result

    def _has(self, path: str, result: Result) -> bool:
        """Return whether an earlier run has written the file, as the result or its content says.

        With `overwrite`, a file that is older than the answer is to be replaced.
        """
        try:
            if result.written == path:
                return os.lstat(path).st_mtime >= (result.end_time if self._overwrite else 0)
            with opened(path, os.O_NOFOLLOW) as file:
                return _is_regular(file) and _contains_only(file, _answer_pieces(result))
        except OSError:
            return False

    def put(self, result: Result) -> Result:
        """Write the answer of the result that was checked.  Return the result with its file."""
        if not self._is_due:
            return result
        if result.status != "ok":  # the results file could not be written
            return result._replace(written="")
        problem = self._problem or self._problem_of(self._write, result)
        if not problem:
            return result
        self.error = self.error or OutputError(problem)
        return result._replace(written="", warnings=(*result.warnings, problem))

    def _problem_of(self, action: Callable[[str, Result], None], result: Result) -> str:
        path = result.task.write_to if result.task else ""
        try:
            action(path, result)
        except OSError as error:
            self.is_stuck = self.is_stuck or error.errno in _STUCK
            is_taken = isinstance(error, FileExistsError) and os.path.lexists(path)
            return "cannot write %s: %s%s" % (visible(path), error.strerror,
                                              "; --overwrite replaces it" * is_taken)
        return ""

    def _remove_left(self, name: str, directory: OpenDirectory) -> None:
        """Remove what a killed run has left of a file; each directory is listed once."""
        if directory.real not in self._left:
            self._left[directory.real] = drafts_in(directory)
        remove_drafts(*((draft, directory.file) for own, draft in self._left[directory.real]
                        if own == draft_stem(name)))

    def _check(self, path: str, result: Result) -> None:
        if any(is_same(other, path) for other in self._others):
            raise PermissionError(0, "it is another file of this run")
        if max(map(len, os.fsencode(path).split(b"/"))) > MAX_NAME_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if os.path.lexists(path):
            if not self._overwrite:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            if _identity(path) in self._own:  # another name, as in capitals on macOS
                raise PermissionError(0, "it is the file of another task")

    def _note(self, path: str) -> None:
        if self._overwrite:
            with contextlib.suppress(OSError):
                self._own.add(_identity(path))

    def _write(self, path: str, result: Result) -> None:
        parent, name = os.path.split(path)
        refuse_outside(path, self._root)  # it was inside when the task was made
        make_directories(parent or ".", 0o777)
        directory = open_directory(parent or ".")
        try:
            refuse_outside(directory.real, self._root)
            if result.resumed:
                self._remove_left(name, directory)
            write_whole(name, in_one_write(_answer_pieces(result)), directory=directory.file,
                        replace=self._overwrite, mode=0o666)
            self._note(path)
        finally:
            os.close(directory.file)


def _identity(path: str) -> int:
    """Return a number that all names of a file share.  Raise OSError."""
    status = os.lstat(path)
    return hash((status.st_dev, status.st_ino))


def _answer_pieces(result: Result) -> Iterator[bytes]:
    """Return the content of the file for an answer."""
    return map(to_bytes, with_newline(texts_of((result.answer,))))


def _contains_only(file: int, pieces: Iterable[bytes]) -> bool:
    """Return whether these pieces are the whole content of a file."""
    place = 0
    for piece in pieces:
        if os.pread(file, len(piece), place) != piece:
            return False
        place += len(piece)
    return os.fstat(file).st_size == place


def _file_name(one: Union[Job, Result]) -> str:
    """Return the name, without its end, of the files of a job."""
    task, sample = one.task, sample_of(one)
    name = plain_name((task.id or task.name) if task else "") or "task-%d" % (sample.index + 1)
    number = str(sample.sample) if sample.sample > 1 else ""
    return "%03d_%s" % (sample.index + 1, ".".join(filter(None, (name, sample.slug, number))))


DEFAULT_LOG_MAX = 64 << 20

# The path of a log, as with_own_log names it.
_LOG_NAME = re.compile(r"(?s)(.*/)?[0-9]{3,}_[A-Za-z0-9_.-]+\.[0-9]+\.(jsonl|err)")


def check_log_directory(path: str) -> None:
    """Raise OutputError where logs cannot be written.  Makes nothing."""
    refuse_unwritable("to --log-dir " + visible(path), path, can_be_made=True)


def with_own_log(job: Job, directory: str, most: int) -> Job:
    """Return the job with a log NNN_NAME.A, which other runs leave alone from now on.

    NNN_NAME is as in Directory.  A is the number of the attempt, or the next one without a file.
    The worker writes and closes the log, and cuts it to `most` bytes.
    """
    base = _file_name(job)
    for number in itertools.count(job.attempt):
        log = os.path.join(directory, "%s.%d" % (base, number))
        stdout, stderr = log_files(log)
        try:
            if not os.path.lexists(stderr):
                os.close(os.open(stdout, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                break
        except FileExistsError:
            pass
        except OSError:  # the worker fails in the same way, and its result says so
            break
    return job._replace(log=log, log_max=most)


def _head_of(result: Result) -> bytes:
    """Return how the file of a result begins: with the sample and the cell, where it has them."""
    _, number, _, cell, *_ = sample_of(result)
    if number == 1 and not cell:
        return b"{"
    fields = {"sample": number, "cell": cell} if cell else {"sample": number}
    return dumps(fields, exact=True)[:-1] + b","


def _task_and_result(result: Result) -> Iterator[bytes]:
    yield _head_of(result)
    if result.task and result.task.prompt:
        task = result.task._replace(repeat=0)  # that this result can be had again
        # Directory looks for the id at the start.
        yield b'"task":' + dumps(given(task, ("id", *TASK_FIELDS)), exact=True) + b",\n"
    yield b'"result":'
    yield from encoded(result)
    yield b"}\n"


class Overview:
    """Count what a run has done, and estimate when it ends, for the table and the status file.

    A sink.  `jobs` is how many tasks run at once.
    """

    def __init__(self, totals: Totals, control: Control, supply: Supply, jobs: int) -> None:
        self.totals, self.control, self.supply, self.jobs = totals, control, supply, jobs
        self._ended: Dict[str, int] = Counter()  # tasks of this run, by backend
        self._seconds: Dict[str, Deque[float]] = {}  # how long the last of them took

    def write(self, result: Result) -> None:
        if result.attempts and not result.resumed and result.status != "canceled":
            self._ended[result.backend] += 1
            seconds = self._seconds.setdefault(result.backend, deque(maxlen=ETA_TASKS))
            seconds.append(result.duration_seconds)

    def seconds_left(self, running: Sequence[Running]) -> Optional[float]:
        """Return the seconds until the end, None where nothing is known about it.

        Each task that is left takes the median of its backend.  Their backends are assumed to be
        mixed as those of the tasks that have ended.  Where nothing runs, the end of a limit comes
        first.
        """
        now, ended, total = time.time(), sum(self._ended.values()), self.supply.total
        if total is None or not ended or self.control.level:
            return None
        left = total - self.totals.total
        median = {backend: sorted(seconds)[len(seconds) // 2]
                  for backend, seconds in self._seconds.items()}
        work = left / ended * sum(median[backend] * count for backend, count in self._ended.items())
        work -= sum(min(one.seconds, median.get(one.job.task.backend, 0.0))
                    for one in running)
        waits = [until - now for until in self.control.limited.values() if until > now]
        wait = 0.0 if running else min(waits, default=0.0)
        return wait + max(0.0, work) / max(1, min(self.jobs, left))

    def fields(self) -> Dict[str, Any]:
        """Return the JSON fields of the status file that change during a run."""
        now, running = time.time(), self.control.running()
        left = self.seconds_left(running)
        gates = {backend: utc(until) for backend, until in self.control.limited.items()
                 if until > now}
        return {
            "updated_at": utc(now), "total_tasks": self.supply.total, "done": self.totals.total,
            **self.totals.counts, "resumed": self.totals.resumed,
            "running": [_running_fields(one, now) for one in running], "gates": gates,
            "eta_seconds": None if left is None else round(left, 1),
            "ends_at": None if left is None else utc(now + left),
            "cost_usd": None if self.totals.cost_usd is None else round(self.totals.cost_usd, 6),
            "cost_unknown": self.totals.cost_unknown}


def _running_fields(one: Running, now: float) -> Dict[str, Any]:
    """Return the JSON fields of a running task; times are `now`, since the epoch, and before."""
    task = one.job.task
    return {"index": sample_of(one.job).index, "id": without_secrets(task.id),
            "name": job_label(task), "backend": task.backend, "attempt": one.job.attempt,
            "started": utc(now - one.seconds), "last_event_at": utc(now - one.quiet),
            "last_action": one_line(one.action), "tokens": one.tokens,
            "log": log_files(one.job.log)[0] if one.job.log else ""}


class StatusFile:
    """`--status-file`: keep the Overview of a run in a file, as one JSON object.

    The file is replaced as a whole: STATUS_SECONDS after a change at the latest, and every
    QUIET_STATUS_SECONDS.  An error is a warning, and only the first one.  `run` is the time of the
    start, which is in the lines of the results file too.
    """

    HEAD = b'{"run":'

    def __init__(self, path: str, overview: Overview, run: str,
                 warn: Callable[[str], None]) -> None:
        self._path, self._overview, self._run, self._warn = path, overview, run, warn
        self._next = self._due = 0.0  # when to look again, and when to write without a change
        self._changing: Any = None  # what was written last, without times
        self._has_failed = False

    @classmethod
    def check(cls, path: str) -> None:
        """Raise UserError where the path leads to something else than a status file."""
        refuse_irregular("--status-file", path)
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if file.read(len(cls.HEAD)) not in (b"", cls.HEAD):
                raise UserError("--status-file %s: clinvk did not write this file, and does not "
                                "replace it; give another name" % visible(path))

    def show(self) -> None:
        """Write the file if it is time."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + STATUS_SECONDS
        state = "stopping" if self._overview.control.level else "running"
        fields = self._overview.fields()
        changing = (state, fields["done"], fields["gates"], [
            (one["index"], one["name"], one["attempt"], one["last_action"])
            for one in fields["running"]])
        if changing != self._changing or now >= self._due:
            self._changing, self._due = changing, now + QUIET_STATUS_SECONDS
            self._write(state, fields, None)

    def finish(self, exit_status: Optional[int]) -> None:
        """Write the file a last time.  `exit_status` is None where the run ended by an error."""
        self._write("ended", self._overview.fields(), exit_status)

    def _write(self, state: str, fields: Dict[str, Any], exit_status: Optional[int]) -> None:
        fields = {"run": self._run, "pid": os.getpid(), "state": state,
                  "exit_status": exit_status, **fields}
        try:
            write_whole(os.path.realpath(self._path), [dumps(fields), b"\n"])
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                self._warn("cannot write the status file %s: %s; the run continues"
                           % (visible(self._path), error.strerror))


class Progress:
    """Show on stderr what a run does: a table on a terminal, or a line where it is small.

    The table needs so many columns and lines: `least`.  It has a row for each running task, as far
    as half of the lines suffice.  `quiet_after` is how many seconds without output are noted.  On
    what is no terminal there is a line for each result, or after LINE_SECONDS without one.
    """

    TITLES = ("#", "BACKEND", "TIME", "IDLE", "TRY", "TOKENS", "TASK", "LAST")

    def __init__(self, output: Output, overview: Overview, least: Tuple[int, int],
                 quiet_after: float = DEFAULT_QUIET_SECONDS, color: bool = False) -> None:
        from _thread import RLock
        self._output, self._overview, self._least = output, overview, least
        self._quiet_after, self._color = quiet_after, color
        self._began = time.monotonic()
        self._shown: List[str] = []  # lines, without colors
        self._shown_at = 0.0
        self._next = 0.0  # when to draw or write again
        self._over = False  # nothing more is shown
        self._lock = RLock()  # the thread that reads the input may have a message
        self._is_drawing = self._stops_later = False

    def write(self, result: Result) -> None:
        if not self._output.cursor:
            self._write_line()

    def show(self) -> None:
        """Show the state, if it is time."""
        now = time.monotonic()
        if self._over or now < self._next:
            return
        if not self._output.cursor:
            if self._next:
                self._write_line()
            self._next = now + LINE_SECONDS
        elif not is_in_background(self._output.file):  # where the shell writes to the terminal
            columns, lines = terminal_size(self._output.file)
            running = self._overview.control.running()
            line, block = self._line(running), []
            if columns >= self._least[0] and lines >= self._least[1]:
                block = self._rows(running, columns, lines // 2 - 2) + wrapped(line, columns - 1)
            fits = 0 < len(block) <= lines
            self._next = now + (DRAW_SECONDS if fits else MIN_DRAW_SECONDS)
            self._draw(block if fits else [cut(line, columns - 1)])

    def hide(self, for_good: bool = False) -> None:
        """Remove what is shown, because something else is written to the terminal."""
        with self._lock:
            self._over |= for_good
            if self._shown and not self._is_drawing:  # a write that was broken off has shown a part
                is_table = len(self._shown) > 1
                self._draw([])
                self._next = self._shown_at + MIN_DRAW_SECONDS if is_table else 0.0

    def above(self, text: str) -> None:
        """Write a message.  What is shown comes back below it."""
        with self._lock:
            self.hide()
            self._output.text(text)

    def stop(self, number: int) -> None:
        """Stop the process with a clean terminal until it is continued.  A handler of SIGTSTP."""
        with self._lock:
            self._stops_later = self._is_drawing
            if not self._is_drawing:
                self.hide()
                stop_until_continued()
                self._next = 0.0

    def _draw(self, lines: List[str]) -> None:
        """Replace what is shown, in one write."""
        with self._lock:
            self._is_drawing = True
            columns = terminal_columns(self._output.file)  # which may be others than before
            rows = sum(max(1, -(-columns_in(line) // columns)) for line in self._shown)
            up = "\033[%dA" % (rows - 1) if rows > 1 else ""
            clear = "\r%s\033[J" % up if rows else ""
            self._shown = lines
            if lines:
                self._shown_at = time.monotonic()
            self._output.write([to_bytes(clear + "\n".join(map(self._colored, lines)))])
            self._is_drawing = False
            if self._stops_later:
                self.stop(signal.SIGTSTP)

    def _colored(self, line: str) -> str:
        """Return a line with the idle time of a quiet task in yellow."""
        return re.sub(_QUIET, "\\1\033[33m\\2\033[m", line) if self._color else line

    def _rows(self, running: Sequence[Running], columns: int, most: int) -> List[str]:
        """Return the table of the running tasks without the last line: titles and `most` rows."""
        hidden = max(0, len(running) - most)
        if hidden:
            hidden = len(running) - max(1, most - 1)
        cells = [self._cells(one) for one in running[:len(running) - hidden]]
        # A column without a value is left out: most tasks have one attempt.
        table = [column for column in zip(self.TITLES, *cells) if any(column[1:])]
        widths = [max(map(columns_in, column)) for column in table]
        if table and table[-1][0] == self.TITLES[-1]:  # the task leaves room for what it does
            room = columns - 1 - sum(widths[:-2]) - len(widths[:-1])
            widths[-2] = max(4, min(widths[-2], max(room - widths[-1], room * 2 // 5)))
        rows = []
        for row in zip(*table):
            texts = [cut(cell, width) for cell, width in zip(row, widths)]
            texts = [text + " " * (width - columns_in(text)) for text, width in zip(texts, widths)]
            rows.append(cut(" ".join(texts).rstrip(), columns - 1))
        return rows + ["and %d more" % hidden] * (hidden > 0)

    def _cells(self, one: Running) -> List[str]:
        quiet = "quiet " if one.quiet > self._quiet_after else ""
        return [number_of(one.job), one_line(one.job.task.backend), clock(one.seconds),
                quiet + age(one.quiet), str(one.job.attempt) if one.job.attempt > 1 else "",
                "{:,}".format(one.tokens) if one.tokens else "",
                _separate(job_label(one.job.task)), _separate(one_line(one.action))]

    def _write_line(self) -> None:
        self._output.text(self._line(self._overview.control.running()) + "\n")
        self._next = time.monotonic() + LINE_SECONDS

    def _line(self, running: Sequence[Running]) -> str:
        overview, totals = self._overview, self._overview.totals
        done, failed, left = totals.total, totals.counts["failed"], overview.seconds_left(running)
        total = overview.supply.total
        parts = ["[%d%s] %d running" % (done, "" if total is None else "/%d" % total, len(running))]
        if failed:
            parts.append("%d failed" % failed)
        parts.append(clock(time.monotonic() - self._began))
        if left is not None and left >= 1:
            parts.append("about %s left" % duration(int(left) if left < 600 else left // 60 * 60))
        parts += overview.control.limits()
        if totals.cost_usd is not None:
            parts.append("%s$%.2f" % ("≥" if totals.cost_unknown else "", totals.cost_usd))
        return visible(without_secrets(", ".join(parts)))


_QUIET = r"^([\d.]+ +\S+ +[\d:]+ +)(quiet \d+\w)"  # columns #, BACKEND, TIME, IDLE


def _separate(text: str) -> str:
    """Return the text without what joins characters to one, the width of which is not known."""
    return re.sub("[\u200d\ufe0f]", "", text)


# --- 16. Summary -------------------------------------------------------------

MAX_REASONS = 20  # distinct errors that are listed
MAX_NOTE = 2000  # characters of an error or a warning in the table
CHECK_LINES = 5  # of the output of a check that did not pass


def _why_canceled(result: Result) -> str:
    return result.error.replace(CANCELED_EARLY, "never started")


class Totals:
    """Counts and sums over a run.  `costs`: all tasks should state a cost, of any backend."""

    def __init__(self, costs: bool = False) -> None:
        self.counts = {"completed": 0, "failed": 0, "canceled": 0, "skipped": 0}
        self.resumed = 0  # of the completed ones
        self.final = 0  # of the failed ones: a later run does not try them again
        self.usage: Dict[str, int] = {}
        # unknown, where no backend states it
        self.cost_usd: Optional[float] = 0.0 if costs else None
        self.cost_unknown = 0  # tasks that should state a cost and do not
        self._costs = costs
        self.start_time = time.time()
        self.duration_seconds = 0.0
        self.last_failure: Tuple[str, int] = ("", 0)  # status and exit code
        self._began = time.monotonic()
        self._reasons: Dict[str, int] = {}  # errors, and how many tasks have each
        self._unlisted = 0  # failed tasks with other errors

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def write(self, result: Result) -> None:
        failed = result.status in FAILED_STATUSES
        self.counts["failed" if failed else result.status.replace("ok", "completed")] += 1
        self.resumed += result.resumed and not failed
        if failed:
            sample = sample_of(result)
            self.final += result.resumed or is_final(
                "", result.error_kind, sample.samples > 1 or sample.cell)
            self.last_failure = result.status, result.exit_code
        if failed or result.status == "canceled":
            why = _why_canceled(result).replace(CANCELED_LATE, "stopped while running")
            reason = "%s: %s" % ("failed" if failed else "canceled", visible(" ".join(why.split())))
            if reason in self._reasons or len(self._reasons) < MAX_REASONS or not failed:
                self._reasons[reason] = self._reasons.get(reason, 0) + 1
            else:
                self._unlisted += 1
        for name, count in (result.usage or {}).items():
            self.usage[name] = self.usage.get(name, 0) + count
        if result.cost_usd is not None:
            self.cost_usd = (self.cost_usd or 0.0) + result.cost_usd
        elif self._costs and result.attempts or lacks_cost(result.backend, result.attempts, None,
                                                           result.error_kind):
            self.cost_unknown += 1

    def stop(self) -> None:
        self.duration_seconds = time.monotonic() - self._began

    def fields(self) -> Dict[str, Any]:
        """Return the fields of the `--json` object, except `results`."""
        fields: Dict[str, Any] = {
            "total_tasks": self.total, **self.counts,
            "total_duration_seconds": round(self.duration_seconds, 3),
            "start_time": utc(self.start_time),
            "end_time": utc(self.start_time + self.duration_seconds)}
        if self.resumed:
            fields["resumed"] = self.resumed
        if self.usage:
            fields["usage"] = self.usage
        if self.cost_usd is not None:
            fields["cost_usd"] = round(self.cost_usd, 6)
            if self.cost_unknown:
                fields["cost_unknown"] = self.cost_unknown
        return fields

    def line(self) -> str:
        """Return the last line of the summary."""
        parts = [counted(self.total, "task")]
        parts += ["%d %s" % (count, name) for name, count in self.counts.items()
                  if count or name in ("completed", "failed")]
        if self.resumed:
            parts[1] += " (%d from an earlier run)" % self.resumed
        if self.usage.get("total_tokens"):
            parts.append("{:,} tokens".format(self.usage["total_tokens"]))
        if self.cost_usd is not None:
            parts.append("$%.4f" % self.cost_usd)
            if self.cost_unknown:
                parts.append("%s of unknown cost" % counted(self.cost_unknown, "task"))
        return "Total: %s (%.2fs)" % (", ".join(parts), self.duration_seconds)

    def reasons(self) -> str:
        """Return a line for each reason for which tasks failed or were canceled."""
        lines = ["%d %s\n" % (count, reason) for reason, count in self._reasons.items()]
        if self._unlisted:
            lines.append("%d failed for other reasons\n" % self._unlisted)
        return "".join(lines)


def verdict(totals: Totals, *, error: Optional[OutputError] = None, signal_number: int = 0,
            single: bool = False, left: bool = False, dry_run: bool = False) -> int:
    """Return the exit status of a run.

    `error`: the output could not be written.  `signal_number`: that of the signal that stopped the
    run.  `single`: a single prompt, whose exit status also tells a timeout and a missing program.
    `left`: a later run can do the rest, as _conclude finds; SIGTERM is then not a failure, nor is
    a reader who gets it, too.
    `dry_run`: what failed for good in an earlier run is no failure of this one.
    """
    status, exit_code = totals.last_failure
    if error and not error.broken_pipe:
        return EXIT_OUTPUT
    if left and (signal_number == signal.SIGTERM or not (error or signal_number)):
        return EXIT_LEFT
    if signal_number:
        return 128 + signal_number
    if error:
        return EXIT_PIPE
    if single and status == "timeout":
        return EXIT_TIMEOUT
    if single and exit_code in (EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND):
        return exit_code
    failed = totals.counts["failed"] - (totals.final if dry_run else 0)
    return EXIT_FAILED if failed or totals.counts["canceled"] else EXIT_OK


class Table:
    """Print the results in the order of their tasks, with errors and warnings.

    The tasks that never started are one line for each reason.
    """

    TITLES: Sequence[str] = ("#", "BACKEND", "STATUS", "DURATION", "TASK")
    WIDTHS: Sequence[int] = (4, 12, 10, 10, 0)
    COLORS = {"STATUS": "%s", "OK": "\033[32m%s\033[m", "CANCELED": "\033[33m%s\033[m",
              "SKIPPED": "%s"}

    def __init__(self) -> None:
        self._rows = Spool()
        self._never_started: Counter[str] = Counter()  # by the reason

    def cells(self, result: Result, status: str) -> List[str]:
        """Return the text in each column."""
        return [number_of(result), one_line(result.backend), status,
                "%.2fs" % result.duration_seconds, job_label(result.task, result.error)]

    def write(self, result: Result) -> None:
        if never_started(result):
            self._never_started[_why_canceled(result)] += 1
            return
        notes = [("warning", one_line(warning)[:MAX_NOTE]) for warning in result.warnings]
        if result.error and result.status != "canceled":
            error = re.sub(r"(?i)^\s*error:\s+(?=\S)", "", result.error)  # the note has it
            notes.insert(0, ("error", one_line(error)[:MAX_NOTE]))
        if result.check and result.check["status"] != "passed":
            lines = [line for line in result.check["output"].splitlines() if line.strip()]
            notes += [("check", one_line(line)[:MAX_NOTE]) for line in lines[-CHECK_LINES:]]
        status = result.status.upper()
        if result.attempts > 1:
            status += " (%d)" % result.attempts
        row = self.cells(result, status), notes
        self._rows.add(result.index, [dumps(row)])

    def print(self, output: Output, totals: Totals, color: bool) -> None:
        status = self.TITLES.index("STATUS")
        columns = max(terminal_columns(output.file), 60)
        room = columns - sum(self.WIDTHS) - len(self.WIDTHS)  # for the last column

        def line(cells: List[str]) -> None:
            texts = [cell.ljust(width) for cell, width in zip(cells, self.WIDTHS)]
            if color:
                color_of = self.COLORS.get(cells[status].split(" ")[0], "\033[31m%s\033[m")
                texts[status] = color_of % texts[status]
            output.write([to_bytes(" ".join(texts).rstrip() + "\n")])

        output.text("\nResults\n%s\n" % ("=" * 60))
        line([*self.TITLES])
        output.text("-" * 60 + "\n")
        for record in self._rows:
            cells, notes = loads(b"".join(record))
            line(cells[:-1] + [cut(cells[-1], room)])
            for kind, text in notes:
                head = "     %s: " % kind
                indent = "\n" + " " * len(head)
                output.text(head + indent.join(wrapped(text, columns - len(head))) + "\n")
        for why, count in self._never_started.items():
            line([""] * status + ["CANCELED", "%s %s" % (counted(count, "task"), why)])
        output.text("-" * 60 + "\n" + totals.line() + "\n")


class ComparisonTable(Table):
    TITLES = ("BACKEND", "STATUS", "DURATION", "TOKENS", "COST", "MODEL")
    WIDTHS = (12, 10, 10, 10, 10, 0)  # 0: the rest of the line, for the last column

    def cells(self, result: Result, status: str) -> List[str]:
        tokens, cost = (result.usage or {}).get("total_tokens"), result.cost_usd
        return [one_line(result.backend), status, "%.2fs" % result.duration_seconds,
                "{:,}".format(tokens) if tokens else "-", "-" if cost is None else "$%.4f" % cost,
                one_line(result.model) or "-"]


# --- 17. Report --------------------------------------------------------------
#
# `clinvk report` reads results files twice: first to find the line that counts for each task, then
# to read these lines in the order of the tasks.  In between a task takes a few numbers of memory.

MAX_INDEX = 10000000  # a larger index is damage: arrays have a place for each index


def _index(value: Any) -> int:
    if _whole_number(value, 0) >= MAX_INDEX:
        raise expected("a whole number below %d" % MAX_INDEX, value)
    return int(value)


# The fields that a report reads from a line of a results file, or of --jsonl, with their checks.
RECORD_FIELDS: Dict[str, Callable[[Any], Any]] = dict(
    LINE_FIELDS, index=_index, status=_one_of(STATUSES, "status"), task_id=_known_string,
    task_name=_known_string, tags=_list_of(_known_string), meta=_free_object, resumed=_truth,
    label=_known_string, run=parse_utc, sample=_samples, samples=_samples, cell=_free_value,
    cell_number=_samples)
record_fields = functools.partial(line_fields, checks=RECORD_FIELDS, required=("index", "status"))

_CELL_BITS, _SAMPLE_BITS = 29, 10  # of an identity
_CELL_NUMBERS = 22  # the place of a number in the bits of a cell


def task_identity(fields: Dict[str, Any], cells: Dict[str, int]) -> int:
    """Return the number that all lines of one sample of a task have in common.

    Such numbers are in the order of the tasks, and of the matrix where a line states it.  `cells`
    has a number for each cell so far.
    """
    index, sample = int(fields["index"]), int(fields.get("sample", 1))
    place = min(fields.get("cell_number", 0), MAX_CELLS) << _CELL_NUMBERS | len(cells)
    cell = cells.setdefault(cell_text(fields.get("cell", "")), place)
    return (index << _CELL_BITS | cell) << _SAMPLE_BITS | sample - 1


def cell_text(cell: Any) -> str:
    """Return a cell as `model=opus,effort=high`."""
    if isinstance(cell, dict):
        return ",".join("%s=%s" % item for item in cell.items())
    return as_text(cell)


class Record(NamedTuple):
    """A line of a results file.

    Of the task only what the line has is known, and its prompt where a file of tasks was given.
    `identity` is its task_identity.  `is_flaky`: it is ok after a failure.
    A long answer is in the file of `capture`, and can be read while the Records exist.
    """

    result: Result
    fields: Dict[str, Any]
    capture: Capture
    identity: int
    is_flaky: bool = False
    prompt: str = ""  # where it is known


def record_of(capture: Capture, identity: int) -> Record:
    """Return the record in a line that is of a task.  Raises ValueError."""
    fields = {name: value if name == "output" else capture.whole(value)
              for name, value in record_fields(capture).items()}
    fields["index"] = identity >> _CELL_BITS + _SAMPLE_BITS
    result = result_of_line(fields["index"], fields, capture)
    label, cell = fields.get("label") or fields.get("task_id", ""), fields.get("cell")
    if not isinstance(cell, dict):
        cell = {"": str(cell)} if cell else {}
    sample = Sample(result.index, fields.get("sample", 1), fields.get("samples", 1),
                    {name: str(value) for name, value in cell.items()})
    task = Task(result.backend, label, id=fields.get("task_id", ""), sample=sample,
                name=fields.get("task_name", ""), tags=fields.get("tags", ()),
                meta=fields.get("meta"))
    return Record(result._replace(task=task), fields, capture, identity)


class Records:
    """The records in results files, one for each sample of each task, in the order of the tasks.

    Of several lines of a sample the last counts, and later files come after earlier ones.  Lines
    of one identity that state different ids, or with `by_key` different keys, are of different
    tasks, which the input had at one place in different runs.  A line that states none is of the
    task of the line before it, or of the first one.
    `repeated` are the indexes of those with an `ok` line before the last line that is of no equal
    task, `shared` of those with lines in several files.
    `gaps` are the first and the last of indexes without a line, below the highest.  `unanswered`
    are index, sample (of several), id, name and label of the tasks of a file of tasks (find_tasks)
    without a line.  `-` is stdin.  Raises UserError.
    """

    def __init__(self, paths: Sequence[str], warn: Callable[[str], None],
                 by_key: bool = False) -> None:
        from array import array
        self._ids = array("q")  # the hash of the id or key that each line states; or 0
        self._keys = array("q")  # the same for the key
        self._names = ["stdin" if path == "-" else path for path in paths]
        self._files = array("i")
        self._identities, self._starts, self._places = array("q"), array("q"), array("i")
        self._samples = array("h")  # how many samples the task of each line has
        self._statuses = bytearray()  # "f" for a failure, else the first letter
        self._last: List[int] = []  # of the lines of each task
        self._after_failure: Set[int] = set()  # those of these lines that come after a failure
        self._prompts: Optional[Spool] = None
        self._prompt_of: Dict[int, int] = {}  # the place there, by the hash of index and label
        self.unanswered: List[Dict[str, Any]] = []
        self._replaced_ok: List[int] = []  # `ok` lines before the last line of their task
        self.repeated: List[int] = []
        self.shared: List[int] = []
        self.gaps: List[Tuple[int, int]] = []
        cells: Dict[str, int] = {}
        for place, name in enumerate(self._names):
            file = self._open(paths[place])
            self._files.append(file)
            if os.pread(file, 15, 0) == b'{"total_tasks":':
                raise UserError("%s: is the output of --json; give that of --jsonl, or the file "
                                "of --results" % visible(name))
            for start, _, fields in whole_lines(file, name, warn, record_fields):
                if fields is not None:
                    self._identities.append(task_identity(fields, cells))
                    self._starts.append(start)
                    id = by_key and fields.get("key") or fields.get("task_id")
                    self._ids.append(hash(id) if id else 0)
                    self._keys.append(hash(fields["key"]) if fields.get("key") else 0)
                    self._places.append(place)
                    self._samples.append(fields.get("samples", 1))
                    failed = fields["status"] in FAILED_STATUSES
                    self._statuses += b"f" if failed else fields["status"][:1].encode()
        self._choose()

    @staticmethod
    def _open(path: str) -> int:
        """Open a file; keep what comes from a pipe in a nameless file."""
        try:
            file = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if os.isatty(file):
                raise UserError("no results file: give the names of results files, or a pipe")
            if stat.S_ISDIR(os.fstat(file).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        except OSError as error:
            raise UserError("cannot read %s" % visible(reason_of(error))) from None
        if _is_regular(file):
            return file
        if is_endless(file):
            raise UserError(NOT_A_DEVICE % visible(path))
        with writing("results"):
            copy = nameless_file(temporary_directory())
            write_pieces(copy, iter(functools.partial(read_some, file), b""))
        os.close(file)
        return copy

    def _choose(self) -> None:
        """Find the last line of each task, and what the user should know of the others."""
        in_order = sorted(range(len(self._identities)), key=self._identities.__getitem__)
        expected_next = 0
        for identity, group in itertools.groupby(in_order, self._identities.__getitem__):
            index = identity >> _CELL_BITS + _SAMPLE_BITS
            if index > expected_next:
                self.gaps.append((expected_next, index - 1))
            expected_next = index + 1
            tasks: Dict[int, List[int]] = {}  # the lines of each, by id
            id = 0
            for line in group:
                id = self._ids[line] or id
                if id and 0 in tasks:
                    tasks = {id: tasks[0]}
                tasks.setdefault(id, []).append(line)
            for lines in tasks.values():
                self._last.append(lines[-1])
                self._note(index, lines)
        self._share_answers()

    def _share_answers(self) -> None:
        """Give tasks without an answer the `ok` lines of equal tasks that have a later line, too.

        A run with --resume gives the results with a key to the first tasks that have it.
        """
        given: Dict[Tuple[int, int], List[int]] = defaultdict(list)
        for line in reversed(self._replaced_ok):
            given[self._keys[line], self._places[line]].append(line)
        for place, line in enumerate(self._last):
            lines = given.get((self._keys[line], self._places[line]), [])
            if self._keys[line] and self._statuses[line] != ord("o") and lines and (
                    self._identities[line] != self._identities[lines[-1]]):
                self._last[place] = lines.pop()
                self._identities[self._last[place]] = self._identities[line]
                if self._statuses[line] == ord("f"):
                    self._after_failure.add(self._last[place])
        left = {self._identities[line] for lines in given.values() for line in lines}
        self.repeated = [identity >> _CELL_BITS + _SAMPLE_BITS for identity in sorted(left)]

    def _note(self, index: int, lines: Sequence[int]) -> None:
        """Note what the user should know of the lines of one task."""
        statuses = bytes(self._statuses[line] for line in lines)
        if b"f" in statuses[:-1]:
            self._after_failure.add(lines[-1])
        self._replaced_ok += [line for line in lines[:-1] if self._statuses[line] == ord("o")]
        if len({self._places[line] for line in lines}) > 1:
            self.shared.append(index)

    def _missing_samples(self) -> Dict[int, int]:
        """Return how many samples have no line, by the index of their task."""
        missing: Dict[int, int] = Counter()
        for cell, group in itertools.groupby(
                self._last, lambda line: self._identities[line] >> _SAMPLE_BITS):
            samples = [self._samples[line] for line in group]
            if len(samples) < max(samples):
                missing[cell >> _CELL_BITS] += max(samples) - len(samples)
        return missing

    def __len__(self) -> int:
        return len(self._last)

    def _capture(self, line: int) -> Capture:
        file, start = self._files[self._places[line]], self._starts[line]
        return Capture(file, *next(line_spans(file, start), (start, start)))

    def captures(self) -> Iterator[Capture]:
        """Yield the line of each task."""
        return map(self._capture, self._last)

    def __iter__(self) -> Iterator[Record]:
        return self.having(b"focs")

    def having(self, statuses: bytes) -> Iterator[Record]:
        """Yield the records that failed (f), are ok (o), canceled (c) or skipped (s)."""
        for line in self._last:
            if self._statuses[line] in statuses:
                yield self._record(line)

    def replaced(self) -> Iterator[Record]:
        """Yield the records of the lines that do not count, because a later line does."""
        counts = bytearray(len(self._starts))
        for line in self._last:
            counts[line] = True
        return (self._record_in(line) for line, count in enumerate(counts) if not count)

    def _record_in(self, line: int) -> Record:
        try:
            return record_of(self._capture(line), self._identities[line])
        except ValueError:
            raise UserError("%s: it was changed while it was read"
                            % visible(self._names[self._places[line]])) from None

    def _record(self, line: int) -> Record:
        record = self._record_in(line)
        result = record.result
        record = record._replace(is_flaky=result.status == "ok" and (
            line in self._after_failure or result.attempts > 1))
        found = self._prompt_of.get(hash((result.index, record.fields.get("label"))))
        if found is None or self._prompts is None or not result.task:
            return record
        prompt = to_text(b"".join(self._prompts[found]))
        result = result._replace(task=result.task._replace(prompt=prompt))
        return record._replace(result=result, prompt=prompt)

    def find_tasks(self, supply: Supply) -> None:
        """Find the task of each record, for its prompt, and the tasks without a record.

        A task has the last record with its key, else that with its id, else that with its index and
        its label: the options of the run, which are in the key, are not known.  A record answers
        one task.
        """
        from array import array
        places: Dict[int, List[int]] = defaultdict(list)  # with a name, by the hash of that
        taken, tasks = bytearray(len(self)), array("q")
        for place, record in enumerate(self):
            tasks.append(hash((record.result.index, record.fields.get("label"))))
            for name in map(hash, _names_of(record.fields.get)):
                places[name].append(place)
        for name, same in places.items():
            by_key = name == self._keys[self._last[same[0]]]  # an `ok` line is final for its key
            same.sort(key=lambda place: (
                by_key and self._statuses[self._last[place]] == ord("o"), self._last[place]))

        def take(name: int) -> Optional[int]:
            same = places.get(name)
            while same:
                place = same.pop()
                if not taken[place]:
                    taken[place] = True
                    return self._prompt_of.setdefault(tasks[place], len(self._prompt_of))
            return None

        self._prompts = Spool()
        for job in iter(supply.next_job, END):
            if isinstance(job, Job):
                index, sample, samples = sample_of(job)[:3]
                fields = {"index": index, "sample": sample if samples > 1 else "",
                          "task_id": job.task.id, "task_name": job.task.name,
                          "label": task_label(job.task)}
                own = dict(fields, key=job_key(job), sample=sample)
                for found in map(take, map(hash, (*_names_of(own.get), (index, sample, None)))):
                    if found is not None:
                        self._prompts.add(found, [to_bytes(job.task.prompt)])
                        break
                else:
                    self.unanswered.append({name: value for name, value in fields.items()
                                            if value != ""})
        self._leave_out_former(taken)

    def _leave_out_former(self, taken: bytearray) -> None:
        """Leave out the lines of tasks that were edited, or moved before they had this result.

        Another task is at their place, or has its result at another place.
        """
        def names_of(line: int) -> Iterator[Tuple[int, int]]:
            id, identity = self._ids[line], self._identities[line]
            bits = _SAMPLE_BITS + _CELL_BITS * (id != self._keys[line])  # cells share an id
            yield identity, 0
            if id:
                yield id, 1 + identity % (1 << bits)

        answered = {name for line, is_taken in zip(self._last, taken) if is_taken
                    for name in names_of(line)}
        self._last = [line for line, is_taken in zip(self._last, taken)
                      if is_taken or answered.isdisjoint(names_of(line))]

    def problems(self) -> Iterator[str]:
        """Yield a warning for each kind of what is unusual; tasks are numbered as in the table."""
        if not self:
            yield "there are no results in %s" % visible(" or ".join(self._names))
        missing = (str(index + 1) for first, last in self.gaps for index in range(first, last + 1))
        unanswered = sum(last + 1 - first for first, last in self.gaps)
        samples = self._missing_samples()
        if self._prompts is not None:
            missing = (unanswered_number(task) for task in self.unanswered)
            unanswered = len(self.unanswered)
            for task in self.unanswered:
                samples.pop(task["index"], None)

        def numbered(indexes: Iterable[int]) -> Iterator[str]:
            return (str(index + 1) for index in indexes)

        for count, noun, names, what in (
                (len(self.repeated), "task", numbered(self.repeated),
                 "an ok result before the last line, which counts; --tasks FILE finds the lines "
                 "of tasks that were moved"),
                (len(self.shared), "task", numbered(self.shared),
                 "results in several files; the last counts"),
                (unanswered, "task", missing, "no result"),
                (sum(samples.values()), "sample", numbered(samples), "no result, of task")):
            if count:
                once = (name for name, _ in itertools.groupby(names))  # of all its samples
                numbers = list(itertools.islice(once, MAX_LABELS + 1))
                numbers[MAX_LABELS:] = ["..."] * (len(numbers) > MAX_LABELS)
                yield "%s %s %s: %s" % (counted(count, noun), "has" if count == 1 else "have",
                                        what, ", ".join(numbers))

    def __del__(self) -> None:
        for file in self._files:
            os.close(file)


def unanswered_number(task: Dict[str, Any]) -> str:
    """Return the number of a task without a record, from 1: `3`, or `3.2` if it has samples."""
    number = str(task["index"] + 1)
    return "%s.%d" % (number, task["sample"]) if "sample" in task else number


def _names_of(field: Callable[..., Any]) -> Iterator[Any]:
    """Yield the names of a record or a task, the best first.  A line of --jsonl has no key."""
    sample = field("sample", 1)
    yield field("key")
    yield field("task_id"), sample
    yield field("index"), sample, field("label")


class Attempt(NamedTuple):
    """One start of a task, and how it ended."""

    start: float
    end: float
    status: str
    error_kind: str
    error: str


def attempts_of(result: Result) -> List[Attempt]:
    """Return the attempts of a task that are known: those in `tries`, else the last."""
    attempts = []
    for one in result.tries:
        with contextlib.suppress(ValueError):
            start = parse_utc(one.get("start_time"))
            end = start + _amount(one.get("duration_seconds", 0.0))
            attempts.append(Attempt(start, end, *(
                _string(one.get(name)) for name in ("status", "error_kind", "error"))))
    if not attempts and result.attempts and result.start_time:
        attempts = [Attempt(result.start_time, result.end_time, result.status, result.error_kind,
                            result.error)]
    return attempts


class Span(NamedTuple):
    """An attempt in the timeline."""

    start: float
    end: float
    wait_end: float  # of the wait for a limit that follows; or 0
    mark: str  # "#" ok, "x" failed, "r" tried again
    identity: int  # of the record


def spans_of(record: Record) -> Iterator[Span]:
    """Yield the attempts of a task that are known."""
    attempts, last = attempts_of(record.result), "#" if record.result.status == "ok" else "x"
    for one, after in itertools.zip_longest(attempts, attempts[1:]):
        wait_end = after.start if after and one.error_kind == "rate_limit" else 0.0
        yield Span(one.start, one.end, wait_end, "r" if after else last, record.identity)


WEIGHTS = " ~.#rx"  # of two marks in one place the later one is shown
LEGEND = ("# ok", "x failed", "r tried again", ". waiting for a limit",
          "~ a long pause, shortened", "| a run begins")
MOST_LANES = 20
LONG_PAUSE, SHORTENED = 0.5, 0.03  # of the time without pauses: what is shortened, to what
MOST_PAUSES = 10  # that are shortened


def lanes_of(spans: Iterable[Span]) -> Iterator[int]:
    """Yield the lane of each attempt, from 0: the first that is free."""
    ends: List[float] = []  # of the last attempt in each lane
    for one in spans:
        lane = next((lane for lane, end in enumerate(ends) if end <= one.start), len(ends))
        ends[lane:lane + 1] = [one.end]
        yield lane


def pauses_of(spans: Sequence[Span]) -> Iterator[Tuple[float, float]]:
    """Yield the start and the end of each time in which nothing ran or waited."""
    latest = spans[0].start
    for one in spans:
        if one.start > latest:
            yield latest, one.start
        latest = max(latest, one.end, one.wait_end)


def timeline_text(spans: Iterable[Span], runs: Set[float], columns: int) -> str:
    """Return who ran when: a lane for each attempt that ran at the same time as others.

    An attempt that two files have is shown once.  `runs` are the starts of the runs.
    """
    in_order: List[Span] = []
    start_of = operator.attrgetter("start")
    for _, together in itertools.groupby(sorted(spans, key=start_of), start_of):
        in_order += {one.identity: one for one in together}.values()
    if not in_order:
        return ""
    first, width = in_order[0].start, columns - 5
    seconds = max(max(one.end for one in in_order) - first, 0.001)
    pauses = sorted(pauses_of(in_order), key=lambda pause: pause[0] - pause[1])  # longest first
    busy = seconds - sum(end - start for start, end in pauses)
    shortened = SHORTENED * busy
    pauses = [(start, end) for start, end in pauses[:MOST_PAUSES]
              if end - start > LONG_PAUSE * busy]
    shown_seconds = seconds - sum(end - start - shortened for start, end in pauses)

    def column(moment: float) -> int:
        left_out = sum(max(0.0, min(moment, end) - start - shortened) for start, end in pauses)
        place = int((moment - first - left_out) / shown_seconds * width)
        return min(max(place, 0), width - 1)

    def draw(row: List[str], start: float, end: float, mark: str) -> None:
        for place in range(column(start), column(end) + 1):
            row[place] = max(row[place], mark, key=WEIGHTS.index)

    empty, lanes = [" "] * width, list(lanes_of(in_order))
    for start, end in pauses:
        draw(empty, start, end, "~")
    rows = [list(empty) for _ in range(max(lanes) + 1)]
    for one, lane in zip(in_order, lanes):
        draw(rows[lane], one.start, one.end, one.mark)
        draw(rows[lane], one.end, one.wait_end, ".")
    sizes = ["%.3gs" % size if size < 60 else duration(size)
             for size in (seconds, shown_seconds / width)]
    lines = ["From %s: %s, %s a column" % (utc(first), *sizes)]
    marks = set(map(column, runs))
    if len(runs) > 1:
        lines.append(" " * 5 + "".join(" |"[place in marks] for place in range(width)))
    lines += ["%4d %s" % (number, "".join(row)) for number, row in enumerate(rows, 1)]
    hidden = len(rows) - MOST_LANES
    if hidden > 0:
        lines[-hidden:] = ["     and %d more" % hidden]
    drawn = "".join(lines[1:])
    lines += wrapped("   ".join(text for text in LEGEND if text[0] in drawn), columns)
    return "".join(line.rstrip() + "\n" for line in lines)


def aligned(rows: Sequence[Sequence[str]], columns: int) -> str:
    """Return rows as lines: the first cell at the left, cut to the room that the others leave."""
    widths = [max(map(len, cells)) for cells in zip(*rows)][1:]
    room = max(columns - sum(widths) - 2 * len(widths), 10)
    heads = [cut(row[0], room) for row in rows]
    sizes = [sum(map(columns_of, head)) for head in heads]
    return "".join(head + " " * (max(sizes) - size) + "".join(
        "  " + cell.rjust(width) for cell, width in zip(row[1:], widths)) + "\n"
        for row, head, size in zip(rows, heads, sizes))


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return the smallest value that is not below that share of all values (nearest rank)."""
    return ordered[(percent * len(ordered) + 99) // 100 - 1]


PERCENTILES = ("tasks", "sum", "p50", "p90", "p95", "max")


def percentiles_of(measures: Dict[str, Sequence[float]]) -> Dict[str, Dict[str, Any]]:
    """Return the PERCENTILES of each measure that is known of a task."""
    found: Dict[str, Dict[str, Any]] = {}
    for name, ordered in zip(measures, map(sorted, measures.values())):
        if ordered:
            numbers = sum(ordered), *(percentile(ordered, one) for one in (50, 90, 95, 100))
            digits = 3 if name == "seconds" else 6
            found[name] = dict(zip(PERCENTILES, (
                len(ordered), *(round(number, digits) for number in numbers))))
    return found


def percentiles_text(percentiles: Dict[str, Dict[str, Any]], columns: int) -> str:
    forms = {"seconds": "{:.2f}s", "tokens": "{:,.0f}", "cost_usd": "${:.4f}"}
    rows = [["", *map(str.upper, PERCENTILES)]]
    for name, found in percentiles.items():
        count, *numbers = found.values()
        rows.append([name.upper().partition("_")[0], str(count),
                     *map(forms[name].format, numbers)])
    return "\n" + aligned(rows, columns) if percentiles else ""


class Group(Totals):
    """The totals of some tasks, how many were judged, and how long each of those that ran took."""

    def __init__(self) -> None:
        from array import array
        super().__init__()
        self.seconds = array("d")
        self._judged = 0  # ok, or bad by what the task asks for

    def write(self, result: Result) -> None:
        super().write(result)
        self._judged += is_final(result.status, result.error_kind, True)
        if result.attempts:
            self.seconds.append(result.duration_seconds)

    def group_fields(self) -> Dict[str, Any]:
        fields = dict(
            self.fields(), judged=self._judged,
            pass_rate=self.counts["completed"] / self._judged if self._judged else None,
            median_seconds=percentile(sorted(self.seconds), 50) if self.seconds else None,
            task_seconds=sum(self.seconds))
        return {name: round(value, 6) if isinstance(value, float) else value
                for name, value in fields.items()
                if name not in ("start_time", "end_time", "total_duration_seconds")}


GROUP_FIELDS = ("backend", "model", "label", "cell", "tags", "error_kind")


def groups_of(record: Record, field: str) -> Iterable[str]:
    """Return the groups to which a task belongs when tasks are grouped by a field."""
    if field == "tags":
        return dict.fromkeys(record.fields.get("tags", ()))
    if field == "cell":
        return [cell_text(record.fields.get("cell", ""))]
    if field == "label":
        return [task_label(record.result.task)]
    value = str(getattr(record.result, field))
    return [value] * (value != "" or field != "error_kind")


MAX_GROUPS = 1000
OTHER_GROUPS = "(others)"


def groups_text(field: str, groups: Dict[str, Group], columns: int) -> str:
    """Return a table, the largest group first; "" where there is none."""
    title = field.upper().replace("_", " ")
    rows = [[title, "TASKS", "OK", "FAILED", "PASS", "MEDIAN", "TOKENS", "COST"]]
    for name, group in sorted(groups.items(), key=lambda item: -item[1].total):
        fields, tokens = group.group_fields(), group.usage.get("total_tokens")
        rate, median, cost = fields["pass_rate"], fields["median_seconds"], group.cost_usd
        rows.append([one_line(name) or "-", str(group.total), str(group.counts["completed"]),
                     str(group.counts["failed"]), "-" if rate is None else "%.1f%%" % (rate * 100),
                     "-" if median is None else "%.2fs" % median,
                     "{:,}".format(tokens) if tokens else "-",
                     "-" if cost is None else "$%.4f" % cost])
    return "\n" + aligned(rows, columns) if groups else ""


class Statistics:
    """All that a report says of the records together.

    The time of the totals is from the first start to the last end.  The results are also written
    to the `table`, and only with a table is there a timeline.
    """

    def __init__(self, records: Records, group_by: Optional[Sequence[str]] = None,
                 table: Optional[Table] = None) -> None:
        from array import array
        self.records, self.totals = records, Group()
        self.measures: Dict[str, Any] = {"seconds": self.totals.seconds, "tokens": array("d"),
                                         "cost_usd": array("d")}
        self.groups: Dict[str, Dict[str, Group]] = {
            field: {} for field in group_by or ("backend", "model", "error_kind")}
        self.flaky: List[int] = []  # indexes
        self._numbers: List[str] = []  # of these, as the table has them
        self.spans: List[Span] = []
        self.runs: Set[float] = set()  # their starts
        first, last = MAX_TIME, 0.0
        for place, record in enumerate(records):
            result, spans = record.result, list(spans_of(record))
            starts = [one.start for one in spans] or [result.start_time or MAX_TIME]
            first, last = min(first, *starts), max(last, result.end_time)
            self._count(record)
            if table:
                table.write(result._replace(index=place))
                self.spans += spans
                self.runs.add(record.fields.get("run", 0.0))
        if table:
            for record in records.replaced():
                self.spans += spans_of(record)
                self.runs.add(record.fields.get("run", 0.0))
        self.runs.discard(0.0)  # of lines that state none
        self.totals.start_time = min(first, last)
        self.totals.duration_seconds = max(0.0, last - first)

    def _count(self, record: Record) -> None:
        result = record.result
        self.totals.write(result)
        tokens = (result.usage or {}).get("total_tokens")
        for name, value in (("tokens", tokens), ("cost_usd", result.cost_usd)):
            if result.attempts and value is not None:
                self.measures[name].append(value)
        if record.is_flaky:
            self.flaky.append(result.index)
            self._numbers.append(number_of(result))
        for field, groups in self.groups.items():
            for name in groups_of(record, field):
                if name not in groups and len(groups) >= MAX_GROUPS:
                    name = OTHER_GROUPS
                groups.setdefault(name, Group()).write(result)

    def text(self, columns: int) -> Iterator[str]:
        """Yield what follows the table and the totals."""
        if self.flaky:
            more = ", ..." if len(self.flaky) > MAX_REASONS else ""
            yield "Flaky: %s, ok after a failure: %s%s\n" % (
                counted(len(self.flaky), "task"), ", ".join(self._numbers[:MAX_REASONS]), more)
        unanswered = self.records.unanswered
        lines = [cut("%4s %s" % (unanswered_number(task), task["label"]), columns) + "\n"
                 for task in unanswered[:MAX_REASONS]]
        if lines:
            yield "No result:\n" + "".join(lines) + "  ...\n" * (len(unanswered) > MAX_REASONS)
        yield percentiles_text(percentiles_of(self.measures), columns)
        for field, groups in self.groups.items():
            yield groups_text(field, groups, columns)
        timeline = timeline_text(self.spans, self.runs, columns)
        yield "\n" + timeline if timeline else ""

    def fields(self) -> Dict[str, Any]:
        """Return the fields of the `--json` object, except `results`."""
        records = self.records
        return dict(
            self.totals.fields(), percentiles=percentiles_of(self.measures), groups={
                field: {name: group.group_fields() for name, group in groups.items()}
                for field, groups in self.groups.items()},
            duplicates={"ok": records.repeated, "files": records.shared},
            gaps=records.gaps, flaky=self.flaky, unanswered=records.unanswered)

    def is_failure(self, fail_on: Union[str, float]) -> bool:
        """Return whether `any` task did not succeed, or a share of them, or one was `flaky`."""
        counts, unanswered = self.totals.counts, len(self.records.unanswered)
        bad = counts["failed"] + counts["canceled"] + unanswered
        if isinstance(fail_on, float):
            return bad > 0 and bad >= share_of(fail_on, self.totals.total + unanswered)
        return bool(fail_on and bad or fail_on == "flaky" and self.flaky)


def parse_fail_on(text: str) -> Union[str, float]:
    """Return `any`, `flaky`, or the share that a percentage is.  Raise ValueError."""
    match = re.fullmatch(r"(\d{1,2}|100)%", text, re.ASCII)
    if match and int(match.group(1)):
        return int(match.group(1)) / 100
    if text not in ("any", "flaky"):
        raise expected("any, flaky or a percentage such as 10%", text)
    return text


# The columns of --csv, and their default.
COLUMNS = (".index,.label,.task_id,.backend,.model,.status,.error_kind,.error,.attempts,"
           ".duration_seconds,.usage.total_tokens,.cost_usd,.start_time,.sample,.cell")


def parse_columns(text: str) -> Tuple[Tuple[str, _Path], ...]:
    """Return the names and the paths of columns such as `.data.label,.tags[0]`."""
    return tuple((word.lstrip("."), _value_path(word)) for word in _words(text or COLUMNS))


# With full-width characters, which a Japanese Excel takes for the others.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def csv_cell(value: Any) -> str:
    """Return a JSON value as a cell that a spreadsheet does not take for a formula."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else dumps(value).decode()
    is_number = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, re.ASCII)
    if text.startswith(FORMULA_STARTS) and not is_number:
        text = "'" + text
    return re.sub("[\0\ud800-\udfff]", "\ufffd", text)  # which readers of CSV refuse


MAX_NAMES = 1000  # that are noted at a place in the lines


def _note_names(names: Dict[_Path, Set[Any]], line: Any, path: _Path) -> None:
    """Note the names at the places to which a path leads."""
    for place, step in enumerate(path):
        value = value_at(line, path[:place])
        if value is not None:
            known = names[path[:place]]
            if isinstance(value, list) and isinstance(step, int):
                known.add(step)  # a list can be too short
            elif len(known) < MAX_NAMES:
                known.update(_mapping(value))


def csv_lines(records: Iterable[Record], columns: Sequence[Tuple[str, _Path]],
              warn: Callable[[str], None]) -> Iterator[str]:
    """Yield a line with the names of the columns, and one for each record."""
    import csv
    from types import SimpleNamespace
    writer = csv.writer(SimpleNamespace(write=str), lineterminator="\n")  # returns the line
    names: Dict[_Path, Set[Any]] = defaultdict(set, {(): set(RECORD_FIELDS)})  # for warnings
    empty = dict(columns)
    yield str(writer.writerow([csv_cell(name) for name, _ in columns]))
    for record in records:
        line = loads(b"".join(record.capture.short_pieces(bool)))
        try:
            values = [_free_value(value_at(line, path)) for _, path in columns]
        except RecursionError:
            raise UserError("the line of task %s: nested too deep for CSV"
                            % number_of(record.result)) from None
        for value, (name, path) in zip(values, columns):
            if value is not None:
                empty.pop(name, None)
            elif name in empty:
                _note_names(names, line, path)
        yield str(writer.writerow([csv_cell(record.capture.whole(value)) for value in values]))
    for name, path in empty.items():
        for place, step in enumerate(path):
            known = names.get(path[:place], {step})
            if step not in known:  # else a field there was always empty
                warn("--csv .%s: no result has %s%s" % (name, quoted(step), nearest(
                    str(step), sorted(filter(_string, known)))))
                break


# - files for CI -

def task_title(record: Record, with_output: bool) -> str:
    """Return the name or the id of a task; its label, which can be of the prompt, `with_output`."""
    task = record.result.task or Task("", "")
    return job_label(task._replace(name=one_line(task.name or task.id),
                                   prompt=task.prompt * with_output)).rstrip()


def unanswered_title(task: Dict[str, Any], with_output: bool) -> str:
    """Return what task_title returns, of a task without a record."""
    title = task.get("task_name") or task.get("task_id", "")
    return one_line(title) or task["label"] * with_output


def _xml(text: str) -> str:
    """Return the text as it stands between the tags of XML, with visible control characters."""
    from xml.sax.saxutils import escape
    return escape(re.sub("[\ufffe\uffff]", "\ufffd", visible(text)))


def _xml_attributes(**values: Any) -> str:
    return "".join(' %s="%s"' % (
        name, _xml(str(value)).replace('"', "&quot;").replace("\n", "&#10;"))
        for name, value in values.items())


def junit_texts(statistics: Statistics, with_output: bool) -> Iterator[str]:
    """Yield JUnit XML as Jenkins and GitLab read it: a test case for each task.

    Tasks without a result are errors; canceled tasks are skipped.
    """
    records, totals = statistics.records, statistics.totals
    unanswered = records.unanswered
    counts = _xml_attributes(
        tests=totals.total + len(unanswered), failures=totals.counts["failed"],
        errors=len(unanswered), time="%.3f" % totals.duration_seconds)
    yield '<?xml version="1.0" encoding="UTF-8"?>\n<testsuites name="clinvk"%s>\n' % counts
    yield '<testsuite name="clinvk"%s%s>\n' % (counts, _xml_attributes(
        skipped=totals.counts["canceled"] + totals.counts["skipped"],
        timestamp=utc(totals.start_time)[:19]))
    for record in records:
        yield from _test_case(record, with_output)
    for task in unanswered:
        name = "%s %s" % (unanswered_number(task), unanswered_title(task, with_output))
        yield '<testcase%s>\n<error message="no result" type="no_result"/>\n</testcase>\n' % (
            _xml_attributes(name=name.strip(), classname="clinvk"))
    yield "</testsuite>\n</testsuites>\n"


def _test_case(record: Record, with_output: bool) -> Iterator[str]:
    result = record.result
    name = "%s %s" % (number_of(result), task_title(record, with_output))
    yield "<testcase%s>\n" % _xml_attributes(
        name=name.strip(), classname=one_line(result.backend) or "clinvk",
        time="%.3f" % result.duration_seconds)
    if result.status in FAILED_STATUSES:
        yield "<failure%s>%s</failure>\n" % (_xml_attributes(
            message=one_line(result.error), type=result.error_kind or result.status),
            _xml(result.error))
    elif result.status != "ok":
        yield "<skipped%s/>\n" % _xml_attributes(message=one_line(result.error) or result.status)
    if with_output:
        prompt = "prompt:\n%s\n\nanswer:\n" % record.prompt if record.prompt else ""
        yield "<system-out>"
        yield from map(_xml, texts_of((prompt, result.answer)))
        yield "</system-out>\n"
    yield "</testcase>\n"


MAX_MARKDOWN = 1 << 20  # bytes that GitHub takes as the summary of a step
MAX_SHOWN = 20000  # characters of a prompt or an answer in Markdown


def _markdown(text: str) -> str:
    """Return a line of text as Markdown that shows it as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#!|~@$]|:(?=//)|(?<=www)\.)", r"\\\1", text)


def _markdown_row(record: Record, with_output: bool) -> Tuple[Any, ...]:
    result = record.result
    tokens, cost = (result.usage or {}).get("total_tokens"), result.cost_usd
    attempts = " (%d)" % result.attempts if result.attempts > 1 else ""
    return (number_of(result), result.status.upper() + attempts,
            _markdown(one_line(result.backend)), "%.2fs" % result.duration_seconds,
            "{:,}".format(tokens) if tokens else "", "" if cost is None else "$%.4f" % cost,
            _markdown(task_title(record, with_output)),
            _markdown(one_line(result.error)[:MAX_NOTE]))


def _markdown_rows(records: Records, with_output: bool) -> Iterator[str]:
    """Yield a row a task: failures, tasks without a result, canceled ones, the others."""
    row = "| %s | %s | %s | %s | %s | %s | %s | %s |\n"
    for record in records.having(b"f"):
        yield row % _markdown_row(record, with_output)
    for task in records.unanswered:
        title = _markdown(unanswered_title(task, with_output))
        yield row % (unanswered_number(task), "NO RESULT", "", "", "", "", title, "")
    for record in itertools.chain(records.having(b"c"), records.having(b"os")):
        yield row % _markdown_row(record, with_output)


def _markdown_details(records: Records) -> Iterator[str]:
    """Yield the prompt and the answer of each task, failures first, as HTML in Markdown."""
    def shown(texts: Iterable[str]) -> str:
        text = ""
        for piece in texts:
            text += piece
            if len(text) > MAX_SHOWN:
                text = text[:MAX_SHOWN] + "\n..."
                break
        return "<pre>%s</pre>\n\n" % _xml(text) if text else ""

    for record in itertools.chain(*map(records.having, (b"f", b"c", b"os"))):
        texts = shown([record.prompt]) + shown(texts_of((record.result.answer,)))
        yield "<details><summary>%s %s</summary>\n\n%s</details>\n\n" % (
            number_of(record.result), _xml(task_title(record, True)), texts)


def markdown_texts(statistics: Statistics, with_output: bool) -> Iterator[str]:
    """Yield Markdown of at most MAX_MARKDOWN bytes: the totals, a table, prompts and answers."""
    records = statistics.records
    unanswered = len(records.unanswered)
    parts = [("\n| # | Status | Backend | Time | Tokens | Cost | Task | Error |\n"
              "| --: | :-- | :-- | --: | --: | --: | :-- | :-- |\n",
              _markdown_rows(records, with_output), len(records) + unanswered, "task")]
    if with_output:
        parts.append(("\n", _markdown_details(records), len(records), "answer"))
    text = "## clinvk\n\n%s\n" % statistics.totals.line()
    if statistics.flaky:
        text += "\n%s flaky.\n" % counted(len(statistics.flaky), "task")
    room = MAX_MARKDOWN - len(text) - 300  # for the heads of the parts and the lines at their ends
    yield text
    for head, rows, missing, noun in parts:
        yield head
        for row in rows:
            room -= len(to_bytes(row))
            if room < 0:
                break
            yield row
            missing -= 1
        if missing:
            yield "\n%s not shown: this file has at most 1 MiB.\n" % counted(
                missing, "more " + noun)


# - the page -

MAX_PAGE_TEXT = 100000  # characters of a prompt or an answer
LOG_TAIL = 4096  # bytes
# What the page has of each task.  Times are in milliseconds.  `runs` are the starts of its runs,
# and `tries` has a list for each run.
PAGE_COLUMNS = ("index", "name", "id", "tags", "backend", "model", "status", "attempts", "start",
                "ms", "tokens", "cost", "runs", "tries", "kind", "error", "warnings", "answer",
                "prompt", "logs")
PAGE_STYLE = r"""
:root { color-scheme: light dark; --back: #fff; --text: #1b1f24; --dim: #5f6873; --edge: #d5d9de;
  --mark: #f2f4f7; --link: #0a58b0; --ok: #2f9e67; --failed: #b0301e; --timeout: #c48426;
  --lost: #cc50d2; --other: #484654; --wait: #17498c; }
@media (prefers-color-scheme: dark) { :root { --back: #15181c; --text: #dde1e6; --dim: #9aa1ab;
  --edge: #343a42; --mark: #20252b; --link: #7db5f5; --ok: #72d489; --failed: #c85650;
  --timeout: #b38b1b; --lost: #8b49d4; --other: #69717f; --wait: #a9bfdf; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1.5rem; max-width: 100rem; background: var(--back);
  color: var(--text); font: 14px/1.45 system-ui, sans-serif; }
h1, h2, h3, p, figure { margin: 0; }
h1 { font-size: 1.25rem; } h2 { font-size: 1rem; margin-top: 1.2rem; }
h3 { font-size: .9rem; margin: 1rem 0 .2rem; }
h1, h2, button, p, dd, pre { unicode-bidi: isolate; overflow-wrap: anywhere; }
.dim, dt, figcaption, #key { color: var(--dim); }
svg { display: block; width: 100%; height: auto; margin: .3rem 0; shape-rendering: crispEdges; }
svg text { font-size: 11px; fill: var(--dim); }
rect { fill: var(--other); } .ok { fill: var(--ok); } .failed { fill: var(--failed); }
.timeout { fill: var(--timeout); } .lost { fill: var(--lost); } .wait { fill: var(--wait); }
.lane { fill: var(--mark); } [data-task] { cursor: pointer; } [data-task]:hover { opacity: .6; }
line { stroke: var(--edge); } .run { stroke: var(--text); stroke-dasharray: 3 3; }
svg.swatch { display: inline; width: .7em; margin: 0 .4em 0 0; } #key span { margin-right: 1rem; }
#bars { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 0 2rem;
  align-items: end; }
.tools { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin: .4rem 0; }
input, select, button { font: inherit; color: inherit; background: var(--back);
  border: 1px solid var(--edge); border-radius: 3px; padding: .15rem .5rem; }
button { cursor: pointer; } button:disabled { color: var(--dim); cursor: default; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 1px; }
#filter { flex: 0 1 22rem; min-width: 8rem; } #table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .7rem .2rem 0; border-bottom: 1px solid var(--edge);
  vertical-align: top; white-space: nowrap; }
.number { text-align: right; } tbody tr:hover { background: var(--mark); }
table button { border: 0; padding: 0; background: none; font-weight: inherit; text-align: start; }
[aria-sort=ascending] button::after { content: " \2191"; }
[aria-sort=descending] button::after { content: " \2193"; }
.name { width: 100%; min-width: 14rem; white-space: normal; } td button { color: var(--link); }
.name > * { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2;
  overflow: hidden; }
dialog { width: min(60rem, 94vw); max-height: 92vh; border: 1px solid var(--edge);
  background: var(--back); color: var(--text); border-radius: 4px; padding: 0 1.2rem 1.2rem; }
dialog::backdrop { background: #0007; }
dialog .tools { position: sticky; top: 0; margin: 0; padding: .8rem 0; background: inherit; }
dialog h2 { flex: 1; margin: 0; }
dl { display: grid; grid-template-columns: max-content 1fr max-content 1fr; gap: .1rem 1rem;
  margin: 0; }
dd { margin: 0; } @media (max-width: 40rem) { dl { grid-template-columns: max-content 1fr; } }
pre { background: var(--mark); margin: 0; padding: .5rem .7rem; white-space: pre-wrap;
  font: 12.5px/1.45 ui-monospace, monospace; }
@media print { .tools, dialog { display: none; } rect { print-color-adjust: exact; } }
"""
PAGE_SCRIPT = r"""
"use strict";
const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const tasks = data.tasks.map((row, place) => Object.fromEntries(
  [["place", place], ...data.columns.map((name, column) => [name, row[column]])]));
const has = name => tasks.some(task => task[name] != null && task[name] !== "");
const sum = numbers => numbers.reduce((total, number) => total + number, 0);

function make(name, attributes, ...children) {  // a text among the children stays a text
  const node = /^(svg|rect|line|text|title)$/.test(name)
    ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  node.append(...children);
  return node;
}
function button(text, react) {
  const node = make("button", { type: "button", dir: "auto" }, text);
  node.addEventListener("click", react);
  return node;
}

// - numbers and times as texts -
const two = number => String(number).padStart(2, "0");
const grouped = number => String(number).replace(/\B(?=(\d{3})+$)/g, ",");
const counted = (number, noun) => grouped(number) + " " + noun + (number === 1 ? "" : "s");
function length(ms) {  // 0.5s, 30s, 4m10s or 2h03m
  const s = Math.floor(ms / 1000), minutes = Math.floor(s / 60);
  if (s < 60) return s < 10 ? (Math.floor(ms / 100) / 10).toFixed(1) + "s" : s + "s";
  return minutes < 60 ? minutes + "m" + two(s % 60) + "s"
    : Math.floor(minutes / 60) + "h" + two(minutes % 60) + "m";
}
const moment = ms => new Date(ms).toLocaleString("sv");  // 2026-01-31 23:59:59
const FORMS = { index: value => String(value + 1), start: moment, ms: length, tokens: grouped,
                cost: value => "$" + value.toFixed(4) };
const shown = (task, name) => task[name] == null ? "" : (FORMS[name] || String)(task[name]);
const titled = task => "#" + (task.index + 1) + " " + task.name;

// - drawings -
function bar(task, kind, x, y, width, height, text) {
  return make("rect", { class: kind, x, y, width, height, "data-task": task.place },
              make("title", {}, titled(task) + ": " + text));
}
function draw(box, height, nodes) {
  box.replaceChildren(make("svg", { viewBox: `0 0 ${box.clientWidth} ${height}`, role: "img",
    "aria-labelledby": box.dataset.title }, ...nodes));
}

const attempts = [], waits = [], lanes = [];  // of a lane: the end of the last attempt in it
const runs = new Set(tasks.flatMap(task => task.runs));
for (const task of tasks) {
  for (const tries of task.tries) tries.forEach(([start, ms, status, kind], place) => {
    attempts.push({ task, start, end: start + ms, status,
      number: tries.length > 1 ? `, try ${place + 1} of ${tries.length}` : "" });
    if (place + 1 < tries.length)
      waits.push({ task, start: start + ms, end: tries[place + 1][0], kind });
  });
  task.tries = task.tries.flat();
}
attempts.sort((one, other) => one.start - other.start);
for (const one of attempts) {
  const free = lanes.findIndex(end => end <= one.start + 1);
  one.lane = free < 0 ? lanes.length : free;
  lanes[one.lane] = one.end;
}
const STEPS = [.1, .2, .5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400,
               21600, 43200, 86400].map(seconds => seconds * 1000);

function axis(width) {  // the spans in which something went on; a long pause takes 60 pixels
  const spans = [], all = [...attempts, ...waits].sort((one, other) => one.start - other.start);
  const end = all.reduce((latest, one) => Math.max(latest, one.end), 0);
  for (const one of all) {
    const last = spans[spans.length - 1];
    if (last && one.start - last.end < (end - all[0].start) / 10)
      last.end = Math.max(last.end, one.end);
    else spans.push({ start: one.start, end: one.end });
  }
  const scale = (width - 60 * (spans.length - 1))
    / (sum(spans.map(span => span.end - span.start)) || 1);
  let x = 0;
  for (const span of spans) {
    span.x = x;
    x += (span.end - span.start) * scale + 60;
  }
  return [spans, scale, ms => {
    const span = spans.find(one => ms <= one.end) || spans[spans.length - 1];
    return span.x + Math.max(0, Math.min(ms, span.end) - span.start) * scale;
  }];
}

function drawTimeline() {
  const box = $("timeline"), thick = lanes.length > 24 ? 5 : 14, nodes = [], drawn = new Set();
  const [spans, scale, at] = axis(box.clientWidth);
  const top = runs.size > 1 ? 32 : 18, first = top + (waits.length && thick + 4);
  const height = first + lanes.length * (thick + 2);
  const row = lane => first + lane * (thick + 2);
  const step = STEPS.find(ms => ms * scale > 70) || 864e5;
  const zone = new Date(spans[0].start).getTimezoneOffset() * 60000;
  for (const { start, end } of spans) {
    lanes.forEach((_, lane) => nodes.push(make("rect", { class: "lane", x: at(start),
      y: row(lane), width: at(end) - at(start), height: thick })));
    for (let ms = Math.ceil((start - zone) / step) * step + zone; ms <= end; ms += step) {
      const text = moment(ms).slice(11, step < 60000 ? 19 : 16);
      nodes.push(make("line", { x1: at(ms), x2: at(ms), y1: top - 14, y2: height }));
      if (at(ms) < box.clientWidth - 50) nodes.push(make("text", { x: at(ms) + 3, y: top - 5 },
                      step < 1000 ? text + "." + ms % 1000 / 100 : text));
    }
  }
  spans.slice(1).forEach((span, place) => nodes.push(
    make("text", { x: span.x - 30, y: first + 11, "text-anchor": "middle" },
         length(span.start - spans[place].end), make("title", {}, "Nothing ran for this time"))));
  for (const { task, start, end, kind } of waits)
    nodes.push(bar(task, "wait", at(start), top, Math.max(1, at(end) - at(start)), thick,
                   `waited ${length(end - start)} after ${kind || "a failed try"}`));
  for (const { task, lane, start, end, status, number } of attempts) {
    const x = at(start), right = Math.max(x + 1, at(end)), pixel = [lane, x >> 1, status].join();
    if (right - x < 3 && drawn.has(pixel)) continue;  // too small to be told apart
    drawn.add(pixel);
    nodes.push(bar(task, status, x, row(lane), Math.max(1, right - x - .5), thick,
                   status + ", " + length(end - start) + number));
  }
  if (runs.size > 1) [...runs].sort().forEach((run, place) => nodes.push(
    make("line", { class: "run", x1: at(run), x2: at(run), y1: 0, y2: height }),
    make("text", { x: at(run) + 3, y: 10 }, "run " + (place + 1), make("title", {}, moment(run)))));
  draw(box, height, nodes);
}

function drawBars([name, title]) {  // of the tasks in the table, in its order
  const box = $(name), height = 56, text = FORMS[name];
  const values = list.map(task => task[name]).filter(value => value != null).sort((a, b) => a - b);
  const most = values[values.length - 1] || 1, unknown = list.length - values.length;
  $(name + "-title").textContent = title + ": " + (values.length ? text(sum(values)) + " in all, "
    + "median " + text(values[values.length >> 1]) + ", most " + text(most) : "not known")
    + (values.length && unknown ? ", not known of " + counted(unknown, "task") : "");
  const bars = Math.min(list.length, box.clientWidth >> 1);
  const wide = Math.min(24, box.clientWidth / bars), nodes = [
    make("line", { x1: 0, x2: box.clientWidth, y1: height, y2: height })];
  for (let place = 0; place < bars; place++) {
    const some = list.slice(Math.floor(place * list.length / bars),
                            Math.floor((place + 1) * list.length / bars));
    const task = some.reduce((one, other) => other[name] > (one[name] || 0) ? other : one);
    const tall = (task[name] || 0) / most * height;
    nodes.push(bar(task, task.status, place * wide, height - tall, Math.max(1, wide - 1), tall,
      shown(task, name) + (some.length > 1 ? `, the most of ${some.length} tasks` : "")));
  }
  draw(box, height, nodes);
}
function drawAll() {
  if (attempts.length) drawTimeline();
  BARS.forEach(drawBars);
}

// - the table -
const COLUMNS = [["index", "#"], ["name", "Task"], ["backend", "Backend"], ["model", "Model"],
  ["status", "Status"], ["attempts", "Tries"], ["start", "Start"], ["ms", "Time"],
  ["tokens", "Tokens"], ["cost", "Cost"]].filter(([name]) => has(name));
const NUMBERS = ["index", "attempts", "ms", "tokens", "cost"];
const BARS = COLUMNS.filter(([name]) => ["ms", "tokens", "cost"].includes(name));
const PAGE = 50, collator = new Intl.Collator(undefined, { numeric: true });
let order = "index", falling = false, page = 0, size = PAGE, list = [];

function choose() {  // filter and sort
  const words = $("filter").value.toLowerCase().split(/\s+/), status = $("status").value;
  list = tasks.filter(task => {
    task.text = task.text || [task.index + 1, task.name, task.id, task.backend, task.model,
      task.kind, task.error, ...task.tags].join("\n").toLowerCase();
    return words.every(word => task.text.includes(word))
      && (!status || task.status === status || status === "not ok" && task.status !== "ok");
  });
  list.sort((one, other) => {
    const a = one[order], b = other[order];
    if (a === b) return one.index - other.index;
    if (a == null || b == null) return a == null ? 1 : -1;
    return (typeof a === "number" ? a - b : collator.compare(a, b)) * (falling ? -1 : 1);
  });
  page = 0;
  drawTable();
  BARS.forEach(drawBars);
}
function cell(task, name) {
  const node = make("td", { class: name === "name" || !NUMBERS.includes(name) ? name : "number" });
  if (name === "name") {
    node.append(button(task.name || "(no name)", () => open(task)));
    if (task.error) node.append(make("p", { class: "dim", dir: "auto" }, task.error));
  } else {
    if (name === "status") node.append(swatch(task.status));
    node.append(shown(task, name));
  }
  return node;
}
function swatch(kind) {
  return make("svg", { class: "swatch", viewBox: "0 0 10 10", "aria-hidden": true },
              make("rect", { class: kind, width: 10, height: 10 }));
}
function drawTable() {
  const first = page * PAGE, some = list.slice(first, first + size);
  $("rows").replaceChildren(...some.map(task =>
    make("tr", {}, ...COLUMNS.map(([name]) => cell(task, name)))));
  for (const head of $("heads").children) head.setAttribute("aria-sort",
    head.dataset.name !== order ? "none" : falling ? "descending" : "ascending");
  $("place").textContent = !some.length ? "no task"
    : `${grouped(first + 1)} to ${grouped(first + some.length)} of ${counted(list.length, "task")}`;
  $("back").disabled = !page;
  $("on").disabled = first + size >= list.length;
}

// - one task -
function open(task) {
  const box = $("detail"), place = list.indexOf(task), close = button("Close", () => box.close());
  const to = (text, other) => {
    const node = button(text, () => open(other));
    node.disabled = !other;
    return node;
  };
  const fact = (title, text) => text
    ? [make("dt", {}, title), make("dd", { dir: "auto" }, text)] : [];
  const part = (title, text) => text
    ? [make("h3", {}, title), make("pre", { dir: "auto", tabindex: 0 }, text)] : [];
  const tries = task.tries.map(([start, ms, ...words], number) => [number + 1 + ". "
    + moment(start), length(ms), ...words.filter(word => word)].join("  "));
  box.replaceChildren(
    make("div", { class: "tools" }, make("h2", { id: "detail-title", dir: "auto" }, titled(task)),
      to("Previous", list[place - 1]), to("Next", list[place + 1]), close),
    make("dl", {}, ...COLUMNS.slice(2).flatMap(([name, title]) => fact(title, shown(task, name))),
      ...fact("Error kind", task.kind), ...fact("Id", task.id),
      ...fact("Tags", task.tags.join(", ")),
      ...task.logs.flatMap(([path, text]) => text ? [] : fact("Log", path))),
    ...part("Error", task.error), ...part("Warnings", task.warnings.join("\n")),
    ...part("Answer", task.answer), ...(tries.length > 1 ? part("Tries", tries.join("\n")) : []),
    ...task.logs.flatMap(([path, text]) => part("End of " + path, text)),
    ...part("Prompt", task.prompt));
  if (!box.open) box.showModal();
  box.scrollTop = 0;
  close.focus();
}

// - the beginning -
const statuses = [...new Set(tasks.map(task => task.status))];
if (attempts.length) document.title += " of " + moment(attempts[0].start);
$("notes").textContent = data.notes.join("; ");
if (attempts.length) $("timeline-title").textContent = "Timeline: "
  + [moment(attempts[0].start) + " to " + moment(Math.max(...lanes)),
     counted(attempts.length, "attempt"), "at most " + lanes.length + " at once",
     counted(runs.size, "run")].join(", ");
const kinds = [...new Set(attempts.map(one => one.status)), ...(waits.length ? ["wait"] : [])];
$("key").append(...kinds.map(kind => make("span", {}, swatch(kind),
  kind === "wait" ? "waiting for another try" : kind)));
$("bars").append(...BARS.map(([name]) => make("figure", {},
  make("figcaption", { id: name + "-title" }),
  make("div", { id: name, "data-title": name + "-title" }))));
$("heads").append(...COLUMNS.map(([name, title]) => make("th", { scope: "col",
  "data-name": name, class: NUMBERS.includes(name) ? "number" : "" }, button(title, () => {
    falling = name === order && !falling;
    order = name;
    choose();
  }))));
$("status").append(...["", "not ok", ...statuses].map(value =>
  make("option", { value }, value || "all")));
$("filter").addEventListener("input", choose);
$("status").addEventListener("change", choose);
$("back").addEventListener("click", () => { page--; drawTable(); });
$("on").addEventListener("click", () => { page++; drawTable(); });
document.addEventListener("click", event => {
  if (event.target.dataset.task) open(tasks[event.target.dataset.task]);
});
addEventListener("resize", drawAll);
addEventListener("beforeprint", () => { page = 0; size = Infinity; drawTable(); });
addEventListener("afterprint", () => { size = PAGE; drawTable(); });
choose();
drawAll();
"""
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; base-uri 'none';
 form-action 'none'; style-src '%s'; script-src '%s'">
<meta name="viewport" content="width=device-width">
<title>clinvk report</title>
<style>%s</style>
</head>
<body>
<main>
<h1>clinvk report</h1>
<noscript><p>This page needs JavaScript.</p></noscript>
<p id="notes"></p>
<h2 id="timeline-title">Timeline</h2>
<div id="timeline" data-title="timeline-title"></div>
<p id="key"></p>
<h2>Tasks</h2>
<div class="tools">
<label for="filter">Filter</label> <input id="filter" type="search">
<label for="status">Status</label> <select id="status"></select>
<button type="button" id="back">Previous</button> <button type="button" id="on">Next</button>
<span id="place" role="status"></span>
</div>
<div id="bars"></div>
<div id="table"><table><thead><tr id="heads"></tr></thead><tbody id="rows"></tbody></table></div>
</main>
<dialog id="detail" aria-labelledby="detail-title"></dialog>
<script type="application/json" id="data">%s</script>
<script>%s</script>
</body>
</html>
"""
_IN_SCRIPT = {ord(character): "\\u%04x" % ord(character) for character in "<>&\u2028\u2029"}


def _for_script(value: Any) -> str:
    """Return JSON that HTML cannot take for markup."""
    return dumps(value).decode("utf-8").translate(_IN_SCRIPT)


def _csp_hash(text: str) -> str:
    """Return how a Content-Security-Policy names an inline script or style."""
    import base64
    from hashlib import sha256
    return "sha256-" + base64.b64encode(sha256(text.encode("utf-8")).digest()).decode()


def _page_text(texts: Iterable[str]) -> str:
    """Return the beginning of a long text, with a note where it is cut."""
    kept, size = "", 0
    for text in texts:
        kept += text[:MAX_PAGE_TEXT - len(kept)]
        size += len(text)
    if size > len(kept):
        kept += "\n[cut: {:,} of {:,} characters]".format(len(kept), size)
    return visible(kept.replace("\r\n", "\n"))


def _log_tail(path: str) -> str:
    """Return the last lines of a log without secrets, or why it cannot be read.

    A results file from elsewhere may name any file: one without the name of a log gives "".
    """
    if not _LOG_NAME.fullmatch(path):
        return ""
    try:
        with opened(path, os.O_NOFOLLOW) as file:
            if not _is_regular(file):
                return ""
            start = max(0, os.fstat(file).st_size - 2 * LOG_TAIL)  # a secret may be cut there
            text = without_secrets(to_text(os.pread(file, 2 * LOG_TAIL, start)))
    except OSError as error:
        return "" if error.errno == errno.ELOOP else "[it cannot be read: %s]" % error.strerror
    except ValueError:  # no file can have this name
        return ""
    tail = text[-LOG_TAIL:]
    return visible(tail if tail == text and not start else tail.partition("\n")[2] or tail)


def _page_attempts(record: Record) -> Tuple[int, List[List[Any]]]:
    """Return the start of the run of a line, or 0, and the attempts in it that are known.

    Of each: start, duration, status, error kind and error.
    """
    return round(record.fields.get("run", 0.0) * 1000), [
        [round(one.start * 1000), round((one.end - one.start) * 1000),
         *(visible(text)[:MAX_NOTE] for text in one[2:])] for one in attempts_of(record.result)]


def _page_row(record: Record, earlier: Iterable[Tuple[int, List[List[Any]]]],
              with_output: bool) -> List[Any]:
    """Return the values of a task for PAGE_COLUMNS."""
    result, task = record.result, record.result.task or Task("", "")
    all_runs = [*earlier, _page_attempts(record)]
    tries = {tries[0][0]: tries for _, tries in all_runs if tries}  # once where two files have them
    start, length = round(result.start_time * 1000), round(result.duration_seconds * 1000)
    started = result.attempts > 0
    logs = [path for path in (result.log, result.log_stderr) if path and with_output]
    return [
        result.index, task_title(record, with_output), visible(task.id),
        list(map(visible, task.tags)), visible(result.backend), visible(result.model),
        result.status, result.attempts, start if started else None, length if started else None,
        (result.usage or {}).get("total_tokens"), result.cost_usd,
        [*filter(None, {run for run, _ in all_runs})], [*tries.values()],
        visible(result.error_kind), visible(result.error)[:MAX_NOTE],
        [visible(warning)[:MAX_NOTE] for warning in result.warnings],
        *(_page_text(texts_of((text,))) if with_output else "" for text in (
            result.answer, record.prompt)), [[visible(path), _log_tail(path)] for path in logs]]


def page_texts(statistics: Statistics, with_output: bool) -> Iterator[str]:
    """Yield an HTML page that needs no other file: no script, style or font of elsewhere."""
    records = statistics.records
    earlier: Dict[int, List[Tuple[int, List[List[Any]]]]] = defaultdict(list)
    for record in records.replaced():
        earlier[record.identity].append(_page_attempts(record))
    before, after = (PAGE % (_csp_hash(PAGE_STYLE), _csp_hash(PAGE_SCRIPT), PAGE_STYLE, "\0",
                             PAGE_SCRIPT)).split("\0")
    head = {"notes": [statistics.totals.line(), *records.problems()], "columns": PAGE_COLUMNS}
    yield before + _for_script(head)[:-1] + ',"tasks":['
    separator = "\n"
    for record in records:
        row = _page_row(record, earlier.pop(record.identity, ()), with_output)
        yield separator + _for_script(row)
        separator = ",\n"
    yield "]}" + after


# The files of a report, by option.
REPORT_FILES: Dict[str, Callable[[Statistics, bool], Iterator[str]]] = {
    "junit": junit_texts, "markdown": markdown_texts, "html": page_texts}


# --- 18. Sessions ------------------------------------------------------------
#
# A session is a JSON file of its own, ID.json.  A file appears whole, by a rename, so that readers
# need no lock.  A process that runs a prompt in a session, or deletes a session, holds its lock:
# one byte of the file `.lock`, which the kernel frees when the process ends.  A session with the
# status `active` is active only while its lock is held.

SESSION_STATUSES = ("active", "completed", "error")
INTERRUPTED_RUN = "clinvk was stopped before the end of the run"


class SessionError(Exception):
    """A session does not exist, is ambiguous, or cannot be used.  The message is for the user."""


class Session(NamedTuple):
    """A conversation with a backend, of any number of runs.  Immutable.  It has no name.

    Times are seconds since the epoch.  `token_usage` and `cost_usd` are the sums over the runs.
    codex counts the tokens of all runs of a conversation: `cumulative_usage` is its last count, and
    the next run used the difference.
    """

    id: str
    backend: str
    created_at: float
    last_used: float
    working_dir: str  # absolute, symbolic links resolved
    backend_session_id: str = ""  # "": the session cannot be continued
    model: str = ""
    initial_prompt: str = ""
    status: str = "completed"
    turn_count: int = 0
    token_usage: Dict[str, int] = {}
    cumulative_usage: Dict[str, int] = {}
    cost_usd: Optional[float] = None
    tags: Tuple[str, ...] = ()
    error: str = ""  # of the last run


SESSION_FIELDS: Dict[str, Callable[[Any], Any]] = {
    "id": _known_string, "backend": _known_string, "created_at": parse_utc, "last_used": parse_utc,
    "working_dir": _known_string, "backend_session_id": _known_string, "model": _known_string,
    "initial_prompt": _known_string, "status": _known_string, "turn_count": _token_count,
    "token_usage": _token_counts, "cumulative_usage": _token_counts, "cost_usd": _amount,
    "tags": _list_of(_known_string), "error": _known_string,
}


def session_fields(session: Session) -> Dict[str, Any]:
    """Return a session as its file and `--json` show it; empty fields are left out."""
    fields = {name: value for name, value in session._asdict().items()
              if name in ("status", "turn_count") or value != Session._field_defaults.get(name)}
    fields.update(created_at=utc(session.created_at), last_used=utc(session.last_used))
    return fields


def parse_session(data: bytes, id: str) -> Session:
    """Return the session in a file.  Unknown fields are ignored.  Raises ValueError."""
    fields = known_fields(data, SESSION_FIELDS, Session._fields[:5])
    if fields["id"] != id:
        raise ValueError("the id in the file is %s" % quoted(fields["id"]))
    return Session(**fields)


_AGE_SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}


def parse_age(text: str) -> float:
    """Return the seconds of `12h`, `30d` or `2w`; `0d` is 0.  Raises ValueError.

    `m` is not accepted, because a user who means months would lose sessions.
    """
    number, factor = text[:-1], _AGE_SECONDS.get(text[-1:], 0)
    if not factor or not number.replace(".", "", 1).isdigit() or not number.isascii():
        raise expected("an age such as 12h, 30d or 2w", text)
    return float(number) * factor


ID_DIGITS = 32
SHORT_ID_DIGITS = 8  # of an id in a message or table, or more where 8 are ambiguous
LOCK_WAIT_SECONDS = 0.2  # a process that lists sessions holds each lock for a moment


def _is_session_id(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{%d}" % ID_DIGITS, text) is not None


def distinct_digits(ids: Sequence[str]) -> int:
    """Return how many digits distinguish the ids, SHORT_ID_DIGITS at least."""
    return next(count for count in range(SHORT_ID_DIGITS, ID_DIGITS + 1)
                if len({id[:count] for id in ids}) == len(ids))


def is_resumable(session: Session) -> bool:
    """Return whether a session has a conversation, and its backend can continue one."""
    row = BACKENDS.get(session.backend)
    return bool(session.backend_session_id and row and row.resuming)


class SessionStore:
    """Keep sessions in a directory, for any number of processes and for one thread of each.

    A file that cannot be read is ignored: `warn` is called, and the other sessions are found.
    Methods that take an id raise SessionError; OSError means that the directory cannot be written.
    """

    # Locks belong to the process: closing a lock file would drop all locks of the process on it.
    _held: Set[str] = set()  # ids
    _lock_files: Dict[str, int] = {}  # by path; stay open

    def __init__(self, directory: str, warn: Callable[[str], None]) -> None:
        self._directory, self._warn = absolute(directory), warn
        self._warned: Set[str] = set()

    def create(self, backend: str, *, working_dir: str = "", model: str = "",
               initial_prompt: str = "", tags: Iterable[str] = ()) -> Session:
        """Write a new active session and take its lock.  `working_dir` "": the current one."""
        make_directories(os.path.dirname(self._directory))
        make_directories(self._directory)
        now = parse_utc(utc(time.time()))
        session = Session(os.urandom(ID_DIGITS // 2).hex(), backend, now, now,
                          os.path.realpath(working_dir or "."), model=model,
                          initial_prompt=initial_prompt, status="active", tags=tuple(tags))
        self._take(session.id)
        return self._write(session)

    def begin(self, id: str) -> Session:
        """Take the lock of a session and mark the session active."""
        self._take(id)
        return self._write(self.load(id)._replace(status="active", last_used=time.time()))

    def finish(self, session: Session) -> Session:
        """Write a session that this process created or began, and free its lock.

        A session whose file was deleted meanwhile is not written: SessionError.
        """
        try:
            self._existing(session.id)
            return self._write(session)
        finally:
            self._release(session.id)

    def load(self, id: str) -> Session:
        path = self._existing(id)
        try:
            return self._read(id)
        except FileNotFoundError:
            raise SessionError("there is no session %s" % id) from None
        except OSError as error:
            raise SessionError("cannot read %s: %s" % (path, error.strerror)) from None
        except ValueError as error:
            raise SessionError("%s is damaged: %s" % (path, error)) from None

    def match(self, text: str) -> str:
        """Return the id that `text` names: an id, the start of one, or the backend's session id."""
        if not re.fullmatch("[0-9a-f]+", text.lower()):
            for session in self.all():
                if text and session.backend_session_id == text:
                    return session.id
            raise SessionError("%s is not the id of a session, nor the start of one" % quoted(text))
        ids = sorted(id for id in self._ids() if id.startswith(text.lower()))
        if not ids:
            raise SessionError("no session id starts with %s" % quoted(text))
        if len(ids) > 1:
            names = first_of(ids, functools.partial(self._described, distinct_digits(ids)))
            raise SessionError("%d session ids start with %s: %s" % (len(ids), quoted(text), names))
        return ids[0]

    def _described(self, digits: int, id: str) -> str:
        """Return a session for a message: the start of the id, the backend, the prompt."""
        session, about = self._read_or_warn(id), "?"
        if session:
            about = "%s: %s" % (session.backend, cut(one_line(session.initial_prompt), 40))
        return "%s (%s)" % (id[:digits], about)

    def all(self, backend: str = "", status: str = "", tag: str = "",
            working_dir: str = "") -> List[Session]:
        """Return the sessions that fit every given value, the last used first."""
        directory = os.path.realpath(working_dir) if working_dir else ""
        fitting = [one for one in map(self._read_or_warn, self._ids())
                   if one and backend in ("", one.backend) and status in ("", one.status)
                   and (not tag or tag in one.tags) and directory in ("", one.working_dir)]
        return sorted(fitting, key=lambda one: (-one.last_used, -one.created_at, one.id))

    def last(self, backend: str = "", working_dir: str = "") -> Optional[Session]:
        """Return the last used session that can be continued."""
        return next(filter(is_resumable, self.all(backend, working_dir=working_dir)), None)

    def delete(self, *ids: str) -> None:
        """Delete sessions, damaged ones too; none where one does not exist or is in use."""
        with contextlib.ExitStack() as locks:
            for id in ids:
                self._existing(id)
                self._take(id)
                locks.callback(self._release, id)
            for id in ids:
                os.unlink(self._path(id))

    def clean(self, older_than_seconds: float, dry_run: bool = False) -> List[str]:
        """Delete unused sessions of that age, and drafts of killed writers.  Return the ids."""
        limit, removed = parse_utc(utc(time.time())) - older_than_seconds, []
        for name in sorted(self._names()):
            id = name[:ID_DIGITS]
            if id in self._held or not (dry_run or self._try_lock(id)):
                continue
            try:
                session = self._read_or_warn(id) if name == id + ".json" else None
                if session and session.last_used <= limit and not (
                        dry_run and session.status == "active"):
                    removed.append(id)
                    if not dry_run:
                        os.unlink(self._path(id))
                elif name.endswith(".tmp") and not dry_run:
                    remove_tree(os.path.join(self._directory, name))
            finally:
                if not dry_run:
                    self._release(id)
        return removed

    def _take(self, id: str) -> None:
        """Take the lock of a session.  Raises SessionError where another process holds the lock."""
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        while not self._try_lock(id):
            if time.monotonic() > deadline:
                raise SessionError("session %s is in use: another clinvk runs a prompt in it"
                                   % id[:SHORT_ID_DIGITS])
            time.sleep(0.01)

    def _try_lock(self, id: str) -> bool:
        if id not in self._held:
            path = os.path.join(self._directory, ".lock")
            if not is_same(self._lock_files.get(path, -1), path):  # the directory may be a new one
                self._lock_files[path] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                flags = fcntl.LOCK_EX | fcntl.LOCK_NB
                fcntl.lockf(self._lock_files[path], flags, 1, int(id[:7], 16))
            except (BlockingIOError, PermissionError):
                return False
            self._held.add(id)
        return True

    def _release(self, id: str) -> None:
        self._held.discard(id)
        path = os.path.join(self._directory, ".lock")
        fcntl.lockf(self._lock_files[path], fcntl.LOCK_UN, 1, int(id[:7], 16))

    def _path(self, id: str) -> str:
        if not _is_session_id(id):
            raise SessionError("%s is not the id of a session" % quoted(id))
        return os.path.join(self._directory, id + ".json")

    def _existing(self, id: str) -> str:
        path = self._path(id)
        if not os.path.lexists(path):
            raise SessionError("there is no session %s" % id)
        return path

    def _write(self, session: Session) -> Session:
        data = dumps(session_fields(session))
        written = parse_session(data, session.id)  # nothing is written that could not be read
        write_whole(self._path(session.id), (data, b"\n"), durable=True)
        return written

    def _read(self, id: str) -> Session:
        """Read a session.  One that says `active` while nobody holds its lock was interrupted.

        Raises OSError, or ValueError where the file is damaged.
        """
        with opened(self._path(id)) as file:
            session = parse_session(b"".join(file_chunks(file)), id)
        if session.status == "active" and id not in self._held:
            with contextlib.suppress(OSError):  # the lock cannot be tried in a read-only directory
                if self._try_lock(id):
                    self._release(id)
                    return session._replace(status="error", error=INTERRUPTED_RUN)
        return session

    def _read_or_warn(self, id: str) -> Optional[Session]:
        try:
            return self._read(id)
        except FileNotFoundError:
            return None  # deleted meanwhile
        except (OSError, ValueError) as error:
            if id not in self._warned:
                self._warned.add(id)
                reason = error.strerror if isinstance(error, OSError) else error
                self._warn("%s is not a session and stays unchanged: %s" % (self._path(id), reason))
            return None

    def _names(self) -> List[str]:
        """Return the names in the directory that start with an id: sessions and drafts."""
        names: List[str] = []
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._warn("cannot read the sessions: " + reason_of(error))
        return [name for name in names if _is_session_id(name.partition(".")[0])]

    def _ids(self) -> List[str]:
        return [name[:ID_DIGITS] for name in self._names() if name[ID_DIGITS:] == ".json"]


# --- 19. Commands ------------------------------------------------------------


DEFAULT_JOBS = int(SETTINGS["parallel.max_workers"][1])


def _configured(options: argparse.Namespace, environment: Dict[str, str]
                ) -> Tuple[Configuration, Dict[str, Definition]]:
    """Return the configuration and the user's own commands.  Raise UserError or ConfigError."""
    configuration = load_configuration(options.config, environment)
    definitions = all_definitions(configuration, environment)
    default = configuration.values.get("default_backend")
    problem = default and unknown_backend(default, definitions)
    if problem:
        raise ConfigError("%s: default_backend: %s" % (
            configuration.origin("default_backend"), problem))
    return configuration, definitions


def rules_of(options: argparse.Namespace, file: str = "-") -> TaskPolicy:
    """Return the rules for the tasks in a file, and complete the options of the command.

    Raise UserError or ConfigError.
    """
    for name in ("form", "quiet", "results", "status_file", "quiet_after", "log_dir", "log_max"):
        vars(options).setdefault(name, None)  # not every command has these options
    given = {name: value for name, value in vars(options).items()
             if value is not None and value is not False and value != []}
    fields = {name[len("task_"):]: tuple(value) if isinstance(value, list) else value
              for name, value in given.items() if name.startswith("task_")}
    environment = dict(os.environ)
    configuration, definitions = _configured(options, environment)
    ceiling = given.get("ceiling", {})
    if "ceiling" not in given and environment.get("CLINVK_CEILING"):
        try:
            ceiling = parse_ceiling(environment["CLINVK_CEILING"])
        except ValueError as error:
            raise UserError("CLINVK_CEILING: %s" % error) from None
    if "log_max" in given and "log_dir" not in given:
        raise UserError("--log-max: there are no logs; give --log-dir DIR")
    for name in ("task_attempts", "task_check_timeout", "repair_prompt"):
        if name in given and not ("task_check" in given or "allow_commands" in given):
            raise UserError("--%s: there is no check; give --check CMD, or --allow-commands for "
                            "the checks of the tasks" % name.replace("task_", "").replace("_", "-"))
    run = {name: given[name] for name in RUN_FIELDS if name in given}
    if "limits" in run:
        run["limits"] = dict(run["limits"])
        for name in run["limits"]:
            problem = unknown_backend(name, definitions)
            if problem:
                raise UserError("--limit: " + problem)
    rules = TaskPolicy(fields, environment, definitions, "allow_commands" in given, ceiling,
                       given.get("root", ""), run, configuration, wrap=given.get("wrap", ()),
                       repair_prompt=_repair_prompt(given.get("repair_prompt")))
    options.color = options.color or configuration.get("output.color")
    options.start_method = start_method_of(environment)
    if options.status_file:
        _check_status_file(options.status_file, file, options.results or "")
    options.dry_run = options.task_dry_run or options.form == "tasks"
    if options.dry_run:
        options.status_file = options.log_dir = ""
    return rules


def _repair_prompt(path: Optional[str]) -> str:
    """Return the template of a prompt after a check that failed.  Raise UserError."""
    text = read_prompt(path, "--repair-prompt") if path else ""
    if path and not text.strip():
        raise UserError("--repair-prompt %s: the file is blank" % path)
    for name in re.findall(r"\{\{[^{}\n]+\}\}", text):
        if name not in REPAIR_PLACEHOLDERS:
            raise UserError("--repair-prompt: %s cannot be replaced; known are %s" % (
                quoted(name), ", ".join(REPAIR_PLACEHOLDERS)))
    return text


def _check_status_file(path: str, tasks: str, results: str) -> None:
    """Raise UserError where the status file cannot be written, or is another file of the run."""
    others = (("the file of the tasks", 0 if tasks == "-" else tasks),
              ("the file of the results", results), ("stdout", 1), ("stderr", 2),
              ("the file of the tasks that run", notes_path(results)))
    for name, file in others:
        if is_same(file, path):
            raise UserError("--status-file %s: it is %s; give another name" % (visible(path), name))
    StatusFile.check(path)


LOOK_SECONDS = 0.1  # between two looks whether stdout still has a reader


class Fanout:
    """Pass each result to every sink that can still write.

    The run is canceled when the journal, or the first sink, which writes the requested output,
    cannot write any more: an answer that cannot be kept should not cost anything.  So it is when
    the files of `answers` cannot be written and there is no journal, from which they can be.
    """

    def __init__(self, sinks: Sequence[Any], control: Control,
                 journal: Optional[Journal] = None, answers: Optional[Answers] = None) -> None:
        self._first, self._working, self._control = sinks[0], list(sinks), control
        self._journal, self._answers = journal, answers
        self.error: Optional[OutputError] = None  # the first, of any sink or the journal
        self.unwritten = 0
        self._unkept = ""  # why the results file cannot be written any more
        self._next_look = 0.0  # when look_for_reader looks again

    def write(self, result: Result) -> None:
        if self._answers:
            result = self._answers.checked(result)
        if self._journal:
            result = self._kept(self._journal, result)
        if self._answers:
            result = self._answers.put(result)
            if self._answers.is_stuck and not self._journal:
                self._control.cancel(str(self._answers.error))
        for sink in list(self._working):
            self.attempt(sink, sink.write, result)
        self.unwritten += self._first not in self._working

    def _kept(self, journal: Journal, result: Result) -> Result:
        """Put a result into the results file.  An `ok` one that is not in it becomes canceled."""
        if not self._unkept:
            try:
                journal.write(result)
                return result
            except OutputError as error:
                self._unkept = str(error)
                self._fail(journal, error)
        if result.status != "ok" or result.resumed:
            return result
        return canceled(result, "it ended well, but " + self._unkept)

    def attempt(self, sink: Any, write: Callable[..., None], *arguments: Any) -> bool:
        """Write something to a sink.  Return whether that succeeded."""
        try:
            write(*arguments)
            return True
        except OutputError as error:
            self._fail(sink, error)
            return False

    def look_for_reader(self) -> None:
        """Cancel the run where stdout has no reader any more."""
        now = time.monotonic()
        if now >= self._next_look and self._first in self._working:
            # Not for each result: the call hands the interpreter lock to another thread.
            self._next_look = now + LOOK_SECONDS
            if reader_is_gone(1):
                self._fail(self._first, OutputError(READER_LEFT, broken_pipe=True))

    def _fail(self, sink: Any, error: OutputError) -> None:
        self.error = self.error or error
        if sink in self._working:
            self._working.remove(sink)
        if sink in (self._first, self._journal):
            self._control.cancel(str(error))

    def __contains__(self, sink: Any) -> bool:
        return sink in self._working


BLOCKED_SECONDS = 1.0     # a slow reader empties its pipe within that
ONE_SIGNAL_SECONDS = 0.5  # timeout(1) sends a signal twice: to its child and to the child's group


class _Stop:
    """React to signals during a run: the first one cancels the run, the second one kills it.

    The same signal within ONE_SIGNAL_SECONDS counts once.  The first: Control.cancel,
    Scheduler.results, Pool.cancel, the end of the lifeline, WorkerState.cancel, _Process.stop.  The
    second: Control.kill, Scheduler.results, Pool.kill.  Then run_pool closes the pool, and
    `verdict` says what the exit status is.
    """

    def __init__(self, control: Control, console: Console) -> None:
        self._control, self._console = control, console
        self.signal_number = 0
        self._count = 0
        self._last, self._last_time = 0, 0.0  # the signal that was counted last
        self._reported = False

    def __call__(self, number: int) -> None:
        now = time.monotonic()
        if number == self._last and now - self._last_time < ONE_SIGNAL_SECONDS:
            return
        self._last, self._last_time = number, now
        self._count += 1
        if self._count == 1:
            self.signal_number = number
            self._control.cancel()
            return
        self._control.kill()
        # A write may block without end if the reader does not read.  A third signal does not wait.
        writing_seconds = max(output.writing_for() for output
                              in (self._console.stdout, self._console.stderr))
        if writing_seconds > (BLOCKED_SECONDS if self._count == 2 else 0.0):
            raise Interrupted(self.signal_number)

    def report(self, running: int) -> None:
        """Tell the user, once, that the run is being stopped."""
        if not running or not self._control.level or self._reported:
            return
        self._reported = True
        hint = " (the same signal again kills them)" if self.signal_number else ""
        if self.signal_number == EXIT_INTERRUPT - 128:
            hint = " (press ^C again to kill them at once)"
        self._console.say("stopping %s%s" % (counted(running, "running task"), hint))


def _running_text(running: Sequence[Running], limited: Sequence[str]) -> str:
    """Return a line for each task that runs, and for each limit: the answer to SIGUSR1."""
    lines = ["%d running%s" % (len(running), ":" if running or limited else "")]
    lines += ["  %s %s %s, %s,%s quiet %s  %s" % (
        number_of(one.job), one.job.task.backend, duration(int(one.seconds)),
        size_text(one.size), " {:,} tokens,".format(one.tokens) if one.tokens else "",
        duration(int(one.quiet)), cut(job_label(one.job.task), 60) + (
            "  (%s)" % one.action if one.action else "")) for one in running]
    return "\n".join([*lines, *("  " + text for text in limited)])


class Console:
    """The standard streams of a command."""

    def __init__(self) -> None:
        self.stdout, self.stderr = Output(1), Output(2)
        self.progress: Optional[Progress] = None

    def say(self, text: str) -> None:
        """Write a message to stderr."""
        write = self.progress.above if self.progress else self.stderr.text
        write("clinvk: %s\n" % text)

    def warn(self, text: str) -> None:
        self.say("warning: " + text)


def say_idle(_: int) -> None:
    """Answer SIGUSR1 before and after a run."""
    with contextlib.suppress(OutputError):
        Console().say("0 running")


class Form(NamedTuple):
    """The requested output."""

    sink: Any
    finish: Optional[Callable[[Totals], None]] = None  # writes what comes after the results
    heading: str = ""
    summary: Optional[Output] = None  # where the summary goes


class Plan(NamedTuple):
    """The tasks of a command and the sinks for their results."""

    supply: Supply
    jobs: int
    form: Form
    policy: RunPolicy = NO_POLICY
    directory: Optional[Directory] = None
    table: Optional[Table] = None
    arrived: Optional[Callable[[Result], Result]] = None  # change a result before any sink has it
    follow: Optional[Callable[[str], None]] = None  # called during the run with its directory
    single: bool = False  # a single prompt, which has no summary
    journal: Optional[Journal] = None
    continuing: str = ""  # the command that continues the run, where there can be one
    answers: Optional[Answers] = None


def form_of(options: argparse.Namespace, rules: TaskPolicy, console: Console, heading: str,
            text: Callable[[Output], Any] = Text, *,
            fields_of: _Fields = result_fields,
            all_fields: Callable[[Totals], Dict[str, Any]] = Totals.fields) -> Form:
    """Return the form that the options ask for.

    `heading` and `text`, which makes the sink, are for text.  `fields_of` returns the JSON fields
    of a result, and `all_fields` those of the object at the end.
    """
    stdout = console.stdout
    if options.form == "json":
        report = JsonReport(fields_of)
        return Form(report, lambda totals: stdout.json(report.pieces(all_fields(totals))))
    if options.form == "tasks":
        return Form(TaskLines(stdout, rules.configuration))
    is_short = options.quiet or options.dry_run
    if options.form == "jsonl":
        return Form(JsonLines(stdout, fields_of), summary=None if is_short else console.stderr)
    if options.dry_run:
        return Form(CommandLines(stdout, console.warn))
    if options.quiet:
        return Form(ToFunction(do_nothing), summary=stdout)
    return Form(text(stdout), heading=heading + "\n\n", summary=stdout)


def progress_of(plan: Plan, options: argparse.Namespace, console: Console,
                overview: Overview) -> Optional[Progress]:
    """Return what shows on stderr how the run proceeds, None for nothing."""
    way = options.progress or "auto"
    if options.dry_run or way == "never" or way == "auto" and not console.stderr.cursor:
        return None
    least = TABLE_COLUMNS, TABLE_LINES
    if way == "table":
        least = 0, 0
    elif overview.jobs == 1:
        least = sys.maxsize, sys.maxsize
    return Progress(console.stderr, overview, least, options.quiet_after or DEFAULT_QUIET_SECONDS,
                    is_colored(console.stderr, options.color))


def run_plan(plan: Plan, options: argparse.Namespace, console: Console) -> int:
    """Run tasks.  Return the exit status; 128 + n where signal n ended the run."""
    reset_sigchld()
    form, control, totals = plan.form.sink, Control(), Totals(plan.policy.max_cost > 0)
    total, jobs, exit_status, status_file = plan.supply.total, plan.jobs, None, None
    overview = Overview(totals, control, plan.supply, min(jobs, total or jobs))
    if options.log_dir:
        check_log_directory(options.log_dir)
        with writing("logs"):
            make_directories(options.log_dir)
    if options.status_file:
        run = plan.journal.run if plan.journal else utc(totals.start_time)
        status_file = StatusFile(options.status_file, overview, run, console.warn)
    console.progress = progress_of(plan, options, console, overview)
    if console.progress and console.stdout.terminal:
        # The answer to a single prompt stays the last thing on the terminal.
        console.stdout.prepare = functools.partial(console.progress.hide, plan.single)
    sinks = form, plan.directory, plan.table, totals, overview, console.progress
    feed = Fanout([sink for sink in sinks if sink is not None], control, plan.journal,
                  plan.answers)
    stop = _Stop(control, console)
    if plan.form.heading:
        feed.attempt(form, console.stdout.text, plan.form.heading)
    try:
        # A dry run has nothing to stop: a signal ends the process.
        with on_signals(die_at_once if options.dry_run else stop):
            _run_tasks(plan, options, console, overview=overview, feed=feed, stop=stop,
                       status_file=status_file)
            totals.stop()
            if console.progress:
                console.progress.hide()
            if not plan.single:
                _summarize(plan, options, feed, totals, console)
        with on_signals(die_at_once):  # all results are written
            exit_status = _conclude(plan, options, console, overview=overview, feed=feed,
                                    stop=stop)
        return exit_status
    finally:
        if console.progress:
            console.progress.hide()
        if status_file:
            status_file.finish(exit_status)


def _run_tasks(plan: Plan, options: argparse.Namespace, console: Console, *, overview: Overview,
               feed: Fanout, stop: _Stop, status_file: Optional[StatusFile]) -> None:
    """Run the tasks of a plan, and pass each result to the journal and the sinks."""
    form, control, journal, progress = (
        plan.form.sink, overview.control, plan.journal, console.progress)
    asked: List[int] = []

    def resume(job: Job) -> Optional[Result]:
        earlier = journal.resume(job) if journal else None
        return earlier or (plan.answers.refused(job) if plan.answers else None)

    def started(job: Job) -> Optional[Job]:
        if journal:
            journal.started(job)
        if options.log_dir:
            return with_own_log(job, options.log_dir, options.log_max or DEFAULT_LOG_MAX)
        return None

    def ask(number: int) -> None:
        asked.append(number)
        control.wake()

    def tick(running: int) -> None:
        feed.look_for_reader()
        if plan.follow and form in feed:
            feed.attempt(form, plan.follow, control.directory)
        if not options.dry_run:
            stop.report(running)
        while asked:
            asked.pop()
            console.say(_running_text(control.running(), control.limits()))
        if status_file:
            status_file.show()
        if progress:
            progress.show()

    with contextlib.ExitStack() as handlers:
        handlers.enter_context(on_signals(ask, (signal.SIGUSR1,)))
        if progress and console.stderr.cursor:
            handlers.enter_context(on_signals(progress.stop, (signal.SIGTSTP,)))
        results = run_pool(
            plan.supply, overview.jobs, policy=plan.policy, control=control,
            dry_run=options.dry_run, on_start=started, on_tick=tick, notice=console.say,
            start_method=options.start_method, resume=resume,
            costs=journal.costs if journal else None)
        try:
            for result in results:
                result = redacted(result)
                if plan.arrived:
                    result = plan.arrived(result)
                feed.write(result)
                if options.dry_run and result.status in FAILED_STATUSES and not result.resumed:
                    console.say("error: " + result.error)
                del result  # as run_pool does, before the next task starts
        finally:
            results.close()
            if journal:
                journal.close()


def _conclude(plan: Plan, options: argparse.Namespace, console: Console, *, overview: Overview,
              feed: Fanout, stop: _Stop) -> int:
    """Tell the user why a run has ended early and how it can continue.  Return the exit status."""
    control, totals = overview.control, overview.totals
    error, signal_number = feed.error, stop.signal_number
    say = console.say if not signal_number or can_be_written(2) else do_nothing
    if plan.answers:
        error = error or plan.answers.error
    if error and not error.broken_pipe:
        unwritten = "; %d of %s not written" % (feed.unwritten, counted(totals.total, "result"))
        say("error: %s%s" % (error, unwritten if feed.unwritten else ""))
    elif control.failure:
        error = OutputError(control.failure)
        say("error: " + control.failure)
    to_try = totals.counts["failed"] > totals.final
    unfinished = totals.counts["canceled"] or control.unread or control.untried and to_try
    left = control.left if not signal_number else plan.journal and (unfinished or control.left)
    missing = left or plan.journal and (unfinished or to_try)
    if control.unread and not options.dry_run:
        say("the input was not read to its end: the tasks in the rest have no result")
    if plan.continuing and not options.dry_run and missing:
        say(_how_to_continue(plan, control.left, left or unfinished))
    return verdict(totals, error=error, signal_number=signal_number, single=plan.single,
                   left=bool(left), dry_run=options.dry_run)


def _how_to_continue(plan: Plan, why: str, is_unfinished: Any) -> str:
    """Return the message about tasks that a later run can do."""
    if not plan.journal:
        return "nothing was kept for a later run: with --results FILE, --resume continues a run"
    purpose = "continue" if is_unfinished else "try the failed tasks again"
    change = {"budget": ", with a larger --max-cost",
              "unknown_cost": ", with --allow-unknown-cost"}.get(why, "")
    continuing = plan.continuing
    if why == "budget":  # with the same amount nothing would start
        continuing = re.sub(r" --max-cost[ =]\S+", " --max-cost USD", continuing)
    return "to %s%s: %s" % (purpose, change, continuing)


def _summarize(plan: Plan, options: argparse.Namespace, feed: Fanout, totals: Totals,
               console: Console) -> None:
    """Write the ends of the outputs and the summary."""
    def summary(output: Output) -> None:
        if plan.table:
            plan.table.print(output, totals, is_colored(output, options.color))
        else:
            output.text(totals.line() + "\n" + (totals.reasons() if options.quiet else ""))

    form = plan.form
    if plan.directory and plan.directory in feed:
        feed.attempt(plan.directory, plan.directory.finish, totals.fields())
    if form.finish and not feed.attempt(form.sink, form.finish, totals):
        feed.unwritten = totals.total
    if form.sink not in feed:  # stdout cannot be written
        feed.attempt(plan.table, summary, console.stderr)
    elif form.summary:
        feed.attempt(form.sink, summary, form.summary)


def is_colored(output: Output, when: str) -> bool:
    """Return whether the value of --color asks for colors on an output."""
    by_itself = when == "auto" and output.cursor and not os.environ.get("NO_COLOR")
    return bool(by_itself) or when == "always"


def new_table(options: argparse.Namespace, make: Callable[[], Table] = Table) -> Optional[Table]:
    return None if options.quiet or options.dry_run else make()


def run_policy(fields: Dict[str, Any]) -> RunPolicy:
    """Return the policy in the RUN_FIELDS of a run."""
    return RunPolicy(**{name: fields[name] for name in RunPolicy._fields})


def command_parallel(options: argparse.Namespace) -> int:
    """Run a batch, or a shard of one.  Return the exit status."""
    template, file = _template(options)
    rules = _batch_rules(options, template, file)
    console = Console()
    inputs = filter(None, (file, options.prompt_file))
    passes = any(name == "-" or not os.path.isfile(name) or is_same(0, name) for name in inputs)
    continuing = continuing_command(options.arguments, passes)

    def leave(number: int) -> None:
        if can_be_written(2):  # else nobody reads it, and a signal handler must not wait
            console.say("to continue: " + continuing)
        die_at_once(number, EXIT_LEFT)

    # SIGTERM has the exit status that it has during the run.
    is_kept = options.results and not options.dry_run
    with on_signals(leave if is_kept else die_at_once, (signal.SIGTERM,)):
        try:
            plan = _batch_plan(options, rules, console, file, continuing)
            return run_plan(plan, options, console)
        except Interrupted as interruption:
            if is_kept and interruption.signal_number == signal.SIGTERM:
                leave(signal.SIGTERM)
            raise


def _batch_plan(options: argparse.Namespace, rules: TaskPolicy, console: Console, file: str,
                continuing: str) -> Plan:
    """Read the beginning of a batch, and open the places of its results."""
    shard = options.shard
    if shard is None:
        shard = shard_of_environment(dict(os.environ))
        console.say("shard %d of %d, by %s" % (shard.position + 1, shard.shards, shard.source))
    stream = open_tasks(file, rules, console.warn, shard)
    for part in ITEM_PARTS:
        if rules.template and part in str(rules.overrides.get("check", "")):
            console.warn("--check is no template, %s stays as it is; a check finds the id of its "
                         "task, such as that of --id %s, in $CLINVK_TASK_ID" % (
                             part, shell_quoted(part)))
    run, path = rules.of_run(stream.run), rules.run.get("output_dir")
    policy, jobs = run_policy(run), run["max_parallel"]
    roots = () if path else (".", rules.root)
    path = path or run.get("output_dir", "")
    answers = directory = journal = None
    results = options.results or ""
    if options.write_to and not options.dry_run:
        answers = Answers(rules.root or ".", options.overwrite, (
            0 if file == "-" else file, 1, results, notes_path(results),
            *(vars(options)[name] or "" for name in ("status_file", "prompt_file", "config"))))
    if options.overwrite and not (path or options.write_to):
        raise UserError("--overwrite: there are no files of answers; give --output-dir "
                        "or --write-to")
    if results and not options.dry_run:
        Journal.check(results, path)  # nothing is made where another place cannot be written
    if options.log_dir:
        check_log_directory(options.log_dir)
    if path and not options.dry_run:
        directory = Directory(path, roots=roots, overwrite=options.overwrite or options.resume,
                              has_ids=stream.has_ids, warn=console.warn)
    heading = "Running %s (max %d parallel%s)..." % (
        "tasks" if stream.total is None else counted(stream.total, "task"), jobs,
        ", fail-fast" if str(policy.max_failures) == "1" else "")  # 1.0 is 100%
    with_table = rules.configuration.get("parallel.aggregate_output")
    form = form_of(options, rules, console, heading)
    table = new_table(options) if with_table else None  # before a file is made
    if results:
        journal = Journal(results, resume=options.resume, continuing=continuing,
                          warn=console.warn, shard=shard, dry_run=options.dry_run,
                          tasks=stream.total)
    return Plan(stream, jobs, form, policy, directory, table, journal=journal,
                continuing=continuing, answers=answers)


def _batch_rules(options: argparse.Namespace, template: Optional[Template],
                 file: str) -> TaskPolicy:
    """Return the rules for the tasks of a batch that is read from a file.  Raise UserError."""
    if options.resume and not options.results:
        raise UserError("--resume: there is no results file to continue from; give --results FILE")
    if options.results == "-":
        raise UserError("--results -: expected the name of a file; --jsonl prints the results")
    if options.results and is_same(0 if file == "-" else file, options.results):
        raise UserError("--results %s: it is the file of the tasks; give another name"
                        % visible(options.results))
    rules = rules_of(options, file)._replace(cells=_cells(options), template=template)
    if template:
        rules = rules._replace(overrides={name: value for name, value in rules.overrides.items()
                                          if name not in template.fields})
    for field in rules.cells[0].fields:
        if field in rules.overrides:
            raise UserError("--matrix %s and --%s exclude each other: both set the field"
                            % (field, field.replace("_", "-")))
    if options.write_to and (len(rules.cells) > 1 or (options.task_repeat or 1) > 1):
        raise UserError("--write-to and %s exclude each other: a task would have several answers, "
                        "but one file; run each by itself, or make the files from --results"
                        % ("--repeat" if options.task_repeat else "--matrix"))
    return rules


def _cells(options: argparse.Namespace) -> Tuple[Cell, ...]:
    """Return the cells of the matrix.  Raise UserError."""
    def system_prompt(path: str) -> str:
        text = read_prompt(path, "--matrix")
        try:
            return str(TASK_FIELDS["system_prompt"](text))
        except ValueError as error:
            raise UserError("--matrix: the system prompt in %s %s" % (visible(path), error)
                            ) from None

    return cells_of(options.matrix, system_prompt)


def _template(options: argparse.Namespace) -> Tuple[Optional[Template], str]:
    """Return the template of the tasks and the file of the items, "" where words are the items.

    Where the input has tasks there is no template, and the file is theirs.  Raise UserError.
    """
    words = tuple(options.words)
    if options.prompt is None and options.prompt_file is None:
        for name in ("items", "csv", "tsv", "null", "name", "id", "write-to"):
            if getattr(options, name.replace("-", "_")):
                raise UserError("--%s: there is no template for items; give --prompt" % name)
        return None, _file(options)
    forms = [name for name in ("items", "csv", "tsv") if getattr(options, name)]
    file = getattr(options, forms[0]) if forms else "-"
    for one, other, both in (
            ("--file", "a template for items", options.file),
            ("--" + "".join(forms), "items that are arguments", words and forms),
            ("--null", "items that are arguments", words and options.null),
            ("--null", "--" + "".join(forms), options.null and forms not in ([], ["items"])),
            ("--write-to", "--emit-tasks", options.write_to and options.form == "tasks")):
        if both:
            hint = "; --items FILE reads items" if one == "--file" else ""
            if words and not hint:
                hint = "; %s is left over: %s" % (quoted(words[0]), NO_QUOTES)
            raise UserError("%s and %s exclude each other%s" % (one, other, hint))
    prompt = options.prompt
    if prompt is None:
        if options.prompt_file == "-" and not words and file == "-":
            raise UserError("--prompt-file -: the items are read from stdin; give --items FILE")
        prompt = read_prompt(options.prompt_file, "--prompt-file")
    fields = {"prompt": prompt, "name": options.name, "id": options.id,
              "workdir": options.task_workdir, "write_to": options.write_to}
    template = Template({name: text for name, text in fields.items() if text is not None},
                        "null" if words or options.null else "lines", words,
                        options.overwrite or options.resume)
    if options.csv or options.tsv:  # _rows checks it, by the names of columns
        return template._replace(form=forms[0]), file
    return template.checked(), "" if words else file


def _file(options: argparse.Namespace) -> str:
    if len(options.file) > 1:
        raise UserError("--file: given twice; only one file is read")
    return str((options.file or ["-"])[0])


def step_fields(result: Result) -> Dict[str, Any]:
    """Return the JSON fields of the result of a step."""
    name = {"name": result.task.name} if result.task and result.task.name else {}
    return {"step": result.index + 1, **name, **result_fields(result)}


def chain_fields(totals: Totals, failed_step: int) -> Dict[str, Any]:
    """Return the fields of the JSON object of a chain, except `results`."""
    failed = {"failed_step": failed_step} if failed_step else {}
    return {"total_steps": totals.total, "completed_steps": totals.counts["completed"], **failed,
            **totals.fields()}


def command_chain(options: argparse.Namespace) -> int:
    """Run a chain, each step with the answers of earlier steps.  Return the exit status."""
    file = _file(options)
    rules, console = rules_of(options, file), Console()
    steps = read_chain(file, rules, console.warn)

    def head(result: Result) -> str:
        name = cut(one_line(result.task.name), MAX_NAME_COLUMNS) if result.task else ""
        number = result.index + 1
        return "[%d/%d] %s (%s)" % (number, steps.total, name or "Step %d" % number, result.backend)

    heading = "Running a chain of %s..." % counted(steps.total, "step")
    form = form_of(options, rules, console, heading,
                   lambda output: Text(output, head), fields_of=step_fields,
                   all_fields=lambda totals: chain_fields(totals, steps.failed_step))
    run = rules.of_run({})
    policy = run_policy(dict(run, limits={}, max_cost=0.0, canary=0,
                             max_failures=int(steps.stop_on_failure)))
    return run_plan(Plan(steps, 1, form, policy, table=new_table(options)), options, console)


def comparison_fields(totals: Totals, prompt: str, backends: List[str],
                      missing: List[str]) -> Dict[str, Any]:
    """Return the fields of the JSON object of a comparison, except `results`."""
    absent = {"not_installed": missing} if missing else {}
    return {"prompt": prompt, "backends": backends, **absent, **totals.fields()}


def command_compare(options: argparse.Namespace) -> int:
    """Send a prompt to the named backends, or to all except echo.  Return the exit status."""
    rules, console = rules_of(options), Console()
    names = _words(options.backends or "")
    if options.all_backends:
        names = [name for name in [*BACKENDS, *rules.definitions] if name != "echo" and
                 rules.configuration.values.get("backends.%s.enabled" % name) is not False]
    prompt = prompt_text(_prompt(options))
    jobs = comparison(prompt, names, rules)
    missing = [job.task.backend for job in jobs if not options.dry_run and not_installed(job)]
    jobs = [job for job in jobs if job.task.backend not in missing]
    present = [job.task.backend for job in jobs]
    if not jobs:
        console.say("error: " + ("none of the backends is installed: " + ", ".join(missing)
                                 if missing else "there is no backend to compare"))
        return EXIT_FAILED
    if missing:
        console.warn("not installed, so left out: " + ", ".join(missing))
    answers: List[Result] = []
    keep = ToFunction(answers.append)

    def show_answers(totals: Totals) -> None:
        text = Text(console.stdout, lambda result: "[%s]" % result.backend)
        for result in sorted(answers, key=lambda result: result.index):
            text.write(result)

    heading = "Comparing %s: %s" % (counted(len(present), "backend"), ", ".join(present))
    form = form_of(options, rules, console, heading, lambda output: keep,
                   all_fields=lambda totals: comparison_fields(totals, prompt, present, missing))
    if form.sink is keep:
        form = form._replace(finish=show_answers)
    status = run_plan(Plan(JobList(jobs), 1 if options.sequential else len(jobs), form,
                           table=new_table(options, ComparisonTable)), options, console)
    warn_of_unread_stdin(options, console)
    return status


def usage_of_run(result: Result, session: Optional[Session]) -> Result:
    """Return a result with the usage of its run only, where codex counts a whole session."""
    if not (result.usage_is_cumulative and result.usage):
        return result
    before = session.cumulative_usage if session else {}
    if before:
        return result._replace(usage={name: max(0, count - before.get(name, 0))
                                      for name, count in result.usage.items()})
    if session and session.backend_session_id:  # resumed, without a count to compare with
        return result._replace(warnings=(*result.warnings, CODEX_COUNTS))
    return result


def session_after(session: Session, result: Result, with_usage: bool) -> Session:
    """Return a session after a run."""
    is_ok = result.status == "ok"
    usage, cumulative = Counter(session.token_usage), session.cumulative_usage
    cost = session.cost_usd
    if with_usage:
        usage.update(usage_of_run(result, session).usage or {})
    if result.usage_is_cumulative and result.usage:
        cumulative = result.usage
    if result.cost_usd is not None:
        cost = (cost or 0.0) + result.cost_usd
    return session._replace(
        last_used=time.time(), status="completed" if is_ok else "error",
        error="" if is_ok else result.error, model=result.model or session.model,
        backend_session_id=result.session_id or session.backend_session_id,
        turn_count=session.turn_count + (is_ok or bool(result.session_id)), token_usage=dict(usage),
        cumulative_usage=cumulative if with_usage else {}, cost_usd=cost)


def session_store(environment: Dict[str, str], console: Console) -> SessionStore:
    return SessionStore(os.path.join(home_directory(environment), "sessions"), console.warn)


def _short(session: Session) -> str:
    return "%s (%s)" % (session.id[:SHORT_ID_DIGITS], session.backend)


def command_prompt(options: argparse.Namespace) -> int:
    """Ask one backend.  Return the exit status."""
    rules, console = rules_of(options), Console()
    job = single_job(prompt_text(_prompt(options)), rules)
    task = job.task
    store, session = session_store(rules.environment, console), None
    no_session = options.ephemeral or task.answer_only
    if options.go_on or rules.configuration.get("session.auto_resume") and not no_session:
        session = store.last(task.backend, task.workdir or ".")
    if session is None and options.go_on:
        if not backend_of(job).resuming:
            raise SessionError("%s keeps no sessions that could be continued" % task.backend)
        raise SessionError("there is no session of %s in %s to continue; "
                           "`clinvk sessions list` shows the others"
                           % (task.backend, task.workdir or "the current directory"))
    if session and not options.go_on:
        if session.status == "active":
            console.say("session %s is in use: this is a new one" % _short(session))
            session = None
        else:
            console.say("continuing session %s" % _short(session))
    kept = _KeptSession(None if no_session else store, session, console)
    return _ask(job, kept, rules, options, console)


def command_resume(options: argparse.Namespace) -> int:
    """Continue a session.  Return the exit status."""
    if options.backend and not options.last:
        raise UserError("--backend goes with --last: a session that is named has its backend")
    if options.last and len(options.words) > 1:
        raise UserError("unknown argument %s%s, and with --last there is no id" % (
            options.words[1], QUOTES_HINT))
    if not options.words and not options.last:
        raise UserError("which session? Give its id (`clinvk sessions list` shows them), or --last")
    id = "" if options.last else options.words.pop(0)
    prompt = _prompt(options, id and " for the session %s" % quoted(id))
    rules, console = rules_of(options), Console()
    store = session_store(rules.environment, console)
    if options.last:
        last = store.last(options.backend or "")
        if last is None:
            of_backend = " of " + options.backend if options.backend else ""
            raise SessionError("there is no session%s to resume" % of_backend)
        session = last
    else:
        session = store.load(store.match(id))
    problem = unknown_backend(session.backend, rules.definitions)
    if problem:
        raise SessionError("session %s: %s" % (_short(session), problem))
    workdir = "" if options.here else session.working_dir
    if workdir and not os.path.isdir(workdir):
        raise SessionError("session %s was in %s, which no longer exists; "
                           "--here continues the session in the current directory"
                           % (_short(session), workdir))
    overrides = dict(rules.overrides, backend=session.backend, workdir=workdir)
    job = single_job(prompt_text(prompt), rules._replace(overrides=overrides))
    return _ask(job, _KeptSession(store, session, console), rules, options, console)


QUOTES_HINT = "; a prompt of several words needs quotes around it"
STDIN_SECONDS = 0.2  # a pipe on stdin that stays silent for longer has no writer


def read_prompt(path: str, option: str = "") -> str:
    """Return the prompt in a file, or on stdin where `path` is `-`.  Raise UserError.

    Its message begins with the `option` that names the file.
    """
    name, data = " ".join(filter(None, (option, "stdin" if path == "-" else path))), bytearray()
    try:
        file = 0 if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if is_endless(file):
            raise UserError(NOT_A_DEVICE % name)
        for piece in iter(lambda: read_some(file), b""):
            data += piece
            if len(data) > MAX_VALUE_BYTES:
                raise UserError("%s: the prompt is larger than %d MB"
                                % (name, MAX_VALUE_BYTES >> 20))
    except OSError as error:
        raise UserError("%s: %s" % (name, error.strerror)) from None
    if not option and path == "-":  # a prompt may be any bytes
        return to_text(bytes(data))
    encoding = wide_encoding(data)
    if encoding:
        raise UserError(name + encoding)
    return to_text(without_mark(bytes(data)))


def read_schema(text: str) -> Dict[str, Any]:
    """Return the schema in a text that is JSON, else in the file of that name.  Raise ValueError.

    The value is checked as that of the field `schema`.
    """
    path = "" if text.lstrip().startswith("{") else _plain_path(text)
    try:
        data = to_bytes(read_prompt(path) if path else text)
        with piece_context(visible(path) or "text", InputPiece(1, data)):
            return _schema(loads_unique(data))
    except UserError as error:
        raise ValueError(str(error)) from None


def _prompt(options: argparse.Namespace, session: str = "") -> str:
    if not options.words:
        raise UserError("no prompt%s: give it as an argument, or - to read it from stdin" % session)
    return str(options.words[-1])


def prompt_text(text: str) -> str:
    """Return the prompt, read from stdin if it is `-`.

    Raises UserError, also where stdin has content that would be ignored.
    """
    if text != "-" and has_content(0, STDIN_SECONDS):
        raise UserError("stdin has content, which a prompt that is an argument leaves unread; "
                        "to ask about it: put the prompt into the pipe, too, and write - in its "
                        "place; to ignore it (as in a loop): </dev/null")
    if text == "-":
        text = read_prompt("-")
    if not text.strip():
        raise UserError("the prompt is blank")
    return text


def warn_of_unread_stdin(options: argparse.Namespace, console: Console) -> None:
    """Warn of content on stdin that came while a prompt ran that did not read stdin."""
    if _prompt(options) != "-" and has_content(0):
        console.warn("stdin had content, which was not read; the prompt - reads it")


def _resuming(job: Job, session: Session) -> Job:
    """Return the job that continues a session.  Raise SessionError where its backend cannot."""
    can, id = backend_of(job).resuming, session.backend_session_id
    task = job.task
    reason = ""
    if not can:
        reason = ": %s keeps no sessions" % task.backend
    elif not id:
        reason = ": its backend has not named its own"
    elif task.answer_only:
        reason = " with answer_only, which keeps no session"
    elif id.startswith("-") or not id.isprintable():  # the id becomes part of a command line
        reason = ": %s is not an id" % quoted(id)
    elif "workdir" not in can and os.path.realpath(task.workdir or ".") != session.working_dir:
        reason = " here: %s continues a session only in its directory, %s" % (
            task.backend, session.working_dir)
    if reason:
        raise SessionError("session %s cannot be resumed%s" % (_short(session), reason))
    return job._replace(resume=id)


MAX_KEPT_PROMPT = 10000  # characters of a prompt that its session keeps


class _KeptSession:
    """The session of a single prompt: a new one, unless `session` is given.

    `store` None: the session is not written.
    """

    def __init__(self, store: Optional[SessionStore], session: Optional[Session],
                 console: Console) -> None:
        self.store, self.session, self._console = store, session, console
        self._former = session

    def begin(self, job: Job, tags: Sequence[str]) -> Job:
        """Lock the session, or create one.  Return the job that runs in the session."""
        if self.session is None:
            return job._replace(keep=self._create(job, tags) and job.keep)
        _resuming(job, self.session)  # a session that cannot be resumed is not changed
        if self.store:
            try:
                self.session = self.store.begin(self.session.id)
            except OSError as error:
                self._warn(error)
                self.store = None
        return _resuming(job, self.session)

    def _create(self, job: Job, tags: Sequence[str]) -> bool:
        """Create a session, except for a job that cannot be started."""
        task, program = job.task, command_of(job).argv[0]
        if task.workdir and not os.path.isdir(task.workdir) or find_program(program)[1]:
            return False
        try:
            if self.store:
                self.session = self.store.create(
                    task.backend, working_dir=task.workdir, model=task.model,
                    initial_prompt=task.prompt[:MAX_KEPT_PROMPT], tags=tags)
        except OSError as error:
            self._console.warn("this session is not kept: %s" % reason_of(error))
        return self.session is not None

    def finish(self, result: Result, with_usage: bool) -> None:
        """Write the session after the run."""
        if self.session:
            is_gone = self._former is None and result.error_kind == "not_found"
            self._keep(None if is_gone else session_after(self.session, result, with_usage))

    def withdraw(self) -> None:
        """Leave the session as it was before a run that could not begin."""
        self._keep(self._former)

    def _keep(self, session: Optional[Session]) -> None:
        """Write the session, or delete it."""
        if self.store and self.session:
            try:
                if session:
                    self.store.finish(session)
                else:
                    self.store.delete(self.session.id)
            except (SessionError, ValueError, OSError) as error:  # deleted; a count is too large
                self._warn(error)

    def _warn(self, error: Exception) -> None:
        reason = reason_of(error) if isinstance(error, OSError) else error
        self._console.warn("the session is not updated: %s" % reason)


def _ask(job: Job, kept: _KeptSession, rules: TaskPolicy, options: argparse.Namespace,
         console: Console) -> int:
    """Run the task of a single prompt.  Return the exit status."""
    configuration, can = rules.configuration, backend_of(job).resuming
    with_usage = configuration.get("session.store_token_usage")
    notes: Tuple[str, ...] = ()
    if kept.session and "system_prompt" in rules.overrides and "system_prompt" not in can:
        notes = ("%s may keep the system prompt that its session began with" % job.task.backend,)
    options.dry_run = options.dry_run or job.task.dry_run
    # A second answer would be printed behind the first.
    job = job._replace(keep=bool(kept.store and can),
                       task=job.task._replace(schema_retries=0))
    if options.dry_run:
        kept.store = None
    if kept.store or kept.session:
        job = kept.begin(job, configuration.get("session.default_tags"))
    form = options.output_format or configuration.get("output.format")
    sink = _prompt_sink(form, job, options, kept.session, console)
    follow = getattr(sink, "follow", None)
    result: Optional[Result] = None

    def arrived(arriving: Result) -> Result:
        """Store the session before the answer is shown, because showing it can fail or block."""
        nonlocal result
        arriving = arriving._replace(warnings=notes + arriving.warnings)
        result = usage_of_run(arriving, kept.session)
        kept.finish(arriving, with_usage)
        return result

    try:
        jobs = JobList([job._replace(follow=follow is not None)])
        status = run_plan(Plan(jobs, 1, Form(sink), single=True, arrived=arrived,
                               follow=follow), options, console)
    except (UserError, OutputError):
        if result is None:
            kept.withdraw()
        raise
    if result is not None and status != EXIT_PIPE:
        _report_to_stderr(result, form, configuration, console)
        warn_of_unread_stdin(options, console)
    return status


def _prompt_sink(form: str, job: Job, options: argparse.Namespace, session: Optional[Session],
                 console: Console) -> Any:
    """Return the sink for the output of a single prompt."""
    def fields_of(result: Result) -> Dict[str, Any]:
        fields = result_fields(result)
        if session and (session.turn_count or result.error_kind != "not_found"):
            fields = dict({"session": session.id}, **fields)
        return fields

    if form == "json":
        return JsonLines(console.stdout, fields_of)
    if options.dry_run:
        return CommandLines(console.stdout)
    return LiveText(console.stdout, backend_of(job).saying, form == "stream-json")


def _report_to_stderr(result: Result, form: str, configuration: Configuration,
                      console: Console) -> None:
    """Write warnings, the error, tokens and time, as far as they belong to stderr."""
    if form != "json":  # which contains the warnings
        for warning in result.warnings:
            console.warn(warning)
    if result.error:
        prefix = result.backend + ": "
        console.say(("" if result.error.startswith(prefix) else prefix) + result.error)
    if form == "text" and result.usage and configuration.get("output.show_tokens"):
        console.stderr.text("Tokens: {total_tokens:,} (input: {input_tokens:,}, "
                            "output: {output_tokens:,})\n".format(**result.usage))
    if form == "text" and configuration.get("output.show_timing"):
        console.stderr.text("Time: %.2fs\n" % result.duration_seconds)


def _print(options: argparse.Namespace, value: Any, text: str) -> int:
    """Print a value as JSON with --json, else the text.  Return EXIT_OK."""
    stdout = Console().stdout
    if options.json:
        stdout.json([dumps(value), b"\n"])
    else:
        stdout.text(text)
    return EXIT_OK


def command_sessions(options: argparse.Namespace) -> int:
    """List, show or delete sessions.  Return the exit status."""
    action = {"list": _list_sessions, "show": _show_session, "delete": _delete_sessions,
              "clean": _clean_sessions}[options.command.partition(" ")[2]]
    if action in (_show_session, _delete_sessions) and not options.words:
        raise UserError("which session? `clinvk sessions list` shows them")
    console = Console()
    try:
        return action(options, session_store(dict(os.environ), console), console)
    except OSError as error:
        raise SessionError(reason_of(error)) from None


def _list_sessions(options: argparse.Namespace, store: SessionStore, console: Console) -> int:
    """Print the sessions, the last used first."""
    wanted = options.backend or "", options.status or "", options.tag or ""
    sessions = [session for session in store.all(*wanted)
                if not options.resumable or is_resumable(session)][:options.limit]
    if not (sessions or options.json):
        such = "such " if any(wanted) or options.resumable else ""
        hint = "" if options.backend in BACKENDS else nearest(wanted[0], BACKENDS)
        console.say("there are no %ssessions%s" % (such, hint))
        return EXIT_OK
    digits = distinct_digits([session.id for session in sessions])
    row = "%%-%ds %%-12s %%-10s %%-5s %%-5s %%-12s %%s" % digits
    columns, now = max(60, terminal_columns(console.stdout.file)), time.time()
    lines = [row % ("ID", "BACKEND", "STATUS", "AGE", "TURNS", "TAGS", "PROMPT")]
    for one in sessions:
        line = row % (one.id[:digits], one_line(one.backend), one_line(one.status),
                      age(now - one.last_used), one.turn_count,
                      one_line(",".join(one.tags)) or "-", one_line(one.initial_prompt))
        lines.append(cut(line, columns).rstrip())
    return _print(options, [*map(session_fields, sessions)], "\n".join(lines) + "\n")


def _show_session(options: argparse.Namespace, store: SessionStore, console: Console) -> int:
    """Print all that is known of a session."""
    session = store.load(store.match(options.words[0]))
    now = time.time()
    lines = [("id", session.id), ("backend", session.backend), ("status", session.status),
             *((name, "%s (%s ago)" % (utc(moment), age(now - moment))) for name, moment in (
                 ("created", session.created_at), ("last used", session.last_used))),
             ("directory", session.working_dir), ("backend's id", session.backend_session_id),
             ("model", session.model), ("turns", str(session.turn_count)),
             ("usage", ", ".join("{:,} {}".format(count, name.replace("_", " "))
                                 for name, count in session.token_usage.items())),
             ("cost", "" if session.cost_usd is None else "$%.4f" % session.cost_usd),
             ("tags", ", ".join(session.tags)), ("error", session.error),
             ("prompt", session.initial_prompt)]
    return _print(options, session_fields(session), "".join(
        "%-14s %s\n" % (name + ":", one_line(value)) for name, value in lines if value))


def _delete_sessions(options: argparse.Namespace, store: SessionStore, console: Console) -> int:
    """Delete all named sessions, or none where one is unknown or in use."""
    ids = list(dict.fromkeys(map(store.match, options.words)))
    store.delete(*ids)
    return _print(options, {"deleted": ids}, "".join(id + "\n" for id in ids))


def _clean_sessions(options: argparse.Namespace, store: SessionStore, console: Console) -> int:
    """Delete the sessions that were not used for long."""
    seconds, ids = options.older_than, []
    if seconds is None:
        configuration = load_configuration(options.config, dict(os.environ))
        seconds = configuration.get("session.retention_days") * 86400.0 or None
    if seconds is None:
        console.say("session.retention_days is 0: sessions are never deleted; --older-than "
                    "deletes some")
    else:
        ids = store.clean(seconds, options.dry_run)
    return _print(options, {"deleted": ids}, "".join(id + "\n" for id in ids))


def command_report(options: argparse.Namespace) -> int:
    """Print what results files, else stdin, contain.  Return the exit status."""
    console, paths, environment = Console(), options.words or ["-"], dict(os.environ)
    files = _report_files(options, paths)
    records = Records(paths, console.warn, bool(options.tasks))
    if options.tasks:
        if options.tasks == "-" or os.path.exists(options.tasks) > os.path.isfile(options.tasks):
            raise UserError("--tasks %s: expected a regular file" % visible(options.tasks))
        configuration = load_configuration(options.config, environment)
        rules = TaskPolicy({}, environment, all_definitions(configuration, environment), True,
                           configuration=configuration)
        with Instead(UserError, lambda error: UserError(re.sub(
                "`jq.*", "the same command with --emit-tasks makes the file", str(error)))):
            records.find_tasks(open_tasks(options.tasks, rules, console.warn))
    for text in records.problems():
        console.warn(text)
    table = None if options.csv or options.form or options.quiet else Table()
    statistics = Statistics(records, options.by, table)
    for name, path in files.items():
        is_whole = not options.without_output if name == "html" else options.with_output
        texts = REPORT_FILES[name](statistics, is_whole)
        try:
            write_whole(os.path.realpath(path), in_one_write(map(to_bytes, texts)))
        except OSError as error:
            raise OutputError("cannot write %s: %s" % (visible(path), error.strerror)) from None
    _print_report(statistics, table, options, console)
    return EXIT_FAILED if statistics.is_failure(options.fail_on) else EXIT_OK


def _report_files(options: argparse.Namespace, read: Sequence[str]) -> Dict[str, str]:
    """Return the files that a report writes, by option; `read` are those that it reads."""
    files = {name: getattr(options, name) for name in REPORT_FILES if getattr(options, name)}
    if options.with_output and not files:
        raise UserError("--with-output: there is no file for it; give --"
                        + " or --".join(REPORT_FILES))
    if options.without_output and not options.html:
        raise UserError("--without-output: there is no page for it; give --html")
    for name, path in files.items():
        others = [1, 2, *(0 if other == "-" else other for other in read), options.tasks or "",
                  *(files[other] for other in files if other != name)]
        if any(is_same(other, path) for other in others):
            raise UserError("--%s %s: it is another file of this command; give another name"
                            % (name, visible(path)))
        refuse_irregular("--" + name, path)
    return files


def _print_report(statistics: Statistics, table: Optional[Table], options: argparse.Namespace,
                  console: Console) -> None:
    records, totals, stdout = statistics.records, statistics.totals, console.stdout
    if options.csv:
        stdout.texts(csv_lines(records, options.csv, console.warn))
    elif options.form == "jsonl":
        stdout.json(piece for capture in records.captures()
                    for piece in itertools.chain(capture.pieces(), (b"\n",)))
    elif options.form == "json":
        stdout.json(one_object(statistics.fields(),
                               (capture.pieces() for capture in records.captures())))
    elif table:
        table.print(stdout, totals, is_colored(stdout, options.color or "auto"))
        stdout.texts(statistics.text(max(terminal_columns(stdout.file), 60)))
    else:
        stdout.text(totals.line() + "\n" + totals.reasons())


def shown_settings(configuration: Configuration,
                   environment: Dict[str, str]) -> Dict[str, Tuple[Any, str]]:
    """Return the value of each setting and where the value comes from."""
    sections = {key.split(".")[1] for key in configuration.values if key.startswith("backends.")}
    known = (name for name in KNOWN if name in sections or model_variable(name) in environment)
    names = dict.fromkeys([*BUILT_IN, *known, *configuration.definitions])
    keys = list(SETTINGS) + [
        "backends.%s.%s" % (name, field) for name in names for field in BACKEND_SETTINGS
        if name in configuration.definitions or field not in DEFINITION_FIELDS]
    variables = {"default_backend": "CLINVK_BACKEND"}
    variables.update(("backends.%s.model" % name, model_variable(name)) for name in names)
    layers = [("environment: " + variable, {key: environment.get(variable)})
              for key, variable in variables.items()]
    layers += [(configuration.origin(key), {key: configuration.values.get(key)}) for key in keys]
    settings = {key: (setting_named(key)[1], "built-in") for key in keys}
    settings.update(merge_layers(layers, keys))
    return settings


def command_config(options: argparse.Namespace) -> int:
    """Print each setting and its source, as text or JSON, or the path of the configuration."""
    environment = dict(os.environ)
    if options.command == "config path":
        path = configuration_path(options.config, environment)[0]
        if path.startswith(NO_HOME):
            raise ConfigError(NO_HOME_REASON)
        Console().stdout.text(path + "\n")
        return EXIT_OK

    def shown(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return list(map(shown, value))
        return without_secrets(value) if isinstance(value, str) else value

    settings = {key: {"value": shown(value), "origin": origin} for key, (value, origin)
                in shown_settings(_configured(options, environment)[0], environment).items()}
    return _print(options, settings, "".join(
        "%s: %s  # %s\n" % (key, dumps(setting["value"]).decode("utf-8"), setting["origin"])
        for key, setting in settings.items()))


def start_method_of(environment: Dict[str, str]) -> str:
    """Return the value of CLINVK_START_METHOD.  Raise UserError."""
    method = environment.get("CLINVK_START_METHOD", "")
    if method and method not in START_METHODS:
        raise UserError("CLINVK_START_METHOD: unknown start method %s; known are %s" % (
            quoted(method), ", ".join(START_METHODS)))
    return method


def command_doctor(options: argparse.Namespace) -> int:
    """Print which backends can be used, and facts about the machine.

    Return EXIT_FAILED where none but echo can be used.
    """
    reset_sigchld()
    environment = dict(os.environ)
    method = start_method_of(environment) or default_start_method()
    definitions = _configured(options, environment)[1]
    backends: Dict[str, Dict[str, Any]] = {}
    probes: List[Job] = []
    missing: List[str] = []
    all_defined = {**KNOWN, **definitions}
    for row in [*BACKENDS.values(), *(custom_backend(*item) for item in all_defined.items())]:
        is_known = row.name in KNOWN and row.name not in definitions
        job = Job(0, Task(row.name, " ", timeout=60.0), definitions.get(row.name))
        program = row.command(job).argv[0]
        path, problem = find_program(program)
        if problem and is_known:
            missing.append(row.name)
            continue
        if problem and row.install:
            problem += "; to install it: " + row.install
        elif row.install or is_known:
            probes.append(job._replace(definition=Definition((path, "--version"))))
        backends[row.name] = {"name": row.name, "program": program, "path": path, "version": "",
                              "usable": not problem, "problem": problem}
        if is_known:
            backends[row.name]["defined_for"] = KNOWN_VERSIONS[row.name]
    try:
        for result in run_pool(probes, max(1, len(probes)), start_method=method):
            backends[result.backend].update(
                version=one_line(result.output), usable=result.status == "ok",
                problem=result.error)
    except OutputError as error:  # no temporary file can be written, so nothing can run
        for entry in backends.values():
            entry.update(usable=False, problem=entry["problem"] or str(error))
    machine = machine_fields(method)
    text = ""
    for entry in backends.values():
        state = entry["version"] or ("found" if entry["usable"] else "cannot be used:")
        version = entry.get("defined_for") and "(defined for %(defined_for)s)" % entry
        words = filter(None, (state, entry["path"], entry["problem"], version))
        text += "%-10s %s\n" % (entry["name"], "  ".join(words))
    if missing:
        text += "also known, not installed: %s\n" % ", ".join(missing)
    text += "\n" + "".join("%-14s %s\n" % (name, _plainly(value))
                           for name, value in machine.items())
    _print(options, {"clinvk": __version__, "backends": list(backends.values()),
                     "not_installed": missing, "machine": machine}, text)
    usable = [name for name, entry in backends.items() if entry["usable"]]
    return EXIT_OK if usable != ["echo"] and usable else EXIT_FAILED


def _plainly(value: Any) -> str:
    """Return a value of machine_fields as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def machine_fields(start_method: str) -> Dict[str, Any]:
    """Return the facts about this machine that matter to clinvk."""
    import platform
    try:
        import orjson
        faster = str(orjson.__version__)
    except ImportError:
        faster = "no"
    temp, home = temporary_directory(), os.path.expanduser("~")
    return {
        "python": "%s %s" % (platform.python_version(), sys.executable), "orjson": faster,
        "start_method": start_method, "directory": deleted_directory() or os.getcwd(),
        "semaphores": semaphores_work(), "finds_strays": finds_strays(),
        "temp": temp, "temp_free_mb": free_space(temp) >> 20,
        "temp_writable": os.access(temp, os.W_OK | os.X_OK), "descriptors": descriptor_limit(),
        "home": home, "home_writable": os.access(home, os.W_OK | os.X_OK),
        "nested_in": [name for name in NESTING_VARIABLES if name in os.environ],
    }


# --- 20. Command line --------------------------------------------------------


def _argument_type(check: Callable[[Any], Any], number: bool) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        import argparse
        try:
            is_number = number and re.fullmatch("-?[0-9]+", text)
            return check(int(text) if is_number else text)
        except ValueError as error:  # argparse shows the message of its own error only
            message = error.message if isinstance(error, InvalidValue) else str(error)
            raise argparse.ArgumentTypeError(message) from None
    return convert


def _option(flags: str, help: str, metavar: str = "", check: Callable[[Any], Any] = str,
            **details: Any) -> Tuple[str, Dict[str, Any]]:
    """Return a row of the option table.  Options of one `group` exclude each other."""
    if metavar:
        details.update(metavar=metavar, type=_argument_type(check, metavar == "N"))
    elif "choices" not in details:
        details.setdefault("action", "store_true")
    return flags, dict(details, help=help)


def _field(flags: str, metavar: str, help: str, **details: Any) -> Tuple[str, Dict[str, Any]]:
    """Return the row of an option that sets a field of tasks."""
    field = flags.partition("--")[2].replace("-", "_")
    return _option(flags, help, metavar, TASK_FIELDS[field], dest="task_" + field, **details)


# The option table: sets of options, which the rows of COMMANDS name.
OPTIONS: Dict[str, List[Tuple[str, Dict[str, Any]]]] = {
    "general": [_option("--version", "show the version and exit")],
    "file": [_option("-f --file", "read FILE; - or no FILE: stdin", "FILE", _path,
                     action="append", default=[])],
    "template": [
        _option("--prompt", "make a task of each item (WORD, or line of stdin): {} in TEMPLATE is "
                "the item", "TEMPLATE", _some_text, group="template"),
        _option("--prompt-file", "the same; read the template from FILE", "FILE", _path,
                group="template"),
        _option("--items", "with --prompt: read the items from FILE, not from stdin", "FILE",
                _path, group="items"),
        _option("--csv", "with --prompt: make a task of each row of FILE; {COLUMN} is its field",
                "FILE", _path, group="items"),
        _option("--tsv", "the same; tabs, not commas, part the fields", "FILE", _path,
                group="items"),
        _option("-0 --null", "with --prompt: NUL bytes, not ends of lines, separate the items"),
        _option("--name", "with --prompt: the names of the tasks", "TEMPLATE", _some_text),
        _option("--id", "with --prompt: the ids of the tasks", "TEMPLATE", _some_text),
        _option("--write-to", "with --prompt: write each answer to a file of its own; --overwrite: "
                "also to files that exist", "TEMPLATE", _some_text),
        _option("--emit-tasks", "print the tasks as JSON lines, for another run; start nothing",
                group="form", dest="form", action="store_const", const="tasks")],
    "parallel": [
        _option("-j --max-parallel", "run at most N tasks at once (default: %d)" % DEFAULT_JOBS,
                "N", _jobs),
        _option("--fail-fast", "at the first failure start nothing more and stop what runs"),
        _option("--output-dir", "keep a file per task in DIR, and summary.json", "DIR", _path),
        _option("--overwrite", "replace files of the same name; others stay"),
        _option("--results", "add each result to FILE, from which a killed run can continue",
                "FILE", _path),
        _option("--resume", "give the results in FILE again, and run only the other tasks"),
        _option("--shard", "run every N-th task, from task K on; auto: K and N of the job array",
                "K/N", parse_shard, default=WHOLE),
        _option("--max-failures", "after N failures, or N%% of the tasks, stop as --fail-fast does",
                "N|N%", _failures),
        _option("--canary", "run N tasks first, and the others only if all of them succeed", "N",
                _whole_number),
        _option("--max-cost", "start nothing that would make the run cost more than USD", "USD",
                _usd),
        _option("--allow-unknown-cost", "with --max-cost: also run backends that state no cost"),
        _option("--limit", "run at most N tasks of BACKEND at once; may be repeated",
                "BACKEND=N", _limit, action="append", dest="limits"),
        _option("--one-per-workdir", "run tasks in the same directory one after the other")],
    "matrix": [
        _option("--matrix", "run each task with each VALUE of a field: %s (@FILE); several: with "
                "all combinations" % ", ".join(MATRIX_FIELDS), "FIELD=VALUE,...", parse_axis,
                action="append", default=[]),
        _field("--repeat", "N", "run each task N times; first all tasks once, then again")],
    "retry": [
        _option("--retries", "try a task again up to N times after a transient error (default: 2);"
                " 0: never, and do not wait for limits", "N", POLICY_FIELDS["retries"]),
        _option("--retry-on", "the kinds of errors to try again after: "
                + ",".join(RunPolicy._field_defaults["retry_on"]), "LIST",
                lambda text: POLICY_FIELDS["retry_on"](_words(text))),
        _option("--retry-acted", "also try tasks again that may have changed something"),
        _option("--max-wait", "wait for the limits of a backend at most that long (default: 1h); "
                "then cancel its tasks", "DURATION", _wait_seconds)],
    "compare": [
        _option("--backends", "the backends, as in claude,codex", "LIST", group="backends"),
        _option("--all-backends", "all installed backends but echo, and your own commands",
                group="backends"),
        _option("--sequential", "ask one after the other, not all at once")],
    "form": [
        _option("--json", "print one JSON object at the end", group="form", dest="form",
                action="store_const", const="json"),
        _option("--jsonl", "print one JSON line for each result as it comes", group="form",
                dest="form", action="store_const", const="jsonl"),
        _option("-q --quiet",
                "print only the totals and the distinct errors; with --jsonl: no summary")],
    "report": [
        _option("--json", "print one JSON object", group="form", dest="form",
                action="store_const", const="json"),
        _option("--jsonl", "print the line of each task, in the order of the tasks",
                group="form", dest="form", action="store_const", const="jsonl"),
        _option("--csv", "print CSV; PATHS are the columns, as in .data.label,.cost_usd,.tags[0]",
                "PATHS", parse_columns, nargs="?", group="form"),
        _option("-q --quiet", "print only the totals and the distinct errors"),
        _option("--by", "group the totals by FIELD; may be repeated: "
                + ", ".join(GROUP_FIELDS), "FIELD", action="append", choices=GROUP_FIELDS),
        _option("--tasks", "name the tasks in FILE that have no result", "FILE", _path),
        _option("--fail-on", "exit with 1 if any task did not succeed, or so many percent; flaky: "
                "also if one needed more than one attempt", "any|flaky|N%", parse_fail_on),
        _option("--junit", "write JUnit XML, a test case for each task, to FILE", "FILE",
                _plain_path),
        _option("--markdown", "write a table in Markdown, failures first, to FILE", "FILE",
                _plain_path),
        _option("--with-output", "have prompts and answers in these files, too"),
        _option("--html", "write one self-contained page, with prompts and answers, to FILE",
                "FILE", _plain_path),
        _option("--without-output", "leave prompts and answers out of the page")],
    "trust": [
        _option("--ceiling", "refuse tasks that ask for more: sandbox=workspace,approval=auto",
                "LIST", parse_ceiling),
        _option("--root", "refuse tasks whose workdir is outside of DIR", "DIR", _path),
        _option("--allow-commands", "let the input define commands as backends")],
    "check": [
        _field("--check", "CMD", "run CMD when a task's program has succeeded; if CMD fails, the "
               "task fails; may be repeated", action="extend"),
        _field("--check-timeout", "DURATION", "stop a check after so long (default: 10m)"),
        _field("--attempts", "N", "try a task up to N times in all until its checks pass, with the "
               "output of the failed check (default: 1)"),
        _field("--require-change", "", "a task fails that changes nothing in its git work tree"),
        _field("--protect", "GLOB", "a task fails that changes a path in its git work tree which "
               "GLOB matches; may be repeated", action="extend"),
        _option("--repair-prompt", "with --attempts: read the prompt of these tries from FILE",
                "FILE", _plain_path),
        _field("--schema-retries", "N", "ask again up to N times for an answer that is not as its "
               "schema (default: 1)")],
    "answer": [_option("-o --output-format", "text; json: one object at the end; stream-json: "
                       "what the backend prints (default: text)", choices=PROMPT_FORMS)],
    "prompt": [
        _option("-c --continue", "continue the last session of this directory and backend",
                group="session", dest="go_on"),
        _option("--ephemeral", "keep no session", group="session")],
    "resume_session": [
        _option("--last", "continue the last session"),
        _option("-b --backend", "with --last: the last session of this backend", "NAME",
                _argument),
        _option("--here", "run in the current directory, not in that of the session")],
    "run": [
        _option("--dry-run", "print the command line of each task and start nothing",
                dest="task_dry_run"),
        _option("--wrap", "put CMD before each command: nice, docker run ...", "CMD",
                _shell_words),
        _option("--progress", "table of the running tasks, or a line, on stderr (default: auto)",
                choices=("auto", "table", "always", "never"))],
    "color": [_option("--color", "colored output (default: auto)",
                      choices=("auto", "always", "never"))],
    "watch": [
        _option("--status-file", "keep one JSON object about the run in FILE, for monitors", "FILE",
                _plain_path),
        _option("--quiet-after", "mark tasks that print nothing for so long (default: 2m)",
                "DURATION", _seconds),
        _option("--log-dir", "keep in DIR, while it comes, what the program of each task prints",
                "DIR", _path),
        _option("--log-max", "keep head and tail of a larger log: 500K, 64M (default: 64M)",
                "SIZE", parse_size)],
    "config": [_option("--config", "read the configuration from FILE "
                       "(default: ~/.clinvk/config.yaml)", "FILE")],
    "json": [_option("--json", "print JSON")],
    "sessions": [
        _option("-b --backend", "only those of this backend", "NAME"),
        _option("--status", "only those with this status: " + ", ".join(SESSION_STATUSES),
                "STATUS", choices=SESSION_STATUSES),
        _option("--tag", "only those with this tag", "TAG"),
        _option("--resumable", "only those that can be resumed"),
        _option("-n --limit", "at most N", "N", _whole_number)],
    "clean": [
        _option("--older-than", "those not used for 12h, 30d, 2w "
                "(default: session.retention_days of the configuration)", "AGE", parse_age),
        _option("--dry-run", "print what would be deleted")],
    "backend": [_field("-b --backend", "NAME", "%s, or your own command" % ", ".join(
        [*BACKENDS, *KNOWN]))],
    "workdir": [_field("-w --workdir", "DIR", "working directory")],
    "task": [
        _field("-m --model", "MODEL", "model"),
        _field("--effort", "LEVEL", "how much to think: " + ", ".join(EFFORTS)),
        _option("--schema", "the JSON Schema of the answers: JSON, or the FILE that has it",
                "FILE", read_schema, dest="task_schema"),
        _field("--approval-mode", "MODE", ", ".join(APPROVAL_MODES)),
        _field("--sandbox-mode", "MODE", ", ".join(SANDBOX_MODES)),
        _option("--answer-only", "answer as text: no tools, no instructions of user or project, no "
                "MCP servers, hooks or plugins", dest="task_answer_only"),
        _option("--literal", "leave @path and /word in prompts as text", dest="task_literal"),
        _field("--system-prompt", "TEXT", "system prompt"),
        _field("--max-turns", "N", "maximum number of turns"),
        _field("--max-tokens", "N", "maximum number of tokens of an answer"),
        _field("--timeout", "SECONDS", "time limit of a task: 90, 90s, 15m, 2h"),
        _field("--idle-timeout", "SECONDS", "stop a task that prints nothing for so long"),
        _field("--max-output", "SIZE", "stop a task that prints more: 500K, 64M (default: 1G)")],
}


def print_version(_: Optional[argparse.Namespace] = None) -> int:
    Output(1).text("clinvk %s\n" % __version__)
    return EXIT_OK


class Subcommand(NamedTuple):
    """A row of the command table.  The name of an action includes that of its command."""

    run: Callable[[argparse.Namespace], int]
    options: str           # the keys of OPTIONS
    summary: str           # for the help of clinvk
    usage: str = "[OPTIONS]"
    details: str = ""      # for its own help
    max_words: int = 0
    hint: str = ""         # follows the message about one word too many


_FILE_HINT = "; a file is named with --file"
COMMANDS = {
    "": Subcommand(
        print_version, "general",
        "run many prompts through AI command-line programs, several at a time",
        "[-h] [--version] COMMAND ...\n       clinvk [OPTIONS OF prompt] TEXT",
        "`clinvk COMMAND --help` describes a command; see also clinvk(1)."),
    "parallel": Subcommand(
        command_parallel,
        "file template matrix parallel retry form trust check run watch color config "
        "backend workdir task",
        "run a batch of tasks", "[OPTIONS] [-- WORD...]", """\
The input is a stream of JSON values: batches {"tasks": [...]}, arrays of tasks, or tasks.
Options set the fields that tasks do not set. Examples:
  clinvk parallel --file tasks.json
  echo '{"backend": "echo", "prompt": "hello"}' | clinvk parallel
  clinvk parallel --backend claude --jsonl --prompt 'Write tests for {}' -- src/*.py""",
        sys.maxsize, _FILE_HINT),
    "prompt": Subcommand(
        command_prompt, "answer prompt run color config backend workdir task",
        "ask one backend (`clinvk TEXT` means the same)", "[OPTIONS] TEXT", """\
The answer is shown while it comes. `-` as TEXT reads the prompt from stdin. Examples:
  clinvk 'What does this repository do?'
  git diff | clinvk -b codex --sandbox-mode read-only -
  clinvk -c 'And in one sentence?'""", 1, QUOTES_HINT),
    "chain": Subcommand(
        command_chain,
        "file retry form trust check run watch color config backend workdir task",
        "run steps, each with the answers of those before it", details="""\
The input is one JSON object, {"steps": [...]}. Each step is a task. In prompts, {{previous}} is
replaced by the answer of the step before, and {{steps.NAME.output}} by that of the step NAME.
Options set the fields that steps do not set. Example:
  clinvk chain --file chain.json --json | jq -r '.results[-1].output'""", hint=_FILE_HINT),
    "compare": Subcommand(
        command_compare, "compare form run watch color config workdir task",
        "send one prompt to several backends and show the answers side by side",
        "[OPTIONS] --backends LIST PROMPT\n       clinvk compare [OPTIONS] --all-backends PROMPT",
        "`-` as PROMPT reads the prompt from stdin.", 1,
        "; commas separate the backends, and a prompt of several words needs quotes around it"),
    "resume": Subcommand(
        command_resume, "resume_session answer run color config task",
        "continue a session, in its directory",
        "[OPTIONS] ID TEXT\n       clinvk resume [OPTIONS] --last TEXT", """\
ID is the id of a session, the beginning of one, or the backend's own. `-` as TEXT reads the
prompt from stdin. Options of earlier runs of the session do not apply.""", 2, QUOTES_HINT),
    "sessions": Subcommand(
        command_sessions, "", "list, show and delete sessions", "ACTION ...", """\
ID is the id of a session, the beginning of one, or the backend's own.
`clinvk sessions ACTION --help` describes an action."""),
    "sessions list": Subcommand(command_sessions, "json sessions",
                                "list sessions, the last used first"),
    "sessions show": Subcommand(command_sessions, "json", "show all that is known of a session",
                                "[OPTIONS] ID", max_words=1),
    "sessions delete": Subcommand(
        command_sessions, "json", "delete sessions and print their ids", "[OPTIONS] ID...",
        "If a session is unknown or in use, none is deleted.", sys.maxsize),
    "sessions clean": Subcommand(
        command_sessions, "json clean config",
        "delete sessions that were not used for long and are not in use, and print their ids"),
    "report": Subcommand(
        command_report, "report color config", "show what results files contain",
        "[OPTIONS] [FILE...]", """\
FILE is the file of `parallel --results`, or the output of --jsonl. `-`, or no FILE, reads stdin.
If a task has several lines, the last counts. Example:
  clinvk report results.jsonl""", sys.maxsize),
    "config": Subcommand(command_config, "", "show the configuration", "ACTION ...",
                         "`clinvk config ACTION --help` describes an action."),
    "config show": Subcommand(command_config, "config json",
                              "show each setting and the origin of its value"),
    "config path": Subcommand(command_config, "config", "show the path of the configuration file"),
    "doctor": Subcommand(command_doctor, "config json",
                         "show which backends can be used, and facts about this machine",
                         details="Logins are not tried."),
    "version": Subcommand(print_version, "", "show the version"),
}


def actions_of(command: str) -> List[str]:
    """Return the words that can follow a command; "" is clinvk itself."""
    return [name.split()[-1] for name in COMMANDS if name and name.rpartition(" ")[0] == command]


def options_of(command: str) -> Dict[str, Dict[str, Any]]:
    """Return the options of a command; a command with actions has those of all its actions."""
    names = [command] + ["%s %s" % (command, action) for action in command and actions_of(command)]
    keys = " ".join(COMMANDS[name].options for name in names).split()
    return {flags: dict(details) for key in keys for flags, details in OPTIONS[key]}


def build_parser(command: str) -> argparse.ArgumentParser:
    """Return the parser of the options of a command.  Words are left to parse_command_line."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            """Print the message without the usage."""
            Output(2).text("{0}: error: {1}\nTry `{0} --help`.\n".format(self.prog, message))
            raise SystemExit(EXIT_USAGE)

        def print_help(self, file: Any = None) -> None:
            """Raise OutputError where the help cannot be written; argparse ignores that."""
            Output(2 if file else 1).text(self.format_help())

        def _parse_optional(self, arg_string: str) -> Any:
            flag = self._option_string_actions.get(arg_string[:2])  # "-c is meant" is a prompt
            is_text = " " in (arg_string if flag and flag.nargs == 0 else arg_string[2:3])
            is_text = is_text and 0 < row.max_words < sys.maxsize
            return None if is_text else super()._parse_optional(arg_string)

    row, name = COMMANDS[command], ("clinvk " + command).strip()
    actions = ["\n  %-10s%s" % (action, COMMANDS[(command + " " + action).strip()].summary)
               for action in actions_of(command)]
    parser = Parser(
        prog=name, usage="%s %s" % (name, row.usage), epilog=row.details, allow_abbrev=False,
        description=row.summary[:1].upper() + row.summary[1:] + "." + "".join(actions),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    groups: Dict[str, Any] = {"": parser}
    for flags, details in options_of(command).items():
        group = details.pop("group", "")
        if command and actions:  # the help of each action has its options
            details["help"] = argparse.SUPPRESS
        if group not in groups:
            groups[group] = parser.add_mutually_exclusive_group(required=group == "backends")
        groups[group].add_argument(*flags.split(), **details)
    parser._has_negative_number_optionals.clear()  # although there is -0, -1 is a value
    return parser


# Commands and options of other programs, with what to use here.
RESERVED = dict(dict.fromkeys(("run", "exec", "batch"), "; to run a batch: clinvk parallel "
                              "--file FILE"), completion="", serve="")
OPTION_HINTS = dict(
    dict.fromkeys(("-p", "--prompt", "--print"), "; a prompt needs no option: clinvk TEXT"),
    **{"--retry": "; tasks are tried again with --retries"})


def _option_hint(command: str, word: str) -> str:
    """Return the end of the message about an option that a command does not have."""
    flag = word.partition("=")[0] if word.startswith("--") else word[:2]
    family = command.partition(" ")[0]
    family = family + " " if actions_of(family) else "parallel"
    owners = [name for name in COMMANDS if name.startswith(family)
              and any(flag in flags.split() for flags in options_of(name))]
    if owners and flag not in OPTION_HINTS:
        return "; it is an option of " + " and ".join("`clinvk %s`" % name for name in owners)
    known = " ".join(options_of(command)).split()
    return OPTION_HINTS.get(flag) or known_as(flag, known + ["-h", "--help"])


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-" and " " not in word and not word[1:].isdigit()


def _take_word(words: List[str], command: str, known: Container[str]) -> str:
    """Return the first word that is not part of an option; remove it if it is known."""
    parser = build_parser(command)
    unparsed = parser.parse_known_args([word for word in words if word not in ("-h", "--help")])[1]
    word = next((word for word in unparsed if not _is_option(word)), "")
    if word in known:
        words.remove(word)
    return word


def _take_command(words: List[str], for_help: bool) -> str:
    """Return the command and remove it; except for help `clinvk TEXT` is `clinvk prompt TEXT`."""
    known = actions_of("")
    word = words[0] if words else ""
    if word in known:
        return words.pop(0)
    if word in ("-h", "--help", "--version"):
        return ""
    word = _take_word(words, "prompt", known)
    if word in known:
        return word
    if word in RESERVED or len(word.split()) == 1 and (for_help or nearest(word, known)):
        problem = "unknown command " + quoted(word) + (RESERVED.get(word) or nearest(word, known))
    elif word.endswith((".json", ".jsonl")) and os.path.isfile(word):
        problem = "%s is a file; to run its tasks: clinvk parallel --file %s" % (
            quoted(word), shell_quoted(word))
    else:
        return "prompt"
    build_parser("").error("%s; to ask it as a prompt: clinvk -- %s" % (
        problem, shell_quoted(word)))


def parse_command_line(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options, with `command` and the other `words`; after `--` all are words."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    words, after_dashes = list(arguments[:end]), list(arguments[end + 1:])
    if not arguments:
        build_parser("").print_help(sys.stderr)
        build_parser("").exit(EXIT_USAGE)
    for_help = words[:1] == ["help"]
    if for_help:
        words = words[1:2] + ["--help"]
    command = _take_command(words, for_help)
    actions = [action for action in actions_of(command) if command]
    action = _take_word(words, command, actions) if actions else ""
    if action in actions:
        command += " " + action
    parser = build_parser(command)
    if command == "report":  # a word after --csv that is no column is a file
        words = [word + "=" if word == "--csv" and not re.match(r"\.[\w-]", after) else word
                 for word, after in zip(words, [*words[1:], ""])]
    options, unparsed = parser.parse_known_args(words)
    if actions and action not in actions:
        parser.error("expected an action (%s), got %s" % (
            ", ".join(actions), quoted(action) if action else "none"))
    for word in filter(_is_option, unparsed):
        parser.error("unknown argument %s%s" % (word, _option_hint(command, word)))
    options.command, options.words = command, unparsed + after_dashes
    options.arguments = tuple(arguments)
    most = COMMANDS[command].max_words
    if command == "parallel" and options.prompt is None and options.prompt_file is None:
        most = 0  # words are items of a template
    for word in options.words[most:]:
        parser.error("unknown argument %s%s" % (word, COMMANDS[command].hint))
    return options


def main(argv: Optional[Sequence[str]] = None, whole_process: bool = False) -> int:
    """Run the program and return its exit status; 128 + n after signal n.

    `whole_process`: the process ends with the program.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    open_standard_streams()
    close_on_exec_inherited()
    try:
        if arguments in (["--version"], ["version"]):  # before argparse is imported
            return print_version()
        if whole_process:
            set_first_signals()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (  # the parent may have blocked them
                signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1))
        asked = (signal.SIGUSR1,) * whole_process
        with on_signals(say_idle, asked), on_signals(die_at_once):
            options = parse_command_line(arguments)
            return COMMANDS[options.command].run(options)
    except SystemExit as leaving:  # of argparse: after help or a usage error
        return int(leaving.code or 0)
    except (UserError, ConfigError, SessionError, OutputError) as error:
        if isinstance(error, OutputError) and error.broken_pipe:
            return EXIT_PIPE
        Output(2).text("clinvk: error: %s\n" % error)
        return {UserError: EXIT_USAGE, ConfigError: EXIT_CONFIG, SessionError: EXIT_SESSION,
                OutputError: EXIT_OUTPUT}[type(error)]
    except ModuleNotFoundError as error:
        Output(2).text(lacking(error) + "\n")
        return EXIT_USAGE
    except Interrupted as interruption:
        return 128 + interruption.signal_number


def console() -> None:
    """Run the program as a process of its own."""
    try:
        status = main(whole_process=True)
    except Exception:
        import traceback
        Output(2).text("clinvk: this is a bug in clinvk %s:\n%s" % (
            __version__, traceback.format_exc()))
        status = EXIT_BUG
    if status in (EXIT_HANGUP, EXIT_INTERRUPT, EXIT_TERMINATE):
        die_of(status - 128)
    # All is written and closed.  An orderly exit would take as long as the start did.
    os._exit(status)


if __name__ == "__main__":
    console()
