"""The asyncio shell: the only place with sockets and a clock; it obeys the core."""
