"""The reference and CUDA backend: PyTorch modules whose streaming state is a value."""
