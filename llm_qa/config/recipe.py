"""WHAT to train: the recipe. YAML files and command-line flags use the same words; every problem is raised at once.

A recipe is flat. A key is either a field of `Recipe` below or the name of a `transformers.TrainingArguments` field
(learning_rate, num_train_epochs, save_steps ...; `allowed_training_arguments.py` says which, and why others not). An
unknown key is an error with the nearest known one. HOW to run (GPUs, DDP, ZeRO, offload) is never said here: that is an
accelerate config.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llm_qa.config.allowed_training_arguments import reason_against, training_argument_types, unread_problems
from llm_qa.config.conversion import convert, printable, shown
from llm_qa.config.strict_yaml import MOST_CHARACTERS, read_yaml
from llm_qa.console import UserError, say
from llm_qa.migrations import FORMAT_KEY, IMPLIED_BY_OLD_RUNS, format_of, renamed_recipe_keys

EMBEDDED_MODEL = "embedded"
LORA_KEYS = ("lora_r", "lora_alpha", "lora_dropout", "lora_targets")  # read by method lora alone
NF4_KEYS = ("double_quant",)  # read by base_precision nf4 alone
RETRIEVAL_KEYS = ("retrieval_hit", "retrieval_embedder")  # read where retrieval is above 0
OFF_AT_ZERO = ("join_questions", "retrieval")  # keys of what a recipe does without where they are 0


def _key(default: Any, help: str, **limits: Any) -> Any:
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class Recipe:
    """What is trained, from which weights, how precisely, on what schedule. Durations in hours, lengths in tokens."""

    model: str = _key(EMBEDDED_MODEL, "'embedded' (the small GPT-NeoX of the package), a hub id or a local folder")
    method: Literal["lora", "full"] = _key("lora", "train LoRA adapters on a frozen base, or all weights")
    base_precision: Literal["nf4", "fp8", "16bit", "bf16", "fp16", "fp32"] = _key(
        "nf4",
        "how the base weights are kept; fp8 needs Ada or Hopper; 16bit is bf16 where the GPU has it (8.0), else fp16",
    )
    double_quant: bool = _key(True, "quantise the nf4 scales too (0.37 bits a weight less)")
    compute_dtype: Literal["auto", "fp8", "bf16", "fp16", "fp32"] = _key(
        "auto",
        "what products are computed in; auto is bf16 from capability 8.0, fp16 on older GPUs, fp32 on CPU; fp8 (auto "
        "from 8.9 where the fast path runs) is for products with frozen weights, the rest stays in bf16",
    )
    lora_r: int = _key(8, "rank of the LoRA update", at_least=1)
    lora_alpha: int = _key(32, "LoRA scale numerator: the update is multiplied by alpha / r", at_least=1)
    lora_dropout: float = _key(0.05, "dropout on the input of the LoRA update", at_least=0.0, below=1.0)
    lora_targets: list[str] | None = _key(None, "names of the linear layers to adapt; left out, every one but the head")

    max_length: int = _key(
        512, "longest question + answer in tokens; longer pairs are set aside and listed", at_least=8
    )
    pack_length: int = _key(2048, "tokens a packed sequence; 0 trains on one padded pair a sequence", at_least=0)
    prompt: Literal["auto", "plain", "chat"] = _key(
        "auto", "how questions are put: by the tokenizer's chat template, or plainly; auto is chat where it has one"
    )
    system_prompt: str | None = _key(None, "the system message of the chat template where a record has none of its own")
    loss_on: Literal["answer", "everything"] = _key("answer", "which tokens have labels: the answer and eos, or all")
    join_questions: float = _key(
        0.0, "share of an epoch's documents that ask two records' questions at once", at_least=0.0, below=1.0
    )
    retrieval: int = _key(
        0,
        "training records that are put before a question as references, in training and whenever it is asked",
        at_least=0,
    )
    retrieval_hit: float = _key(
        0.8,
        "share of training questions whose references are the nearest; others get random ones",
        at_least=0.0,
        at_most=1.0,
    )
    retrieval_embedder: str | None = _key(
        None,
        "a local sentence-transformers folder that finds the references by its embeddings; left out, BM25 over "
        "morphemes does",
    )
    global_batch_size: int = _key(1, "sequences (packs) an optimizer step, over all GPUs", at_least=1)
    micro_batch_size: int = _key(1, "sequences a forward pass on one GPU", at_least=1)
    recompute: Literal["auto", "all", "none"] = _key(
        "auto", "layers whose activations are computed again for the backward pass; auto is as few as the memory allows"
    )
    fast: Literal["auto", "off"] = _key("auto", "the fast path where it is valid, or plain transformers and peft")
    keep: Literal["best", "last"] = _key(
        "best", "which weights the run ends with: those with the lowest validation loss, or those of the last step"
    )
    early_stopping: int | None = _key(
        None, "stop after so many evaluations without a lower validation loss; left out, train to the end", at_least=1
    )
    sample_answers: int = _key(
        3,
        "validation questions answered after a validation, on the screen and in samples.jsonl; 0 for none",
        at_least=0,
    )
    max_hours: float | None = _key(
        None, "wall-clock budget: save and stop (exit code 75) before it is spent", above=0.0
    )
    seed: int = _key(42, "seed of the order of the data, LoRA's start and dropout", at_least=0, below=2**32)
    training: dict[str, Any] = field(default_factory=dict, metadata={"help": "TrainingArguments names"})

    def to_dict(self) -> dict[str, Any]:
        """The recipe as its YAML would say it: flat, without keys that it does not read and those of what it lacks."""
        values = dataclasses.asdict(self)
        training = values.pop("training")
        unread = {*(LORA_KEYS if self.method == "full" else ()), *(() if self.base_precision == "nf4" else NF4_KEYS)}
        unread |= {key for key in OFF_AT_ZERO if not values[key]}
        unread |= {*(() if self.retrieval else RETRIEVAL_KEYS)}
        return {**{key: value for key, value in values.items() if key not in unread}, **training}


RECIPE_FIELDS = {f.name: f for f in dataclasses.fields(Recipe) if f.name != "training"}


def load_recipe(path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe file, lay command-line overrides over it, check all of it.

    A key under its earlier name is taken, with a line that says the new one; the recipe.yaml of a run is a recipe too.
    Raises UserError naming every problem in one message, before anything is loaded.
    """
    written = _read_mapping(Path(path))
    format_of(written, path)
    written.pop(FORMAT_KEY, None)
    values, told = renamed_recipe_keys(written, str(path))
    overrides, flags_told = renamed_recipe_keys(overrides or {}, "the command line")
    for line in (*told, *flags_told):
        say(f"note: {line}")
    return make_recipe({**values, **overrides}, source=str(path))


def load_stored_recipe(path: str | Path) -> Recipe:
    """Read the recipe.yaml of a run, of any version; UserError as `load_recipe`."""
    return stored_recipe(_read_mapping(Path(path)), str(path))


def stored_recipe(values: dict[str, Any], source: str) -> Recipe:
    """The recipe that a run of any version has kept.

    A key that this version does not know (a newer one wrote it, or other libraries) is said in a line and ignored, so
    that it does not lock the run; a value that it does not know is a UserError.
    """
    format_of(values, source)
    values, _ = renamed_recipe_keys({key: value for key, value in values.items() if key != FORMAT_KEY}, source)
    known = {*RECIPE_FIELDS, *training_argument_types()}
    if unknown := sorted(values.keys() - known):
        say(f"note: {source} has keys that this version does not know and ignores: {', '.join(map(shown, unknown))}")
    return make_recipe({**IMPLIED_BY_OLD_RUNS, **{k: values[k] for k in values if k in known}}, source=source)


def _read_mapping(path: Path) -> dict[str, Any]:
    """Keys and values of a recipe file as they are written."""
    if not path.stem.strip("."):
        raise UserError(f"The recipe {path} has no name that a run folder could take: rename it.")
    try:
        if not path.is_file():
            raise FileNotFoundError
        with open(path, "rb") as file:
            text = file.read(4 * MOST_CHARACTERS + 1).decode("utf-8-sig")
        values = read_yaml(text)
    except FileNotFoundError:
        known = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f" Recipes there: {', '.join(known[:20])}." if known else " The recipes lie in scripts/recipes/."
        raise UserError(f"The recipe {path} does not exist.{hint}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"The recipe {path} is not readable YAML: {reason}.") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"The recipe {path} must be a mapping of keys to values, like 'model: embedded'.")
    return values


def make_recipe(values: dict[str, Any], *, source: str = "the recipe") -> Recipe:
    """Build a Recipe from flat values (strings from the command line are converted); UserError names every problem."""
    problems: list[str] = []
    own: dict[str, Any] = {}
    training: dict[str, Any] = {}
    hints = typing.get_type_hints(Recipe)
    others = training_argument_types() if any(key not in RECIPE_FIELDS for key in values) else {}
    if len(values) > len(RECIPE_FIELDS) + len(others):
        raise UserError(f"{source} has {len(values):,} keys, more than there are settings: this is not a recipe.")
    for key, value in values.items():
        if key not in RECIPE_FIELDS and key not in others:
            if reason := reason_against(key):
                problems.append(f"{key} cannot be set: {reason}")
                continue
            near = difflib.get_close_matches(key[:40], [*RECIPE_FIELDS, *others], n=1)
            problems.append(f"{shown(key)} is not a known key" + (f" (did you mean {near[0]}?)" if near else ""))
        else:
            mine = key in RECIPE_FIELDS
            try:
                converted = convert(value, hints[key] if mine else others[key])
            except ValueError as error:
                problems.append(f"{key}: {shown(value, repr)} {error}")
                continue
            if not printable(converted):
                problems.append(f"{key}: {shown(value, repr)} has characters that cannot be printed")
            (own if mine else training)[key] = converted
            if mine:
                problems += _limit_problems(key, converted)
    recipe = Recipe(**own, training=training)
    problems += _combination_problems(recipe, set(own))
    if problems:
        raise UserError(f"{source}: " + "; ".join(problems) + ".")
    return recipe


def _limit_problems(key: str, value: Any) -> list[str]:
    limits = RECIPE_FIELDS[key].metadata
    if value is None:
        return []
    if "at_least" in limits and value < limits["at_least"]:
        return [f"{key} is {value} and must be at least {limits['at_least']}"]
    if "above" in limits and value <= limits["above"]:
        return [f"{key} is {value} and must be above {limits['above']}"]
    if "at_most" in limits and value > limits["at_most"]:
        return [f"{key} is {value} and must be at most {limits['at_most']}"]
    if "below" in limits and value >= limits["below"]:
        return [f"{key} is {value} and must be below {limits['below']}"]
    return []


def _combination_problems(recipe: Recipe, given: set[str]) -> list[str]:
    problems = []
    if recipe.method == "full" and recipe.base_precision in ("nf4", "fp8"):
        problems.append(
            f"method full cannot train {recipe.base_precision} weights (set base_precision to 16bit or fp32, or method "
            "to lora)"
        )
    if recipe.compute_dtype == "fp8" and (recipe.method == "full" or recipe.base_precision == "fp32"):
        frozen = "method full has none" if recipe.method == "full" else "base_precision fp32 asks for exact ones"
        problems.append(f"compute_dtype fp8 is for frozen weights of 16 bits or less, and {frozen} (set it to auto)")
    if recipe.compute_dtype == "fp8" and recipe.fast == "off" and recipe.base_precision != "fp8":
        problems.append("compute_dtype fp8 is the fast path's, and fast is off (set compute_dtype or fast to auto)")
    changed = {key for key in given if getattr(recipe, key) != RECIPE_FIELDS[key].default}
    if recipe.method == "full" and (unused := sorted(given & set(LORA_KEYS))):
        problems.append(f"{', '.join(unused)} would be ignored with method full (leave out, or set method to lora)")
    if recipe.base_precision != "nf4" and (unused := sorted(changed & set(NF4_KEYS))):
        problems.append(f"{', '.join(unused)} would be ignored with base_precision {recipe.base_precision} (leave out)")
    if recipe.prompt == "plain" and recipe.system_prompt:
        problems.append("system_prompt would be ignored with prompt plain (leave it out, or set prompt to chat)")
    if recipe.pack_length and recipe.pack_length < recipe.max_length:
        problems.append(
            f"pack_length {recipe.pack_length} is shorter than max_length {recipe.max_length}: a document is never "
            "split, so raise pack_length or lower max_length"
        )
    for key in ("max_steps", "num_train_epochs", "learning_rate", "save_steps", "eval_steps", "logging_steps"):
        if (
            (value := recipe.training.get(key, 1)) is not None
            and value <= 0
            and not (key == "max_steps" and value == -1)
        ):
            problems.append(f"{key} is {value:g} and must be above 0")
    if recipe.micro_batch_size >= 1 and recipe.global_batch_size % recipe.micro_batch_size:
        problems.append(
            f"global_batch_size {recipe.global_batch_size} is not a multiple of micro_batch_size "
            f"{recipe.micro_batch_size}"
        )
    if not recipe.retrieval and (unused := sorted(changed & set(RETRIEVAL_KEYS))):
        problems.append(f"{', '.join(unused)} would be ignored with retrieval 0 (leave it out, or set retrieval)")
    redrawn = "join_questions" if recipe.join_questions else "retrieval" if recipe.retrieval else ""
    if redrawn and recipe.training.get("dataloader_persistent_workers"):
        problems.append(
            f"{redrawn} draws anew every epoch, which dataloader_persistent_workers would not see (leave it out)"
        )
    return problems + unread_problems(recipe.training)


def recipe_flags(arguments: list[str]) -> dict[str, str]:
    """Turn `--learning-rate 1e-4 --no-double-quant` into overrides; recipe keys and flags are the same words."""
    overrides: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or len(flag) == 2:
            raise UserError(
                f"{shown(flag, repr)} is not a flag: write --key value, with a recipe key or a TrainingArguments name."
            )
        name, equals, value = flag[2:].partition("=")
        name = name.replace("-", "_")
        if not equals:
            if rest and not (rest[0].startswith("--") and len(rest[0]) > 2):
                value = rest.pop(0)
            elif name.startswith("no_") and name not in RECIPE_FIELDS:
                name, value = name[3:], "false"
            else:
                value = "true"
        if name in overrides:
            raise UserError(f"{shown(flag.partition('=')[0])} is given twice (as {name}): say it once.")
        overrides[name] = value
    return overrides
