"""Looking inside a record that is kept in a folder, in bounded memory, while it may be in use."""

__all__: list[str] = []
