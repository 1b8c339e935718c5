"""The imperative shell: one function per stage, the table that orders them, and the door through which all run."""
