"""tgi-probe: watches inference servers of the TGI family with a continuous probe load.

The way of one number, from left to right; imports point the other way:

    settings -> targets -> schedule -> runner -> probe -> Observation -> metrics + slo -> registry <- exposition
    strict,     pure       pure: due   keeps     one RPC   only facts:    the only place    a thread that
    frozen                 times       promises  at a time raw instants   with instruments  answers scrapes

`Observation` is the waist: probes make it; metrics, objectives, the bench tables and the logs read it.
`app` is the composition root, the only place that puts the parts together.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tgi-probe")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
