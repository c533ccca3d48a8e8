"""The CPU backend: one step of the codec and of the LM as ONNX graphs, run by ONNX Runtime.

The graphs are written straight from canonical weights: neither torch nor the `onnx` package is needed.
"""
