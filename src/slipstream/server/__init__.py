"""The server: WebSocket streams, file uploads, health and metrics over one engine.

- `run`: sockets, TLS, signals, drain and logs.
- `http`: routes, uploads and API descriptions.
- `streams`: live streams, and the registry of all of them.
- `uploads`: the message formats of uploads.
- `served`, `metrics`, `tracing`: the models of a server, and what it reports of itself.

The message formats of streams are in `slipstream.dialects`, sockets and limits in `slipstream.connections`.
"""
