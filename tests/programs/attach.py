"""Runs an instance of the plug-in `counter`: attach.py URI thread|wait|asyncio|poll. The counter is that of counter.c."""

import asyncio
import gc
import select
import sys

import dvm


class Counter(dvm.Plugin):
    def __init__(self, config, host, greeting):
        self.member, self.host = host.place.member, host
        self.validate(config, host)
        self.value, self.step = config.get("start", 0), config.get("step", 1)
        host.log(greeting)

    @staticmethod
    def validate(config, host):
        if config.get("step") == 0:
            raise dvm.Refused("with a step of 0 nothing changes", "give another")

    def apply(self, command, meta):
        gc.collect()
        if "add" in command:
            self.value += command["add"] * self.step
        elif command.get("memory") == self.member:
            raise MemoryError("as it was told")
        elif command.get("leave") == self.member:
            sys.exit("as it was told")
        elif "refuse" in command:
            raise dvm.Refused(command["refuse"])
        elif "nan" in command:
            return float("nan")
        elif "ask" in command:
            self.host.get("any")
        elif "fill" in command:
            return {"text": "x" * command["fill"]}
        elif not {"memory", "leave"} & set(command):
            raise KeyError("nonesuch")
        assert meta.index > 0 and meta.time > 0
        return {"value": self.value, "session": meta.session is not None}

    def query(self, command):
        return [self.value, self.host.token() is not None, *self.host.place.peers]

    def configure(self, config):
        self.step = config["step"]

    def on_event(self, event):
        if event.kind == "key-changed" and self.host.place.member == event.key.split("/")[1]:
            raise LookupError("as it was told")

    def on_role(self, role, fence):
        assert (fence > 0) == (role == "primary")
        self.host.watch("fail/")
        print(role, flush=True)

    def on_place(self, place):
        print("place", place.size, flush=True)

    def snapshot(self):
        return {"value": self.value, "ä": ["\0", None]}

    def restore(self, state):
        assert state["ä"] == ["\0", None]
        self.value = state["value"]

    def stop(self):
        print("stop", flush=True)


async def in_asyncio(attached, d):
    """Others have their turn in between: this loop waits for what its own instance applies."""

    async def asks():
        for _ in range(3):
            await asyncio.get_running_loop().run_in_executor(None, d.call, "counter", {"add": 0})
        print("asked itself", flush=True)

    async def ticks():
        while True:
            await asyncio.sleep(0.001)

    asking, ticking = asyncio.ensure_future(asks()), asyncio.ensure_future(ticks())
    # It may be left and taken up again.
    for _ in range(3):
        try:
            await asyncio.wait_for(attached.run(), 0.02)
        except asyncio.TimeoutError:
            pass
    try:
        return await attached.run()
    finally:
        ticking.cancel()
        await asking


def by_poll(attached):
    poller = select.poll()
    poller.register(attached, select.POLLIN)
    while attached.run_pending() is not None:
        poller.poll()
    return True


uri, how = sys.argv[1:]
with dvm.open(uri) as d, d.attach("counter", Counter, greeting="hello") as attached:
    try:
        if how == "thread":
            attached.start()
            while not attached.wait(0.01):
                pass
            ended = attached.wait()
        elif how == "wait":
            while not attached.wait(0.01):
                pass
            ended = attached.wait()
        elif how == "asyncio":
            ended = asyncio.run(in_asyncio(attached, d))
        else:
            ended = by_poll(attached)
        print("ended", ended)
    except (Exception, SystemExit) as error:
        print("ended", type(error).__name__, error)
    assert attached.instance is None
