"""The classifier head alone, on a frozen model: a linear probe."""

from lora_from_scratch.methods.interface import Method


class Head(Method):
    """num_labels * width parameters learn: 1,536 of GPT-2 small with two labels."""

    name = "head"
    summary = "the classifier head alone (a linear probe)"
    saved_as = "A classifier head"
    rates = (3e-3, 3e-3)  # chosen on the bundled base, on held-out sentences (docs/commands.md)
    format = "tensors"

    def learns(self, model: object) -> list[object]:
        return [model.score]
