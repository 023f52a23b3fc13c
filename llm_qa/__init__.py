"""Fine-tune Korean language models to answer questions in your own field, and measure whether they do."""

import logging
import warnings

# On a CPU bitsandbytes offers, at import, an optional kernel that would come from a hub. Its absence is no news.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# peft 0.21 still reads a name that transformers 5.23 renamed; may go with the next peft.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
