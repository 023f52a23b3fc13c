"""The mathematics of training, spelt out: an explicit Accelerator loop in one process, without Trainer.

Every strategy must reproduce its losses and its weights.
"""

import torch
from accelerate import Accelerator

from llm_qa.config.recipe import load_recipe
from llm_qa.data.packing import IGNORED, PackedDataset, collate_packs, tokenize_records
from llm_qa.data.preparation import prepared_folder
from llm_qa.data.splits import load_split
from llm_qa.models.loading import load_base, load_tokenizer
from llm_qa.models.lora import add_lora
from llm_qa.models.precision import resolve_precision


def load(recipe_path):
    """(recipe, model as training starts, tokenizer, training packs) of a recipe on the bundled data."""
    recipe = load_recipe(recipe_path)
    records = load_split(prepared_folder(None), "train")
    tokenizer = load_tokenizer(recipe.model)
    model = load_base(recipe.model, resolve_precision(recipe, None))
    if recipe.method == "lora":
        model = add_lora(model, recipe)
    pairs, _ = tokenize_records(tokenizer, records, recipe.max_length)
    packs = PackedDataset(pairs, recipe.pack_length, recipe.loss_on, recipe.seed, recipe.global_batch_size)
    return recipe, model, tokenizer, packs


def order_of(packs, recipe) -> list[int]:
    """Numbers of the packs in the order of training."""
    return torch.randperm(len(packs), generator=torch.Generator().manual_seed(recipe.seed)).tolist()


def train(recipe_path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """(loss of every update in nats a label token, final trainable weights by name).

    An update is the mean over the label tokens of `global_batch_size` packs, whichever processes they would be on;
    packs are computed one at a time. The order is the seed's permutation.
    """
    recipe, model, tokenizer, packs = load(recipe_path)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=recipe.global_batch_size)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decayed = [p for name, p in trained.items() if p.ndim > 1]
    plain = [p for name, p in trained.items() if p.ndim <= 1]  # biases and norms are not decayed
    groups = [
        {"params": decayed, "weight_decay": recipe.training["weight_decay"]},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.training["learning_rate"])
    model, optimizer = accelerator.prepare(model.train(), optimizer)
    order = order_of(packs, recipe)
    losses = []
    for step in range(recipe.training["max_steps"]):
        update = [packs[i] for i in order[step * recipe.global_batch_size : (step + 1) * recipe.global_batch_size]]
        tokens = sum(int((pack["labels"] != IGNORED).sum()) for pack in update)
        total = 0.0
        for pack in update:
            with accelerator.accumulate(model):
                batch = collate_packs([pack], tokenizer.pad_token_id)
                logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
                loss_sum = torch.nn.functional.cross_entropy(
                    logits[0, :-1].float(), batch["labels"][0, 1:], ignore_index=IGNORED, reduction="sum"
                )
                accelerator.backward(loss_sum / tokens * recipe.global_batch_size)  # it divides by the passes
                optimizer.step()
                optimizer.zero_grad()
                total += loss_sum.item()
        losses.append(total / tokens)
    return losses, {name: parameter.detach().clone() for name, parameter in trained.items()}


def validation_loss(model, tokenizer, recipe) -> float:
    """Loss of the bundled validation records in nats a label token, packs computed one at a time."""
    pairs, _ = tokenize_records(tokenizer, load_split(prepared_folder(None), "validation"), recipe.max_length)
    packs = PackedDataset(pairs, recipe.pack_length, recipe.loss_on, recipe.seed)
    loss_sum = tokens = 0
    for pack in (packs[i] for i in range(len(packs))):
        batch = collate_packs([pack], tokenizer.pad_token_id)
        num_label_tokens = int((batch["labels"] != IGNORED).sum())
        with torch.no_grad():
            loss_sum += model(**batch, use_cache=False).loss.item() * num_label_tokens
        tokens += num_label_tokens
    return loss_sum / tokens
