"""No fine-tuning: what the others are measured against."""

from lora_from_scratch.methods.interface import Method


class NoFineTuning(Method):
    """Everything frozen, the head as it was drawn."""

    name = "none"
    summary = "no fine-tuning"
    trains = False

    def learns(self, model: object) -> list[object]:
        return []
