"""An engine in a separate process: sessions stay in the processes of their connections, and only frames cross."""
