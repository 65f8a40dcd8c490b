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

A program can also be the place of a plug-in's instance, which the DVM tells commands, events and changes of role:

    class Tally(dvm.Plugin):
        ...

    with dvm.open() as d, d.attach("tally", Tally).start() as tally:
        ...  # the program's own work; Tally's callbacks come on a thread of their own
        tally.wait()

Failures are dvm.Error, with `code` (a word, such as "no-dvm"), `message`, `cause` and `hint`. Wrong types are TypeError.
"""

import asyncio
import atexit
import contextlib
import ctypes
import inspect
import json
import logging
import os
import select
import threading
import time
import traceback
import typing
import weakref

__all__ = ["open", "Dvm", "Entry", "Events", "Event", "Error", "version"]
__all__ += ["Plugin", "Attached", "Host", "Meta", "Place", "Refused"]

version = "1.1.0"

# Where tracebacks of callbacks go; a program that sets up no logging finds them on standard error.
_log = logging.getLogger("dvm")

# Returned by dvm_next_event when the DVM was halted, and by dvm_attached_run_pending when the plug-in was unloaded.
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


# The structures and tables of dvm_plugin.h. Texts are taken with their size.
_text, _size, _number, _long = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint64
_WRITE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, _size)
_DONE, _FAILED = 0, 1
_ABI, _STATELESS = 0x00010001, 1
_ROLES = {0: "active", 1: "primary", 2: "standby"}
_LEVELS = {"error": 3, "warning": 4, "info": 6}


class _Out(ctypes.Structure):
    """dvm_out_t."""

    _fields_ = [("struct_size", _size), ("ctx", ctypes.c_void_p), ("write", _WRITE)]


class _Host(ctypes.Structure):
    """dvm_host_t."""

    _fields_ = [
        ("struct_size", _size),
        ("ctx", ctypes.c_void_p),
        ("log", ctypes.CFUNCTYPE(None, ctypes.c_void_p, _number, ctypes.c_char_p)),
        ("token", ctypes.CFUNCTYPE(_long, ctypes.c_void_p)),
        ("ask", ctypes.CFUNCTYPE(_number, ctypes.c_void_p, ctypes.c_char_p, _size, ctypes.POINTER(_Out))),
    ]


class _Place(ctypes.Structure):
    """dvm_place_t."""

    _fields_ = [("struct_size", _size), ("member", ctypes.c_char_p), ("rank", ctypes.c_uint32)]
    _fields_ += [("size", ctypes.c_uint32), ("peers", ctypes.POINTER(ctypes.c_char_p))]


class _Meta(ctypes.Structure):
    """dvm_meta_t."""

    _fields_ = [("struct_size", _size)] + [(name, _long) for name in ("index", "fence", "time", "seed")]
    _fields_ += [("session", ctypes.c_char_p)]


class _Told(ctypes.Structure):
    """dvm_told_t."""

    _fields_ = [("struct_size", _size), ("index", _long), ("kind", ctypes.c_char_p), ("json", _text), ("json_size", _size)]


class _Functions(ctypes.Structure):
    """dvm_functions_t."""

    _at, _out = ctypes.c_void_p, ctypes.POINTER(_Out)
    _where = [ctypes.POINTER(_Place), ctypes.POINTER(_Host)]
    _fields_ = [
        (name, ctypes.CFUNCTYPE(result, *arguments))
        for name, result, arguments in (
            ("validate", _number, [_text, _size, *_where, _out]),
            ("start", _number, [_text, _size, *_where, ctypes.POINTER(_at), _out]),
            ("apply", _number, [_at, _text, _size, ctypes.POINTER(_Meta), _out]),
            ("query", _number, [_at, _text, _size, _out]),
            ("configure", _number, [_at, _text, _size, _out]),
            ("on_event", None, [_at, ctypes.POINTER(_Told)]),
            ("on_role", None, [_at, _number, _long]),
            ("on_place", None, [_at, ctypes.POINTER(_Place)]),
            ("snapshot", _number, [_at, _out]),
            ("restore", _number, [_at, _text, _size, _out]),
            ("stop", None, [_at]),
        )
    ]


class _Code(ctypes.Structure):
    """dvm_plugin_v1_t."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("struct_size", "abi", "functions_size", "flags")]
    _fields_ += [("functions", ctypes.POINTER(_Functions)), ("get_extension", ctypes.c_void_p)]


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
        ("dvm_attach", number, [handle, text, ctypes.POINTER(_Code), place]),
        ("dvm_attached_fd", number, [handle]),
        ("dvm_attached_run_pending", number, [handle]),
        ("dvm_attached_end", None, [handle]),
        ("dvm_attached_error", text, [handle]),
        ("dvm_detach", None, [handle]),
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


class Refused(Error):
    """What a callback of an instance raises to refuse: its text is the answer, as it stands."""

    def __init__(self, message, hint=None):
        super().__init__("refused", message, hint=hint)


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


class Meta(typing.NamedTuple):
    """Where a command stands in the history; the same at every instance."""

    index: int  # grows with every command
    fence: int  # the primary's fencing token; 0 where there is no primary
    time: int  # the proposer's wall clock, milliseconds since 1970; it may step
    seed: int  # a number drawn for this command: seed a generator with it where chance is wanted
    session: typing.Optional[str]  # the client's session, within which the command takes effect once


class Place(typing.NamedTuple):
    """Where an instance runs."""

    member: str  # name of the member
    rank: int  # its rank, 0 the oldest
    size: int  # how many members there are
    peers: typing.List[str]  # their names, by rank


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

    def attach(self, plugin, kind, *arguments, **named):
        """Takes the instance of a plug-in on the member that this talks to, as Attached. `kind` is a subclass of Plugin.

        The plug-in was loaded with `--placement application --payload json`. Nothing is called here: the instance begins when
        it is run, as `kind(config, host, *arguments, **named)`. Waits until the kernel answers, 10 seconds at most. The
        instance does not depend on this Dvm, which may be closed before it.
        """
        return Attached(self._handle, plugin, kind, arguments, named)

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
            await _readable(loop, self._fd)


class Plugin:
    """What runs as an instance of a plug-in in this process, by Dvm.attach: a subclass, with the methods that it wants.

    These are the callbacks of dvm_plugin.h, called by whoever runs the instance (see Attached), one at a time: validate,
    __init__, restore where a state is handed over, any of the others, stop. Configuration, commands and replies are what JSON
    has: a dict comes back with strings for keys, a tuple as a list. What is given to a callback is its own.

    THE ONE RULE. apply may depend on nothing but the instance's state, the command and meta: no clock, no chance, no `id` or
    `hash`, no order of a set, which differs between processes.

    EXCEPTIONS. One that a callback raises is its answer, and changes nothing for the DVM: the instance lives on with the state
    that it has, so decide before you change it. Refused and Error are told as they stand; others with their type, and their
    traceback goes to the logger `dvm`. on_event, on_role, on_place and stop answer nobody: what they raise ends the instance,
    as a panic does elsewhere. So do MemoryError and what is no Exception (KeyboardInterrupt, SystemExit) in every callback.
    Whoever runs the instance gets it then. Nothing else is called after that but stop.
    """

    # The state is bytes: snapshot returns them, and restore is given them. Otherwise it is what JSON has.
    state_is_bytes = False

    def __init__(self, config, host):
        """Starts an instance with its configuration, a dict. Arguments that attach was given follow. `host` is a Host."""

    @staticmethod
    def validate(config, host):
        """Raises what is wrong with a configuration: this member's vote against it. `host` can only be looked at."""

    def apply(self, command, meta):
        """Applies an ordered command; its reply. `meta` is a Meta. Every subclass has this one."""

    def query(self, command):
        """Answers a command that changes nothing, at this instance alone. Without it, queries are refused."""

    def configure(self, config):
        """Takes a new configuration, which every member has validated. Without this method it counts from the next start.

        After an exception the instance is ended.
        """

    def on_event(self, event):
        """Hears of an Event. `event.index` is None for those that come to this instance alone, such as `message` and `timer`."""

    def on_role(self, role, fence):
        """Hears of its role: "active", "primary" or "standby"; `fence` is the token of a primary, else 0."""

    def on_place(self, place):
        """Hears that the members or their ranks changed: a Place, which is that of the host, too."""

    def snapshot(self):
        """The state, from which restore makes it again; changes nothing. Without both there is no state to hand over."""

    def restore(self, state):
        """Takes over the state of another instance, right after __init__. After an exception the instance is ended."""

    def stop(self):
        """The instance is over, at every end of it but that of the process: ends its threads, frees what it has."""


class Attached(_Closing):
    """An instance of a plug-in in this process. It runs when, and where, the program says so, in one of four ways:

        attached.start()            on a thread of its own; attached.wait() waits for its end
        attached.wait()             in the thread that calls, until it is over
        await attached.run()        in a loop of asyncio, between its other tasks
        attached.run_pending()      in a loop of any other kind, when attached.fileno() is readable

    THREADS. Callbacks come in the thread that runs it and nowhere else: in the first way one that is made for it, in the
    others one of the program's. One at a time runs it. `end` and `close` may be called by any thread, and by a callback.
    A handler of a signal that raises, as that of Ctrl-C does, may do so in the midst of a callback in the main thread, and even
    right before it begins: a program that has such handlers uses `start`.

    DEADLINES. The kernel waits for each callback as long as the plug-in was loaded with (`--deadline`, 5 s), from when it is
    due, whether or not the program runs it; and 30 s from attach to the end of __init__ and restore. Other threads of Python
    that hold its lock for so long, in an extension, delay it as well.

    WAITING FOR ONESELF. The thread that runs an instance must not wait for an ordered command to it, by Dvm.call or Host.call:
    nobody would apply it meanwhile. In asyncio, `await asyncio.to_thread(d.call, ...)`.

    ITS END. Unloaded, it is over without a failure: `wait` and `run` return True. Otherwise they raise why it is over, again and
    again; attach again, and another begins. A program that ends gives up what it has.

    FORK. A forked child has no part in its parent's instance; close() lets go of the child's copies.
    """

    _handle = None

    def __init__(self, dvm_handle, plugin, kind, arguments, named):
        self._plugin, self._process = plugin, os.getpid()
        # Held by whoever runs it, and while it is freed; _ending only for a moment.
        self._lock, self._ending = threading.Lock(), threading.RLock()
        self._runner = self._thread = self._loop = self._outcome = None
        self._closing = False
        self._callbacks = _Callbacks(plugin, kind, arguments, named)
        handle = ctypes.c_void_p()
        dvm_handle.use(_lib.dvm_attach, _bytes(plugin), ctypes.byref(self._callbacks.code), ctypes.byref(handle))
        self._handle = self._callbacks.handle = handle
        self._fd = _lib.dvm_attached_fd(handle)
        _all_attached.add(self)

    @property
    def instance(self):
        """The instance itself while there is one, else None. Other threads than the one that runs it need a lock of its own."""
        return self._callbacks.instance

    def start(self):
        """Runs it on a thread of its own, which ends with it, and with the program. Returns this object."""
        self._check()
        if self._thread is not None:
            raise Error("usage", f"the instance of {self._plugin} has a thread already", hint="wait for it")
        self._thread = threading.Thread(target=self._run, name=self._plugin, daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._thread = None
            raise
        return self

    def wait(self, timeout=None):
        """Waits until it is over, and runs it meanwhile, if it has no thread of its own. At most so many seconds.

        True: the plug-in was unloaded. False: time is up. Raises why it is over otherwise.
        """
        self._check()
        if self._thread is None:
            return self._wait(timeout)
        self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        if self._outcome is not None:
            raise self._outcome
        return True

    def fileno(self):
        """A descriptor that is readable when `run_pending` has something to do: for select and the like alone."""
        return self._fd

    def run_pending(self):
        """Makes the callbacks that are due, as many as 64 KiB of commands and events; waits for nothing but them.

        How many it made. None: the plug-in was unloaded. Raises why it is over otherwise.
        """
        with self._running():
            return self._turn()

    async def run(self):
        """Runs it in this loop until it is over, as `wait` does in a thread. Between two turns of its own others have theirs.

        Cancelled, it leaves the instance as it is, and may be awaited again.
        """
        loop = asyncio.get_running_loop()
        with self._running():
            if self._loop is not None:
                raise Error("usage", f"the instance of {self._plugin} is run by a task already", hint="await that one")
            self._loop = loop
        try:
            while self.run_pending() is not None:
                await _readable(loop, self._fd)
            return True
        finally:
            self._loop = None
            if self._closing:
                self._free()

    def end(self):
        """Gives the instance up: it has no token any more, and whoever runs it is told. Returns at once."""
        with self._ending:
            if self._handle is not None:
                _lib.dvm_attached_end(self._handle)

    def close(self):
        """Gives the instance up if it is not over, with its `stop`. A callback that runs, and a thread, are waited for.

        Called by a callback, or while a task runs it, it takes effect when those are done.
        """
        if self._handle is None:
            return
        if os.getpid() != self._process:
            # Locks may be held by threads that are not in this process.
            handle, self._handle = self._handle, None
            _lib.dvm_detach(handle)
            return
        self._closing = True
        self.end()
        if self._runner == threading.get_ident():
            return
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            if self._loop is None or not self._loop.is_running():
                self._free()

    def __del__(self):
        self.close()

    def _run(self):
        try:
            self._wait(None)
        except BaseException as outcome:  # whoever waits for the thread gets it
            self._outcome = outcome

    def _wait(self, timeout):
        # dvm_attached_wait would keep Python's handlers of signals waiting, too.
        until = None if timeout is None else time.monotonic() + timeout
        poller = select.poll()
        with self._running():
            poller.register(self._fd, select.POLLIN)
            while self._turn() is not None:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return False
                poller.poll(_limit(left))
        return True

    def _turn(self):
        result = _lib.dvm_attached_run_pending(self._handle)
        if self._callbacks.failure is not None:
            raise self._callbacks.failure
        if result < 0 and result != _ENDED:
            raise self._error(result)
        return None if result == _ENDED else result

    @contextlib.contextmanager
    def _running(self):
        """For who runs it: one at a time; a close meanwhile is done at the end."""
        self._check()
        if not self._lock.acquire(blocking=False):
            raise Error("usage", f"another thread runs the instance of {self._plugin}", hint="leave it to that one")
        try:
            if self._handle is None:
                raise Error("closed", f"the instance of {self._plugin} was closed here", hint="attach again")
            self._runner = threading.get_ident()
            yield
        finally:
            self._runner = None
            if self._closing:
                self._free()
            self._lock.release()

    def _check(self):
        """Refuses callbacks, which it would wait for, and forked processes."""
        if self._handle is not None and os.getpid() != self._process:
            raise self._error(_lib.dvm_attached_fd(self._handle))
        if self._runner == threading.get_ident():
            message = f"a callback of {self._plugin} must not run the instance that calls it, nor wait for it"
            raise Error("usage", message, hint="return, and it goes on")

    def _free(self):
        with self._ending:
            handle, self._handle = self._handle, None
        if handle is not None:
            _lib.dvm_detach(handle)

    def _error(self, result):
        code = {-2: "usage", -10: "forked"}.get(result, "failure")
        return Error(code, _lib.dvm_attached_error(self._handle).decode())


# What a program that ends has not closed; its callbacks need an interpreter that lives.
_all_attached = weakref.WeakSet()


@atexit.register
def _close_all():
    for attached in list(_all_attached):
        attached.close()


class _Callbacks:
    """The callbacks of an instance as C calls them, and what keeps them alive. Nothing here leads to the Attached that owns it.

    No exception leaves a callback: C would go on as if there had been none.
    """

    def __init__(self, plugin, kind, arguments, named):
        if not (isinstance(kind, type) and issubclass(kind, Plugin)) or kind.apply is Plugin.apply:
            raise TypeError("the instance's class is a subclass of dvm.Plugin with a method `apply`")
        own = {name for name, _ in _Functions._fields_ if getattr(kind, name, None) is not getattr(Plugin, name, None)}
        for name in own - {"start"}:
            if inspect.iscoroutinefunction(getattr(kind, name)):
                raise TypeError(f"`{name}` of {kind.__name__} is a coroutine function; a callback is done when it returns")
        self.plugin, self.kind = plugin, kind
        self.make = lambda config, host: kind(config, host, *arguments, **named)
        # The instance and its host, from start to stop; what ended it; where to end it.
        self.instance = self.host = self.failure = self.handle = None
        needed = {"validate", "start", "on_place", "stop"}
        # These objects are the code that C calls.
        kept = {name: function(getattr(self, name)) for name, function in _Functions._fields_ if name in own | needed}
        self.functions = _Functions(**kept)
        sizes = ctypes.sizeof(_Code), _ABI, ctypes.sizeof(_Functions)
        flags = 0 if own & {"snapshot", "restore"} else _STATELESS
        self.code = _Code(*sizes, flags, ctypes.pointer(self.functions), None)
        self.kept = kept

    def validate(self, config, size, place, host, out):
        def validate():
            given = Host(host, place)
            try:
                self.kind.validate(_read(config, size), given)
            finally:
                given._end()

        return self.answer("validate", out, validate)

    def start(self, config, size, place, host, _, out):
        def start():
            given = Host(host, place)
            try:
                self.instance = self.make(_read(config, size), given)
            except BaseException:
                given._end()
                raise
            self.host = given

        return self.answer("start", out, start)

    def apply(self, _, command, size, meta, out):
        def apply():
            m = meta.contents
            session = None if m.session is None else m.session.decode()
            return _write(self.instance.apply(_read(command, size), Meta(m.index, m.fence, m.time, m.seed, session)))

        return self.answer("apply", out, apply)

    def query(self, _, command, size, out):
        return self.answer("query", out, lambda: _write(self.instance.query(_read(command, size))))

    def configure(self, _, config, size, out):
        def configure():
            self.instance.configure(_read(config, size))

        return self.answer("configure", out, configure)

    def on_event(self, _, event):
        def on_event():
            told = event.contents
            fields = _read(told.json, told.json_size)
            self.instance.on_event(Event(fields, index=told.index or None, kind=told.kind.decode()))

        self.tell("on_event", on_event)

    def on_role(self, _, role, fence):
        self.tell("on_role", lambda: self.instance.on_role(_ROLES.get(role, "standby"), fence))

    def on_place(self, _, place):
        def on_place():
            self.host.place = _place(place)
            self.instance.on_place(self.host.place)

        self.tell("on_place", on_place)

    def snapshot(self, _, out):
        def snapshot():
            state = self.instance.snapshot()
            return bytes(memoryview(state)) if self.kind.state_is_bytes else _write(state)

        return self.answer("snapshot", out, snapshot)

    def restore(self, _, state, size, out):
        def restore():
            raw = self.kind.state_is_bytes
            hint = "one that is bytes says state_is_bytes = True"
            self.instance.restore(ctypes.string_at(state, size) if raw else _read(state, size, hint))

        return self.answer("restore", out, restore)

    def stop(self, _):
        instance, self.instance = self.instance, None
        try:
            instance.stop()
        except BaseException as error:
            self.fail("stop", error)
        finally:
            self.host._end()

    def answer(self, name, out, work):
        """Does what answers with bytes; an exception is the answer, too."""
        try:
            if self.failure is not None:
                raise Error("failure", "this instance is over")
            told, result = work() or b"", _DONE
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, MemoryError):
                told = self.refusal(name, error).encode(errors="replace")
            else:
                told = b"this instance is over"
                self.fail(name, error)
            result = _FAILED
        out.contents.write(out.contents.ctx, told, len(told))
        return result

    def tell(self, name, work):
        """Does what answers nobody."""
        try:
            if self.failure is None:
                work()
        except BaseException as error:
            self.fail(name, error)

    def refusal(self, name, error):
        if isinstance(error, Error):
            return str(error)
        _log.error("%s of the instance of %s is answered with an error", name, self.plugin, exc_info=error)
        return "".join(traceback.format_exception_only(type(error), error)).strip()

    def fail(self, name, error):
        """The instance is over, and whoever runs it is told why."""
        self.failure = error
        if name != "stop":
            _lib.dvm_attached_end(self.handle)
        if isinstance(error, Exception):
            _log.error("%s of the instance of %s failed: the instance is over", name, self.plugin, exc_info=error)


class Host:
    """What an instance may ask of its DVM, from __init__ to stop: docs/host-services.md says what, and what may go wrong.

    Any thread may ask; apply, query, snapshot and restore must not, and validate and __init__ little. An answer belongs to who
    asked. A callback gets it, or dvm.Error, before its own deadline is over. Seconds are seconds. Once `stop` has returned the
    host is gone: what is asked fails with the code `closed`; who asks at that time is waited for.
    """

    def __init__(self, host, place):
        self._host, self._process = host.contents, os.getpid()
        # How many threads use C's host, which is freed when the instance is over.
        self._users, self._idle = 0, threading.Condition()
        self.place = _place(place)

    def log(self, text, level="info"):
        """Writes to standard error, with the plug-in's name: at the level "info", "warning" or "error"."""
        with self._used() as host:
            if host is not None:
                host.log(host.ctx, _LEVELS[level], _bytes(str(text).replace("\0", "")))

    def token(self):
        """The fencing token while this instance is the primary and may act on the world; None while it may not.

        Ask right before each effect, and let the effect carry it.
        """
        with self._used() as host:
            return None if host is None else host.token(host.ctx) or None

    def ask(self, request):
        """Asks for a service in its own words, such as {"broadcast": {"command": 1}}; the answer."""
        text, answer = _bytes(json.dumps(request)), []
        take = _WRITE(lambda _, at, size: answer.append(ctypes.string_at(at, size)))
        out = _Out(ctypes.sizeof(_Out), None, take)
        with self._used() as host:
            if host is None:
                raise Error("closed", "this instance is over")
            done = host.ask(host.ctx, text, len(text), ctypes.byref(out))
        told = b"".join(answer)
        if done != _DONE:
            raise Error("failure", told.decode(errors="replace"))
        return json.loads(told)

    def call(self, plugin, command, timeout=10.0):
        """An ordered command to another plug-in; its reply."""
        return self.ask({"call": {"plugin": plugin, "command": command, "timeout_ms": _milliseconds(timeout)}})

    def query(self, plugin, command, timeout=10.0):
        """A question to one of another plug-in's instances; its reply."""
        return self.ask({"call": {"plugin": plugin, "command": command, "query": True, "timeout_ms": _milliseconds(timeout)}})

    def broadcast(self, command):
        """An ordered command to all instances of this plug-in, whose reply nobody waits for; its index."""
        return self.ask({"broadcast": {"command": command}})["index"]

    def send(self, member, body):
        """A message to the instance on a member, at most once: an event `message` there."""
        self.ask({"send": {"member": member, "body": body}})

    def get(self, key, default=None):
        """A key's value; `default` where there is none."""
        entry = self.entry(key)
        return default if entry is None else entry.value

    def entry(self, key):
        """A key's Entry, value and version; None where there is none."""
        found = self.ask({"get": {"key": key}})
        return None if found is None else Entry(found["value"], found["version"])

    def put(self, key, value, if_version=None, if_absent=False):
        """Sets a key, if it has that version, or does not exist; its version now. Error `rejected` where it is otherwise."""
        wanted = _wanted(if_version, if_absent)
        done = self.ask({"put": {"key": key, "value": value, "version": None if wanted == _ANY else wanted}})
        if done is None:
            raise Error("rejected", f"the key `{key}` has another version", hint="read it again")
        return done["version"]

    def delete(self, key):
        """Deletes a key. One that is not there is fine."""
        self.ask({"delete": {"key": key}})

    def watch(self, prefix):
        """From now on, an event `key-changed` for each change of a key that begins so."""
        self.ask({"watch": {"prefix": prefix}})

    def unwatch(self, prefix):
        """Ends that."""
        self.ask({"unwatch": {"prefix": prefix}})

    def timer(self, name, after, every=None):
        """An event `timer` after so long and, if it says so, again and again, in place of the timer of this name."""
        after, every = _milliseconds(after), _milliseconds(every)
        self.ask({"timer": {"name": name, "after_ms": after, "every_ms": every}})

    def cancel_timer(self, name):
        """Ends a timer."""
        self.ask({"cancel-timer": {"name": name}})

    def spawn(self, member, key, argv, env=None, cwd=None):
        """Starts a process on a member, or follows the one that was started there under this key; events tell of it."""
        self.ask({"spawn": {"member": member, "key": key, "argv": list(argv), "env": env or {}, "cwd": cwd}})

    def kill(self, member, key):
        """Ends a process, first by SIGTERM."""
        self.ask({"kill": {"member": member, "key": key}})

    def done(self, index):
        """The effects of all commands up to this one are done."""
        self.ask({"done": {"index": index}})

    def undone(self):
        """The commands whose effects nobody has marked: {"commands": [{"index", "command"}], "more", "missed"}."""
        return self.ask("undone")

    def _end(self):
        """The instance is over: C's host is used no more when this returns."""
        with self._idle:
            self._host = None
            self._idle.wait_for(lambda: self._users == 0)

    @contextlib.contextmanager
    def _used(self):
        """C's host, which stays meanwhile; None once it is gone."""
        if os.getpid() != self._process:
            raise Error("forked", f"this host belongs to process {self._process}", hint="ask there")
        with self._idle:
            host = self._host
            self._users += host is not None
        try:
            yield host
        finally:
            with self._idle:
                self._users -= host is not None
                self._idle.notify_all()


def _milliseconds(seconds):
    """For a host; None is as long as it allows."""
    return None if seconds is None else _limit(seconds)


def _place(place):
    p = place.contents
    return Place(p.member.decode(), p.rank, p.size, [p.peers[at].decode() for at in range(p.size)])


def _read(at, size, hint="load the plug-in with --payload json"):
    """What a JSON text of C's says."""
    try:
        return json.loads(ctypes.string_at(at, size))
    except ValueError as error:
        raise Error("usage", "what the instance was given is no JSON", str(error), hint) from None


def _write(value):
    """A JSON text, in which there is no NaN."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()

def open(uri=None):
    """A DVM by its name or URI, as `dvm --dvm` takes it; without one DVM_URI, else the user's only DVM on this host."""
    return Dvm(uri)


async def _readable(loop, fd):
    readable = loop.create_future()
    loop.add_reader(fd, _wake, readable)
    try:
        await readable
    finally:
        loop.remove_reader(fd)


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
