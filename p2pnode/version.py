"""This program's version, read off the installed distribution."""

from importlib.metadata import version

VERSION = version("p2pnode")
