"""A language model as judge: what it is asked, how its words are counted, and what happens where it cannot be asked."""

from __future__ import annotations

import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from megagpt.config.load import ConfigError
from megagpt.config.schema import JudgeConfig
from megagpt.rlhf.judge import INSTRUCTION, Judge, JudgeError, read_verdict


@pytest.fixture
def server():
    """Replies by `server.verdict(request body)`: a status and what to send."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.asked.append((self.path, self.headers.get("Authorization"), body))
            status, reply, *headers = found.verdict(body)
            payload = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_):
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.asked, found.url = [], f"http://127.0.0.1:{found.server_port}/v1"
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join(10)


def says(word: str):
    return 200, {"choices": [{"message": {"role": "assistant", "content": word}}]}


def shown(body: dict) -> tuple[str, str]:
    """The two answers of a request."""
    text = body["messages"][1]["content"]
    return tuple(text.split(f"<answer {name}>\n")[1].split(f"\n</answer {name}>")[0] for name in "AB")


def test_judge_sees_both_orders_and_counts_what_it_says(server):
    longer = {"good answer": "short", "even": "even", "bad": "a long one"}

    def verdict(body):
        a, b = shown(body)
        return says("tie" if len(a) == len(b) else "A" if len(a) > len(b) else "The better one is B.")

    server.verdict = verdict
    found = Judge(JudgeConfig(url=server.url, model="m")).compare(["q"] * 3, list(longer), list(longer.values()))
    assert (found.win_rate, found.questions, found.inconsistent, found.unreadable) == (pytest.approx((1 + 0.5 + 0) / 3), 3, 0, 0)
    assert len(server.asked) == 6
    path, key, body = server.asked[0]
    assert path == "/v1/chat/completions" and key is None
    assert body["model"] == "m" and body["temperature"] == 0 and body["messages"][0] == {"role": "system", "content": INSTRUCTION}


def test_judge_that_likes_a_place_decides_nothing(server):
    server.verdict = lambda body: says("A")
    found = Judge(JudgeConfig(url=server.url, model="m")).compare(["q"] * 4, ["x"] * 4, ["y"] * 4)
    assert (found.win_rate, found.inconsistent, found.unreadable) == (0.5, 4, 0)
    server.verdict = lambda body: says("I would rather not say.")
    found = Judge(JudgeConfig(url=server.url, model="m")).compare(["q"] * 2, ["x"] * 2, ["y"] * 2)
    assert (found.win_rate, found.inconsistent, found.unreadable) == (0.5, 0, 4)


def test_judge_key_comes_from_the_environment_and_goes_to_one_host(server, monkeypatch):
    config = JudgeConfig(url=server.url, model="m", key_variable="JUDGE_KEY")
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match="judge.key_variable = JUDGE_KEY: the environment has no such variable"):
        Judge(config)
    monkeypatch.setenv("JUDGE_KEY", "secret")
    server.verdict = lambda body: says("tie")
    Judge(config).compare(["q"], ["x"], ["y"])
    assert {key for _, key, _ in server.asked} == {"Bearer secret"}
    server.verdict = lambda body: (307, "", ("Location", "http://127.0.0.1:9/elsewhere"))
    with pytest.raises(JudgeError, match="HTTP 307") as raised:
        Judge(config).compare(["q"], ["x"], ["y"])
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("reply", "message", "requests"),
    [((401, "no"), "HTTP 401", 1), ((503, "busy"), "HTTP 503", 3), ((200, "<html>"), "not a chat completion", 1), ((200, {"choices": []}), "not a chat completion", 1)],
)
def test_judge_that_cannot_be_asked_is_named(server, reply, message, requests):
    server.verdict = lambda body: reply
    with pytest.raises(JudgeError, match=message):
        Judge(JudgeConfig(url=server.url, model="m")).compare(["q"], ["x"], ["y"])
    assert len(server.asked) in (requests, 2 * requests)  # both orders are under way at the same time


def test_judge_that_is_not_there_is_named():
    with pytest.raises(JudgeError, match=r"judge.url = http://127.0.0.1:9/v1/chat/completions: .*refused"):
        Judge(JudgeConfig(url="http://127.0.0.1:9/v1", model="m")).compare(["q"], ["x"], ["y"])


@pytest.mark.parametrize(
    ("sent", "message"),
    [(b"no HTTP at all\r\n", "no HTTP at all"), (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n90\r\n{", "IncompleteRead"), (b"", "Remote end closed connection")],
)
def test_judge_that_breaks_off_is_named(sent, message):
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1 << 16)
            self.request.sendall(sent)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(JudgeError, match=message):
            Judge(JudgeConfig(url=f"http://127.0.0.1:{server.server_address[1]}/v1", model="m")).compare(["q"], ["x"], ["y"])
        server.shutdown()


def test_judge_key_from_a_file_may_end_its_line(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret\n")
    server.verdict = lambda body: says("tie")
    Judge(JudgeConfig(url=server.url, model="m", key_variable="JUDGE_KEY")).compare(["q"], ["x"], ["y"])
    assert {key for _, key, _ in server.asked} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [("A", "a"), ("B.", "b"), (" tie", "tie"), ("Answer: B", "b"), ("**A**", "a"), ("TIE", "tie"), ("Apples", None), ("", None), ("both", None)],
)
def test_judge_words_are_read(reply, verdict):
    assert read_verdict(reply) == verdict
