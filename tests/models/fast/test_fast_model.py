"""The fast training pass against transformers and peft as they are: the same loss, the same gradients."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from llm_qa.config.recipe import make_recipe
from llm_qa.data.packing import IGNORED, collate_packs
from llm_qa.models import embedded
from llm_qa.models.fast import model as fast_model
from llm_qa.models.fast import rows as fast_rows
from llm_qa.models.fast.layer import layer_forward
from llm_qa.models.fast.model import FastNeoX
from llm_qa.models.fast.ops.cross_entropy import linear_cross_entropy
from llm_qa.models.fast.ops.lora import dropout_threshold, keep_mask, keep_scale
from llm_qa.models.lora import add_lora
from llm_qa.models.precision import resolve_precision
from llm_qa.models.random_weights import quantize, random_base

VOCABULARY = 1024
TOKENS = 128  # the rows below hold 2 x 44: some of it is padding
DROPOUT = 0.3


def build(**values):
    """A tiny model with LoRA (its B not 0, so that every gradient matters), and its FastNeoX."""
    recipe = make_recipe(values)
    precision = resolve_precision(recipe, None)
    model = random_base(embedded.model_config(VOCABULARY, 0), precision, "cpu")
    if recipe.method == "lora":
        model = add_lora(model, recipe)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    causal = model.get_base_model() if recipe.method == "lora" else model
    return model.train(), FastNeoX(causal, precision.compute, TOKENS, TOKENS, compiled=False)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    rows = []
    for lengths in ([5, 9, 30], [20, 11]):
        ids = torch.randint(0, VOCABULARY, (sum(lengths),), generator=generator)
        given = torch.cat([torch.arange(length) < length // 3 for length in lengths])
        positions = torch.cat([torch.arange(length) for length in lengths])
        rows.append({"input_ids": ids, "position_ids": positions, "labels": ids.masked_fill(given, -100)})
    return collate_packs(rows, 0)


def gradients(model, loss) -> dict[str, torch.Tensor]:
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def largest_difference(got: dict, wanted: dict) -> float:
    assert got.keys() == wanted.keys()
    return max(((got[name] - wanted[name]).norm() / wanted[name].norm()).item() for name in wanted)


@pytest.mark.parametrize(
    ("values", "bound"),
    [
        ({"base_precision": "nf4"}, 1e-5),
        ({"base_precision": "nf4", "double_quant": False}, 1e-5),
        ({"base_precision": "fp32"}, 1e-5),
        ({"base_precision": "fp32", "method": "full"}, 1e-5),
        ({"base_precision": "fp8"}, 5e-2),  # a rounding may fall to the other side where fp32 sums in another order
        ({"base_precision": "nf4", "compute_dtype": "bf16"}, 6e-2),
    ],
)
def test_loss_and_gradients_are_those_of_the_plain_path(batch, values, bound):
    model, fast = build(**({} if values.get("method") == "full" else {"lora_dropout": 0.0}), **values)
    with torch.autocast("cpu", torch.bfloat16, enabled="compute_dtype" in values):
        plain = model(**batch, use_cache=False).loss
    wanted = gradients(model, plain)
    loss = fast.loss(**batch)
    assert loss.item() == pytest.approx(plain.item(), rel=min(bound, 1e-3))
    assert largest_difference(gradients(model, loss), wanted) < bound


@pytest.mark.parametrize("values", [{"base_precision": "nf4"}, {"base_precision": "fp32", "method": "full"}])
@pytest.mark.parametrize("recomputed", [0, 2])
def test_only_learned_tokens_go_through_the_last_layer(batch, monkeypatch, values, recomputed):
    monkeypatch.setattr(fast_rows, "TILE", 8)
    model, fast = build(**({} if values.get("method") == "full" else {"lora_dropout": 0.0}), **values)
    wanted_loss = fast.loss(**batch)
    wanted = gradients(model, wanted_loss)
    max_label_tokens = int((batch["labels"] != IGNORED).sum())
    fast, rows = FastNeoX(fast.model, fast.shape.dtype, TOKENS, max_label_tokens, compiled=False), []
    fast.recomputed = recomputed
    monkeypatch.setattr(
        fast_model, "linear_cross_entropy", lambda h, *rest: rows.append(len(h)) or linear_cross_entropy(h, *rest)
    )
    loss = fast.loss(**batch)
    assert rows == [-(-max_label_tokens // 8) * 8]
    assert loss.item() == pytest.approx(wanted_loss.item(), rel=1e-6)
    assert largest_difference(gradients(model, loss), wanted) < 1e-5


def test_validation_s_batches_may_have_more_learned_tokens(batch, monkeypatch):
    monkeypatch.setattr(fast_rows, "TILE", 8)
    _, fast = build(base_precision="fp32")
    fast.model.eval()
    wanted = fast.loss(**batch).item()
    few = FastNeoX(fast.model, fast.shape.dtype, TOKENS, int((batch["labels"] != IGNORED).sum()) // 2, compiled=False)
    with torch.no_grad():
        assert few.loss(**batch).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("values", "compiled"), [({}, -2), ({"method": "full"}, -1)])
def test_layers_that_are_run_alike_are_compiled(batch, values, compiled):
    _, fast = build(base_precision="fp32", **values)
    fast = FastNeoX(fast.model, fast.shape.dtype, TOKENS, int((batch["labels"] != IGNORED).sum()), compiled=False)
    fast.max_label_tokens, calls, layers = 64, [], len(fast.model.gpt_neox.layers)
    fast.layer = lambda *given: calls.append(1) or layer_forward(*given)
    fast.loss(**batch).backward()
    assert len(calls) == layers + compiled
    calls.clear()
    with torch.no_grad():
        fast.loss(**batch)
    assert len(calls) == layers


def test_choosing_nearly_all_tokens_would_save_nothing():
    _, fast = build(base_precision="fp32")
    sizes = [
        FastNeoX(fast.model, torch.float32, 1280, max_label_tokens, compiled=False).max_label_tokens
        for max_label_tokens in (900, 1025)
    ]
    assert sizes == [1024, 1280]


def test_flops_of_products_that_are_not_made(batch):
    _, fast = build(base_precision="nf4")
    fast.max_label_tokens = TOKENS // 4
    model = fast.model
    d, words = model.config.hidden_size, model.get_output_embeddings().weight.shape[0]
    assert model.config.intermediate_size == 4 * d
    expected = 4 * (9 * d * d + words * d) * 3 / 4 + 2 * 7 * d * d
    assert fast.skipped_flops(4.0) == pytest.approx(expected)


def test_more_label_tokens_than_the_maximum_are_an_error(batch, monkeypatch):
    monkeypatch.setattr(fast_rows, "TILE", 8)
    _, fast = build(base_precision="fp32")
    fast = FastNeoX(fast.model, fast.shape.dtype, TOKENS, int((batch["labels"] != IGNORED).sum()) // 2, compiled=False)
    with pytest.raises(RuntimeError, match="more label tokens than"):
        fast.loss(**batch)


def test_frozen_embeddings_get_no_gradient_and_nobody_computes_one(batch, monkeypatch):
    from llm_qa.models.fast.ops import frozen_linear

    _, fast = build(base_precision="nf4")
    calls, backward = [], frozen_linear.backward
    monkeypatch.setattr(frozen_linear, "backward", lambda *given: calls.append(1) or backward(*given))
    fast.loss(**batch).backward()
    assert len(calls) == 4 * len(fast.model.gpt_neox.layers) - 2  # not into the first layer's norms


@pytest.mark.parametrize("max_label_tokens", [64, TOKENS])
@pytest.mark.parametrize("recomputed", [1, 2, 4])
def test_recomputed_layers_give_the_same_to_the_last_bit_with_dropout(batch, recomputed, max_label_tokens):
    model, fast = build(base_precision="nf4", lora_dropout=DROPOUT)
    fast.max_label_tokens = max_label_tokens
    torch.manual_seed(1)
    wanted = gradients(model, fast.loss(**batch))
    fast.recomputed = recomputed
    torch.manual_seed(1)
    got = gradients(model, fast.loss(**batch))
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_what_is_kept_in_the_machine_s_memory_changes_nothing(batch, monkeypatch):
    kept = []

    class Watched(torch.autograd.graph.save_on_cpu):
        def __init__(self, **how):
            super().__init__(**how)
            pack = self.pack_hook
            self.pack_hook = lambda tensor: kept.append(tensor.shape) or pack(tensor)

    monkeypatch.setattr(fast_model, "save_on_cpu", Watched)
    model, fast = build(base_precision="nf4", lora_dropout=DROPOUT)
    embedding = fast.model.get_input_embeddings().weight
    fast.recomputed = len(fast.model.gpt_neox.layers)
    torch.manual_seed(1)
    wanted = gradients(model, fast.loss(**batch))
    assert not kept
    fast.offload_to_cpu()
    torch.manual_seed(1)
    got = gradients(model, fast.loss(**batch))
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert kept.count((TOKENS, embedding.shape[1])) == fast.recomputed
    moved = fast.model.get_input_embeddings().weight
    assert torch.equal(moved, embedding)
    assert not any(parameter is embedding or parameter is moved for parameter in model.parameters())


class GivenMask(torch.nn.Module):
    """Dropout of a linear layer's input with the fast path's mask, as a module for peft's own layers."""

    def __init__(self, seed: int):
        super().__init__()
        self.seed = torch.tensor([seed & 0xFFFFFFFF])

    def forward(self, x):
        flat, threshold = x.reshape(-1, x.shape[-1]), dropout_threshold(DROPOUT)
        mask = keep_mask(len(flat), flat.shape[1], self.seed, threshold)
        return (flat * mask * keep_scale(threshold)).view_as(x)


def test_dropout_is_peft_s_with_a_mask_of_its_own(batch):
    model, fast = build(base_precision="fp32", lora_dropout=DROPOUT)
    torch.manual_seed(5)
    loss = fast.loss(**batch)
    got = gradients(model, loss)
    torch.manual_seed(5)
    first = int(torch.randint(2**31, (1,)))
    for i, layer in enumerate(model.get_base_model().gpt_neox.layers):
        linears = (
            layer.attention.query_key_value,
            layer.attention.dense,
            layer.mlp.dense_h_to_4h,
            layer.mlp.dense_4h_to_h,
        )
        for j, linear in enumerate(linears):
            linear.lora_dropout["default"] = GivenMask(first + (4 * i + j) * 0x632BE5AB)
    plain = model(**{key: value.reshape(1, -1) for key, value in batch.items()}, use_cache=False).loss
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    assert largest_difference(got, gradients(model, plain)) < 1e-5


def test_a_step_s_mask_follows_torch_s_generator_and_validation_has_none(batch):
    model, fast = build(base_precision="fp32", lora_dropout=DROPOUT)
    torch.manual_seed(1)
    first, second = fast.loss(**batch).item(), fast.loss(**batch).item()
    torch.manual_seed(1)
    assert fast.loss(**batch).item() == first != second
    model.eval()
    assert fast.loss(**batch).item() == fast.loss(**batch).item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)


def test_forward_takes_over_batches_with_labels_alone(batch):
    model, fast = build(base_precision="fp32", lora_dropout=0.0)
    causal = model.get_base_model()
    plain = model(**batch, use_cache=False).loss
    causal.forward = fast.forward
    assert model(**batch, use_cache=False).logits is None
    assert model(**batch, num_items_in_batch=2).loss.item() == pytest.approx(
        plain.item() * (batch["labels"] != -100).sum().item() / 2, rel=1e-5
    )
    ids, positions = batch["input_ids"], batch["position_ids"]
    assert model(input_ids=ids, position_ids=positions, use_cache=False).logits.shape[:2] == ids.shape


def build_loud(base):
    """build(), with channels 100 times the others, as large models have them, in what all four linears read.

    The weights that read the queries', keys' and values' channel are scaled down, as trained ones are: softmax would be
    all or nothing, and any rounding decide which.
    """
    recipe = make_recipe({"base_precision": "bf16", "compute_dtype": "bf16", "lora_dropout": 0.0})
    model = random_base(embedded.model_config(VOCABULARY, 0), resolve_precision(recipe, None), "cpu")
    for layer in model.gpt_neox.layers:
        qkv, width = layer.attention.query_key_value, model.config.hidden_size // model.config.num_attention_heads
        layer.input_layernorm.weight.data[3] *= 100
        qkv.weight.data[:, 3] /= 100
        qkv.bias.data[2 * width + 1] += 100  # a channel of the first head's values: into dense
        layer.post_attention_layernorm.weight.data[5] *= 100
        layer.mlp.dense_h_to_4h.bias.data[7] += 100
        if base == "nf4":
            quantize(layer, resolve_precision(make_recipe({"compute_dtype": "bf16"}), None))
    model.is_loaded_in_4bit = base == "nf4"
    model = add_lora(model, recipe)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
        if "query_key_value.lora_A" in name:
            parameter.data[:, 3] /= 100
    return model.train(), FastNeoX(model.get_base_model(), torch.bfloat16, TOKENS, TOKENS, compiled=False)


@pytest.mark.parametrize("base", ["nf4", "bf16"])
@pytest.mark.parametrize("outliers", [False, True])
def test_frozen_products_in_fp8_learn_the_same(batch, base, outliers):
    """The loss, and the gradients of both factors of LoRA's four linears, beside bf16's own."""
    values = {"base_precision": base, "compute_dtype": "bf16", "lora_dropout": 0.0}
    model, fast = build_loud(base) if outliers else build(**values)
    plain = fast.loss(**batch)
    wanted = gradients(model, plain)
    fast.prepare(len(fast.model.gpt_neox.layers), fp8=True, dequantized=base == "bf16")
    loss = fast.loss(**batch)
    got = gradients(model, loss)
    assert len(got) == 8 * len(fast.model.gpt_neox.layers)
    assert loss.item() == pytest.approx(plain.item(), rel=2e-3)
    assert 0 < largest_difference(got, wanted) < 0.15  # over four layers


@pytest.mark.parametrize("base", ["fp32", "nf4", "fp8"])
def test_a_layer_is_compared_with_the_plain_one_before_training(base):
    model, fast = build(base_precision=base)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert fast.difference() < 1e-3
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_wrong_kernel_shows_in_that_comparison(monkeypatch):
    from llm_qa.models.fast.ops import lora

    _, fast = build(base_precision="fp32")
    right = lora.expand
    monkeypatch.setattr(lora, "expand", lambda d, b, *rest: right(d * 0, b, *rest))
    assert fast.difference() > 0.05


def test_the_comparison_looks_at_every_factor_of_lora():
    _, fast = build(base_precision="nf4")
    right = fast_model.layer_weights
    for number in range(2, 6):  # the linears among a layer's weights
        for factor in "ab":

            def wrong(*given, number=number, factor=factor):
                weights = list(right(*given))
                value = getattr(weights[number], factor)
                scaled = value.detach() + 1.5 * (value - value.detach())  # the same number, another gradient
                weights[number] = weights[number]._replace(**{factor: scaled})
                return type(right(*given))(*weights)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(fast_model, "layer_weights", wrong)
                assert fast.difference() == pytest.approx(0.5, rel=1e-2)


@pytest.mark.parametrize("fp8", [False, True])
def test_weights_dequantised_once_are_those_dequantised_in_every_pass(batch, fp8):
    model, fast = build(base_precision="nf4", lora_dropout=DROPOUT)
    results = []
    for dequantized in (False, True):
        fast.prepare(len(fast.model.gpt_neox.layers), fp8=fp8, dequantized=dequantized)
        torch.manual_seed(5)
        loss = fast.forward(**batch).loss
        results.append((loss.item(), gradients(model, loss)))
    assert len(fast.prepared) == 4 * len(fast.model.gpt_neox.layers)
    copies = [weight for prepared in fast.prepared.values() for weight in prepared[::2]]  # between them stand scales
    assert sum(weight.nbytes for weight in copies) == fast.dequantized_bytes(fp8=fp8)
    assert results[0][0] == results[1][0]
    assert largest_difference(results[0][1], results[1][1]) == 0


@pytest.mark.parametrize(
    "values", [{"method": "full", "base_precision": "fp32"}, {"base_precision": "bf16", "lora_dropout": 0.0}]
)
def test_accelerate_wraps_it_for_mixed_precision(batch, values):
    model, fast = build(compute_dtype="bf16", **values)
    wanted = fast.forward(**batch).loss
    fast.install()
    AcceleratorState._reset_state(reset_partial_state=True)  # of another test in this process
    wrapped = Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    AcceleratorState._reset_state(reset_partial_state=True)
    loss = wrapped(**batch).loss
    assert loss.item() == wanted.item()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
