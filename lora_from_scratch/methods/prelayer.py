"""PreLayer: what comes before the blocks learns, the blocks do not."""

from lora_from_scratch.methods.interface import Method


class PreLayer(Method):
    """The token embeddings `wte`, the position embeddings `wpe` and the classifier head.

    For GPT-2 small that leaves 50,257 * 768 + 1,024 * 768 + 1,536 = 39,385,344 parameters learning, 31.65 %
    of the model. Few of them move in a step: a row has a gradient only where its token or position occurs.
    That gradient comes from the loss back through every block: what is frozen hands it on, and gets none.
    """

    name = "prelayer"
    summary = "the token and position embeddings, and the head"
    saved_as = "Token and position embeddings, tuned (PreLayer),"
    # Chosen on the bundled base, on held-out sentences (docs/commands.md); for bases as wide as GPT-2 the
    # published table's.
    rates = (3e-4, 2e-4)
    format = "peft"

    def learns(self, model: object) -> list[object]:
        return [model.transformer.wte, model.transformer.wpe, model.score]
