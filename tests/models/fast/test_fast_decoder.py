"""The fast training pass of other architectures against transformers and peft as they are: equal loss and gradients."""

import pytest
import torch
from architectures import small_config
from test_fast_model import DROPOUT, batch, gradients, largest_difference  # noqa: F401  batch is a fixture

from llm_qa.config.recipe import make_recipe
from llm_qa.console import UserError
from llm_qa.data.packing import IGNORED, collate_packs
from llm_qa.models.fast import decoder_plan
from llm_qa.models.fast import rows as fast_rows
from llm_qa.models.fast.budget import MemoryBudget
from llm_qa.models.fast.choice import MAX_DIFFERENCE
from llm_qa.models.fast.decoder import ATTENTION, FastDecoder
from llm_qa.models.fast.decoder_plan import choose_decoder_path, gradient_difference, logits_difference, reason_against
from llm_qa.models.fast.ops.lora import dropout_threshold, keep_mask, keep_scale
from llm_qa.models.lora import add_lora
from llm_qa.models.precision import resolve_precision
from llm_qa.models.random_weights import random_base

VOCABULARY, TOKENS, H200 = 1024, 88, (9, 0)
SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
TAKE_IT = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "exaone4", "olmo2", "smollm3")


def build(name="llama", *, more=None, **values):
    """A small model with LoRA (its B not 0, so that every gradient matters), its FastDecoder, recipe and precision."""
    sliding = {"sliding_window": 6} if name in ("gemma3_text", "exaone4") else {}
    config = small_config(name, VOCABULARY, **{**SIZES, **sliding, **(more or {})})
    recipe = make_recipe({"base_precision": "nf4", "lora_dropout": 0.0, **values})
    precision = resolve_precision(recipe, None)
    model = add_lora(random_base(config, precision, "cpu"), recipe)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.05)
    causal = model.get_base_model()
    return model.train(), FastDecoder(causal, precision.compute, TOKENS, TOKENS, compiled=False), recipe, precision


@pytest.mark.parametrize("recomputed", [0, 2])
@pytest.mark.parametrize("name", TAKE_IT)
def test_loss_and_gradients_are_those_of_the_plain_path(batch, name, recomputed):  # noqa: F811
    model, fast, *_ = build(name)
    plain = model(**batch, use_cache=False).loss
    wanted = gradients(model, plain)
    fast.recomputed = recomputed
    with fast.installed():
        loss = model(**batch, use_cache=False).loss
        got = gradients(model, loss)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    assert largest_difference(got, wanted) < 1e-4


def test_a_learned_token_s_gradient_knows_nothing_of_other_documents(batch):  # noqa: F811
    model, fast, *_ = build("gemma3_text")
    alone = {key: value[:1, 44 - 30 : 44] for key, value in batch.items()}
    labels = batch["labels"].clone()
    labels[0, :14] = labels[1] = IGNORED
    with fast.installed():
        of_pack = gradients(model, model(**{**batch, "labels": labels}, use_cache=False).loss)
        of_document = gradients(model, model(**alone, use_cache=False).loss)
    assert largest_difference(of_pack, of_document) < 1e-4


def test_padding_to_the_pack_s_length_changes_neither_loss_nor_gradients(batch):  # noqa: F811
    model, fast, *_ = build()
    rows = [{key: value[number] for key, value in batch.items()} for number in range(2)]
    padded = collate_packs(rows, 0, length=64)
    assert padded["labels"].shape == (2, 64)
    with fast.installed():
        loss = model(**batch, use_cache=False).loss
        wanted = gradients(model, loss)
        longer = model(**padded, use_cache=False).loss
        assert largest_difference(gradients(model, longer), wanted) < 1e-5
    assert longer.item() == pytest.approx(loss.item(), rel=1e-6)


def test_only_learned_tokens_reach_the_head(batch, monkeypatch):  # noqa: F811
    monkeypatch.setattr(fast_rows, "TILE", 8)
    model, fast, *_ = build()
    labels = int((batch["labels"] != IGNORED).sum())
    with fast.installed():
        loss = model(**batch, use_cache=False).loss
        wanted = gradients(model, loss)
    few = FastDecoder(fast.model, torch.float32, 2 * TOKENS, labels, compiled=False)
    assert few.max_label_tokens == -(-labels // 8) * 8 < TOKENS
    head = fast.model.get_output_embeddings().weight.numel()
    assert few.skipped_flops(4.0) == pytest.approx(4 * head * (1 - few.max_label_tokens / (2 * TOKENS)))
    with few.installed():
        chosen = model(**batch, use_cache=False).loss
        assert largest_difference(gradients(model, chosen), wanted) < 1e-5
    assert chosen.item() == pytest.approx(loss.item(), rel=1e-6)


def test_the_dropout_of_each_layer_is_a_function_of_its_seed_and_new_in_each_pass(batch):  # noqa: F811
    model, fast, *_ = build(lora_dropout=DROPOUT)
    module = fast.layers[0].self_attn.o_proj
    with fast.installed(), torch.no_grad():
        losses = [model(**batch).loss.item() for _ in range(2)]
        x = torch.randn(1, 5, 64)
        got = module(x)
        kept = keep_mask(5, 64, fast.linears[module].seed, dropout_threshold(DROPOUT))
        dropped = x * kept * keep_scale(dropout_threshold(DROPOUT))
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        wanted = module.get_base_layer()(x) + module.scaling["default"] * (dropped @ a.T @ b.T)
    assert losses[0] != losses[1]
    assert len({seed.item() for seed in fast.seeds}) == len(fast.seeds)
    assert torch.allclose(got, wanted, atol=1e-5)


def test_calls_without_labels_and_the_removed_path_are_transformers_own(batch):  # noqa: F811
    model, fast, *_ = build()
    model.eval()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": torch.ones_like(batch["input_ids"])}
    inputs["attention_mask"][:, :5] = 0
    wanted = model(**inputs).logits
    with fast.installed():
        assert torch.equal(model(**inputs).logits, wanted)
        assert fast.model.config._attn_implementation == ATTENTION
    assert fast.model.config._attn_implementation == "sdpa"
    assert ATTENTION not in fast.model.config.to_json_string()
    assert torch.equal(model(**inputs).logits, wanted)
    assert is_untouched(model)


def test_all_layers_of_one_kind_share_a_compiled_graph(batch):  # noqa: F811
    kinds = ["sliding_attention"] * 4 + ["full_attention"] * 4
    model, fast, *_ = build("gemma3_text", more={"num_hidden_layers": 8, "layer_types": kinds})
    plain = fast.layer
    seen = []
    fast.layer = torch.compile(
        plain, backend=lambda graph, inputs: seen.append(1) or graph.forward, dynamic=False, fullgraph=True
    )
    with fast.installed():
        model(**batch, use_cache=False).loss.backward()
    assert len(seen) == 2, "one for layers with a sliding window, one for those without"


@pytest.mark.parametrize(("name", "differs"), [("llama", False), ("cohere2", True)])
def test_a_head_whose_logits_are_scaled_is_found(name, differs):
    _, fast, *_ = build(name)
    assert (logits_difference(fast) > decoder_plan.SAME_LOGITS) is differs


def test_a_layer_that_computes_something_else_is_found():
    _, fast, *_ = build()
    assert gradient_difference(fast) < 1e-4
    fast.linears[fast.layers[0].mlp.up_proj].scale *= 2
    assert gradient_difference(fast) > MAX_DIFFERENCE


def is_untouched(model) -> bool:
    return not any({"forward", "lora_tensors"} & vars(module).keys() for module in model.modules())


def choose(monkeypatch, name="llama", *, capability=H200, zero_stage=0, **values):
    """The path chosen for a small model, as on a GPU; layers are not compiled and their memory is made up."""
    _, fast, recipe, precision = build(name, **values)
    monkeypatch.setattr(decoder_plan, "FastDecoder", uncompiled)
    budget = MemoryBudget(100 * 2**30, 100 * 2**30, 10 * 2**30, 2**20, 0)
    size = TOKENS, TOKENS
    path = choose_decoder_path(fast.model, recipe, precision, size, zero_stage, capability, lambda fast: budget)
    return fast.model, path


def uncompiled(*given, compiled):
    return FastDecoder(*given, compiled=False)


def test_it_is_installed_and_says_what_it_does(monkeypatch):
    model, path = choose(monkeypatch)
    assert path.active
    assert path.report == (
        "fast path of LlamaForCausalLM: attention inside documents, 88 packed tokens, compiled layers, kernels of LoRA "
        "and the loss, 0 of 3 layers recomputed (a layer saves 10.00 GiB of activations and 100.0 GiB are free), nf4, "
        "products in fp32"
    )
    assert model.config._attn_implementation == ATTENTION


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"capability": None}, "no GPU"),
        ({"fast": "off"}, "--fast off"),
        ({"zero_stage": 3}, "LlamaForCausalLM has no fast path under ZeRO-3"),
        ({"pack_length": 0}, "the fast path of LlamaForCausalLM is for packs, and pack_length is 0"),
        ({"name": "cohere2"}, "Cohere2ForCausalLM changes its head's logits"),
    ],
)
def test_the_plain_path_is_told_with_its_reason_and_leaves_the_model_as_it_was(monkeypatch, values, reason):
    model, path = choose(monkeypatch, **values)
    assert not path.active
    assert path.report.startswith(f"plain path ({reason}): every layer recomputed")
    assert model.config._attn_implementation == "sdpa"
    assert is_untouched(model)


def test_what_a_layer_does_not_take_is_told(monkeypatch):
    monkeypatch.setattr(decoder_plan, "gradient_difference", lambda fast: int("no"))
    _, path = choose(monkeypatch)
    assert path.report.startswith("plain path (LlamaForCausalLM does not take the fast path: ValueError: invalid lit")


def test_gpt2_s_linear_layers_and_an_own_dropout_are_told():
    recipe = make_recipe({"base_precision": "fp32"})
    precision = resolve_precision(recipe, None)
    gpt2 = add_lora(random_base(small_config("gpt2"), precision, "cpu"), recipe).get_base_model()
    assert (
        reason_against(gpt2, recipe, precision, 0, H200) == "the linear layers of GPT2LMHeadModel are of class Conv1D"
    )
    _, fast, *_ = build(more={"attention_dropout": 0.1})
    assert reason_against(fast.model, recipe, precision, 0, H200) == "the model's own dropout is on"


def test_fp8_that_is_asked_for_and_not_possible_is_refused(monkeypatch):
    _, fast, recipe, precision = build(more={"intermediate_size": 96})
    asked = make_recipe({"base_precision": "nf4", "compute_dtype": "fp8"})
    object.__setattr__(precision, "fp8_products", True)
    assert decoder_plan.choose_products(fast, recipe, precision)[1].startswith(
        "fp32 (fp8 products need widths that are"
    )
    with pytest.raises(UserError, match="compute_dtype fp8 is not possible here: fp8 products need widths"):
        decoder_plan.choose_products(fast, asked, precision)
