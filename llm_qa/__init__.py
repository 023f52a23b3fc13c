"""Fine-tune Korean language models to answer questions in your own field, and measure whether they do."""

import logging

# On a CPU bitsandbytes offers, at import, an optional kernel that would come from a hub. Its absence is no news.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
