"""Scoring in the engine process against transformers: real vLLM engines with random models in float32.

The engines run in this process and eagerly; chunks of 32 tokens make every longer request span several steps.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.serving.models import SIZES

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # vLLM and torch warn at will

VOCAB = 500
CHUNK = 32
MAX_LEN = 128
MIB = 2**20
TOLERANCE = 2e-4  # nats, of float32 in two implementations
ALIVE: list[Rig] = []  # an engine that is collected takes the process's groups along


@pytest.fixture(scope="module", autouse=True)
def in_this_process() -> Iterator[None]:
    """What vLLM reads when it is imported and started."""
    from understudy.engines import placements

    with pytest.MonkeyPatch.context() as patch:
        for name, value in placements.environment(()).items():
            patch.setenv(name, value)
        yield


def make(kind: str, folder: Path) -> Any:
    """A random model in float32 of about 0.3 M parameters, saved in ``folder``; the oracle."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config
    from transformers import Qwen2ForCausalLM as Qwen2

    torch.manual_seed(3)
    sizes = SIZES | {"vocab_size": VOCAB, "hidden_size": 128, "intermediate_size": 128}
    model: Any
    if kind == "gemma2":
        softcaps = {"final_logit_softcapping": 2.0, "head_dim": 32, "query_pre_attn_scalar": 32}
        model = Gemma2ForCausalLM._from_config(
            Gemma2Config(**sizes | softcaps), attn_implementation="eager"
        )  # sdpa leaves out the softcap of its attention
    elif kind == "qwen2":
        model = Qwen2(Qwen2Config(**sizes | {"tie_word_embeddings": False}))
    elif kind == "wide":
        model = LlamaForCausalLM(LlamaConfig(**sizes | {"vocab_size": 30_000}))
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    model = model.float().eval()
    model.save_pretrained(folder)
    return model


@dataclass
class Rig:
    """One vLLM engine that scores, beside the same model in transformers."""

    llm: Any
    oracle: Any
    path: dict[str, str]
    adapter: Any = None

    @property
    def core(self) -> Any:
        return self.llm.llm_engine.engine_core.engine_core

    @property
    def runner(self) -> Any:
        return self.core.model_executor.driver_worker.worker.model_runner

    def score(self, *pairs: tuple[Sequence[int], Sequence[int]], **more: str) -> list[Any]:
        """(Score, RequestOutput) of each (prompt, answer); all are waiting when the first step begins."""
        from understudy.engines import scoring

        outputs = self.llm.generate(
            [{"prompt_token_ids": scoring.tokens_to_read(*pair)} for pair in pairs],
            [scoring.parameters(*pair, **more) for pair in pairs],
            use_tqdm=False,
            lora_request=self.adapter,
        )
        return [(scoring.unpack(output, len(pair[1])), output) for output, pair in zip(outputs, pairs, strict=True)]

    def expect(self, prompt: Sequence[int], answer: Sequence[int], got: Any) -> None:
        """The four numbers of every token, from the oracle's full logits."""
        import torch

        rows = log_softmax(self.oracle, prompt, answer)
        target = rows.gather(1, torch.tensor(answer)[:, None])
        assert got.logprobs == pytest.approx(target[:, 0].tolist(), abs=TOLERANCE)
        at_least, at_most = ((rows > target + margin).sum(1) + 1 for margin in (TOLERANCE, -TOLERANCE))
        assert all(low <= rank <= high for low, rank, high in zip(at_least, got.ranks, at_most, strict=True))
        assert got.entropies == pytest.approx((-(rows.exp() * rows).sum(1)).tolist(), abs=TOLERANCE)
        assert got.top1 == tuple(rows.argmax(1).tolist())


def log_softmax(oracle: Any, prompt: Sequence[int], answer: Sequence[int]) -> Any:
    """[num_answer_tokens, vocab_size] in float64, from transformers."""
    import torch

    with torch.no_grad():
        logits = oracle(torch.tensor([[*prompt, *answer]])).logits[0].double()
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def start(folder: Path, oracle: Any, **more: Any) -> Rig:
    from vllm import LLM

    from understudy.engines import host, scorer

    host.prepare_cpu()
    sizes = {"max_model_len": MAX_LEN, "max_num_batched_tokens": CHUNK, "max_num_seqs": 8, "block_size": 32}
    llm = LLM(
        str(folder),
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        kv_cache_memory_bytes=32 * MIB,
        **sizes | more,
    )
    rig = Rig(llm, oracle, {})
    rig.path = scorer.install(rig.core)
    ALIVE.append(rig)
    return rig


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    folder = tmp_path_factory.mktemp("llama")
    return start(folder, make("llama", folder))


def ids(count: int, seed: int = 0) -> list[int]:
    """Token ids that look like nothing."""
    return [3 + (seed * 7919 + index * index * 31 + index * 17) % (VOCAB - 3) for index in range(count)]


def test_every_number_of_every_token_is_that_of_transformers_across_chunks(llama: Rig) -> None:
    pair = ids(40), ids(50, seed=1)  # rows 39 to 88: three chunks of 32
    score, _ = llama.score(pair)[0]
    assert llama.path == {"path": "fused", "why": ""}
    llama.expect(*pair, score)


@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
def test_other_heads_are_fused_too(kind: str, tmp_path: Path) -> None:
    """An untied head, and one whose logits are softcapped at 2."""
    rig = start(tmp_path, make(kind, tmp_path))
    pair = ids(40), ids(20, seed=1)
    assert rig.path == {"path": "fused", "why": ""}
    rig.expect(*pair, rig.score(pair)[0][0])


def test_an_adapter_is_scored_as_itself(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from vllm.lora.request import LoRARequest

    from understudy.engines import host

    host.skip_absent_head_adapter()
    base = make("llama", tmp_path / "base")
    config = LoraConfig(r=8, lora_alpha=64, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted: Any = get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    rig = start(tmp_path / "base", adapted.eval(), enable_lora=True, max_lora_rank=8, max_loras=1)
    rig.adapter = LoRARequest("adapter", 1, str(tmp_path / "adapter"))
    pair = ids(40), ids(20, seed=1)
    score, _ = rig.score(pair)[0]
    assert rig.path == {"path": "fused", "why": ""}
    rig.expect(*pair, score)
    with adapted.disable_adapter(), pytest.raises(AssertionError):
        rig.expect(*pair, score)


def test_whole_distributions_of_two_cores_are_compared_where_they_are(llama: Rig, tmp_path: Path) -> None:
    """What the first leaves, chunk by chunk, the second compares with its own, chunk by chunk."""
    import torch

    other = start(tmp_path, make("qwen2", tmp_path))
    prompt, answer = ids(40), ids(50, seed=1)
    llama.score((prompt, answer), keep="x")
    (score, _) = other.score((prompt, answer), against="x")[0]
    other.expect(prompt, answer, score)
    p, q = (log_softmax(rig.oracle, prompt, answer) for rig in (llama, other))
    found = score.divergence
    assert found.kl_forward == pytest.approx((p.exp() * (p - q)).sum(1).tolist(), rel=1e-3)
    assert found.kl_backward == pytest.approx((q.exp() * (q - p)).sum(1).tolist(), rel=1e-3)
    hellinger = (1 - ((p + q) / 2).exp().sum(1)).sqrt()
    assert found.hellinger == pytest.approx(hellinger.tolist(), rel=1e-3)
    assert found.champion_entropies == pytest.approx((-(p.exp() * p).sum(1)).tolist(), abs=TOLERANCE)
    assert torch.tensor(found.kl_forward).mean() > 0.1  # else it would prove little


def test_what_cannot_be_compared_is_scored_all_the_same(llama: Rig) -> None:
    """Nothing was left, what was left is of another answer, or of another vocabulary."""
    import torch

    from understudy.engines.heads import Head
    from understudy.engines.shelf import SHELF, Kept

    pair = ids(8), ids(6, seed=1)
    narrow = Head(torch.zeros(10, 128), 10, None, 1.0, None)
    SHELF.put("vocabulary", Kept(torch.zeros(6, 128), narrow))
    llama.score((ids(8), ids(5)), keep="shorter")
    for key in ("nothing", "shorter", "vocabulary"):
        score, _ = llama.score(pair, against=key)[0]
        llama.expect(*pair, score)
        assert score.divergence is None


def test_the_shelf_is_bounded_and_the_oldest_goes_first() -> None:
    import torch

    from understudy.engines.heads import Head
    from understudy.engines.shelf import Kept, Shelf

    shelf, head = Shelf(max_bytes=1000), Head(torch.zeros(1, 1), 1, None, 1.0, None)
    for key in ("a", "b", "c"):
        shelf.put(key, Kept(torch.zeros(100, 1), head))  # 400 bytes
    assert (shelf.get("a"), shelf.num_bytes) == (None, 800)
    shelf.put("c", Kept(torch.zeros(50, 1), head))  # in the place of what was there
    assert (shelf.num_bytes, shelf.get("b") is not None) == (600, True)
    shelf.put("huge", Kept(torch.zeros(1000, 1), head))
    assert (shelf.get("huge"), shelf.num_bytes) == (None, 0)


def test_the_shelf_is_counted_as_it_fills_and_not_summed_at_each_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from understudy.engines.heads import Head
    from understudy.engines.shelf import Kept, Shelf

    shelf, looks, num_bytes = Shelf(), [0], Kept.num_bytes.fget

    def looked(kept: Kept) -> int:
        looks[0] += 1
        return num_bytes(kept)

    monkeypatch.setattr(Kept, "num_bytes", property(looked))
    head = Head(torch.zeros(1, 1), 1, None, 1.0, None)
    for number in range(100):
        shelf.put(str(number), Kept(torch.zeros(1, 1), head))
    assert looks[0] == 100


def test_a_cached_prompt_is_not_read_again_and_its_answer_is(llama: Rig) -> None:
    """The same exchange twice: the second time every block of it is in the prefix cache."""
    pair = ids(70, seed=5), ids(40, seed=6)
    (first, cold), (second, warm) = llama.score(pair)[0], llama.score(pair)[0]
    assert (cold.num_cached_tokens, warm.num_cached_tokens) == (0, 64)  # of 69 rows before the first scored one
    llama.expect(*pair, first)
    llama.expect(*pair, second)


def test_what_a_pass_without_memory_has_not_written_is_not_in_the_prefix_cache(
    llama: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM enters its blocks before the pass that fills them."""
    from understudy.engines import scoring
    from understudy.engines.core import Core

    pair, engine = (ids(70, seed=15), ids(20, seed=16)), llama.llm.llm_engine

    def no_memory(*_: Any, **__: Any) -> None:
        raise MemoryError("injected")

    with monkeypatch.context() as broken:
        broken.setattr(llama.runner, "_model_forward", no_memory)
        prompt = {"prompt_token_ids": scoring.tokens_to_read(*pair)}
        engine.add_request("starved", prompt, scoring.parameters(*pair))
        with pytest.raises(MemoryError) as raised:
            engine.step()
    monkeypatch.setattr(llama.core, "output_queue", queue.Queue(), raising=False)
    core: Any = SimpleNamespace(engine=llama.core, runner=llama.runner)
    assert Core.recover(core, raised.value)
    engine.abort_request(["starved"])
    ((score, _),) = llama.score(pair)
    llama.expect(*pair, score)


def test_what_waits_is_scored_in_one_call(llama: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three answers to one prompt and another exchange, all in one step of 32 tokens."""
    from understudy.engines import scorer

    calls: list[int] = []
    read = scorer.read

    def counting(chunks: Any, hidden: Any, eye: Any) -> None:
        def counted(rows: Any, targets: Any) -> Any:
            calls.append(len(rows))
            return eye.measure(rows, targets)

        read(chunks, hidden, scorer.Eye(counted))

    monkeypatch.setattr(scorer, "read", counting)
    pairs = [(ids(4, seed=9), ids(3, seed=seed)) for seed in (1, 2, 3)] + [(ids(6, seed=8), ids(5, seed=4))]
    scores = llama.score(*pairs)
    assert calls == [14]
    for pair, (score, _) in zip(pairs, scores, strict=True):
        llama.expect(*pair, score)


def test_a_full_context_is_scored_to_its_last_token(llama: Rig) -> None:
    from understudy.engines.scoring import scorable

    prompt, answer = ids(100, seed=2), ids(MAX_LEN - 100, seed=3)
    assert scorable(prompt, [*answer, 9], MAX_LEN) == tuple(answer)
    llama.expect(prompt, answer, llama.score((prompt, answer))[0][0])


def test_one_token_and_ordinary_requests_beside(llama: Rig) -> None:
    """A request that is not for scoring is answered as ever, in the same steps."""
    from vllm import SamplingParams

    from understudy.engines import scoring

    prompt, answer = ids(20, seed=7), ids(1, seed=8)
    plain = SamplingParams(max_tokens=5, temperature=0.0, prompt_logprobs=0, detokenize=False)
    alone = llama.llm.generate([{"prompt_token_ids": prompt}], plain, use_tqdm=False)[0]
    scored, beside = llama.llm.generate(
        [{"prompt_token_ids": scoring.tokens_to_read(prompt, answer)}, {"prompt_token_ids": prompt}],
        [scoring.parameters(prompt, answer), plain],
        use_tqdm=False,
    )
    llama.expect(prompt, answer, scoring.unpack(scored, 1))
    assert beside.outputs[0].token_ids == alone.outputs[0].token_ids
    assert len(beside.prompt_logprobs) == len(prompt)
    assert beside.prompt_token_id_logprobs is None


def test_a_model_that_does_more_than_its_head_says_is_scored_from_its_own_logits(
    llama: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from understudy.engines import scorer

    model, plain = llama.runner.get_model(), llama.runner.get_model().compute_logits
    monkeypatch.setattr(model, "compute_logits", lambda hidden: plain(hidden) * 1.5)
    monkeypatch.setattr(scorer, "LOGITS_ROWS", 7)
    path, eye = scorer.choose(llama.runner)
    assert path["path"] == "logits"
    assert path["why"].startswith("lm_head alone gives another logprob than the model")
    import torch

    hidden, targets = torch.randn(20, 128), torch.arange(20)
    with torch.inference_mode():
        expected = (plain(hidden) * 1.5).log_softmax(-1)[torch.arange(20), targets]
        assert eye.measure(hidden, targets).logprob.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_the_probe_sees_a_missing_softcap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2's cap of 30 hardly moves logits of a random hidden state of magnitude 1."""
    import torch

    from understudy.engines import heads

    oracle = make("gemma2", tmp_path)
    oracle.config.final_logit_softcapping = 30.0
    oracle.save_pretrained(tmp_path)
    model = start(tmp_path, oracle).runner.get_model()
    said = heads.head_of

    def without_softcap(*args: Any) -> Any:
        head = said(*args)
        assert head.softcap == 30.0
        return heads.Head(head.weight, head.vocab_size, head.bias, head.scale, None)

    with torch.inference_mode():
        heads.usable_head(model, 128, torch.float32)
        monkeypatch.setattr(heads, "head_of", without_softcap)
        with pytest.raises(heads.NoHead, match="another logprob"):
            heads.usable_head(model, 128, torch.float32)


def test_no_logits_of_the_whole_answer_or_prompt_are_made(tmp_path: Path) -> None:
    """The largest tensor that any operation of a scoring pass makes, beside [num_tokens, vocab_size]."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            is_view = any(made is arg for arg in args) or getattr(made, "_is_view", lambda: False)()
            if hasattr(made, "numel") and not is_view:
                self.numel = max(self.numel, made.numel())
            return made

    rig = start(tmp_path, make("wide", tmp_path), max_model_len=2048, max_num_batched_tokens=1024)
    prompt, answer = ids(512), ids(512, seed=1)
    rig.score((ids(4), ids(4)))  # set-up is not what is measured
    with Largest() as largest:
        score, _ = rig.score((prompt, answer))[0]
    rig.expect(prompt, answer, score)
    assert 30_000 <= largest.numel < 512 * 30_000 / 4
