"""Read this first: the idea in plain PyTorch, no tricks, no files. lora, then surgery, gpt2, loop."""
