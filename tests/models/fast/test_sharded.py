"""The fast path whose weights are read inside the calls of the modules that own them."""

import pytest
import torch
from test_fast_model import DROPOUT, TOKENS, batch, build, gradients  # noqa: F401  batch is a fixture

from llm_qa.models.fast.sharded import ShardedNeoX

KINDS = [{"base_precision": "nf4"}, {"base_precision": "fp32", "method": "full"}]


def build_both(values):
    """(model, FastNeoX on it, ShardedNeoX on it) with dropout where there is LoRA."""
    model, fast = build(**({} if values.get("method") == "full" else {"lora_dropout": DROPOUT}), **values)
    fast.max_label_tokens = TOKENS // 2
    sharded = ShardedNeoX(fast.model, fast.shape.dtype, TOKENS, TOKENS, compiled=False)
    sharded.max_label_tokens = fast.max_label_tokens
    fast.model.enable_input_require_grads()
    return model, fast, sharded


class _Before(torch.autograd.Function):
    """The same tensor; `action` is called on the way back, as DeepSpeed's hooks do it."""

    @staticmethod
    def forward(ctx, tensor, action):
        ctx.action = action
        return tensor.detach()

    @staticmethod
    def backward(ctx, grad):
        ctx.action()
        return grad, None


def share_out(module: torch.nn.Module) -> None:
    """As DeepSpeed does with a leaf module: its weights are there in its forward and backward pass and nowhere else."""
    whole = {parameter: parameter.data for parameter in module.parameters()}

    def gather():
        for parameter, data in whole.items():
            parameter.data = data

    def release():
        for parameter in whole:
            parameter.data = torch.empty(0, dtype=parameter.dtype)

    def before(_, inputs):
        gather()
        return _Before.apply(inputs[0], release), *inputs[1:]

    def after(_, inputs, output):
        release()
        return _Before.apply(output, gather)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)
    release()


@pytest.mark.parametrize("values", KINDS)
def test_it_gives_what_the_unshared_path_gives(batch, values):  # noqa: F811
    model, fast, sharded = build_both(values)
    torch.manual_seed(1)
    loss = fast.loss(**batch)
    wanted = gradients(model, loss)
    sharded.install()
    torch.manual_seed(1)
    got_loss = model(**batch).loss
    got = gradients(model, got_loss)
    assert got_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert got.keys() == wanted.keys()
    assert all(torch.allclose(got[name], wanted[name], rtol=1e-4, atol=1e-7) for name in wanted)


@pytest.mark.parametrize("values", KINDS)
def test_weights_need_to_be_there_only_during_the_calls_of_their_modules(batch, values):  # noqa: F811
    model, _, sharded = build_both(values)
    sharded.install()
    torch.manual_seed(1)
    loss = model(**batch).loss
    wanted = gradients(model, loss)
    causal = sharded.model
    for module in (*causal.gpt_neox.layers, causal.gpt_neox.final_layer_norm, causal.get_output_embeddings()):
        share_out(module)
    torch.manual_seed(1)
    got_loss = model(**batch).loss
    got = gradients(model, got_loss)
    assert got_loss.item() == loss.item()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("values", KINDS)
def test_nothing_that_is_kept_for_the_backward_pass_is_a_layer_s_weight(batch, values):  # noqa: F811
    model, _, sharded = build_both(values)
    sharded.install()
    weights = {p.untyped_storage().data_ptr() for p in sharded.model.gpt_neox.layers.parameters()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        loss = model(**batch).loss
    loss.backward()
    assert sum(tensor.shape == (TOKENS, model.config.hidden_size) for tensor in kept) >= sharded.recomputed
    assert not [tensor.shape for tensor in kept if tensor.untyped_storage().data_ptr() in weights]


def test_everything_else_goes_the_usual_way(batch):  # noqa: F811
    model, _, sharded = build_both({"base_precision": "fp32"})
    model.eval()
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    wanted = model(**inputs, use_cache=False).logits
    sharded.install()
    assert torch.equal(model(**inputs, use_cache=False).logits, wanted)


def test_a_layer_is_compared_with_the_plain_one():
    _, _, sharded = build_both({"base_precision": "fp32"})
    assert sharded.difference() < 1e-3
