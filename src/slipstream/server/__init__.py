"""The server: WebSocket streams, file uploads, health and metrics over one engine.

- `run`: sockets, TLS, signals, drain and logs.
- `http`: routes, uploads and API descriptions.
- `streams`: live streams, and the registry of all of them.
- `dialects`: the message formats of clients; where a new one goes.
- `connections`: TCP, HTTP and WebSocket connections within limits.
- `protocol`, `limits`, `access`, `keys`, `metrics`: what these share.
"""
