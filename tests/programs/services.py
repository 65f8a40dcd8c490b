"""Asks its host for each service, and puts the answers into keys that begin with c/: services.py URI thread|asyncio"""

import asyncio
import sys

import dvm


class Services(dvm.Plugin):
    def __init__(self, config, host):
        self.host, self.primary, self.begun, self.applied = host, False, False, None
        try:
            host.broadcast(1)
        except dvm.Error as error:
            self.early = str(error)
        host.timer("begin", 0)

    def apply(self, command, meta):
        self.applied = command["set"]

    def put(self, name, value):
        self.host.put(f"c/{name}", value)

    def ask(self, name, service, *arguments, **named):
        try:
            self.put(name, service(*arguments, **named))
        except dvm.Error as error:
            self.put(name, str(error))

    def ask_all(self):
        host = self.host
        self.put("early", self.early)
        self.ask("undone", host.undone)
        self.ask("call", host.call, "counter", {"add": 3}, timeout=2)
        assert host.query("counter", {"get": True}, timeout=None) == {"value": 3}
        self.ask("send", host.send, "k1", {"hello": True})
        self.ask("refused", host.send, "nobody", 1)
        self.ask("absent", host.get, "w/none")
        self.ask("watch", host.watch, "w/")
        version = host.put("w/x", [1], if_absent=True)
        self.put("put", {"version": version})
        assert host.entry("w/x") == ([1], version) and host.get("w/x") == [1]
        try:
            host.put("w/x", 2, if_version=version + 1)
        except dvm.Error as error:
            assert error.code == "rejected", error
        self.ask("delete", host.delete, "w/x")
        host.timer("never", 60, every=60)
        host.cancel_timer("never")
        self.ask("timer", host.timer, "once", 0.001)
        self.ask("spawn", host.spawn, "k1", "p", ["sh", "-c", "echo $SAYS; exit 5"], env={"SAYS": "it runs"})
        self.ask("kill", host.kill, "k1", "nothing")
        self.ask("done", host.done, 1)
        self.put("broadcast", {"index": host.broadcast({"set": 42})})

    def on_event(self, event):
        if event.kind == "timer" and event.name == "begin" and self.primary and not self.begun:
            assert event.index is None and self.host.token() != 0
            self.begun = True
            self.ask_all()
        elif event.kind == "timer" and event.name == "once":
            if self.applied is None:  # what was broadcast comes behind this event, or has come
                self.host.timer("once", 0.01)
            else:
                self.put("applied", self.applied)
        elif event.kind == "message":
            self.put("message", {"from": event["from"], "body": event.body})
        elif event.kind == "key-changed":
            self.host.unwatch("w/")
            self.put("changed", event.key)
        elif event.kind == "process-output":
            self.put("output", event.text)
        elif event.kind == "process-exit":
            self.put("exit", event.exit_code)

    def on_role(self, role, fence):
        self.primary = role == "primary"
        if self.primary:
            self.host.timer("begin", 0)


uri, how = sys.argv[1:]
with dvm.open(uri) as d:
    attached = d.attach("inc", Services)
with attached:
    ended = attached.start().wait() if how == "thread" else asyncio.run(attached.run())
    print("ended", ended)
