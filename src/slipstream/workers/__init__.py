"""A server of several processes: a parent, one process for each engine, and workers with the connections.

The parent (`parent`) starts the others, restarts workers, passes signals on, and joins metrics and topics. An engine's
process (`engine`) runs a model on a device. A worker (`worker`) is the server of one process with engines elsewhere.
"""
