"""Count the floating-point operations that a decoder needs: no padding, no repetition.

A multiplication and an addition are two operations.
"""

from decoder.model.decoders import Decoder

# Products with the previous state, which is zero before the first word of a caption.
_RECURRENT = {"first_cell.recurrent", "second_cell.recurrent", "written_gates"}
# Computed once for each image, not for each word; the embedding of a word is read, not computed.
_NOT_PER_WORD = ("word_embedding", "pooled_embedding", "image_gates", "region_", "attention_key")


def reading_words(
    model: Decoder, regions: int, words: int, captions: int, looked_up: bool
) -> float:
    """Return the operations of one forward pass over words.

    Args:
        model: the decoder.
        regions: of an image, attended to at every word.
        words: of all captions together.
        captions: number of captions.
        looked_up: the input of the gates for each word comes from a table, as without dropout.
    """
    per_word = per_later_word = 0
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or name.startswith(_NOT_PER_WORD):
            continue
        if name in _RECURRENT:
            per_later_word += weight.numel()
        elif not (looked_up and name == "word_gates"):
            per_word += weight.numel()
    if model.attends:
        per_word += regions * (model.attention_score.numel() + model.output.in_features)
    return 2.0 * (per_word * words + per_later_word * (words - captions))


def encoding_images(model: Decoder, regions: int, images: int, training: bool) -> float:
    """Return the operations of encoding images, with the backward pass if `training`.

    The backward pass of an embedding computes the gradient of its weights alone, because the
    stored features need none.
    """
    total = 0.0
    for name, count in (
        ("pooled_embedding", 1),
        ("image_gates", 1),
        ("region_embedding", regions),
        ("attention_key", regions),
    ):
        if hasattr(model, name):
            passes = 1 if not training else 2 if name.endswith("embedding") else 3
            total += 2.0 * passes * count * getattr(model, name).weight.numel()
    return total * images
