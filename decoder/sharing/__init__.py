"""A captioner that leaves its work directory: metadata, model card, ONNX."""
