"""tgi-probe: watches inference servers of the TGI family with a continuous probe load.

    config ─► plan ─► schedule ─► runner ─► probe ─► Observation ─► metrics + slo ─► registry ─► pages

CONTRIBUTING.md says what each folder is for.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tgi-probe")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
