"""How the model reaches the devices; both ends of a way in one file.

    mode       a download is                              the device keeps   the server keeps       lost or skipped
    none       the params as float32                      nothing            nothing                nothing to repair
    snapshot   the params through the codec               nothing            nothing                nothing to repair
    mcm        the steps of one common state it missed    that state         that state, its log    catch-up
    rand-mcm   a step of the device's own state           its own state      one state per device   nothing to repair

``snapshot.py`` has the first two (``none`` is its codec of that name), ``mcm.py`` the equations of the others and
``message.py`` their bytes. ``ledger.py`` is what makes rand-mcm safe under any fault, ``common.py`` what makes mcm so.
"""

from __future__ import annotations

from enum import StrEnum


class Mode(StrEnum):
    """What a download is relative to."""

    NONE = "none"
    SNAPSHOT = "snapshot"
    MCM = "mcm"
    RAND_MCM = "rand-mcm"
