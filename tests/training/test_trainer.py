"""What a recipe becomes in Trainer's terms."""

from transformers import TrainingArguments

from llm_qa.config.recipe import make_recipe
from llm_qa.models.precision import resolve_precision
from llm_qa.training.strategy import Strategy
from llm_qa.training.trainer import training_arguments


def test_one_process_uses_one_gpu_of_several(tmp_path, monkeypatch, capsys):
    """Trainer would split batches over all that it sees: another global batch, in threads, under no engine."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 1 if self._n_gpu == 1 else 4))
    recipe = make_recipe({"micro_batch_size": 2, "global_batch_size": 8})
    arguments = training_arguments(recipe, resolve_precision(recipe, None), Strategy(), tmp_path)
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == 2
    assert "one process trains on one of the 4 GPUs here (make train-ddp uses all)" in capsys.readouterr().out
