"""A child that is forked must not touch what its parent has: fork.py URI"""

import os
import sys

import dvm

d = dvm.open(sys.argv[1])
events = d.events("member", since="all")
assert d.call("counter", {"add": 1}) == {"value": 1}
uri = d.uri
pid = os.fork()
if pid == 0:
    for use in (lambda: d.call("counter", {"add": 1}), events.poll, lambda: events.through):
        try:
            use()
        except dvm.Error as error:
            assert error.code == "forked" and error.hint, error
        else:
            os._exit(1)
    d.close()
    events.close()
    own = dvm.open(uri)
    os._exit(own.call("counter", {"add": 1}) != {"value": 2})
assert os.waitpid(pid, 0)[1] == 0
assert d.call("counter", {"add": 1}) == {"value": 3}
assert next(events).kind == "member-joined"
events.close()
try:
    next(events)
except dvm.Error as error:
    assert error.code == "closed"
else:
    raise AssertionError("it is closed")
print("right")
