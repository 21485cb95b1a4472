"""For all tests: the same examples each time, no property fails for being slow, and a testnet in the process."""

from hypothesis import settings

settings.register_profile("p2pnode", deadline=None, derandomize=True)
settings.load_profile("p2pnode")

pytest_plugins = ["p2pnode.pytest_plugin"]
"""As an installed p2pnode has pytest load it; whichever is first, it is loaded once."""
