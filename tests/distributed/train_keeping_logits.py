"""scripts/train.py as it is, which also keeps the logits of the live model, in its engine, just before it is saved."""

import sys
from pathlib import Path

import torch

from llm_qa.console import is_main_process, run_script
from llm_qa.training import strategy


def probe() -> dict[str, torch.Tensor]:
    """Two documents of 48 tokens for every model of the matrix, int64 (2, 48)."""
    tokens = torch.randint(1, 512, (2, 48), generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens, "position_ids": torch.arange(48).expand(2, 48)}


def keep_logits(trainer) -> None:
    """Write live_logits.pt into the run folder: fp32 (2, 48, vocabulary). Every rank takes part."""
    engine = trainer.model_wrapped
    engine.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        logits = engine(**probe()).logits.float()
    if is_main_process():
        torch.save(logits, Path(trainer.args.output_dir).parent / "live_logits.pt")


if __name__ == "__main__":
    # Here and not above: in a process that imports this file, scripts/evaluate.py would hide the library of that name.
    sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
    gather = strategy.final_weights

    def final_weights(trainer):
        """Keep the logits, then gather what is saved."""
        keep_logits(trainer)
        return gather(trainer)

    strategy.final_weights = final_weights
    import train  # after that, so that it imports the function above

    run_script(train.main, speaks=train.first_to_say)
