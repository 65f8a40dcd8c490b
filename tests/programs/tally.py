import dvm


class Tally(dvm.Plugin):
    """A counter whose instance is in this program, beside its own work."""

    def __init__(self, config, host):
        self.value, self.step = 0, config.get("step", 1)

    def apply(self, command, meta):
        if "add" not in command:
            raise dvm.Refused('a command is {"add": N}')
        self.value += command["add"] * self.step
        return {"value": self.value}

    def on_event(self, event):
        if event.kind == "member-failed":
            print(event.member, "failed", flush=True)

    def on_role(self, role, fence):
        print(role, "at", self.value, flush=True)

    def snapshot(self):
        return self.value

    def restore(self, state):
        self.value = state


with dvm.open() as d, d.attach("tally", Tally).start() as tally:
    # Here the program does its own work.
    tally.wait()
