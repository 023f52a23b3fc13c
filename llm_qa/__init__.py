"""Fine-tune Korean language models to answer questions in your own field, and measure whether they do."""
