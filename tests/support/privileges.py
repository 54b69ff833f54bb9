"""A process of root that obeys the permissions of files, as everybody's does."""

import ctypes
import os

CAPABILITY_VERSION = 0x20080522  # 3, of two words
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Word(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def obey_permissions():
    """Give up, in this process, what lets root read and write every file."""
    if os.getuid() != 0:
        return
    libc, header, words = ctypes.CDLL(None), _Header(CAPABILITY_VERSION, 0), (_Word * 2)()
    assert libc.capget(ctypes.byref(header), words) == 0
    kept = ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH) & 0xFFFFFFFF
    words[0].effective &= kept
    words[0].permitted &= kept
    words[0].inheritable &= kept
    assert libc.capset(ctypes.byref(header), words) == 0
