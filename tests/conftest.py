"""For all tests: the same examples each time, and no property fails for being slow on a busy machine."""

from hypothesis import settings

settings.register_profile("p2pnode", deadline=None, derandomize=True)
settings.load_profile("p2pnode")
