"""An engine in a process of its own: sessions stay in the processes of their connections, and only frames cross."""
