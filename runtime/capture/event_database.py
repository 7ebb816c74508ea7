"""The log's SQLite file: making it, opening one that may be damaged, foreign or crafted, and errors in our words.

A new database is made under another name and renamed, so it is whole or not there, and a rollback journal, through
which SQLite could be led to remove files elsewhere, is never ours.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from edgemem.runtime.capture.event_row import SCHEMA
from edgemem.runtime.capture.frame_folder import FRAMES
from edgemem.runtime.errors import FileError

DATABASE = "events.sqlite3"
VERSION = 1
_NEW = f"{DATABASE}.new"
_SIDE_FILES = ("-journal", "-wal", "-shm")
_APPLICATION_ID = 0x6564_6765  # "edge"
_BUSY_S = 5.0
_LONGEST_BYTES = 1 << 20  # of a text, a row or a statement: far more than an event has
_LEAST_SQLITE = (3, 37, 0)
_ANOTHER_FOLDER = "move the folder away, and a new log is begun; or give another"
_WRITING = """
PRAGMA synchronous = NORMAL;
PRAGMA secure_delete = ON;
PRAGMA wal_autocheckpoint = 256;
PRAGMA journal_size_limit = 1048576;
"""


def make_database(folder: Path) -> None:
    """An empty database, where there is none; only for the process that holds the folder's lock.

    Raises FileError, also where frames lie in the folder already: as no event has them, they would be removed.
    """
    path, new = folder / DATABASE, folder / _NEW
    with in_our_words("the event log cannot be made", folder):
        for leftover in (new, *(folder / f"{_NEW}{end}" for end in _SIDE_FILES)):
            leftover.unlink(missing_ok=True)
        if os.path.lexists(path):
            return
        if os.path.lexists(folder / FRAMES) and any((folder / FRAMES).iterdir()):
            raise FileError("there are frames without an event log", where=folder / FRAMES, do=_ANOTHER_FOLDER)
        os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with closing(sqlite3.connect(new, isolation_level=None)) as connection:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            for statement in SCHEMA:
                connection.execute(statement)
            connection.execute("PRAGMA journal_mode = WAL")
        os.rename(new, path)
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_database(folder: Path, *, read_only: bool) -> sqlite3.Connection:
    """For any thread, one at a time; in autocommit mode. Raises FileError for anything but a sound log of ours."""
    _check_version_of_sqlite()
    _check_files(folder)
    uri = f"{(folder / DATABASE).absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
    with in_our_words("the event log cannot be opened", folder):
        connection = sqlite3.connect(uri, _BUSY_S, isolation_level=None, check_same_thread=False, uri=True)
        try:
            _harden(connection)
            _check_identity(connection, folder)
            damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if damage != "ok":
                raise _damaged(folder, damage)
            if not read_only:
                _prepare_writing(connection, folder)
        except BaseException:
            connection.close()
            raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of what is written within, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors end it by themselves
            with suppress(sqlite3.Error):  # the first error is the one to tell of
                connection.execute("ROLLBACK")
        raise


@contextmanager
def in_our_words(what: str, folder: Path) -> Iterator[None]:
    """What SQLite or the system refuses becomes a FileError."""
    try:
        yield
    except (sqlite3.Error, OSError, UnicodeDecodeError) as problem:  # the last where SQLite quotes a damaged schema
        got, do = _explained(str(problem))
        raise FileError(what, where=folder / DATABASE, got=got, do=do) from problem


def _explained(text: str) -> tuple[str, str]:
    if "disk is full" in text or "No space left" in text:
        return "a full disk", "make room; what was logged before is safe"
    if "malformed" in text or "not a database" in text or "decode" in text:
        return f"a damaged file: {text[:200]!a}", _ANOTHER_FOLDER
    if "is locked" in text:
        return "another program holds the database", "close it there"
    return f"{text[:200]!a}", "check the disk and the folder's permissions"


def _check_version_of_sqlite() -> None:
    if sqlite3.sqlite_version_info < _LEAST_SQLITE:
        wanted = ".".join(map(str, _LEAST_SQLITE))
        raise FileError("this Python's SQLite is too old", got=sqlite3.sqlite_version, wanted=f"{wanted} or newer")


def _check_files(folder: Path) -> None:
    """That SQLite opens regular files of this folder and no others. Whoever may write the folder could still swap them
    afterwards: the folder is private."""
    for name in (DATABASE, *(f"{DATABASE}{end}" for end in _SIDE_FILES)):
        try:
            status = os.lstat(folder / name)
        except FileNotFoundError:
            if name == DATABASE:
                do = "edgemem listen makes one; or give another folder"
                raise FileError("there is no event log", where=folder, do=do) from None
            continue
        except OSError as problem:
            raise FileError("the event log cannot be opened", where=folder, got=problem.strerror) from problem
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise FileError("the event log is a link or no file", where=folder / name, do=_ANOTHER_FOLDER)
        if name.endswith("-journal"):
            raise FileError("a journal lies there that no event log leaves", where=folder / name, do=_ANOTHER_FOLDER)


def _harden(connection: sqlite3.Connection) -> None:
    """As sqlite.org/security.html advises for files of strangers."""
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA mmap_size = 0")
    if sys.version_info >= (3, 11):
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_BYTES)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    if sys.version_info >= (3, 12):
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)


def _check_identity(connection: sqlite3.Connection, folder: Path) -> None:
    """That it is a log, of this version, and that its schema is word for word ours: no view, no trigger, no more."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != _APPLICATION_ID:
        raise FileError("this database is no event log", where=folder / DATABASE, do=_ANOTHER_FOLDER)
    if version != VERSION:
        newer = "update edgemem, or move the folder away" if version > VERSION else _ANOTHER_FOLDER
        raise FileError(
            "the event log is of another version", where=folder / DATABASE, got=version, wanted=VERSION, do=newer
        )
    found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master LIMIT 10").fetchall()
    if len(found) != len(_OBJECTS) or set(found) != _OBJECTS:
        raise FileError("the event log's tables are not ours", where=folder / DATABASE, do=_ANOTHER_FOLDER)


_OBJECTS = {
    ("table", "events", "events", SCHEMA[0]),
    ("index", "events_with_frame", "events", SCHEMA[1]),
    ("table", "sqlite_sequence", "sqlite_sequence", "CREATE TABLE sqlite_sequence(name,seq)"),  # AUTOINCREMENT's own
}


def _prepare_writing(connection: sqlite3.Connection, folder: Path) -> None:
    if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise FileError("the event log's disk cannot hold a write-ahead log", where=folder, do="give another folder")
    connection.executescript(_WRITING)


def _damaged(folder: Path, damage: object) -> FileError:
    return FileError(
        "the event log is damaged", where=folder / DATABASE, got=f"{str(damage)[:200]!a}", do=_ANOTHER_FOLDER
    )
