"""The server on a real port of this machine: what clients send, and what they get."""

import json
import re
import shutil
import socket
import subprocess
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from support import serving, tiny
from support.serving import CONFIG

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")
pytest.importorskip("prometheus_client", reason="needs the extra `serve`")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from support.server import Running  # noqa: E402

from spt_jax.config.devices import MeshConfig  # noqa: E402
from spt_jax.config.serve import ServeConfig  # noqa: E402
from spt_jax.models.backbone import load_backbone  # noqa: E402
from spt_jax.prompts.words import words_of  # noqa: E402
from spt_jax.serving.engine import Engine  # noqa: E402

TEXT = tiny.sentences()[0][0]
ROUTES = (
    ("GET", "/"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/animals"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/classify"),
    ("GET", "/v1/prompts"),
    ("GET", "/v1/prompts/animals/words"),
    ("PUT", "/v1/prompts/animals"),
    ("DELETE", "/v1/prompts/animals"),
    ("GET", "/nowhere"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def paths(folder):
    return serving.write_prompts(folder)


@pytest.fixture(scope="module")
def engine(folder, paths):
    backbone = load_backbone(str(folder / "tiny"), mesh=MeshConfig(data=1))
    with Engine(
        backbone, paths, CONFIG, ensembles={"both": ["animals", "plants"]}, prompts_dir=folder
    ) as engine:
        engine.wait_until_ready(300)
        yield engine


@pytest.fixture(scope="module")
def server(engine):
    with Running(engine, allow_load=True) as running:
        yield running


def problem(response, status):
    """The message of an error, which has the form of OpenAI and one sentence."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "\n" not in error["message"] and "Traceback" not in error["message"]
    return error["message"]


def test_the_client_of_openai_works_unchanged(server, engine):
    openai = pytest.importorskip("openai", reason="needs openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        _use(openai, client, engine)


def _use(openai, client, engine):
    cards = {card.id: card for card in client.models.list()}
    assert list(cards) == ["tiny-0", "animals", "plants", "pairs", "both"]
    assert cards["animals"].parent == "tiny-0" and cards["animals"].length == 3
    assert client.models.retrieve("plants").labels == ["animal", "plant"]
    [expected] = engine.complete("animals", [TEXT]).result(60)
    answer = client.completions.create(model="animals", prompt=TEXT, logprobs=1, max_tokens=3)
    [choice] = answer.choices
    assert answer.usage.completion_tokens == len(choice.logprobs.tokens) <= 3
    assert expected.text.startswith(choice.text) and choice.index == 0
    drawn = client.completions.create(
        model="animals", prompt=[TEXT, TEXT], n=2, temperature=2, top_p=0.9, seed=3, stop=["q"]
    )
    assert [choice.index for choice in drawn.choices] == [0, 1, 2, 3]
    events = list(
        client.completions.create(
            model="both", prompt=[TEXT] * 2, stream=True, stream_options={"include_usage": True}
        )
    )
    assert [len(event.choices) for event in events] == [1, 1, 0]
    assert events[0].choices[0].text == events[1].choices[0].text
    assert events[2].usage.total_tokens > 0 and events[0].usage is None
    with pytest.raises(openai.NotFoundError, match="there is no model 'animal'.*did you mean"):
        client.completions.create(model="animal", prompt=TEXT)
    with pytest.raises(openai.BadRequestError, match="suffix is given, which this server cannot"):
        client.completions.create(model="animals", prompt=TEXT, suffix="x")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_classifies_one_text_by_several_prompts(server):
    body = {"model": ["animals", "plants", "both"], "input": TEXT}
    result = subprocess.run(
        ["curl", "-sS", "-H", "Content-Type: application/json", "-d", json.dumps(body)]
        + [f"{server.url}/v1/classify"],
        capture_output=True,
        text=True,
    )
    answer = json.loads(result.stdout)
    assert [found["model"] for found in answer["data"]] == body["model"]
    for found in answer["data"]:
        shares = [label["probability"] for label in found["labels"]]
        assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True)
        assert found["label"] == found["labels"][0]["label"]
    assert {batch["program"] for batch in answer["batches"]} == {"score"}
    assert answer["usage"]["prompt_tokens"] > 0


def test_fields_of_a_template_and_finished_inputs(server, engine):
    fields = {"first": "the cat", "second": "the oak"}
    [by_fields] = server.post("/v1/completions", model="pairs", prompt=fields).json()["choices"]
    raw = server.post("/v1/completions", model="pairs", prompt="the cat or the oak", raw=True)
    assert raw.json()["choices"] == [by_fields]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "the field model is missing"),
        ({"model": "animals"}, "the field prompt is missing"),
        ({"model": "animals", "prompt": []}, "prompt is neither a text, nor an object with"),
        ({"model": "animals", "prompt": [1, 2]}, "prompt is neither a text, nor an object with"),
        ({"model": "animals", "prompt": TEXT, "max_new": 1}, "'max_new' is no field of this"),
        ({"model": "animals", "prompt": TEXT, "n": "2"}, "n: input should be a valid integer"),
        ({"model": "animals", "prompt": TEXT, "n": 10**9}, "the request has 1000000000 rows"),
        ({"model": "animals", "prompt": TEXT, "max_tokens": 10**9}, "max_tokens is 1000000000,"),
        ({"model": "animals", "prompt": TEXT, "max_tokens": -1}, "max_tokens is -1, expected 1"),
        ({"model": "animals", "prompt": TEXT, "logprobs": 5}, "logprobs is 5, expected 0 for"),
        ({"model": "animals", "prompt": TEXT, "echo": True}, "echo is given, which this server"),
        ({"model": "animals", "prompt": TEXT, "best_of": 3}, "best_of is given, which this ser"),
        ({"model": "animals", "prompt": TEXT, "stop": ""}, "stop: string should have at least 1"),
        (
            {"model": "animals", "prompt": TEXT, "stream_options": {"include_usage": True}},
            "stream_options is given without stream",
        ),
        ({"model": "pairs", "prompt": TEXT}, "a text is given, but the template"),
        ({"model": "animals", "prompt": "cat " * 40}, "the text has "),
    ],
)
def test_a_request_that_cannot_be_honoured_is_told_in_one_sentence(server, body, message):
    assert problem(server.post("/v1/completions", **body), 400).startswith(message)


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b"{", 400, "the body is not JSON: "),
        (b'{"model": "\xff"}', 400, "the body is no JSON in UTF-8"),
        (b"[" * 3000, 400, "the body is no"),
        (b'{"model": "animals", "prompt": ' + b'{"a":' * 600 + b"1" + b"}" * 601, 400, ""),
        (b'{"model": "animals", "prompt": "\\ud800"}', 400, "text has half of a surrogate"),
        (b'{"model": "\\ud800", "prompt": "a"}', 400, "model: input should be a valid string"),
        (b'{"model": "animals", "prompt": "a", "temperature": NaN}', 400, "temperature is nan"),
        (b'{"model": "animals", "prompt": "a", "seed": ' + b"9" * 3900 + b"}", 400, ""),
        (b'"animals"', 400, "the body is no JSON object"),
        (b"", 400, "the body is no JSON object"),
        (b" " * 5000, 413, "the body has more than 4,000 bytes"),
    ],
)
def test_a_body_that_is_no_form_is_refused_and_the_next_request_is_fine(
    server, data, status, message
):
    headers = {"Content-Type": "application/json"}
    found = server.ask("POST", "/v1/completions", content=data, headers=headers)
    assert problem(found, status).startswith(message)
    assert server.post("/v1/completions", model="animals", prompt=TEXT).status_code == 200


def test_other_kinds_of_bodies_methods_and_paths_are_refused(server):
    form = server.ask("POST", "/v1/classify", data={"model": "animals"})
    assert problem(form, 415).startswith("the body is no JSON; send the header Content-Type")
    assert problem(server.ask("GET", "/v1/classify"), 405) == "this path does not take GET"
    assert problem(server.ask("GET", "/v1/nowhere"), 404) == "there is no such path"
    unknown = server.ask("GET", "/v1/models/<b>")
    assert problem(unknown, 404) == "there is no model '<b>'"


def test_a_body_without_a_stated_length_is_cut_off_at_the_limit(server):
    def parts():
        for _ in range(100):
            yield b" " * 1000

    headers = {"Content-Type": "application/json"}
    found = server.ask("POST", "/v1/completions", content=parts(), headers=headers)
    assert problem(found, 413).startswith("the body has more than 4,000 bytes")


@pytest.mark.parametrize("length", [b"Content-Length: 5000\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_refused_body_is_read_to_its_end_so_that_the_answer_arrives(server, length):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    chunked = length.startswith(b"T")
    first, last = (b"1388\r\n" + b" " * 4999, b" \r\n0\r\n\r\n") if chunked else (b" " * 4999, b" ")
    with socket.create_connection(server.address, timeout=0.5) as connection:
        connection.sendall(head + length + b"\r\n" + first)
        with pytest.raises(TimeoutError):  # no answer while a part of the body is missing
            connection.recv(1)
        connection.settimeout(10)
        connection.sendall(last)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert b" 413 " in answer and b"more than 4,000 bytes" in answer


def test_a_client_that_waits_to_be_asked_for_its_body_is_refused_at_once(server):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    answer, closed = server.send(head + b"Expect: 100-continue\r\nContent-Length: 5000\r\n\r\n")
    assert closed and answer.startswith(b"HTTP/1.1 413 ")


def test_slow_and_broken_connections_are_closed_and_take_no_place_from_others(server):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    answer, closed = server.send(head + b"Content-Length: 100\r\n\r\n{")
    assert closed and b" 408 " in answer and b"did not arrive within 1 s" in answer
    answer, closed = server.send(head)  # whose end never comes
    assert closed and answer == b""
    answer, closed = server.send(b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n")
    assert closed and (b" 400 " in answer or b" 431 " in answer)
    assert server.send(b"\x16\x03\x01 no HTTP\r\n\r\n")[0].startswith(b"HTTP/1.1 400 ")
    idle = [socket.create_connection(server.address) for _ in range(60)]
    try:
        assert server.ask("GET", "/health/ready").status_code == 200
        assert server.post("/v1/completions", model="animals", prompt=TEXT).status_code == 200
    finally:
        for connection in idle:
            connection.close()


def test_every_route_needs_the_key(engine):
    with Running(engine, api_key="sécret", allow_load=True) as running:
        for method, path in ROUTES:
            body = {"json": {"model": "animals"}} if method == "POST" else {}
            lacks = running.ask(method, path, **body)
            assert problem(lacks, 401).startswith("no API key is given; send the header Auth")
            wrong = running.ask(method, path, headers={"Authorization": "Bearer secret"}, **body)
            assert problem(wrong, 401) == "the API key is not that of this server"
            assert wrong.headers["www-authenticate"].startswith("Basic ")
        right = {"Authorization": "Bearer sécret".encode()}
        assert running.ask("GET", "/v1/models", headers=right).status_code == 200
        # A browser asks for a name and a password.
        basic = httpx.BasicAuth("anyone", "sécret")
        assert running.ask("GET", "/health/ready", auth=basic).status_code == 200
        assert "animals" in engine.names()  # which a request without the key did not unload


def test_prompts_are_loaded_and_unloaded_by_name(server, folder):
    shutil.copy(folder / "animals" / "prompt.safetensors", folder / "later.safetensors")
    assert server.ask("PUT", "/v1/prompts/later").json()["length"] == 3
    found = server.post("/v1/completions", model="later", prompt=f"say: {TEXT}")
    same = server.post("/v1/completions", model="animals", prompt=TEXT)
    assert found.json()["choices"] == same.json()["choices"]
    room = server.ask("GET", "/v1/prompts").json()
    assert room == {
        "loaded": ["animals", "plants", "pairs", "later"], "capacity": 19, "free": 15, "longest": 5
    }  # fmt: skip
    assert server.ask("DELETE", "/v1/prompts/later").json() == {"unloaded": "later"}
    gone = server.post("/v1/completions", model="later", prompt=TEXT)
    assert problem(gone, 404).startswith("there is no model 'later'")


def _write_strange_prompts(folder, outside):
    """Prompts that must not be loaded, by name, with the status and the message."""
    file = (folder / "animals" / "prompt.safetensors").read_bytes()
    (outside / "prompt.safetensors").write_bytes(file)
    (folder / "link.safetensors").symlink_to(outside / "prompt.safetensors")
    (folder / "linked").symlink_to(outside)
    (folder / "inner").mkdir()
    (folder / "inner" / "prompt.safetensors").symlink_to(outside / "prompt.safetensors")
    (folder / "damaged.safetensors").write_bytes(file[:-5])
    (folder / "pickle.safetensors").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    (folder / "large.safetensors").write_bytes(file + bytes(2 << 20))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "prompt.safetensors").write_bytes(file)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    tiny.write_backbone(folder / "other", seed=1)
    from spt_jax.prompts.file import load_prompt, save_prompt

    vectors, metadata = load_prompt(folder / "animals" / "prompt.safetensors")
    save_prompt(folder / "foreign.safetensors", vectors, {**metadata, "fingerprint": "0" * 64})
    return {
        "absent": (404, "there is no prompt 'absent' to load; expected absent.safetensors, or"),
        "link": (400, "the name 'link.safetensors' leads out of"),
        "linked": (400, "the name 'linked' leads out of"),
        "inner": (400, "the name 'inner/prompt.safetensors' leads out of"),
        "damaged": (400, "damaged.safetensors is not a whole safetensors file"),
        "pickle": (400, "pickle.safetensors is not a whole safetensors file"),
        "large": (400, "the file of prompt 'large' has "),
        "adapter": (400, "'adapter' is the adapter of PEFT; give a run"),
        "foreign": (400, "prompt foreign.safetensors was trained on model 'tiny-0' with finger"),
        "animals": (400, "'animals' is loaded already; unload it first"),
        "both": (400, "'both' is loaded already; unload it first"),
        ".hidden": (400, "the name of a prompt is '.hidden', expected 1 to 64 letters"),
        "a%00b": (400, r"the name of a prompt is 'a\x00b', expected 1 to 64 letters"),
        "..%2Fanimals": (404, "there is no such path"),
        "..%5Canimals": (400, r"the name of a prompt is '..\\animals', expected 1 to 64"),
        "x" * 65: (400, "the name of a prompt is 'xxx"),
    }


def test_strange_prompts_are_refused_and_change_nothing(server, folder, tmp_path, engine):
    before = engine.names()
    for name, (status, message) in _write_strange_prompts(folder, tmp_path).items():
        found = problem(server.ask("PUT", f"/v1/prompts/{name}"), status)
        assert found.startswith(message), (name, found)
        assert str(folder) not in found or "leads out of" in found
    assert engine.names() == before
    found = server.ask("DELETE", "/v1/prompts/nothing")
    assert problem(found, 404).startswith("unknown prompt 'nothing'")
    assert server.post("/v1/completions", model="animals", prompt=TEXT).status_code == 200


def test_the_words_of_a_prompt_are_those_of_nearest(server, engine):
    found = server.ask("GET", "/v1/prompts/pairs/words").json()
    rows = words_of(engine.prompt_set.prompts["pairs"].stored.prompt, engine.backbone, 3)
    assert [vector["position"] for vector in found["vectors"]] == [0, 1, 2, 3, 4]
    for vector, row in zip(found["vectors"], rows, strict=True):
        assert [word["word"] for word in vector["words"]] == [word for word, _ in row["cosine"]]
    unknown = server.ask("GET", "/v1/prompts/tiny-0/words")
    assert problem(unknown, 404).startswith("unknown prompt 'tiny-0'; the bank has animals")


def test_the_page_loads_nothing_else_and_its_headers_allow_no_other_script(server):
    found = server.ask("GET", "/")
    assert found.headers["content-type"].startswith("text/html")
    policy = found.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert re.findall(r"(?:src|href|action|url)\s*[=(]\s*[\"']?([^\"'\s)>]+)", found.text) == [
        "data:,"
    ]
    assert "http" not in found.text.partition("<body>")[2] and "innerHTML" not in found.text


def test_a_server_that_may_load_nothing_says_so(engine):
    with Running(engine) as running:
        for method in ("PUT", "DELETE"):
            found = running.ask(method, "/v1/prompts/animals")
            assert problem(found, 403).startswith("this server loads and unloads no prompts")


def test_a_busy_server_tells_when_to_come_again_and_forgets_clients_that_left(engine):
    limits = ServeConfig(port=0, timeout=0.5)
    hold, batcher = threading.Event(), engine.batcher
    with Running(engine, limits) as running:
        batcher.call(hold.wait)
        try:
            late = running.post("/v1/completions", model="animals", prompt=TEXT)
            assert problem(late, 504) == "there was no answer within 0.5 s; send the request again"
            assert batcher.waiting == 0  # nobody waits for it any more
            with pytest.raises(httpx.ReadTimeout):
                body = {"model": "animals", "prompt": TEXT}
                running.ask("POST", "/v1/completions", json=body, timeout=0.2)
            end = time.monotonic() + 5
            while batcher.waiting and time.monotonic() < end:
                time.sleep(0.01)
            assert batcher.waiting == 0
            rows = [engine.complete("animals", [TEXT] * 24) for _ in range(42)]
            full = running.post("/v1/completions", model="animals", prompt=[TEXT] * 20)
            assert problem(full, 429).startswith("1008 rows wait and 20 more do not fit")
            assert int(full.headers["retry-after"]) >= 1
            for row in rows:
                row.cancel()
        finally:
            hold.set()
    statuses = [line["status"] for line in running.lines() if "status" in line]
    assert statuses[:3] == [504, 499, 429]


def test_health_is_live_at_once_and_ready_after_the_warm_up(folder, paths, monkeypatch):
    backbone = load_backbone(str(folder / "tiny"), mesh=MeshConfig(data=1))
    engine, compiled = Engine(backbone, paths, CONFIG), threading.Event()
    monkeypatch.setattr(engine.batcher, "_warm_up", compiled.wait)
    with Running(engine) as running, engine:
        assert running.ask("GET", "/health/live").json() == {"status": "live"}
        for method, path in (("GET", "/health/ready"), ("POST", "/v1/completions")):
            body = {"json": {"model": "animals", "prompt": TEXT}} if method == "POST" else {}
            early = running.ask(method, path, **body)
            assert problem(early, 503).startswith("the server is still compiling its programs")
            assert early.headers["retry-after"] == "5"
        compiled.set()
        engine.wait_until_ready(60)
        assert running.ask("GET", "/health/ready").json() == {"status": "ready"}


def test_metrics_and_the_log_count_without_texts_or_names_of_requests(engine):
    with Running(engine, log_texts=False) as running:
        running.post("/v1/completions", model="animals", prompt=TEXT)
        running.post("/v1/classify", model=["animals", "plants"], input="zqz")
        running.post("/v1/completions", model="nobody", prompt=TEXT)
        given = {"X-Request-Id": "my-id.1"}
        assert running.ask("GET", "/v1/models", headers=given).headers["x-request-id"] == "my-id.1"
        bad = running.ask("GET", "/zqz", headers={"X-Request-Id": "a b"})
        assert len(bad.headers["x-request-id"]) == 16
        text = running.ask("GET", "/metrics").text
    lines = running.lines()
    assert 'spt_jax_requests_total{route="/v1/completions",status="404"} 1.0' in text
    assert 'spt_jax_requests_total{route="other",status="404"} 1.0' in text
    assert "spt_jax_queue_rows 0.0" in text and "nobody" not in text
    assert "spt_jax_request_seconds_bucket" in text
    assert "zqz" not in running.log.getvalue() and TEXT not in running.log.getvalue()
    assert [line["status"] for line in lines if line["event"] == "request"] == [
        200, 200, 404, 200, 404, 200
    ]  # fmt: skip
    assert lines[1]["model"] == ["animals", "plants"] and lines[1]["rows"] == 2
    assert lines[3]["id"] == "my-id.1" and lines[0]["prompt_tokens"] > 0
    with Running(engine, log_texts=True) as running:
        running.post("/v1/completions", model="animals", prompt=TEXT)
    assert running.lines()[0]["texts"] == [TEXT]


def test_requests_that_were_accepted_are_answered_after_the_end_has_begun(engine):
    hold, answers = threading.Event(), []
    with Running(engine) as running:
        engine.batcher.call(hold.wait)

        def ask():
            answers.append(running.post("/v1/completions", model="animals", prompt=TEXT))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        while engine.batcher.waiting < 4:
            time.sleep(0.01)
        running.server.should_exit = True
        while running.lines()[:1] != [{"event": "draining", "requests": 4}]:
            time.sleep(0.01)
        with pytest.raises(httpx.ConnectError):
            running.ask("GET", "/health/live")
        hold.set()
        for thread in threads:
            thread.join(60)
    assert [answer.status_code for answer in answers] == [200] * 4 and running.server.cut == 0


@pytest.mark.slow
def test_requests_drawn_from_the_schema_get_answers_of_the_schema(engine):
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
    schemathesis.checks.load_all_checks()
    names = (
        "not_a_server_error", "status_code_conformance", "content_type_conformance",
        "response_schema_conformance",
    )  # fmt: skip
    wanted = [getattr(schemathesis.checks, name) for name in names]
    with Running(engine, allow_load=True) as running:
        schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
        asked = 0
        for found in schema.get_all_operations():
            operation = found.ok()

            @settings(max_examples=40, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy())
            def ask(case):
                nonlocal asked
                asked += 1
                case.call_and_validate(checks=wanted)

            ask()
        assert asked > 200
        assert running.post("/v1/completions", model="animals", prompt=TEXT).status_code == 200
