"""The chapter as a file: its cells, parameters and methods, what it depends on, what it must hold to."""
