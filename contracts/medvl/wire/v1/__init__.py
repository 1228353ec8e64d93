"""Generated stubs of ``medvl.proto``; regenerate with ``make proto``."""
