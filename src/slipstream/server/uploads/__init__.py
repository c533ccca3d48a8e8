"""The protocols of uploads, one POST request per file: one module per dialect, and the registry of their addresses.

A dialect turns the body of a request into a file, and its transcript into the response (`protocol.UploadDialect`).
Limits, keys, slots, the graceful shutdown, metrics and logs are the same for all dialects. To add one:

1. Write a module here with a subclass of `UploadDialect`.
2. Add one line to `UPLOADS`.
3. Describe its route in `api/openapi.yaml`.
"""

from __future__ import annotations

from slipstream.dialects.kyutai import PATH as KYUTAI_PATH
from slipstream.server.uploads import deepgram, openai
from slipstream.server.uploads.kyutai import KyutaiUpload
from slipstream.server.uploads.protocol import UploadDialect

UPLOADS: dict[str, type[UploadDialect]] = {
    KYUTAI_PATH: KyutaiUpload,
    openai.PATH: openai.OpenAIUpload,
    deepgram.PATH: deepgram.DeepgramUpload,
}
"""The dialect of each address."""
