"""Every term of the memory on paper beside a model that is built and trained one update: the same bytes."""

import json

import pytest
import torch
import torch.distributed as dist
from accelerate import DistributedDataParallelKwargs
from bitsandbytes.nn import Linear4bit
from torch.nn.parallel import DistributedDataParallel

from llm_qa.config.recipe import make_recipe
from llm_qa.models import embedded
from llm_qa.models.lora import add_lora
from llm_qa.models.precision import resolve_precision
from llm_qa.models.random_weights import random_base
from llm_qa.planning.dry_run import sizes_of
from llm_qa.planning.footprint import LIVE_WEIGHTS, REDUCE_BUCKET, engine_bytes
from llm_qa.planning.memory import scale_bytes, states_by_part, weight_bytes

# Widths that fill whole blocks of 64 weights, and of 256 such blocks.
SHAPE = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}


def built(**values):
    """(model, recipe, sizes) on the CPU."""
    recipe = make_recipe({"compute_dtype": "bf16", **values})
    base = random_base(embedded.model_config(256, 0, SHAPE), resolve_precision(recipe, (9, 0)), "cpu")
    model = add_lora(base, recipe) if recipe.method == "lora" else base
    shapes = random_base(
        embedded.model_config(256, 0, SHAPE), resolve_precision(make_recipe({"base_precision": "fp32"}), None), "cpu"
    )
    shapes = add_lora(shapes, recipe) if recipe.method == "lora" else shapes
    return model, recipe, sizes_of(shapes, recipe)


def bytes_of(tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def after_an_update(model, optimizer):
    """Bytes of what the optimizer keeps for the weights, its counters of steps left out."""
    tokens = torch.arange(32)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    return bytes_of(
        value
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value) and value.numel() > 1
    )


@pytest.mark.parametrize("double_quant", [True, False])
def test_nf4_weights_their_scales_and_lora(double_quant):
    model, recipe, sizes = built(base_precision="nf4", double_quant=double_quant)
    states = [module.weight.quant_state for module in model.modules() if isinstance(module, Linear4bit)]
    scales = bytes_of(state.absmax for state in states)
    scales += bytes_of(state.state2.absmax for state in states) if double_quant else 0
    assert len(states) == 8
    assert scales == scale_bytes(recipe, sizes)
    lora = trained(model)
    frozen = bytes_of(parameter for parameter in model.parameters() if not parameter.requires_grad)
    assert frozen + scales == weight_bytes(recipe, sizes)
    parts = states_by_part(recipe, sizes, 0, 1)
    assert parts["weights"] + parts["scales of 4-bit weights"] == frozen + scales
    optimizer = torch.optim.AdamW(lora, fused=True)
    assert after_an_update(model, optimizer) == parts["optimizer"]
    assert bytes_of(lora) == parts["LoRA"]
    assert bytes_of(parameter.grad for parameter in lora) == parts["gradients"]


@pytest.mark.parametrize(("base", "optimizer"), [("fp32", "adamw"), ("bf16", "kahan")])
def test_all_weights_their_gradients_and_the_optimizer(base, optimizer):
    from optimi import AdamW

    model, recipe, sizes = built(method="full", base_precision=base)
    make = torch.optim.AdamW if optimizer == "adamw" else lambda weights: AdamW(weights, lr=1e-5, kahan_sum=True)
    parts = states_by_part(recipe, sizes, 0, 1)
    assert after_an_update(model, make(model.parameters())) == parts["optimizer"]
    assert bytes_of(model.parameters()) == parts["weights"]
    assert bytes_of(parameter.grad for parameter in model.parameters()) == parts["gradients"]


@pytest.mark.parametrize("base", ["fp32", "bf16"])
def test_ddp_s_buckets_are_a_copy_of_the_gradients(base):
    """As accelerate makes them, which leaves gradient_as_bucket_view off."""
    model, recipe, sizes = built(method="full", base_precision=base)
    assert DistributedDataParallelKwargs().gradient_as_bucket_view is False
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=False)
        buckets = wrapped._get_ddp_logging_data()["bucket_sizes"]
        tokens = torch.arange(32)[None]
        wrapped(input_ids=tokens, labels=tokens).loss.backward()
        held = {parameter.grad.untyped_storage().data_ptr() for parameter in model.parameters()}
        assert len(held) == len(list(model.parameters())), "gradients lie outside the buckets"
    finally:
        dist.destroy_process_group()
    gradients = states_by_part(recipe, sizes, 0, 2)["gradients"]
    assert sum(map(int, buckets.split(","))) == gradients == engine_bytes(gradients, 0, 2)


def test_deepspeed_s_buffers_are_those_of_its_configs():
    zero = pytest.importorskip("deepspeed.runtime.zero.config", exc_type=ImportError)
    assert zero.DeepSpeedZeroConfig().max_live_parameters * 2 == LIVE_WEIGHTS
    with open("ds_configs/zero2.json", encoding="utf-8") as config:
        assert json.load(config)["zero_optimization"]["reduce_bucket_size"] * 2 == REDUCE_BUCKET
