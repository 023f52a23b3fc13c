"""scripts/train.py as it is, but that the validation loss rises by one a step: the first evaluation is the best."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    from llm_qa.training.trainer import PackTrainer

    measure = PackTrainer.evaluation_loop

    def evaluation_loop(self, *arguments, **keywords):
        """What was measured, and the step."""
        output = measure(self, *arguments, **keywords)
        output.metrics["eval_loss"] += self.state.global_step
        return output

    PackTrainer.evaluation_loop = evaluation_loop
    sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
    runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "train.py"), run_name="__main__")
