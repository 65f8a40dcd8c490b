"""The client of a distributed virtual machine (DVM), over libdvm.

    import dvm

    with dvm.open() as d:
        print(d.call("counter", {"add": 1}))
        version = d.put("app/greeting", "hello")
        d.put("app/greeting", "goodbye", if_version=version)
        print(d.get("app/greeting"), d.keys("app/"))
        for e in d.events("member"):
            print(e.kind, e.member)

`async for e in d.events("member")` does the same in asyncio, without a thread. What waits for an answer does so in C, and
holds no lock of Python's: `await asyncio.to_thread(d.get, "app/greeting")` leaves a loop free.

An event is a dict, as `dvm events --json` prints it; `e.kind` is short for `e.get("kind")`. A stream goes on at another
kernel when the one that tells it dies: nothing is missed, nothing told twice. Where none is left on this host it tells an
event `detached` once, and goes on when one is back. It ends when the DVM is halted.

Failures are dvm.Error, with `code` (a word, such as "no-dvm"), `message`, `cause` and `hint`. Wrong types are TypeError.
"""

import asyncio
import ctypes
import json
import os
import select
import threading
import typing

__all__ = ["open", "Dvm", "Entry", "Events", "Event", "Error", "version"]

version = "1.1.0"

# Returned by dvm_next_event when the DVM was halted.
_ENDED = -9

# What a change wants of a key's version.
_ANY, _ABSENT = 2**64 - 1, 0


class _Event(ctypes.Structure):
    """dvm_event_t; all but `json` is in the JSON."""

    _fields_ = (
        [(name, ctypes.c_uint64) for name in ("index", "epoch", "family")]
        + [("last_heard_ms", ctypes.c_int64)]
        + [(name, ctypes.c_char_p) for name in ("kind", "member", "plugin", "cause", "noticed_by", "label")]
        + [(name, ctypes.c_char_p) for name in ("lineage", "view", "cursor", "time", "json")]
        + [("key", ctypes.c_char_p), ("reserved", ctypes.c_void_p * 7)]
    )


def _load():
    """The library of the installation that this file is in, else what the loader finds."""
    here = os.path.dirname(os.path.abspath(__file__))
    beside = os.path.join(here, "..", "..", "libdvm.so.1")
    name = beside if os.path.exists(beside) else "libdvm.so.1"
    try:
        lib = ctypes.CDLL(name)
    except OSError as error:
        raise ImportError(
            f"libdvm.so.1 is not found ({error}); put it in place with `cargo xtask install`, "
            "or name its directory in LD_LIBRARY_PATH"
        ) from None
    handle, text, number, version = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64
    place, told = ctypes.POINTER(handle), ctypes.POINTER(version)
    for function, result, arguments in (
        ("dvm_open", number, [place, text]),
        ("dvm_fd", number, [handle]),
        ("dvm_subscribe", number, [handle, version, text]),
        ("dvm_next_event", number, [handle, ctypes.POINTER(_Event)]),
        ("dvm_call", number, [handle, text, text, place, number]),
        ("dvm_key_get", number, [handle, text, number, place, told, number]),
        ("dvm_key_put", number, [handle, text, text, version, told, number]),
        ("dvm_key_delete", number, [handle, text, version, number]),
        ("dvm_key_list", number, [handle, text, place, number]),
        ("dvm_watch", number, [handle, version, text, text]),
        ("dvm_status", number, [handle, place, number]),
        ("dvm_config", number, [handle, place, number]),
        ("dvm_config_set", number, [handle, text, text, text, number]),
        ("dvm_mask", version, [text]),
        ("dvm_uri", text, [handle]),
        ("dvm_through", text, [handle]),
        ("dvm_error_json", text, [handle]),
        ("dvm_free", None, [handle]),
        ("dvm_close", None, [handle]),
    ):
        getattr(lib, function).restype = result
        getattr(lib, function).argtypes = arguments
    return lib


_lib = _load()


class Error(Exception):
    """What happened, to whom, why, and what to do next."""

    def __init__(self, code, message, cause=None, hint=None):
        self.code, self.message, self.cause, self.hint = code, message, cause, hint
        super().__init__(code, message, cause, hint)

    def __str__(self):
        cause = f" ({self.cause})" if self.cause else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{self.message}{cause}{hint}"


class Event(dict):
    """An event: its fields by name, None for one that it has not. `keys` and the like are e["keys"]."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)


class Entry(typing.NamedTuple):
    """A key's value, and its version for a later `if_version`."""

    value: object
    version: int


class _Handle:
    """A handle of libdvm, used by one thread at a time."""

    def __init__(self, uri):
        self._lock = threading.Lock()
        self._handle = None
        handle = ctypes.c_void_p()
        if _lib.dvm_open(ctypes.byref(handle), _bytes(uri)) < 0:
            raise _error(None)
        self._handle = handle

    def use(self, function, *arguments):
        """Calls a function of the library with the handle; what it returns, if that is no failure."""
        with self._lock:
            if self._handle is None:
                raise Error("closed", "this was closed", hint="open another with dvm.open()")
            result = function(self._handle, *arguments)
            if isinstance(result, int) and result < 0 and result != _ENDED:
                raise _error(self._handle)
            return result

    def close(self):
        with self._lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                _lib.dvm_close(handle)

    def __del__(self):
        if getattr(self, "_handle", None) is not None:
            self.close()


class _Closing:
    """What is closed, or ends with its `with`."""

    def close(self):
        """Ends it."""
        self._handle.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Dvm(_Closing):
    """A DVM. Several threads may use it; in a forked child open another. Closed, its streams of events go on."""

    def __init__(self, uri=None):
        self._handle = _Handle(uri)

    def call(self, plugin, command, timeout=10.0):
        """Sends one command to a plug-in; its reply. Waits for it at most so many seconds; None: as long as it takes.

        When the kernel dies meanwhile the command goes to another one, and takes effect once.
        """
        return self._ask(_lib.dvm_call, _bytes(plugin), _bytes(json.dumps(command)), timeout=timeout)

    def get(self, key, default=None, fresh=False, timeout=10.0):
        """A key's value; `default` where there is none.

        A Dvm reads what was written with it. `fresh` asks the DVM first, and misses nothing that was acknowledged to anybody.
        """
        entry = self.entry(key, fresh, timeout)
        return default if entry is None else entry.value

    def entry(self, key, fresh=False, timeout=10.0):
        """A key's Entry, value and version; None where there is none."""
        version = ctypes.c_uint64()

        def ask(handle, text, limit):
            return _lib.dvm_key_get(handle, _bytes(key), int(fresh), text, ctypes.byref(version), limit)

        try:
            return Entry(self._ask(ask, timeout=timeout), version.value)
        except Error as error:
            if error.code == "not-found":
                return None
            raise

    def put(self, key, value, if_version=None, if_absent=False, timeout=10.0):
        """Sets a key, if it has that version, or does not exist; its version now. Error `rejected` where it is otherwise."""
        version = ctypes.c_uint64()
        wanted = _wanted(if_version, if_absent)
        text = _bytes(json.dumps(value))
        self._handle.use(_lib.dvm_key_put, _bytes(key), text, wanted, ctypes.byref(version), _limit(timeout))
        return version.value

    def delete(self, key, if_version=None, timeout=10.0):
        """Deletes a key, if it has that version. One that is not there is fine, where no version is asked for."""
        self._handle.use(_lib.dvm_key_delete, _bytes(key), _wanted(if_version, False), _limit(timeout))

    def entries(self, prefix="", timeout=10.0):
        """The keys that begin so, in order, each with its Entry."""
        entries = self._ask(_lib.dvm_key_list, _bytes(prefix), timeout=timeout)
        return {entry["key"]: Entry(entry["value"], entry["version"]) for entry in entries}

    def keys(self, prefix="", timeout=10.0):
        """The names of keys that begin so, in order."""
        return list(self.entries(prefix, timeout))

    def watch(self, prefix="", since=None):
        """The changes of keys that begin so, for `for` and `async for`, as `events` has them; `e.key` is the key."""
        return Events(self.uri, "key-changed", since, prefix)

    def status(self, timeout=10.0):
        """What `dvm status --json` prints: members, plug-ins, view, index."""
        return self._ask(_lib.dvm_status, timeout=timeout)

    def config(self, timeout=10.0):
        """All settings by name."""
        return self._ask(_lib.dvm_config, timeout=timeout)

    def configure(self, key, value, member=None, timeout=10.0):
        """Changes a setting, or a tag of a member; None removes a tag."""
        text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
        self._handle.use(_lib.dvm_config_set, _bytes(member), _bytes(key), _bytes(text), _limit(timeout))

    def _ask(self, function, *arguments, timeout):
        """Calls a function of the library that gives out a JSON text; what is in it."""
        text = ctypes.c_void_p()
        self._handle.use(function, *arguments, ctypes.byref(text), _limit(timeout))
        try:
            return json.loads(ctypes.string_at(text.value))
        finally:
            _lib.dvm_free(text)

    def events(self, kind="", since=None):
        """The events whose kind begins so, for `for` and `async for`; "" is what `dvm events` tells.

        They begin now, or where `since` says: after an event's cursor, after an index, or "all" that is kept.
        """
        return Events(self.uri, kind, since)

    @property
    def uri(self):
        """The URI that means the same DVM for any process of this host."""
        return os.fsdecode(self._handle.use(_lib.dvm_uri))


class Events(_Closing):
    """A stream of events, with a handle of its own. One loop at a time takes from it."""

    def __init__(self, uri, kind, since, prefix=None):
        mask = _lib.dvm_mask(_bytes(kind))
        if kind == "":
            # What is told only where it is asked for stays out.
            mask &= ~(_lib.dvm_mask(b"key-changed") | _lib.dvm_mask(b"member-suspected"))
        if mask == 0:
            raise Error("usage", f"no kind of event begins with `{kind}`", hint="docs/events.md has them all")
        self._kind = kind
        self._handle = _Handle(uri)
        try:
            self._fd = self._handle.use(_lib.dvm_fd)
            since = None if since is None else _bytes(str(since))
            if prefix is None:
                self._handle.use(_lib.dvm_subscribe, mask, since)
            else:
                self._handle.use(_lib.dvm_watch, mask, _bytes(prefix), since)
        except BaseException:
            self._handle.close()
            raise

    @property
    def through(self):
        """The member whose kernel tells them; None while there is none."""
        # It tells a failure as it tells that there is none: as nothing.
        self._handle.use(_lib.dvm_fd)
        name = self._handle.use(_lib.dvm_through)
        return None if name is None else name.decode()

    def fileno(self):
        """A descriptor that is readable when `poll` may have something: for select and the like alone."""
        return self._fd

    def poll(self):
        """The next event if one is here, else None; never waits. StopIteration when the DVM was halted."""
        told = _Event()
        while True:
            result = self._handle.use(_lib.dvm_next_event, ctypes.byref(told))
            if result == _ENDED:
                raise StopIteration
            if result == 0:
                return None
            event = Event(json.loads(told.json))
            # What is about the stream itself everybody needs to know.
            if event.kind.startswith(self._kind) or event.kind in ("detached", "overflow", "partition-lost"):
                return event

    def __iter__(self):
        return self

    def __next__(self):
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        while True:
            event = self.poll()
            if event is not None:
                return event
            poller.poll()

    def __aiter__(self):
        return self

    async def __anext__(self):
        loop = asyncio.get_running_loop()
        while True:
            try:
                event = self.poll()
            except StopIteration:
                raise StopAsyncIteration from None
            if event is not None:
                return event
            readable = loop.create_future()
            loop.add_reader(self._fd, _wake, readable)
            try:
                await readable
            finally:
                loop.remove_reader(self._fd)


def open(uri=None):
    """A DVM by its name or URI, as `dvm --dvm` takes it; without one DVM_URI, else the user's only DVM on this host."""
    return Dvm(uri)


def _wake(readable):
    if not readable.done():
        readable.set_result(None)


def _limit(seconds):
    """Milliseconds for libdvm; None is as long as it takes."""
    return -1 if seconds is None else max(0, min(int(seconds * 1000), 2**31 - 1))


def _wanted(if_version, if_absent):
    if if_absent and if_version is not None:
        raise TypeError("if_version and if_absent exclude each other")
    return _ABSENT if if_absent else _ANY if if_version is None else if_version


def _bytes(text):
    if text is None:
        return None
    data = os.fsencode(text)
    if b"\0" in data:
        raise ValueError("a zero byte in a text for libdvm")
    return data


def _error(handle):
    told = json.loads(_lib.dvm_error_json(handle))
    return Error(*(told.get(name) for name in ("code", "message", "cause", "hint")))
