#!/usr/bin/env python3
"""A mock of the APIs behind claude, codex and gemini, on loopback.  The prompt says what the model does.

    with MockAPI() as mock:
        mock.base("tag")         the address for a CLI; what it asks there is recorded under the tag
        mock.requests("tag")     the requests so far, each a Request

By hand: `python3 tests/real/mock_api.py`; it prints the address of the tag `hand` for each CLI, and a line for each request.

A line of the prompt that starts with `mock: ` is a directive; without any the answer is ANSWER.  The tools are used in the
order of their lines, one a turn, and the rest of the directives hold for the turn after them:

    write PATH      writes the file with the CLI's own tool for it     say TEXT      answers so
    shell COMMAND   runs the command with the CLI's shell tool         flood N       answers with N characters
    loop COMMAND    the same on every turn, for ever                   empty         answers with nothing
    structured JSON answers so, with the tool for it where the CLI has one, as often as it is asked
    again JSON      `structured` after a prompt that says that the answer was not valid by its schema, also in the same conversation
    insist          uses tools that were not offered, too              max-tokens    the answer ends at the limit of tokens
    status N [retry-after=S] [times=K]   answers with that HTTP error, K times where it is said
    reset S [times=K]   the limit of the account is used up, and is reset in S seconds
    background COMMAND  runs the command with claude's shell tool, which does not wait for it
    quota           the quota or credit is used up                     refuse        the answer is refused
    context         the prompt is too long for the model
    error-event [times=K]   an error in the middle of a stream
    bad-key         as for a wrong key                                 cut           a stream that ends in the middle
    hang            no answer, ever                                    hang-mid      a stream that stands still in the middle

`error-event`, `cut` and `hang-mid` concern streams; a request for an answer in one piece gets it.
"""
import json
import re
import select
import socket
import sys
import threading
import time
import urllib.parse
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER = "The mock model answers."
WRITTEN = "written by the mock\n"

# What every answer is said to have cost.  In clinvk's terms 1500 tokens of input, 200 of them cached, and 40 of output.
UNCACHED, CACHE_WRITTEN, CACHED, OUTPUT, THOUGHTS = 1000, 300, 200, 40, 10
INPUT = UNCACHED + CACHE_WRITTEN + CACHED

# `user` is what the user wrote last, as the CLI sent it; `results` how many tools have answered since; `body` all of it, as bytes.
# `call` is False for counting tokens, listing models and the like, and for what a CLI asks on its own account, with a `schema`.
Request = namedtuple("Request", "time tag api method path headers call stream model system max_tokens tools user results schema "
                                "body")

# What stands around a prompt in a request, put there by a CLI.
NOT_THE_USER = ("<system-reminder>", "<environment_context>", "<session_context>", "<user_instructions>", "<permissions", "# AGENTS.md",
                "<skills", "<collaboration", "<plugins", "<recommended")


# --- The three APIs: how to read a request, and how to say an answer or an error ---
# read(path, body) gives (model, stream, system, max_tokens, tools, blocks), where blocks are what the user's side said, a text or
# None for the result of a tool.  tool(step, offered) is the call for a `write` or `shell`.
# frames(request, text, call, end) are the events of a stream; a None among them marks its middle.  whole() is the answer in one piece.


class Anthropic:
    errors = {400: ("invalid_request_error", "messages: mock says bad request"), 401: ("authentication_error", "invalid x-api-key"),
              403: ("permission_error", "Your API key does not have permission to use the specified resource."),
              404: ("not_found_error", "model: {model}"), 413: ("request_too_large", "Request exceeds the maximum size"),
              429: ("rate_limit_error", "This request would exceed your organization's rate limit of 50 requests per minute."),
              500: ("api_error", "Internal server error"), 503: ("api_error", "Service unavailable"),
              529: ("overloaded_error", "Overloaded"),
              "quota": (400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API. Please go to "
                                                      "Plans & Billing to upgrade or purchase credits."),
              "context": (400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"),
              "bad-key": (401, "authentication_error", "invalid x-api-key")}
    ends = {"": "end_turn", "max-tokens": "max_tokens", "refuse": "refusal"}

    @staticmethod
    def read(path, body):
        system = body.get("system") or ""
        if not isinstance(system, str):
            system = "\n".join(block.get("text", "") for block in system)
        blocks = []
        for message in body.get("messages", ()):
            content = message["content"]
            if message["role"] == "user":
                for block in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                    if block["type"] in ("text", "tool_result"):
                        blocks.append(block.get("text"))
        return (body.get("model", ""), bool(body.get("stream")), system, body.get("max_tokens"),
                [tool.get("name") for tool in body.get("tools") or ()], blocks)

    @staticmethod
    def tool(step, offered):
        kind, argument = step
        if kind == "write":
            return "Write", {"file_path": argument, "content": WRITTEN}
        return "Bash", dict({"command": argument, "description": "what the mock wants"}, **{"run_in_background": True} if kind == "background" else {})

    @classmethod
    def whole(cls, request, text, call, end):
        content = [{"type": "text", "text": text}] if text or not call else []
        if call:
            content.append({"type": "tool_use", "id": unique("toolu"), "name": call[0], "input": call[1]})
        return {"id": unique("msg"), "type": "message", "role": "assistant", "model": request.model, "content": content,
                "stop_reason": "tool_use" if call else cls.ends.get(end, "end_turn"), "stop_sequence": None,
                "usage": {"input_tokens": UNCACHED, "cache_creation_input_tokens": CACHE_WRITTEN, "cache_read_input_tokens": CACHED,
                          "output_tokens": OUTPUT}}

    @classmethod
    def frames(cls, request, text, call, end):
        message = cls.whole(request, text, call, end)

        def event(kind, **fields):
            return sse(dict(fields, type=kind), kind)

        yield event("message_start", message=dict(message, content=[], stop_reason=None))
        if end == "error-event":
            yield event("error", error=dict(zip(("type", "message"), cls.errors[529])))
            return
        for index, block in enumerate(message["content"]):
            if block["type"] == "text":
                start, pieces = dict(block, text=""), [{"type": "text_delta", "text": piece} for piece in halves(block["text"])]
            else:
                start, pieces = dict(block, input={}), [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
            yield event("content_block_start", index=index, content_block=start)
            for piece in pieces:
                yield event("content_block_delta", index=index, delta=piece)
                yield None
            yield event("content_block_stop", index=index)
        yield event("message_delta", delta={"stop_reason": message["stop_reason"], "stop_sequence": None}, usage=message["usage"])
        yield event("message_stop")

    @staticmethod
    def failure(request, status, kind, message, retry_after):
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_mock"}

    @classmethod
    def used_up(cls, request, seconds):
        """claude heeds these headers where it is logged in to an account."""
        windows = {"": ("rejected", seconds, None), "5h-": ("rejected", seconds, "1.0"), "7d-": ("allowed", 9999, "0.25")}
        headers = {"anthropic-ratelimit-unified-representative-claim": "five_hour", "retry-after": str(seconds)}
        for name, (status, after, used) in windows.items():
            named = {"status": status, "reset": str(int(time.time()) + after), "utilization": used}
            headers.update({"anthropic-ratelimit-unified-%s%s" % (name, key): value for key, value in named.items() if value})
        return 429, cls.failure(request, 429, *cls.errors[429], None), headers


class OpenAI:
    errors = {400: ("invalid_request_error", "Unsupported parameter: mock says bad request."),
              401: ("invalid_request_error invalid_api_key", "Incorrect API key provided: mock. You can find your API key at "
                                                             "https://platform.openai.com/account/api-keys."),
              403: ("invalid_request_error", "You are not allowed to use this model."),
              404: ("invalid_request_error model_not_found", "The model `{model}` does not exist or you do not have access to it."),
              429: ("requests rate_limit_exceeded", "Rate limit reached for {model} in organization org-mock on requests per min (RPM): "
                                                    "Limit 3, Used 3, Requested 1. Please try again in 20s."),
              500: ("server_error", "The server had an error while processing your request. Sorry about that!"),
              503: ("server_error", "The engine is currently overloaded, please try again later."),
              "quota": (429, "insufficient_quota insufficient_quota", "You exceeded your current quota, please check your plan and "
                                                                      "billing details."),
              "context": (400, "invalid_request_error context_length_exceeded", "Your input exceeds the context window of this model. "
                                                                                "Please adjust your input and try again.")}
    errors["bad-key"] = (401,) + errors[401]

    @staticmethod
    def read(path, body):
        system, blocks, tools = [body.get("instructions") or ""], [], []
        for item in body.get("input", ()):
            if item.get("type", "message") == "message":
                texts = [block.get("text", "") for block in item["content"]]
                if item["role"] == "user":
                    blocks += texts
                elif item["role"] in ("developer", "system"):
                    system += texts
            elif item["type"].endswith("_output"):
                blocks.append(None)
        for tool in body.get("tools") or ():
            tools += [inner.get("name") for inner in tool.get("tools", ())] if tool["type"] == "namespace" else [tool.get("name") or tool["type"]]
        return body.get("model", ""), bool(body.get("stream")), "\n".join(system), body.get("max_output_tokens"), tools, blocks

    @staticmethod
    def tool(step, offered):
        kind, argument = step
        if kind == "write" and "apply_patch" in offered:
            return "apply_patch", "*** Begin Patch\n*** Add File: %s\n+%s*** End Patch\n" % (argument, WRITTEN)
        if kind == "write":
            argument = "printf '%%s' '%s' > '%s'" % (WRITTEN, argument)
        if "exec" in offered and "exec_command" not in offered:  # JavaScript that calls the tools
            return "exec", "text(await tools.exec_command({cmd: %s, yield_time_ms: 30000}));" % json.dumps(argument)
        return "exec_command", {"cmd": argument, "yield_time_ms": 30000}

    @staticmethod
    def whole(request, text, call, end):
        if call and isinstance(call[1], str):
            item = {"type": "custom_tool_call", "id": unique("ctc"), "call_id": unique("call"), "name": call[0], "input": call[1]}
        elif call:
            item = {"type": "function_call", "id": unique("fc"), "call_id": unique("call"), "name": call[0], "arguments": json.dumps(call[1])}
        else:
            content = {"type": "refusal", "refusal": text} if end == "refuse" else {"type": "output_text", "text": text, "annotations": []}
            item = {"type": "message", "role": "assistant", "id": unique("msg"), "status": "completed", "content": [content]}
        return {"id": unique("resp"), "object": "response", "model": request.model, "status": "completed", "output": [item],
                "usage": {"input_tokens": INPUT, "input_tokens_details": {"cached_tokens": CACHED, "cache_write_tokens": CACHE_WRITTEN},
                          "output_tokens": OUTPUT, "output_tokens_details": {"reasoning_tokens": THOUGHTS}, "total_tokens": INPUT + OUTPUT}}

    @classmethod
    def frames(cls, request, text, call, end):
        response = cls.whole(request, text, call, end)
        begun, item = dict(response, status="in_progress", output=[], usage=None), response["output"][0]

        def event(kind, **fields):
            return sse(dict(fields, type=kind), kind)

        yield event("response.created", response=begun)
        if end == "error-event":
            yield event("response.failed", response=dict(begun, status="failed", error={
                "code": "rate_limit_exceeded", "message": "Rate limit reached for %s. Please try again in 2s." % request.model}))
            return
        if call:
            yield event("response.output_item.added", output_index=0, item=item)
        else:
            yield event("response.output_item.added", output_index=0, item=dict(item, content=[], status="in_progress"))
            kind = "refusal" if end == "refuse" else "output_text"
            for piece in halves(text):
                yield event("response.%s.delta" % kind, output_index=0, content_index=0, item_id=item["id"], delta=piece)
                yield None
        yield event("response.output_item.done", output_index=0, item=item)
        if end == "max-tokens":
            yield event("response.incomplete", response=dict(response, status="incomplete", incomplete_details={"reason": "max_output_tokens"}))
        else:
            yield event("response.completed", response=response)

    @staticmethod
    def failure(request, status, kind, message, retry_after):
        kind, _, code = kind.partition(" ")
        return {"error": {"message": message, "type": kind, "param": None, "code": code or None}}

    @staticmethod
    def used_up(request, seconds):
        return 429, {"error": {"type": "usage_limit_reached", "message": "The usage limit has been reached", "plan_type": "plus",
                               "resets_at": int(time.time()) + seconds, "resets_in_seconds": seconds}}, {}


class Gemini:
    errors = {400: ("INVALID_ARGUMENT", "Request contains an invalid argument."),
              401: ("UNAUTHENTICATED", "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or "
                                       "other valid authentication credential."),
              403: ("PERMISSION_DENIED", "The caller does not have permission"),
              404: ("NOT_FOUND", "models/{model} is not found for API version v1beta, or is not supported for generateContent."),
              429: ("RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
              500: ("INTERNAL", "An internal error has occurred. Please retry."),
              503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
              "quota": (429, "RESOURCE_EXHAUSTED PerDay", "You exceeded your current quota, please check your plan and billing details."),
              "context": (400, "INVALID_ARGUMENT", "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."),
              "bad-key": (400, "INVALID_ARGUMENT API_KEY_INVALID", "API key not valid. Please pass a valid API key.")}
    ends = {"": "STOP", "max-tokens": "MAX_TOKENS", "refuse": "SAFETY"}

    @staticmethod
    def read(path, body):
        blocks = []
        for content in body.get("contents", ()):
            if content.get("role", "user") == "user":
                blocks += [part.get("text") for part in content["parts"] if "text" in part or "functionResponse" in part]
        system = body.get("systemInstruction") or {}
        model, _, method = path.rpartition("/")[2].partition(":")
        return (model, method.startswith("stream"), "\n".join(part.get("text", "") for part in system.get("parts", ())),
                body.get("generationConfig", {}).get("maxOutputTokens"),
                [function["name"] for tool in body.get("tools") or () for function in tool.get("functionDeclarations", ())], blocks)

    @staticmethod
    def tool(step, offered):
        kind, argument = step
        if kind == "write":
            return "write_file", {"file_path": argument, "content": WRITTEN}
        return "run_shell_command", {"command": argument, "description": "what the mock wants"}

    @classmethod
    def whole(cls, request, text, call, end, final=True):
        part = {"functionCall": {"id": unique("call"), "name": call[0], "args": call[1]}} if call else {"text": text}
        answer = {"candidates": [{"content": {"role": "model", "parts": [part]}, "index": 0}], "modelVersion": request.model,
                  "responseId": unique("mock")}
        if final:
            answer["candidates"][0]["finishReason"] = "STOP" if call else cls.ends[end]
            answer["usageMetadata"] = {"promptTokenCount": INPUT, "candidatesTokenCount": OUTPUT - THOUGHTS, "thoughtsTokenCount": THOUGHTS,
                                       "cachedContentTokenCount": CACHED, "totalTokenCount": INPUT + OUTPUT}
        return answer

    @classmethod
    def frames(cls, request, text, call, end):
        if end == "error-event":
            yield sse(cls.failure(request, 429, *cls.errors[429], retry_after=None))
        elif call:
            yield sse(cls.whole(request, text, call, end))
        else:
            first, second = halves(text)
            yield sse(cls.whole(request, first, call, end, final=False))
            yield None
            yield sse(cls.whole(request, second, call, end))

    @staticmethod
    def failure(request, status, kind, message, retry_after):
        kind, _, reason = kind.partition(" ")
        details = []
        if kind == "RESOURCE_EXHAUSTED":
            details.append({"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [
                {"quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests", "quotaDimensions": {"model": request.model},
                 "quotaId": "GenerateRequests%sPerProjectPerModel-FreeTier" % (reason or "PerMinute"), "quotaValue": "10"}]})
        elif reason:
            details.append({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"})
        if retry_after:
            details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "%ss" % retry_after})
        return {"error": dict({"code": status, "message": message, "status": kind}, **({"details": details} if details else {}))}

    @classmethod
    def used_up(cls, request, seconds):
        return 429, cls.failure(request, 429, *cls.errors[429], retry_after=seconds), {"retry-after": str(seconds)}


def unique(prefix):
    unique.count += 1
    return "%s_mock%06d" % (prefix, unique.count)


unique.count = 0


def sse(data, event=""):
    return ("event: %s\n" % event if event else "").encode() + b"data: " + json.dumps(data).encode() + b"\n\n"


def halves(text):
    return text[:len(text) // 2], text[len(text) // 2:]


def flood(size):
    """A text of that many characters that does not repeat itself: gemini stops a model that does."""
    return " ".join(map(str, range(size // 2)))[:size]


def example(schema):
    """A value that fits a JSON schema, more or less: for what a CLI asks on its own account."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = str(schema.get("type", "string")).lower()
    if kind == "object":
        return {name: example(inner) for name, inner in schema.get("properties", {}).items()}
    return {"array": [], "integer": 1, "number": 1, "boolean": False}.get(kind, "mock")


# --- The server ---


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        pass

    def do_HEAD(self):
        self._note(b"")
        self._send(200, b"")

    def do_GET(self):
        self._note(b"")
        self._send(404, b"{}")

    def do_POST(self):
        size = self.headers.get("content-length")
        try:
            api, request = self._note(self.rfile.read(int(size)) if size else b"".join(self._chunks()))
            if request.call:
                self._answer(api, request)
            elif api:  # what a CLI asks on its own account
                schema = request.schema
                self._send(200, api.whole(request, json.dumps(example(schema)), None, "") if schema else
                           {"input_tokens": INPUT, "totalTokens": INPUT})
            else:
                self._send(404, {"error": {"message": "the mock has no " + self.path}})
        except ConnectionError:
            self.close_connection = True

    def _chunks(self):
        size = True
        while size:
            size = int(self.rfile.readline().partition(b";")[0], 16)
            yield self.rfile.read(size)
            self.rfile.readline()

    def _note(self, body):
        """Records the request.  Its API, None where it is for none, and the Request."""
        path = urllib.parse.urlsplit(self.path).path
        api = (Anthropic if "/v1/messages" in path else OpenAI if path.endswith("/responses") else Gemini if ":" in path else None)
        if self.command != "POST":
            api = None
        content = json.loads(body) if api else {}
        model, stream, system, max_tokens, tools, blocks = api.read(path, content) if api else ("", False, "", None, [], [])
        config = content.get("generationConfig", {})
        schema = config.get("responseJsonSchema") or config.get("responseSchema")
        user, results = "", 0
        for block in blocks:
            if block is None:
                results += 1
            elif not block.lstrip().startswith(NOT_THE_USER):
                user, results = block, 0
        request = Request(time.time(), path.split("/")[1], api.__name__.lower() if api else "", self.command, path,
                          {name.lower(): value for name, value in self.headers.items()},
                          bool(api) and not schema and not path.lower().endswith(("count_tokens", ":counttokens")),
                          stream, model, system, max_tokens, tools, user, results, schema, body)
        self.server.mock.note(request)
        return api, request

    def _answer(self, api, request):
        """Does what the directives say."""
        lines = re.findall(r"(?m)^mock: (\S+) ?(.*?)\r?$", request.user)
        said = dict(lines)
        again = self.server.mock.again
        if "again" in said:
            again[request.tag, request.api] = said["again"]
        if "not valid by the JSON Schema" in request.user:
            said["structured"] = again.get((request.tag, request.api), ANSWER)
        calls = [api.tool(line, request.tools) for line in lines if line[0] in ("write", "shell", "background")]
        if "insist" not in said:
            calls = [call for call in calls if call[0] in request.tools]
        call = calls[request.results] if request.results < len(calls) else None
        if "loop" in said:
            call = api.tool(("shell", said["loop"]), request.tools)
        if "structured" in said and "StructuredOutput" in request.tools:
            call = "StructuredOutput", json.loads(said["structured"])
        if call:
            return self._stream(api.frames(request, "", call, "")) if request.stream else self._send(200, api.whole(request, "", call, ""))
        if "hang" in said:
            return self._hang()
        trouble = next((name for name in ("quota", "context", "bad-key") if name in said), None)
        if trouble:
            return self._fail(api, request, trouble)
        for name in ("status", "reset", "error-event"):
            options = dict(option.split("=") for option in said.get(name, "").split() if "=" in option)
            if "times" in options and self.server.mock.count(request) > int(options["times"]):
                del said[name]
            elif name in said and name != "error-event":
                value = int(said[name].split()[0])
                return self._send(*api.used_up(request, value)) if name == "reset" else self._fail(api, request, value, options.get("retry-after"))
        text = said.get("say") or said.get("structured", "" if "empty" in said else flood(int(said["flood"])) if "flood" in said else ANSWER)
        end = next((name for name in ("max-tokens", "refuse", "error-event") if name in said), "")
        if request.stream:
            return self._stream(api.frames(request, text, None, end), next((name for name in ("cut", "hang-mid") if name in said), ""))
        return self._send(200, api.whole(request, text, None, "" if end == "error-event" else end))

    def _stream(self, frames, in_the_middle=""):
        self.close_connection = True
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for frame in frames:
            if frame:
                self.wfile.write(frame)
            elif in_the_middle:
                return self._hang() if in_the_middle == "hang-mid" else None
        return None

    def _fail(self, api, request, what, retry_after=None):
        status, kind, message = api.errors[what] if isinstance(what, str) else (what,) + api.errors.get(what, ("error", "mock error %d" % what))
        self._send(status, api.failure(request, status, kind, message.format(model=request.model), retry_after),
                   {"retry-after": retry_after} if retry_after else {})

    def _send(self, status, value, headers=()):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in dict(headers, **{"content-type": "application/json", "content-length": str(len(body))}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def _hang(self):
        """Until the client goes away, or the mock ends."""
        self.close_connection = True
        select.select([self.connection, self.server.mock.ending], [], [])


class MockAPI:
    """The server, as a context manager; it runs in threads of this process."""

    def __init__(self, on_request=lambda request: None):
        self.again = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.mock = self
        self._lock, self._requests, self._counts, self._on_request = threading.Lock(), [], {}, on_request
        self.ending, self._end = socket.socketpair()

    def base(self, tag):
        return "http://127.0.0.1:%d/%s" % (self._server.server_address[1], tag)

    def requests(self, tag, calls=True):
        """The requests with a tag, oldest first; with `calls` those for an answer to a prompt alone."""
        with self._lock:
            return [request for request in self._requests if request.tag == tag and (request.call or not calls)]

    def note(self, request):
        with self._lock:
            self._requests.append(request)
        self._on_request(request)

    def count(self, request):
        """How often this prompt was asked under its tag, this time included."""
        with self._lock:
            key = request.tag, request.user
            self._counts[key] = self._counts.get(key, 0) + 1
            return self._counts[key]

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._end.close()  # which ends what hangs
        self._server.shutdown()
        self._server.server_close()


def main():
    def show(request):
        print("%s %s %s model=%s max_tokens=%s tools=%s user=%r" % (
            time.strftime("%H:%M:%S"), request.method, request.path, request.model, request.max_tokens, ",".join(map(str, request.tools)),
            request.user[-200:]), flush=True)

    with MockAPI(show) as mock:
        print("ANTHROPIC_BASE_URL=%s ANTHROPIC_API_KEY=mock" % mock.base("hand"))
        print("GOOGLE_GEMINI_BASE_URL=%s GEMINI_API_KEY=mock" % mock.base("hand"))
        print('codex: base_url = "%s/v1", wire_api = "responses"' % mock.base("hand"), flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    sys.exit(main())
