"""GPT-2 and its tokenizer, before anything is adapted."""
