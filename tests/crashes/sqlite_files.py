"""Sees what SQLite writes, syncs, truncates and deletes: two functions of its file layer, wrapped in this process.

SQLite's default VFS keeps its functions in a table, and so does every open file; https://sqlite.org/vfs.html describes
both. The tables get functions that call the original one first and then tell a listener. Locks, reads and the shared
memory of the write-ahead log stay as they are.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from functools import cache
from typing import Any, Protocol

DURABLE_KINDS = 0x00000100 | 0x00000800 | 0x00080000  # SQLITE_OPEN_MAIN_DB, MAIN_JOURNAL, WAL
REFUSALS = {
    "make": 14,  # SQLITE_CANTOPEN
    "write": 13,  # SQLITE_FULL
    "sync": 10 | 4 << 8,  # SQLITE_IOERR_FSYNC
    "truncate": 10 | 6 << 8,  # SQLITE_IOERR_TRUNCATE
    "unlink": 10 | 10 << 8,  # SQLITE_IOERR_DELETE
}
OPEN_DIRECTORY = b"openDirectory"


class Listener(Protocol):
    """Who is told after each deed, and asked before it: what it ``refuses`` (by a name of ``REFUSALS``) fails."""

    def inside(self, path: Any) -> str | None: ...

    def refuses(self, call: str, path: str) -> bool: ...

    def created(self, path: str) -> None: ...

    def written(self, path: str, offset: int, data: bytes) -> None: ...

    def truncated(self, path: str, size: int) -> None: ...

    def synced(self, path: str) -> None: ...

    def unlinked(self, path: str) -> None: ...


class CannotWatch(Exception):
    """SQLite's own functions cannot be found from here."""


class _Vfs(Structure):
    _fields_ = [
        ("version", c_int),
        ("file_bytes", c_int),
        ("max_path", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", c_void_p),
        ("delete", c_void_p),
        *((name, c_void_p) for name in ("access", "full_path", "dl_open", "dl_error", "dl_sym", "dl_close")),
        *((name, c_void_p) for name in ("randomness", "sleep", "time", "last_error", "time_int64")),
        ("set_system_call", c_void_p),
        ("get_system_call", c_void_p),
        ("next_system_call", c_void_p),
    ]


class _Methods(Structure):
    _fields_ = [
        ("version", c_int),
        *((name, c_void_p) for name in ("close", "read", "write", "truncate", "sync", "size", "lock", "unlock")),
        *((name, c_void_p) for name in ("check_lock", "control", "sector_size", "characteristics")),
        *((name, c_void_p) for name in ("shm_map", "shm_lock", "shm_barrier", "shm_unmap", "fetch", "unfetch")),
    ]


class _File(Structure):
    _fields_ = [("methods", c_void_p)]


_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)  # SQLite keeps the address of the name
_DELETE = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)
_SYNC = CFUNCTYPE(c_int, c_void_p, c_int)
_OPEN_DIRECTORY = CFUNCTYPE(c_int, c_char_p, POINTER(c_int))
_SET_CALL = CFUNCTYPE(c_int, c_void_p, c_char_p, c_void_p)
_GET_CALL = CFUNCTYPE(c_void_p, c_void_p, c_char_p)


@contextmanager
def watched_sqlite(listener: Listener) -> Iterator[None]:
    """Tell the listener of every change to a database, journal or log that is opened meanwhile.

    Raises:
        CannotWatch: this Python's SQLite hides its file layer.
    """
    layer = find_file_layer()
    assert layer.listener is None, "one at a time"
    layer.install(listener)
    try:
        yield
    finally:
        layer.remove()


@cache
def find_file_layer() -> _FileLayer:
    """The one there is in this process.

    Raises:
        CannotWatch: this Python's SQLite hides it.
    """
    return _FileLayer()


class _FileLayer:
    """The wrapped functions. They must live as long as the process: SQLite holds their addresses."""

    def __init__(self) -> None:
        import _sqlite3

        try:
            find = ctypes.CDLL(getattr(_sqlite3, "__file__", None)).sqlite3_vfs_find
        except (OSError, AttributeError) as error:
            raise CannotWatch("SQLite is built into this Python, and its file layer cannot be reached") from error
        find.restype, find.argtypes = POINTER(_Vfs), [c_char_p]
        self._vfs = find(None)
        table = self._vfs.contents
        self.listener: Listener | None = None
        self._names: dict[int, str] = {}
        self._tables: dict[int, _Methods] = {}
        self._directories: list[str] = []
        self._keep: list[Any] = []
        self._plain = table.open, table.delete
        get_call = _GET_CALL(table.get_system_call)
        self._open_directory = _OPEN_DIRECTORY(get_call(self._vfs, OPEN_DIRECTORY))
        self._on_open = _OPEN(self._opened)
        self._on_delete = _DELETE(self._deleted)
        self._on_open_directory = _OPEN_DIRECTORY(self._opened_directory)

    def install(self, listener: Listener) -> None:
        self.listener = listener
        table = self._vfs.contents
        table.open = ctypes.cast(self._on_open, c_void_p).value
        table.delete = ctypes.cast(self._on_delete, c_void_p).value
        self._set_open_directory(ctypes.cast(self._on_open_directory, c_void_p).value)

    def remove(self) -> None:
        table = self._vfs.contents
        table.open, table.delete = self._plain
        self._set_open_directory(None)
        self._names.clear()
        self.listener = None

    def _set_open_directory(self, address: int | None) -> None:
        code = _SET_CALL(self._vfs.contents.set_system_call)(self._vfs, OPEN_DIRECTORY, address)
        assert code == 0, code

    # --- called by SQLite ---

    def _opened(self, vfs: int, address: int | None, file: int, flags: int, out_flags: int) -> int:
        name = ctypes.string_at(address) if address and flags & DURABLE_KINDS else b""
        path = self.listener.inside(name) if name and self.listener is not None else None
        is_new = path is not None and not os.path.lexists(name)
        if is_new and self._refuses("make", path):
            _File.from_address(file).methods = None
            return REFUSALS["make"]
        code: int = _OPEN(self._plain[0])(vfs, address, file, flags, out_flags)
        if code == 0 and path is not None and self.listener is not None:
            opened = _File.from_address(file)
            opened.methods = ctypes.addressof(self._table_like(opened.methods))
            self._names[file] = path
            if is_new:
                self.listener.created(path)
        return code

    def _refuses(self, call: str, path: str | None) -> bool:
        return self.listener is not None and path is not None and self.listener.refuses(call, path)

    def _table_like(self, address: int) -> _Methods:
        """A copy of the file's own table, with our functions in it."""
        if address not in self._tables:
            original = _Methods.from_address(address)
            ours = _Methods()
            size = {1: _Methods.shm_map.offset, 2: _Methods.fetch.offset}.get(original.version, ctypes.sizeof(_Methods))
            ctypes.memmove(ctypes.byref(ours), address, size)
            write, truncate, sync = _WRITE(original.write), _TRUNCATE(original.truncate), _SYNC(original.sync)

            def on_write(file: int, data: int, count: int, offset: int) -> int:
                if self._refuses("write", self._names[file]):
                    return REFUSALS["write"]
                code: int = write(file, data, count, offset)
                if code == 0 and self.listener is not None:
                    self.listener.written(self._names[file], offset, ctypes.string_at(data, count))
                return code

            def on_truncate(file: int, size: int) -> int:
                if self._refuses("truncate", self._names[file]):
                    return REFUSALS["truncate"]
                code: int = truncate(file, size)
                if code == 0 and self.listener is not None:
                    self.listener.truncated(self._names[file], size)
                return code

            def on_sync(file: int, flags: int) -> int:
                if self._refuses("sync", self._names[file]):
                    return REFUSALS["sync"]
                code: int = sync(file, flags)
                if code == 0 and self.listener is not None:
                    self.listener.synced(self._names[file])
                self._sync_directories()
                return code

            callbacks = _WRITE(on_write), _TRUNCATE(on_truncate), _SYNC(on_sync)
            self._keep.append((callbacks, write, truncate, sync))
            ours.write, ours.truncate, ours.sync = (ctypes.cast(each, c_void_p).value for each in callbacks)
            self._tables[address] = ours
        return self._tables[address]

    def _deleted(self, vfs: int, name: bytes, sync_directory: int) -> int:
        path = self.listener.inside(name) if self.listener is not None else None
        if path is not None and os.path.lexists(name) and self._refuses("unlink", path):
            return REFUSALS["unlink"]
        code: int = _DELETE(self._plain[1])(vfs, name, sync_directory)
        if code == 0 and path is not None and self.listener is not None:
            self.listener.unlinked(path)
        self._sync_directories()
        return code

    def _opened_directory(self, name: bytes, fd: Any) -> int:
        """SQLite opens a directory for one purpose: to sync it at once."""
        code: int = self._open_directory(name, fd)
        path = self.listener.inside(os.path.dirname(name)) if self.listener is not None else None
        if code == 0 and path is not None:
            self._directories.append(path)
        return code

    def _sync_directories(self) -> None:
        while self._directories and self.listener is not None:
            self.listener.synced(self._directories.pop(0))
