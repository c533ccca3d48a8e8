"""The CPU backend: one step of the codec and of the LM as ONNX graphs, run by ONNX Runtime.

The graphs are written from canonical weights, without torch or the `onnx` package.
"""
