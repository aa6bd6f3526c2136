"""Taking over another model's tensors, on plain modules. Real models are in tests/serving/test_variants.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.slow  # importing vllm takes seconds


class Layer(nn.Module):
    """What vLLM's layers are like: parameters, a method, and what loading leaves behind."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, 4), requires_grad=False)
        self.register_buffer("table", torch.randn(3))
        self.plain = torch.randn(2)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.impl = object()
        self.register_buffer("_k_scale", torch.tensor(1.0))
        self._k_scale_cpu = torch.tensor(1.0)
        self.quant_method: Any = None


class Model(nn.Module):
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.layer = Layer(size)
        self.attn = Attention()


class WithAdapter(nn.Module):
    """As vLLM wraps a layer for LoRA."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer


def on_meta(size: int = 4) -> Model:
    with torch.device("meta"):
        return Model(size)


def adopt(model: nn.Module, source: nn.Module, **more: Any) -> None:
    from understudy.engines.alias import adopt

    adopt(model, source, **more)


def loaded() -> Any:
    """A champion after loading, which left a closure and a state behind."""
    source: Any = Model()
    source.layer.packed = lambda x: x
    source.layer.quant_method = SimpleNamespace(state=1)
    return source


def test_everything_of_a_layer_is_the_champions_and_nothing_is_copied() -> None:
    source, model = loaded(), on_meta()
    adopt(model, source)
    layer: Any = model.layer
    assert layer.weight is source.layer.weight
    assert layer.table is source.layer.table
    assert layer.plain is source.layer.plain
    assert layer.packed is source.layer.packed
    assert layer.quant_method is source.layer.quant_method


def test_an_attention_layer_keeps_its_own_scales() -> None:
    source, model = loaded(), on_meta()
    source.attn._k_scale.fill_(3.0)
    adopt(model, source)
    attn: Any = model.attn
    assert attn._k_scale.item() == 3.0
    attn._k_scale.fill_(5.0)
    attn._k_scale_cpu.fill_(5.0)
    assert (source.attn._k_scale.item(), source.attn._k_scale_cpu.item()) == (3.0, 1.0)
    assert attn.impl is not source.attn.impl


def test_a_champion_with_an_adapter_is_looked_through() -> None:
    source, model = loaded(), on_meta()
    base = source.layer
    source.layer = WithAdapter(base)
    adopt(model, source)
    assert model.layer.weight is base.weight


def test_what_does_not_fit_is_refused_with_its_name() -> None:
    from understudy.engines.alias import CannotAlias

    with pytest.raises(CannotAlias, match=r"layer\.weight has another shape"):
        adopt(on_meta(5), Model())
    other: Any = Model()
    other.layer = nn.Linear(4, 4)
    with pytest.raises(CannotAlias, match="layer is a Layer, the champion's a Linear"):
        adopt(on_meta(), other)
    del other.layer
    with pytest.raises(CannotAlias, match="the champion has no layer"):
        adopt(on_meta(), other)
    more: Any = on_meta()
    more.layer.extra = torch.empty(2, device="meta")
    with pytest.raises(CannotAlias, match=r"nothing for layer\.extra"):
        adopt(more, loaded())


def test_scales_for_another_type_of_kv_cache_are_not_taken() -> None:
    from understudy.engines.alias import CannotAlias

    source = loaded()
    adopt(on_meta(), source, same_cache_dtype=False)
    source.attn.quant_method = object()
    with pytest.raises(CannotAlias, match="another type of KV cache"):
        adopt(on_meta(), source, same_cache_dtype=False)


def test_bytes_are_told_apart_by_whose_they_are() -> None:
    from understudy.engines.alias import weights_of

    model: Any = Model()
    assert weights_of(model, 0).own_bytes == 4 * 4 * 4
    assert weights_of(model, 1000).own_bytes == 1000  # packed: the files know better
    model.layer.lora_a_stacked = (torch.zeros(16),)  # as vLLM keeps adapters
    model.understudy_shared_bytes = 64  # as the loader leaves it
    weights = weights_of(model, 1000)
    assert (weights.shared_bytes, weights.own_bytes) == (64, 16 * 4)


def test_a_weight_that_was_packed_away_is_taken_over_as_it_is() -> None:
    source, model = loaded(), on_meta()
    source.layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    adopt(model, source)
    assert model.layer.weight.numel() == 0
    assert model.layer.packed is source.layer.packed


def test_the_ordinary_way_is_open_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a failed attempt left in vLLM's tables is taken back before the second."""
    from vllm.config.load import LoadConfig
    from vllm.model_executor.layers import rotary_embedding
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    from understudy.engines import alias

    tables = SimpleNamespace(static_forward_context={"champion's": 1}, static_all_moe_layers=["x"])
    config: Any = SimpleNamespace(
        load_config=LoadConfig(load_format=alias.LOAD_FORMAT),
        compilation_config=tables,
        model_config=None,
        cache_config=SimpleNamespace(kv_cache_memory_bytes=7),
    )
    ropes = dict(rotary_embedding._ROPE_DICT)
    seen = []

    def attempt(*_: Any) -> None:
        tables.static_forward_context["half built"] = 2
        tables.static_all_moe_layers.append("y")
        rotary_embedding._ROPE_DICT[("half built",)] = None  # type: ignore[index]
        raise alias.CannotAlias("it does not fit")

    def ordinary(self: Any, *_: Any) -> str:
        assert tables.static_forward_context == {"champion's": 1}
        assert tables.static_all_moe_layers == ["x"]
        assert ropes == rotary_embedding._ROPE_DICT
        seen.append(self.load_config.load_format)
        return "a model"

    monkeypatch.setattr(alias.AliasLoader, "_load", attempt)
    monkeypatch.setattr(DefaultModelLoader, "load_model", ordinary)
    asked: list[tuple[dict[str, Any], bool]] = []
    monkeypatch.setattr(alias, "refuse_if_too_large", lambda args, *, aliased: asked.append((dict(args), aliased)))
    loader = get_model_loader(config.load_config)
    assert loader.load_model(config, SimpleNamespace(model="m")) == "a model"  # type: ignore[arg-type, comparison-overlap]
    assert asked == [({"model": "m", "kv_cache_memory_bytes": 7}, False)]  # it needs room for weights now
    assert seen == ["auto"]
    assert config.load_config.load_format == "auto"
