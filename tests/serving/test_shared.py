"""The whole path in the shared placement: Ray Serve, vLLM's own app, five challengers, the openai client.

The models have random weights and architectures that the demo does not use. Two of the challengers cannot come
up: one does not exist and one asks for more memory than there is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import psutil
import pytest
from tests.serving.models import make
from tests.serving.process import MARK, Running, is_free, marked_processes, running, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.timeout(900)]

READY = ("qwen2", "lora", "other")
SMALL = {
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 * 2**20,
    # A model with random weights would fill its answer with JSON's optional white space.
    "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
}
ASK: list[Any] = [{"role": "user", "content": "my order did not arrive"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"celsius": {"type": "boolean"}},
            "required": ["celsius"],
        },
    },
}
YES_NO = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("shared")
    config = {
        "champion": {"model": models["llama"], "name": "champ", "engine_args": SMALL},
        "challengers": [
            {"model": models["qwen2"], "name": "qwen2", "engine_args": SMALL},
            {"model": models["llama"], "lora": models["lora"], "name": "lora", "engine_args": SMALL},
            {"model": models["other"], "name": "other", "engine_args": SMALL},
            {"model": str(folder / "nowhere"), "name": "missing", "engine_args": SMALL},
            {"model": models["llama"], "name": "huge", "engine_args": {"kv_cache_memory_bytes": 2**44}},
        ],
        "server": {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"},
        "shadow": {"noise_floor": 1.0, "divergence": 1.0},
        "record": {"url": str(folder / "record")},
    }
    with running(config, folder) as server:
        yield server
        assert server.stop(signal.SIGINT) == 0
        assert is_free(server.port)
        wait_for(lambda: not marked_processes(server.mark), 20)


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def check_shadowed(server: Running, response_id: str, num_exchanges: int = 1) -> list[dict[str, Any]]:
    """Every exchange of a response was compared by every ready challenger, with its champion tokens scored."""
    exchanges = server.exchanges(response_id)
    assert len(exchanges) == num_exchanges
    for exchange in exchanges:
        assert exchange["champion"]["outcome"] == "finished"
        answers = exchange["champion"]["answers"]
        assert all(answer["token_ids"] for answer in answers)
        for name in READY:
            seen = exchange["challengers"][name]
            assert seen["state"] == "compared", seen
            assert seen["observation"]["rendered"] == ("own_template" if name == "other" else "token_ids")
            assert len(seen["observation"]["answers"]) == len(answers)
            if name != "other":
                scored = [len(score["logprobs"]) for score in seen["observation"]["scores"]]
                assert scored == [len(answer["token_ids"]) for answer in answers]
                for score in seen["observation"]["scores"]:
                    assert len({len(score[name]) for name in ("logprobs", "ranks", "entropies", "top1")}) == 1
                assert seen["observation"]["prompt_token_ids"] == exchange["champion"]["prompt_token_ids"]
                assert 0.0 <= seen["comparison"]["token_agreement"] <= 1.0
            assert seen["comparison"]["champion_logprob"] < 0.0
        for name in ("missing", "huge"):
            assert exchange["challengers"][name]["state"] == "shed"
            assert exchange["challengers"][name]["reason"] == "challenger_not_ready"
    return exchanges


def chat(client: openai.OpenAI, **more: Any) -> Any:
    arguments: dict[str, Any] = {"model": "champ", "messages": ASK, "max_tokens": 12, "temperature": 0} | more
    return client.chat.completions.create(**arguments)


def streamed(chunks: Any) -> tuple[str, int]:
    """The id of a streamed response, and how many chunks came."""
    everything = list(chunks)
    return everything[0].id, len(everything)


# Every generating endpoint and stream mode (PAINS: the mirror silently never fires on one endpoint)


def test_chat(server: Running, client: openai.OpenAI) -> None:
    answer = chat(client)
    assert answer.usage.completion_tokens == 12  # the champion's alone
    check_shadowed(server, answer.id)


def test_chat_streaming(server: Running, client: openai.OpenAI) -> None:
    response_id, num_chunks = streamed(chat(client, stream=True))
    assert num_chunks >= 3
    check_shadowed(server, response_id)


def test_completions_with_several_prompts(server: Running, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="champ", prompt=["the quick", "brown fox"], max_tokens=6)
    assert len(answer.choices) == 2
    check_shadowed(server, answer.id, num_exchanges=2)


def test_completions_streaming(server: Running, client: openai.OpenAI) -> None:
    chunks = client.completions.create(model="champ", prompt="the quick", max_tokens=6, stream=True)
    check_shadowed(server, streamed(chunks)[0])


def test_responses(server: Running, client: openai.OpenAI) -> None:
    answer = client.responses.create(model="champ", input="hello", instructions="be brief", max_output_tokens=8)
    check_shadowed(server, answer.id)


def test_responses_streaming(server: Running, client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="champ", input="hello", max_output_tokens=8, stream=True))
    created = next(event for event in events if event.type == "response.created")
    check_shadowed(server, created.response.id)


def test_messages_route(server: Running) -> None:
    body = {"model": "champ", "messages": ASK, "max_tokens": 8}
    answer = httpx.post(f"{server.url}/v1/messages", json=body, timeout=60, headers={"x-request-id": "anthropic-1"})
    assert answer.status_code == 200
    check_shadowed(server, "anthropic-1")


def test_tools(server: Running, client: openai.OpenAI) -> None:
    answer = chat(client, tools=[WEATHER], tool_choice="required", max_tokens=64)
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather"
    exchange = check_shadowed(server, answer.id)[0]
    for name in READY:  # the constraint reached the challenger: its own answer is such a call too
        text = exchange["challengers"][name]["observation"]["answers"][0]["text"]
        assert '"get_weather"' in text


def test_structured_output(server: Running, client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": YES_NO, "strict": True}}
    answer = chat(client, response_format=form, max_tokens=48)
    assert isinstance(json.loads(answer.choices[0].message.content)["yes"], bool)
    exchange = check_shadowed(server, answer.id)[0]
    for name in READY:
        text = exchange["challengers"][name]["observation"]["answers"][0]["text"]
        assert isinstance(json.loads(text)["yes"], bool)


def test_logprobs(server: Running, client: openai.OpenAI) -> None:
    answer = chat(client, logprobs=True, top_logprobs=3)
    mine = [token.logprob for token in answer.choices[0].logprobs.content]
    exchange = check_shadowed(server, answer.id)[0]
    assert exchange["champion"]["answers"][0]["logprobs"] == pytest.approx(mine, abs=1e-4)


def test_n_and_seed(server: Running, client: openai.OpenAI) -> None:
    answer = chat(client, n=3, temperature=1.0, seed=11)
    exchange = check_shadowed(server, answer.id)[0]
    assert exchange["parameters"]["seed"] == 11
    assert len(exchange["champion"]["answers"]) == 3


def test_stop_strings(server: Running, client: openai.OpenAI) -> None:
    free = chat(client, max_tokens=24).choices[0].message.content
    stop = free[len(free) // 2 :][:3]
    answer = chat(client, max_tokens=24, stop=[stop])
    assert answer.choices[0].finish_reason == "stop"
    exchange = check_shadowed(server, answer.id)[0]
    assert exchange["parameters"]["stop"] == [stop]


def test_beam_search_is_shed_with_its_reason(server: Running, client: openai.OpenAI) -> None:
    before = server.settled()["counts"]
    body = {"use_beam_search": True}
    answer = client.completions.create(model="champ", prompt="the quick", max_tokens=4, n=2, extra_body=body)
    assert answer.choices
    after = server.settled()["counts"]
    assert after["sampled"] == before["sampled"] + 5
    assert after["shed"]["beam_search"] == before["shed"].get("beam_search", 0) + 5


def test_a_request_of_more_than_a_megabyte(server: Running) -> None:
    body = {
        "model": "champ",
        "messages": [{"role": "user", "content": "my order did not arrive " * 50_000}],
        "max_tokens": 8,
        "truncate_prompt_tokens": 256,
    }
    raw = json.dumps(body).encode()
    assert len(raw) > 1_000_000
    answer = httpx.post(
        f"{server.url}/v1/chat/completions",
        content=raw,
        headers={"content-type": "application/json", "x-request-id": "a-megabyte"},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    exchange = server.exchanges("a-megabyte")[0]
    assert len(exchange["champion"]["prompt_token_ids"]) == 256
    assert exchange["challengers"]["qwen2"]["state"] == "compared"
    # Its own template renders the whole text: more than its context, and that is what the record says.
    assert (exchange["challengers"]["other"]["state"], exchange["challengers"]["other"]["reason"]) == (
        "shed",
        "too_long",
    )


# What HTTP knows


def test_opting_out(server: Running, client: openai.OpenAI) -> None:
    before = server.settled()["counts"]
    chat(client, extra_headers={"x-understudy-shadow": "off"})
    after = wait_for(lambda: (c := server.status()["counts"])["offered"] > before["offered"] and c)
    assert after["offered"] == before["offered"] + 5
    assert after["sampled"] == before["sampled"]


def test_tags_and_a_client_request_id(server: Running, client: openai.OpenAI) -> None:
    headers = {"x-request-id": "mine-1", "x-understudy-tags": '{"session": "s1", "tenant": "acme"}'}
    chat(client, extra_headers=headers)
    exchange = server.exchanges("mine-1")[0]
    assert exchange["tags"] == {"session": "s1", "tenant": "acme"}
    assert exchange["client_request_id"] == "mine-1"


def test_nothing_of_the_challengers_shows(server: Running) -> None:
    body = {"model": "champ", "messages": ASK, "max_tokens": 4}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    seen = (answer.text + str(answer.headers)).lower()
    assert answer.json()["model"] == "champ"
    assert not [name for name in (*READY, "missing", "huge", "understudy") if name in seen]
    models = httpx.get(f"{server.url}/v1/models", timeout=60).json()["data"]
    assert [model["id"] for model in models] == ["champ"]


# Errors are vLLM's own, as OpenAI error bodies


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"model": "nobody"}, 404),
        ({"temperature": -3}, 400),
        ({"messages": "hello"}, 400),
        ({"max_tokens": 100_000}, 400),
        ({"messages": [{"role": "user", "content": "fox " * 9000}]}, 400),
    ],
)
def test_errors_have_openai_bodies(server: Running, client: openai.OpenAI, wrong: Any, status: int) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        chat(client, **wrong)
    assert caught.value.status_code == status
    body = caught.value.response.json()["error"]
    assert body["message"]
    assert body["type"]
    assert server.settled()["counts"]["pending"] == 0


# Purity


CASES: list[dict[str, Any]] = [
    {"max_tokens": 40, "temperature": 0, "logprobs": True, "top_logprobs": 2},
    {"max_tokens": 40, "temperature": 0.9, "seed": 5, "logprobs": True, "top_logprobs": 2},
    {"max_tokens": 20, "temperature": 1.2, "seed": 6, "n": 2, "logprobs": True, "top_logprobs": 0},
]


def answers_of(client: openai.OpenAI, salt: str) -> list[Any]:
    """Tokens and logprobs of a fixed set of requests, none helped by the prefix cache of an earlier run."""
    found = []
    for number in range(8):
        for case in CASES:
            ask: list[Any] = [{"role": "user", "content": f"the lazy dog number {number} did not arrive"}]
            answer = chat(client, messages=ask, extra_body={"cache_salt": f"{salt}-{number}"}, **case)
            found.append([choice.model_dump(exclude_none=True) for choice in answer.choices])
    return found


def test_purity_tokens_and_logprobs_with_the_shadow_paused_and_at_full_sampling(
    server: Running, client: openai.OpenAI
) -> None:
    server.settled()
    server.post("pause")
    paused = answers_of(client, "paused")
    server.post("resume")
    before = server.status()["counts"]["compared"]
    shadowed = answers_of(client, "shadowed")
    busy = server.status()["counts"]
    assert paused == shadowed
    counts = server.settled()["counts"]
    ended = {name: counts[name] for name in ("shed", "failed", "expired")}
    assert counts["compared"] - before == len(paused) * len(READY), ended
    assert busy["sampled"] > 0


# Load, disconnects, the kill switch


def equation_holds(counts: dict[str, Any]) -> bool:
    ended = counts["compared"] + counts["expired"] + counts["cancelled"]
    ended += sum(counts["shed"].values()) + sum(counts["failed"].values())
    return counts["sampled"] == counts["pending"] + ended


def test_the_counts_add_up_at_every_moment_under_load(server: Running, client: openai.OpenAI) -> None:
    before, stop, seen = server.settled()["counts"], threading.Event(), []

    def watch() -> None:
        while not stop.is_set():
            status = server.status()
            seen.append(status)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: chat(client, stream=number % 2 == 0), range(48)))
    stop.set()
    watcher.join()
    after = server.settled()["counts"]
    assert after["sampled"] - before["sampled"] == 48 * 5
    assert any(status["counts"]["pending"] for status in seen)
    for status in seen:
        assert equation_holds(status["counts"])
        assert all(equation_holds(challenger["counts"]) for challenger in status["challengers"])
        for key in ("offered", "sampled", "pending", "compared", "expired", "cancelled"):
            assert status["counts"][key] == sum(challenger["counts"][key] for challenger in status["challengers"])


def num_running(server: Running) -> float:
    """What vLLM's own metric says that the champion is working on."""
    lines = httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
    mine = [line for line in lines if line.startswith("vllm:num_requests_running{") and 'role="champion"' in line]
    assert len(mine) == 1
    return float(mine[0].split()[-1])


def leave_mid_stream(client: openai.OpenAI) -> None:
    stream = chat(client, stream=True, max_tokens=3500, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()


def test_a_client_that_disconnects_mid_stream(server: Running, client: openai.OpenAI) -> None:
    before = server.settled()["counts"]
    leave_mid_stream(client)
    after = wait_for(lambda: (c := server.status()["counts"])["cancelled"] > before["cancelled"] and c, 20)
    assert after["cancelled"] == before["cancelled"] + 5
    wait_for(lambda: num_running(server) == 0, 20)  # aborted in the engine: 3,500 tokens take longer than this


def test_pause_is_a_kill_switch_and_resume_undoes_it(server: Running, client: openai.OpenAI) -> None:
    server.settled()
    assert server.post("pause")["phase"] == "paused"
    busy = [challenger["busy_s"] for challenger in server.status()["challengers"]]
    before = server.status()["counts"]
    for _ in range(3):
        chat(client)
    after = wait_for(lambda: (c := server.status()["counts"])["sampled"] == before["sampled"] + 15 and c)
    assert after["shed"]["paused"] >= before["shed"].get("paused", 0) + 9
    assert [challenger["busy_s"] for challenger in server.status()["challengers"]] == busy
    assert server.post("resume")["phase"] == "shadowing"
    check_shadowed(server, chat(client).id)


# Status, the record, feedback


def test_status_says_why_a_challenger_is_not_there(server: Running) -> None:
    status = server.status()
    by_name = {challenger["name"]: challenger for challenger in status["challengers"]}
    assert status["phase"] == "shadowing"
    assert all(by_name[name]["ready"] for name in READY)
    assert "nowhere" in by_name["missing"]["detail"]
    assert "GiB" in by_name["huge"]["detail"]
    assert by_name["other"]["same_tokenizer"] is False
    assert by_name["lora"]["same_tokenizer"] is True
    assert by_name["lora"]["no_divergence"] == ""
    assert "tokens, the champion's" in by_name["qwen2"]["no_divergence"]
    assert all(by_name[name]["scoring"] == {"path": "fused", "why": ""} for name in READY)


def test_the_lora_challenger_is_not_the_champion(server: Running, client: openai.OpenAI) -> None:
    exchange = check_shadowed(server, chat(client, max_tokens=24).id)[0]
    assert exchange["challengers"]["lora"]["comparison"]["exact_match"] == 0.0


def test_the_champion_meets_itself(server: Running, client: openai.OpenAI) -> None:
    """Greedy, so its second answer is its first; the client asked for logprobs, so both readings can be compared."""
    exchange = check_shadowed(server, chat(client, logprobs=True).id)[0]
    ends = [exchange["challengers"][name] for name in READY]
    own = ends[0]["floor"]["comparison"]
    assert all(end["floor"] == ends[0]["floor"] for end in ends)
    assert (own["exact_match"], own["token_agreement"]) == (1.0, 1.0)
    said = exchange["champion"]["answers"][0]["logprobs"]
    assert own["champion_logprob"] == pytest.approx(sum(said) / len(said), abs=0.02)
    assert own["perplexity_ratio"] == pytest.approx(1.0, abs=0.02)
    assert exchange["challengers"]["lora"]["comparison"]["perplexity_ratio"] > 1.1
    lora, qwen2 = (exchange["challengers"][name]["comparison"] for name in ("lora", "qwen2"))
    assert lora["kl_forward"] > 0.1
    assert lora["kl_backward"] > 0.1
    assert "kl_forward" not in qwen2  # its vocabulary has eight tokens more
    status = server.status()
    assert status["lane"]["divergence"]["counts"]["read"] > 0
    floor = status["lane"]["noise_floor"]
    assert (floor["ready"], floor["fraction"], floor["counts"].get("measured", 0) > 0) == (True, 1.0, True)
    assert len(status["challengers"]) == 5


def test_feedback_by_either_id(server: Running, client: openai.OpenAI) -> None:
    answer = chat(client, extra_headers={"x-request-id": "for-feedback"})
    server.exchanges(answer.id)
    assert server.post("feedback", request_id=answer.id, label="billing")["known"]
    assert server.post("feedback", request_id="for-feedback", label="billing")["known"]
    assert not server.post("feedback", request_id="nobody-knows", label="billing")["known"]
    assert server.exchanges(answer.id)[0]["feedback"][0]["label"] == "billing"


def test_the_report_is_a_page(server: Running) -> None:
    page = httpx.get(f"{server.url}/shadow/report", timeout=60)
    assert page.headers["content-type"].startswith("text/html")
    assert "NOT ENOUGH DATA" in page.text


def test_the_engine_process_is_one_and_not_the_api_process(server: Running) -> None:
    hosts = [line for line in marked_processes(server.mark) if "understudy.engines.host" in line]
    assert len(hosts) == 1


def test_replica_and_engine_are_not_put_behind_other_processes(server: Running) -> None:
    ours = [each for each in psutil.process_iter() if is_of(each, server.mark)]
    wanted = {"ServeReplica", "understudy.engines.host"}
    seen = {word: each.nice() for each in ours for word in wanted if word in " ".join(each.cmdline())}
    assert seen == dict.fromkeys(wanted, os.nice(0))  # Ray would give them 15


def is_of(process: psutil.Process, mark: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.environ().get(MARK) == mark
    return False


def test_challengers_generate_with_the_champions_answer_as_the_draft(server: Running, client: openai.OpenAI) -> None:
    """Also a LoRA, and one whose tokenizer differs: its draft is the champion's text in its own tokens."""
    greedy = chat(client, max_tokens=40)
    seeded = chat(client, max_tokens=40, temperature=0.8, seed=3)
    status = server.settled()
    drafts = [
        {name: exchange["challengers"][name]["observation"]["draft"] for name in READY}
        for response in (greedy, seeded)
        for exchange in check_shadowed(server, response.id)
    ]
    for name in READY:
        assert drafts[0][name] is not None  # how much of it is proposed follows from how often it was right before
        assert drafts[1][name] is None  # a seed is generated plainly
        shown = next(each for each in status["challengers"] if each["name"] == name)
        assert shown["draft"]["proposed"] >= max(1, drafts[0][name]["proposed"])
