"""Live streams: one connection to one engine session, and the registry of all of them."""
