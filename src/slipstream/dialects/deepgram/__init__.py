"""Deepgram's dialects: `/v1/listen` and Flux, `/v2/listen`."""
