"""scripts/train.py as it is under ZeRO-3, which also keeps what DeepSpeed made of the model, and gradients.

The fast path is taken, which a machine without a GPU would not do, with plain arithmetic in place of compiled layers;
--fast off takes the plain one.
"""

import sys
from pathlib import Path

from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.utils import get_z3_leaf_modules, safe_get_full_grad
from safetensors.torch import save_file

from llm_qa import files
from llm_qa.console import is_main_process, run_script
from llm_qa.models.fast import plan
from llm_qa.training import trainer

AMPERE = (8, 0)  # the lowest compute capability of the fast path


class Uncompiled(plan.ShardedNeoX):
    """The fast path of a CPU."""

    def __init__(self, *given, compiled: bool, **rest):
        assert compiled
        super().__init__(*given, compiled=False, **rest)


def keep_engine(engine: DeepSpeedEngine, folder: Path) -> None:
    """Write gradients.safetensors and engine.json, about leaf modules and gathers. Every rank takes part."""
    trained = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    gradients = {name: safe_get_full_grad(parameter).clone() for name, parameter in trained.items()}
    found = {
        "leaf_modules": [type(module).__name__ for module in get_z3_leaf_modules(engine.module)],
        "kept_whole": [name for name, p in engine.module.named_parameters() if p.ds_persist],
        "prefetched": engine.zero_prefetch_bucket_size(),
    }
    if is_main_process():
        save_file(gradients, folder / "gradients.safetensors")
        files.write_json(folder / "engine.json", found)


if __name__ == "__main__":
    plan.ShardedNeoX = Uncompiled
    choose, step, build = plan.choose_fast_path, DeepSpeedEngine.step, trainer.build_trainer
    folder, steps = [], []

    def build_trainer(model, tokenizer, arguments, *given, **rest):
        """Note where the run is."""
        folder.append(Path(arguments.output_dir).parent)
        return build(model, tokenizer, arguments, *given, **rest)

    def watched_step(engine, *given, **rest):
        """Keep the gradients of the second update: in the first those of LoRA's A are 0, as B is."""
        steps.append(1)
        if len(steps) == 2:
            keep_engine(engine, folder[0])
        return step(engine, *given, **rest)

    # Before the script imports them, which it does when it has read its flags.
    plan.choose_fast_path = lambda *given, **rest: choose(*given, **{**rest, "capability": AMPERE})
    trainer.build_trainer, DeepSpeedEngine.step = build_trainer, watched_step
    sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
    import train

    run_script(train.main, speaks=train.first_to_say)
