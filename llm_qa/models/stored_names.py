"""What transformers calls a tensor of a checkpoint once it is loaded.

transformers 5 renames some while it loads them (GPT-NeoX's head is stored as `embed_out`), fuses others (experts), and
adds or drops the prefix of checkpoints of a bare decoder. Its own functions are asked, so that a tensor means here what
it means to `from_pretrained`; tests/models/test_stored_names.py notices where they change.
"""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key


def loaded_names(model: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """Name in the checkpoint -> name in the model's state dict; tensors that the model does not have are left out.

    `model` may be on the meta device. Several stored tensors lead to one name where they are fused into it.
    """
    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    known = model.state_dict()
    names = {}
    for name in stored:
        loaded, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if loaded not in known:
            loaded, _ = rename_source_key(name, [], [], model.base_model_prefix, known)
        if loaded in known:
            names[name] = loaded
    return names
