"""Exporting a captioner: its files, metadata, model card and ONNX."""
