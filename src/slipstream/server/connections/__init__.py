"""TCP connections, HTTP requests and WebSockets, within limits."""
