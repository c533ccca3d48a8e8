"""The model: its configuration, tensor names, text stream and the `Runner` interface."""
