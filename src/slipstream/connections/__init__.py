"""TCP connections, HTTP requests and WebSockets, within limits: who may connect (`access`, `keys`), and how much."""
