"""The certificate of a server of several processes, as a value: a worker that starts does not depend on the files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from slipstream.engine.remote.memory import create_file
from slipstream.server.run import Tls, check_certificate


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate chain and its private key, in PEM."""

    chain: bytes
    key: bytes = field(repr=False)

    @classmethod
    def read(cls, tls: Tls) -> Certificate:
        """Read the files. Raises `OSError` unless both can be read and belong together."""
        certificate = cls(tls.certificate.read_bytes(), tls.key.read_bytes())
        with certificate.files() as held:
            check_certificate(held)
        return certificate

    @contextlib.contextmanager
    def files(self) -> Iterator[Tls]:
        """Yield two files with the certificate that are only in memory, for a library that reads files."""
        with contextlib.ExitStack() as stack:
            paths = []
            for content in (self.chain, self.key):
                file = stack.enter_context(os.fdopen(create_file(), "r+b"))
                file.write(content)
                file.seek(0)
                paths.append(Path(f"/dev/fd/{file.fileno()}"))
            yield Tls(*paths)
