"""Sampling parameters into the record and back, for a replay. No engine is started."""

from __future__ import annotations

import json
from typing import Any

import pytest

from understudy.errors import Unsupported

pytestmark = pytest.mark.slow  # importing vllm takes seconds


def given() -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    params = SamplingParams(
        n=2, temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, seed=11, stop=["a", "b"], stop_token_ids=[5], max_tokens=9,
        min_tokens=2, presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=1.1, logit_bias={300: 5.0},
        bad_words=["no"], skip_special_tokens=False, logprobs=2, output_kind=RequestOutputKind.DELTA,
        structured_outputs=StructuredOutputsParams(json={"type": "object"}),
    )  # fmt: skip
    params.skip_clone = True
    assert params.structured_outputs is not None
    params.structured_outputs._backend = "xgrammar"
    return params


def through_the_record(params: Any) -> dict[str, Any]:
    from understudy.engines.vllm_engine import describe_parameters

    read: dict[str, Any] = json.loads(json.dumps(dict(describe_parameters(params))))
    return read


def test_parameters_come_back_as_they_were_resolved() -> None:
    from vllm import SamplingParams

    from understudy.engines.vllm_engine import _NOT_RESTORED, own_copy, restore_parameters

    params = given()
    back = restore_parameters(through_the_record(params))
    for name in SamplingParams.__struct_fields__:
        if not name.startswith("_") and name not in {*_NOT_RESTORED, "structured_outputs"}:
            assert getattr(back, name) == getattr(params, name), name
    assert back.structured_outputs is not None
    assert back.structured_outputs.json == {"type": "object"}
    assert back.structured_outputs._backend is None  # what an engine put there stays with its own request
    assert own_copy(back)._all_stop_token_ids == {5}


def test_greedy_ones_too() -> None:
    from vllm import SamplingParams

    from understudy.engines.vllm_engine import restore_parameters

    back = restore_parameters(through_the_record(SamplingParams(temperature=0.0, max_tokens=None, stop="x")))
    assert (back.temperature, back.max_tokens, back.stop) == (0.0, None, ["x"])


@pytest.mark.parametrize(
    "described",
    [
        {"structured_outputs": "StructuredOutputsParams(json=...)"},  # as older records have it
        {"temperature": -1.0},
        {"no_such_parameter": 1},
    ],
)
def test_what_is_not_recorded_in_full_is_not_replayed_as_something_else(described: dict[str, Any]) -> None:
    from understudy.engines.vllm_engine import restore_parameters

    with pytest.raises(Unsupported) as raised:
        restore_parameters(described)
    assert raised.value.reason == "parameters_not_recorded"
