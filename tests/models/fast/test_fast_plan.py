import pytest
import torch
from accelerate import DistributedDataParallelKwargs

from llm_qa.config.recipe import make_recipe
from llm_qa.console import UserError
from llm_qa.models import embedded
from llm_qa.models.fast.budget import layers_to_recompute, measure_memory_budget
from llm_qa.models.fast.model import FastNeoX, HostEmbedding
from llm_qa.models.fast.plan import choose_fast_path, reason_against
from llm_qa.models.lora import add_lora
from llm_qa.models.precision import resolve_precision
from llm_qa.models.random_weights import random_base

H200, T4 = (9, 0), (7, 5)


def tiny_model(**changes):
    config = embedded.model_config(500, 0)
    for name, value in changes.items():
        setattr(config, name, value)
    recipe = make_recipe({"base_precision": "fp32"})
    return random_base(config, resolve_precision(recipe, None), "cpu")


def with_lora(model, **values):
    return add_lora(model, make_recipe({"base_precision": "fp32", **values})).get_base_model()


def test_polyglot_s_kind_of_model_takes_it():
    assert reason_against(with_lora(tiny_model()), make_recipe({}), H200) is None
    assert reason_against(tiny_model(), make_recipe({"method": "full", "base_precision": "fp32"}), H200) is None


@pytest.mark.parametrize(
    ("model", "values", "capability", "reason"),
    [
        ({}, {"fast": "off"}, H200, "--fast off"),
        ({}, {}, None, "no GPU"),
        ({}, {}, T4, "compute capability 7.5"),
        ({"hidden_dropout": 0.1}, {}, H200, "dropout"),
        ({"use_parallel_residual": False}, {}, H200, "different structure"),
        ({"hidden_act": "gelu_new"}, {}, H200, "different structure"),
    ],
)
def test_what_cannot_take_it_is_told_why(model, values, capability, reason):
    assert reason in reason_against(with_lora(tiny_model(**model)), make_recipe(values), capability)


def test_linear_layers_without_lora_take_the_plain_path():
    narrow = make_recipe({"lora_targets": ["dense"]})
    assert "--lora-targets" in reason_against(with_lora(tiny_model(), lora_targets=["dense"]), narrow, H200)


def test_the_plain_path_is_said_aloud_and_changes_nothing():
    model, recipe = tiny_model(), make_recipe({"method": "full", "base_precision": "fp32", "recompute": "none"})
    before = model.forward
    path = choose_fast_path(model, recipe, resolve_precision(recipe, None), 128, 128, 0, None)
    assert not path.active
    assert path.report == "plain path (no GPU): no layer recomputed, fp32, products in fp32"
    assert model.forward == before


@pytest.mark.parametrize(("free_gib", "recomputed"), [(100, 0), (41, 16), (22, 35), (1, 40)])
def test_as_few_layers_are_recomputed_as_the_memory_allows(monkeypatch, free_gib, recomputed):
    """40 layers that keep 17/16 GiB, or 1/16 GiB if recomputed; taken are 6% of 100 GiB, 10 GiB in passing, 3/16."""
    fast = FastNeoX(tiny_model(), torch.float32, 128, 128, compiled=False)
    monkeypatch.setattr(fast, "measure_layer", lambda: (17 * 2**26, 10 * 2**30, 2**26))
    monkeypatch.setattr(
        "llm_qa.planning.this_gpu.free_memory_bytes", lambda: (free_gib * 2**30 + 5 * 2**29, 100 * 2**30)
    )
    frozen = torch.nn.Linear(1, 1).requires_grad_(False)
    budget = measure_memory_budget(fast, frozen, make_recipe({}))
    number, why = layers_to_recompute(budget, make_recipe({}), 40)
    assert number == recomputed
    assert "a layer saves 1.06 GiB" in why
    assert layers_to_recompute(budget, make_recipe({"recompute": "all"}), 40)[0] == 40
    assert layers_to_recompute(budget, make_recipe({"recompute": "none"}), 40)[0] == 0


@pytest.mark.parametrize(
    ("base", "optim", "zero_stage", "bytes_a_weight"),
    [
        ("bf16", "adamw_torch", 0, 8),
        ("fp32", "adamw_torch", 0, 12),
        ("fp32", "adamw_8bit", 0, 6),
        ("bf16", "adamw_torch", 2, 16),
    ],
)
def test_what_training_keeps_of_a_weight_is_not_for_layers(monkeypatch, base, optim, zero_stage, bytes_a_weight):
    """bf16 weights: gradient, two moments and Kahan's compensation in two bytes each; ZeRO: fp32 masters, a bucket."""
    recipe = make_recipe({"method": "full", "base_precision": base, "optim": optim})
    model = tiny_model().to(resolve_precision(recipe, None).weights)
    fast = FastNeoX(model, torch.float32, 128, 128, compiled=False)
    monkeypatch.setattr(fast, "measure_layer", lambda: (0, 0, 0))
    monkeypatch.setattr("llm_qa.planning.this_gpu.free_memory_bytes", lambda: (2**30, 0))
    budget = measure_memory_budget(fast, model, recipe, zero_stage)
    assert 2**30 - budget.available_bytes == bytes_a_weight * model.num_parameters()


@pytest.mark.parametrize(("base", "bytes_a_weight"), [("bf16", 2), ("fp32", 4)])
def test_ddp_keeps_a_copy_of_the_gradients(monkeypatch, base, bytes_a_weight):
    recipe = make_recipe({"method": "full", "base_precision": base})
    model = tiny_model().to(resolve_precision(recipe, None).weights)
    fast = FastNeoX(model, torch.float32, 128, 128, compiled=False)
    monkeypatch.setattr(fast, "measure_layer", lambda: (0, 0, 0))
    monkeypatch.setattr("llm_qa.planning.this_gpu.free_memory_bytes", lambda: (2**30, 0))
    alone, two = (measure_memory_budget(fast, model, recipe, processes=number) for number in (1, 2))
    assert alone.available_bytes - two.available_bytes == bytes_a_weight * model.num_parameters()
    assert not DistributedDataParallelKwargs().gradient_as_bucket_view, "or the buckets would be the gradients"


@pytest.mark.parametrize("replaced", [False, True])
def test_where_gradients_replace_activations_fewer_layers_are_recomputed(monkeypatch, replaced):
    recipe = make_recipe({"method": "full", "base_precision": "fp32"})
    model = tiny_model()
    fast, states = FastNeoX(model, torch.float32, 128, 128, compiled=False), 12 * model.num_parameters()
    monkeypatch.setattr(fast, "measure_layer", lambda: (2 * model.num_parameters(), 0, 0))
    monkeypatch.setattr("llm_qa.planning.this_gpu.free_memory_bytes", lambda: (states, 0))
    budget = measure_memory_budget(fast, model, recipe, 0, replaced)
    assert layers_to_recompute(budget, recipe, 2)[0] == (0 if replaced else 2)


def test_the_sizes_of_a_pass_reach_it(monkeypatch):
    recipe = make_recipe({"base_precision": "bf16", "compute_dtype": "bf16"})
    precision = resolve_precision(recipe, H200)
    model = add_lora(random_base(embedded.model_config(500, 0), precision, "cpu"), recipe)
    monkeypatch.setattr(FastNeoX, "measure_layer", lambda self: (2**20, 2**20, 2**10))
    monkeypatch.setattr("llm_qa.planning.this_gpu.free_memory_bytes", lambda: (2**30, 2**30))
    path = choose_fast_path(model, recipe, precision, 256, 100, 0, H200)
    fast = model.get_base_model().forward.func.__self__
    assert (fast.tokens, fast.max_label_tokens) == (256, 128)
    assert path.skipped_flops == fast.skipped_flops(4.0) > 0


@pytest.mark.parametrize(
    ("values", "free_mib", "dequantized"),
    [({}, 100, True), ({}, 5, False), ({"recompute": "all"}, 100, False), ({"base_precision": "bf16"}, 100, False)],
)
def test_nf4_is_dequantised_once_where_the_copy_fits_beside_what_layers_keep(
    monkeypatch, values, free_mib, dequantized
):
    recipe = make_recipe({"base_precision": "nf4", "compute_dtype": "bf16", **values})
    precision = resolve_precision(recipe, H200)
    model = add_lora(random_base(embedded.model_config(500, 0), precision, "cpu"), recipe)
    monkeypatch.setattr(FastNeoX, "measure_layer", lambda self: (2**20, 2**20, 2**10))
    monkeypatch.setattr("llm_qa.planning.this_gpu.free_memory_bytes", lambda: (free_mib * 2**20, free_mib * 2**20))
    path = choose_fast_path(model, recipe, precision, 128, 128, 0, H200)
    assert path.active
    assert ("converted once to" in path.report) == dequantized
    fast = model.get_base_model().forward.func.__self__
    assert len(fast.prepared) == 4 * model.config.num_hidden_layers * dequantized


@pytest.mark.parametrize(
    ("recompute", "free_mib", "graphed"),
    [("auto", 100, True), ("auto", 6, True), ("auto", 3, False), ("none", 8.5, True), ("none", 5.5, False)],
)
def test_where_memory_is_short_there_are_no_graphs(monkeypatch, recompute, free_mib, graphed):
    recipe = make_recipe({"base_precision": "bf16", "compute_dtype": "bf16", "recompute": recompute})
    precision = resolve_precision(recipe, H200)
    model = add_lora(random_base(embedded.model_config(500, 0), precision, "cpu"), recipe)
    saved_bytes, layer_input_bytes, free_bytes = 2**20, 2**10, int(free_mib * 2**20)
    monkeypatch.setattr(FastNeoX, "measure_layer", lambda self: (saved_bytes, 2**20, layer_input_bytes))
    monkeypatch.setattr("llm_qa.planning.this_gpu.free_memory_bytes", lambda: (free_bytes, free_bytes))
    path = choose_fast_path(model, recipe, precision, 128, 128, 0, H200)
    fast = model.get_base_model().forward.func.__self__
    assert fast.cuda_graphs == graphed
    assert ("no CUDA graphs because memory is short" in path.report) != graphed
    if graphed:
        budget, layers = measure_memory_budget(fast, model, recipe), model.config.num_hidden_layers
        used = fast.recomputed * layer_input_bytes + (layers - fast.recomputed) * saved_bytes
        assert used + budget.graph_bytes <= budget.available_bytes


@pytest.mark.parametrize(
    ("free_mib", "inputs_mib", "first", "offloaded"), [(0.1, 0, True, True), (9, 4, False, True), (12, 1, False, False)]
)
def test_where_memory_is_too_short_the_machine_keeps_what_it_can(monkeypatch, free_mib, inputs_mib, first, offloaded):
    recipe = make_recipe({"base_precision": "nf4", "compute_dtype": "bf16"})
    precision = resolve_precision(recipe, H200)
    model = add_lora(random_base(embedded.model_config(500, 0), precision, "cpu"), recipe)
    compare, before = FastNeoX.difference, []
    monkeypatch.setattr(FastNeoX, "difference", lambda self: before.append(self.offloaded) or compare(self))
    monkeypatch.setattr(FastNeoX, "measure_layer", lambda self: (2**24, 2**20, inputs_mib * 2**20))
    monkeypatch.setattr("llm_qa.planning.this_gpu.free_memory_bytes", lambda: (int(free_mib * 2**20),) * 2)
    path = choose_fast_path(model, recipe, precision, 128, 128, 0, H200)
    assert before == [first]
    assert ("layers' inputs and the embedding offloaded to CPU memory" in path.report) == offloaded
    assert isinstance(model.get_input_embeddings(), HostEmbedding) == offloaded


def test_full_fine_tuning_has_no_graphs_to_leave_out(monkeypatch):
    recipe = make_recipe({"method": "full", "base_precision": "fp32", "compute_dtype": "bf16"})
    precision = resolve_precision(recipe, H200)
    monkeypatch.setattr(FastNeoX, "measure_layer", lambda self: (2**20, 2**20, 2**10))
    monkeypatch.setattr("llm_qa.planning.this_gpu.free_memory_bytes", lambda: (2**20, 2**20))
    path = choose_fast_path(tiny_model(), recipe, precision, 128, 128, 0, H200)
    assert path.active
    assert "graphs" not in path.report


def test_a_kernel_that_does_not_fit_the_gpu_leaves_the_plain_path(monkeypatch):
    class OutOfResources(Exception):
        """Triton's name for it."""

    def too_large(self):
        raise OutOfResources("out of resource: shared memory, Required: 376832, Hardware limit: 232448")

    recipe = make_recipe({"base_precision": "fp32", "lora_r": 256})
    model = add_lora(tiny_model(), recipe)
    before = model.get_base_model().forward
    monkeypatch.setattr(FastNeoX, "difference", too_large)
    monkeypatch.setattr("llm_qa.planning.this_gpu.free_memory_bytes", lambda: (2**30, 2**30))
    path = choose_fast_path(model, recipe, resolve_precision(recipe, None), 128, 128, 0, H200)
    assert not path.active
    assert (
        "plain path (the fast path's kernels for --lora-r 256 in fp32 need more shared memory or registers than"
        in path.report
    )
    assert model.get_base_model().forward == before


def planned(monkeypatch, values, free_mib=100, differences=(), measure=None):
    """The model and path of a tiny model with LoRA, in so much memory; a layer's differences are given."""
    recipe = make_recipe({"base_precision": "nf4", **values})
    precision = resolve_precision(recipe, H200)
    model = add_lora(random_base(embedded.model_config(500, 0), precision, "cpu"), recipe)
    given, compare = iter(differences), FastNeoX.difference
    monkeypatch.setattr(FastNeoX, "difference", lambda self: next(given, None) or compare(self))
    monkeypatch.setattr(FastNeoX, "measure_layer", measure or (lambda self: (2**20, 2**20, 2**10)))
    monkeypatch.setattr("llm_qa.planning.this_gpu.free_memory_bytes", lambda: (int(free_mib * 2**20),) * 2)
    return model, lambda: choose_fast_path(model, recipe, precision, 128, 128, 0, H200)


def state(model):
    """What a user of the model can see of it."""
    causal = model.get_base_model()
    return [(name, id(module)) for name, module in model.named_modules()], causal.forward, model.training


def out_of_resources(self):
    raise type("OutOfResources", (Exception,), {})("out of resource: shared memory")


def out_of_memory(self):
    raise torch.OutOfMemoryError("a layer does not fit")


@pytest.mark.parametrize(
    ("differences", "measure", "raised"),
    [((0.5,), None, None), ((), out_of_resources, None), ((), out_of_memory, torch.OutOfMemoryError)],
)
def test_a_plan_that_comes_to_nothing_leaves_the_model_as_it_was(monkeypatch, differences, measure, raised):
    """Memory is so low that the embedding makes way for the layer that is tried; the layer, or its kernels, fail."""
    model, choose = planned(monkeypatch, {}, free_mib=0.1, differences=differences, measure=measure)
    before, weight = state(model), model.get_input_embeddings().weight.clone()
    offloaded = []
    monkeypatch.setattr(
        FastNeoX,
        "offload_to_cpu",
        lambda self, offload_to_cpu=FastNeoX.offload_to_cpu: offloaded.append(1) or offload_to_cpu(self),
    )
    if raised:
        with pytest.raises(raised):
            choose()
    else:
        assert choose().report.startswith("plain path (")
    assert offloaded
    assert state(model) == before
    assert torch.equal(model.get_input_embeddings().weight, weight)


def test_planning_alone_changes_nothing(monkeypatch):
    model, choose = planned(monkeypatch, {}, free_mib=0.1)
    before = state(model)
    monkeypatch.setattr("llm_qa.models.fast.plan.install", lambda fast, plan: None)
    assert choose().active
    assert state(model) == before


@pytest.mark.parametrize(
    ("values", "free_mib", "layouts", "said"),
    [
        (
            {},
            100,
            "dequantized",
            "nf4 converted once to 0.0 GiB of fp8, products in fp8 and bf16 (gradients within",
        ),
        ({}, 5, "per use", "nf4, products in fp8 and bf16 (gradients within"),
        ({"recompute": "all"}, 100, "per use", "nf4, products in fp8 and bf16 (gradients within"),
        (
            {"base_precision": "16bit"},
            100,
            "dequantized",
            "bf16 converted once to 0.0 GiB of fp8, products in fp8 and",
        ),
        ({"base_precision": "16bit"}, 5, None, "bf16, products in bf16 (an fp8 copy of the bf16 weights takes 0.0 GiB"),
        (
            {"base_precision": "16bit", "recompute": "none"},
            100,
            None,
            "bf16, products in bf16 (an fp8 copy of the bf16",
        ),
        ({"base_precision": "fp8"}, 100, None, "fp8, products in fp8 and bf16"),
        ({"compute_dtype": "bf16", "recompute": "all"}, 100, None, "nf4, products in bf16"),
    ],
)
def test_frozen_weights_are_prepared_for_products_in_fp8_as_memory_allows(monkeypatch, values, free_mib, layouts, said):
    model, choose = planned(monkeypatch, values, free_mib=free_mib)
    path = choose()
    assert said in path.report
    fast = model.get_base_model().forward.func.__self__
    kinds = {(weight[0].dtype, len(weight)) for weight in fast.prepared.values()}
    assert kinds == {"dequantized": {(torch.float8_e4m3fn, 4)}, "per use": {(torch.uint8, 8)}, None: set()}[layouts]
    assert len(fast.prepared) == (4 * model.config.num_hidden_layers if layouts else 0)


def test_where_fp8_differs_too_much_products_stay_in_bf16_unless_it_was_asked_for(monkeypatch):
    model, choose = planned(monkeypatch, {}, differences=(0.01, 0.3))
    path = choose()
    assert "products in bf16 (in fp8 a layer's gradients differ by 30% from the plain ones)" in path.report
    fast = model.get_base_model().forward.func.__self__
    assert {weight[0].dtype for weight in fast.prepared.values()} == {torch.bfloat16}
    _, choose = planned(monkeypatch, {"compute_dtype": "fp8"}, differences=(0.01, 0.3))
    with pytest.raises(UserError, match="fp8 is not possible here: in fp8 a layer's .* Set --compute-dtype to bf16"):
        choose()


def test_fp8_on_the_plain_path_is_refused_where_it_was_asked_for(monkeypatch):
    _, choose = planned(monkeypatch, {"compute_dtype": "fp8"}, differences=(0.5,))
    with pytest.raises(UserError, match="takes the plain one .*differ by 50%.* set --compute-dtype to bf16"):
        choose()
    _, choose = planned(monkeypatch, {}, differences=(0.5,))
    assert choose().report.endswith("nf4, products in bf16")


def test_fp8_needs_a_gpu_that_has_it():
    recipe = make_recipe({"base_precision": "fp8"})
    with pytest.raises(UserError, match=r"fp8 needs compute capability 8\.9 .* set --base-precision to nf4"):
        resolve_precision(recipe, (8, 0))
    assert resolve_precision(recipe, (8, 9)).fp8_weights
    assert resolve_precision(recipe, None).base == "fp8"
    with pytest.raises(UserError, match="method full cannot train fp8 weights"):
        make_recipe({"base_precision": "fp8", "method": "full"})
