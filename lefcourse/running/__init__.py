"""The chapter as a run: seeds, budget and device in force, the record, and the kernel that executes it."""
