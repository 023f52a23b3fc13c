"""Stop before a NaN or an infinite gradient reaches the weights, and name the records in question."""

from __future__ import annotations

import math

import torch
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from llm_qa.console import Failed
from llm_qa.data.packing import PackedDataset, count_real_tokens
from llm_qa.distributed import all_gather
from llm_qa.language import tr
from llm_qa.training.internals import had_bad_gradients, is_zero_optimizer, skip_bad_updates

MOST_RECORDS = 20  # at most so many record ids in the message


class NonFiniteError(Failed):
    """A loss or gradient is NaN or infinite; no checkpoint was written after it."""


class StopOnNonFinite(TrainerCallback):
    """Checks every gradient just before the update; the last checkpoint is not touched.

    DeepSpeed's engine has already updated by then: it is configured to skip updates with non-finite gradients in every
    precision, as it does in 16 bits, and asked whether it skipped. In fp16 the loss scaler skips such steps by design,
    so only the logged loss is checked.
    """

    def __init__(self, train_set: PackedDataset | None = None):
        self.train_set = train_set
        self.passes: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.hook: RemovableHandle  # from on_train_begin on
        self.trained: list[torch.nn.Parameter] = []
        self.asked: tuple | None = None

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        """Register hooks on the model's inputs and on its loss."""
        self.hook = model.register_forward_hook(self._remember, with_kwargs=True)
        skip_bad_updates(getattr(optimizer, "optimizer", None))

    def _remember(self, module, args, kwargs, output) -> None:
        if module.training and "position_ids" in kwargs:
            self.passes.append((kwargs["input_ids"], kwargs["position_ids"], output["loss"].detach()))

    def on_step_begin(self, args, state, control, **kwargs):
        """Forget the batches of the last update."""
        self.passes = []

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        """Check every gradient, or ask the engine that holds them."""
        if args.fp16:
            return
        engine = getattr(optimizer, "optimizer", None)
        if is_zero_optimizer(engine):
            bad = had_bad_gradients(engine)
        else:
            self.trained = self.trained or [p for p in model.parameters() if p.requires_grad]
            gradients = [p.grad for p in self.trained if p.grad is not None and p.grad.numel()]
            if not gradients:
                return
            finite = torch.isfinite(torch.stack(torch._foreach_norm(gradients)).sum())
            if finite.is_cuda and getattr(engine, "defaults", {}).get("fused"):
                self._skip_on_the_gpu(engine, finite, state.global_step + 1, args.process_index)
                return
            bad = not finite.item()
        if bad:
            self._stop(state.global_step + 1, args.process_index)

    def _skip_on_the_gpu(self, optimizer, finite: torch.Tensor, step: int, rank: int) -> None:
        """Let a fused optimizer skip a bad update itself and read the result later: reading now would synchronise.

        `found_inf` is the flag that torch's GradScaler sets on optimizers; with it weights and moments do not change.
        """
        self._ask(rank)
        optimizer.found_inf = (~finite).float()
        answer = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
        written = torch.cuda.Event()
        written.record()
        self.asked = (answer, written, step, self.passes)

    def _ask(self, rank: int) -> None:
        if self.asked is None:
            return
        (answer, written, step, passes), self.asked = self.asked, None
        written.synchronize()
        if not answer:
            self.passes = passes
            self._stop(step, rank)

    def _stop(self, step: int, rank: int) -> None:
        told = [where for where in all_gather(self.where(rank)) if where]
        raise NonFiniteError(self.sentence(tr("a gradient"), step, "; ".join(told)))

    def on_step_end(self, args, state, control, **kwargs):
        """Read this step's result before anything is logged, validated or saved."""
        if control.should_save or control.should_log or control.should_evaluate or state.global_step >= state.max_steps:
            self._ask(args.process_index)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Stop where a logged loss is not finite."""
        for key in ("loss", "eval_loss"):
            if key in logs and not math.isfinite(logs[key]):
                what = tr("the loss" if key == "loss" else "the validation loss")
                raise NonFiniteError(self.sentence(what, state.global_step, self.where(args.process_index)))

    def on_train_end(self, args, state, control, **kwargs):
        """Remove the hooks."""
        self.hook.remove()

    def where(self, rank: int) -> str:
        """The passes of this update with a non-finite loss (or all), with their record ids; '' where unknown."""
        if not self.passes or self.train_set is None:
            return ""
        bad = [i for i, (_, _, loss) in enumerate(self.passes) if not torch.isfinite(loss).all()]
        packs: dict[bytes, int | None] = {
            tokens[: int(count_real_tokens(positions))].cpu().numpy().tobytes(): None
            for i in bad or range(len(self.passes))
            for tokens, positions in zip(*self.passes[i][:2], strict=True)
        }
        for i in range(len(self.train_set.packs)):
            tokens = self.train_set[i]["input_ids"].numpy().tobytes()
            if tokens in packs:
                packs[tokens] = i
        ids: dict[str, None] = {}
        for pack in packs.values():
            for document in self.train_set.packs[pack] if pack is not None else ():
                ids[self.train_set.pairs.record_ids[document]] = None
        named = list(ids)[:MOST_RECORDS] + (
            [tr("and {count} more", count=len(ids) - MOST_RECORDS)] if len(ids) > MOST_RECORDS else []
        )
        numbers = ", ".join(str(i + 1) for i in bad)
        passes = tr("every forward pass")
        if bad:
            passes = tr("forward pass {numbers} of {count}", numbers=numbers, count=len(self.passes))
        return tr(
            "rank {rank}, {passes}, records {records}",
            rank=rank,
            passes=passes,
            records=", ".join(named) or tr("unknown"),
        )

    @staticmethod
    def sentence(what: str, step: int, where: str = "") -> str:
        """The error message: what happened, where, and what helps."""
        place = f" ({where})" if where else ""
        return tr(
            "Step {step}: {what} is not a finite number{place}, so training stopped before it could spoil the "
            "checkpoints. Lower --learning-rate, set --compute-dtype to bf16 or fp32, or look at these records.",
            step=step,
            what=what,
            place=place,
        )
