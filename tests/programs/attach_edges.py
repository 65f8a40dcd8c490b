"""What a program may and may not do with an instance: attach_edges.py URI. What it prints, somebody sends it as a command."""

import asyncio
import gc
import os
import sys
import threading
import time
import weakref

import dvm

log = []


def refused(code, words, function, *arguments):
    try:
        function(*arguments)
    except dvm.Error as error:
        assert error.code == code and words in str(error), error
        return
    raise AssertionError(f"{function} {arguments}")


class Edges(dvm.Plugin):
    """Does in its next command what the program says."""

    state_is_bytes = True

    def __init__(self, config, host):
        self.host = host
        log.append("start")

    def apply(self, command, meta):
        log.append(command)
        return then()

    def snapshot(self):
        return bytearray(b"\0\xff")

    def restore(self, state):
        assert state == b"\0\xff"

    def stop(self):
        log.append("stop")
        hosts.append(self.host)


class Half(dvm.Plugin):
    def apply(self, command, meta):
        return None

    def snapshot(self):
        return None


class Later(dvm.Plugin):
    async def apply(self, command, meta):
        return None


def attach():
    """As soon as the kernel has seen the end of the instance before."""
    log.clear()
    while True:
        try:
            return d.attach("edges", Edges)
        except dvm.Error as error:
            assert "this member's instance" in str(error), error
            time.sleep(0.01)


def say(what):
    print(what, flush=True)


def in_order():
    """What was told before may be told to the next one again."""
    assert log[0] == "start" and log[-1] == "stop" and log.count("stop") == 1, log


def applied(attached, command):
    while command not in log:
        assert attached.wait(0.01) is False


hosts = []
d = dvm.open(sys.argv[1])
for kind in (object, dvm.Plugin, Edges(None, None), Later):
    try:
        d.attach("edges", kind)
    except TypeError as error:
        assert "subclass" in str(error) or "coroutine" in str(error), error
    else:
        raise AssertionError(kind)
refused("usage", "one of `snapshot` and `restore`", d.attach, "edges", Half)
refused("failure", "no plug-in of that name", d.attach, "nonesuch", Edges)
refused("failure", "is not loaded with --placement application", d.attach, "counter", Edges)

# What a callback may not do; and a forked child.
one = attach()
refused("failure", "this member's instance", d.attach, "edges", Edges)


def then():
    refused("usage", "must not run the instance", one.run_pending)
    refused("usage", "must not run the instance", one.wait)
    refused("failure", "apply must come to the same", one.instance.host.get, "any")
    try:
        asyncio.run(one.run())
    except dvm.Error as error:
        assert error.code == "usage", error
    return one.fileno() >= 0


say("callback")
applied(one, "callback")
host = one.instance.host
pid = os.fork()
if pid == 0:
    for use in (one.run_pending, one.wait, one.start, lambda: host.get("any")):
        refused("forked", "belongs to process", use)
    one.end()
    one.close()
    os._exit("stop" in log)
assert os.waitpid(pid, 0)[1] == 0
say("forked")
applied(one, "forked")

# A thread has it, and nobody else; it is closed under that thread, which asks its host meanwhile.
one.start()
refused("usage", "another thread runs", one.run_pending)
refused("usage", "has a thread already", one.start)
stopped = []


def asks():
    try:
        while True:
            host.entry("any")
            assert host.token() is None
    except dvm.Error as error:
        stopped.append(error)


asking = threading.Thread(target=asks)
asking.start()
say("thread")
while "thread" not in log:
    time.sleep(0.01)
one.close()
one.close()
asking.join()
assert stopped[0].code in ("closed", "failure"), stopped
assert log == ["start", "callback", "forked", "thread", "stop"], log
refused("closed", "is over", host.get, "any")
assert host.token() is None and host.log("nowhere") is None
refused("failure", "it was given up here", one.wait)
refused("closed", "closed here", one.run_pending)

# By a callback; and by whoever lets go of it, promptly.
two = attach()


def then():
    two.close()


say("closed by a callback")
try:
    while not two.wait(0.01):
        pass
except dvm.Error as error:
    assert "it was given up here" in str(error), error
in_order()
refused("closed", "closed here", two.wait)
three = attach()
three.run_pending()
gone = weakref.ref(three)
gc.disable()
del three
assert gone() is None
gc.enable()

# While a task runs it: by another task, which goes on; when an exception passes; by a callback.
async def closed_by_a_task():
    with attach() as four:
        running = asyncio.ensure_future(four.run())
        while "start" not in log:
            await asyncio.sleep(0.01)
        try:
            await four.run()
        except dvm.Error as error:
            assert error.code == "usage" and "by a task already" in str(error), error
    try:
        await running
    except dvm.Error as error:
        assert "it was given up here" in str(error), error
    in_order()


async def passes():
    with attach() as five:
        asyncio.ensure_future(five.run())
        while "start" not in log:
            await asyncio.sleep(0.01)
        raise KeyError("passes")


asyncio.run(closed_by_a_task())
try:
    asyncio.run(passes())
except KeyError:
    in_order()
else:
    raise AssertionError("it passes")

# Left as it is, it ends with the program.
six = attach().start()


def then():
    return None


say("left")
while "left" not in log:
    time.sleep(0.01)


class Says(list):
    def append(self, what):
        say(what)


log = Says()
say("right")
