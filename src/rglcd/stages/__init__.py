"""The imperative shell: one function per stage, the table that orders them, and the single entry point that runs them."""
