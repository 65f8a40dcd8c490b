"""Keys, settings and status from Python: keys.py URI MEMBER. Prints what it was told of the keys that it watches."""

import asyncio
import sys

import dvm


def refused(code, function, *arguments, **named):
    try:
        function(*arguments, **named)
    except dvm.Error as error:
        assert error.code == code, error
        return
    raise AssertionError(f"{function} {arguments} {named}")


def told(event, key):
    assert event.kind == "key-changed" and event.key == key, event
    print(event.key, flush=True)


async def in_a_loop(d):
    with d.watch("p/") as events:
        version = await asyncio.to_thread(d.put, "p/async", [1, {"two": None}])
        told(await anext(events), "p/async")
        assert await asyncio.to_thread(d.entry, "p/async", fresh=True) == ([1, {"two": None}], version)


uri, member = sys.argv[1:]
with dvm.open(uri) as d, d.watch("p/") as events:
    assert d.get("p/x") is None and d.get("p/x", 5) == 5 and d.entry("p/x") is None
    version = d.put("p/x", {"n": 1}, if_absent=True)
    assert d.entry("p/x") == ({"n": 1}, version)
    refused("rejected", d.put, "p/x", 2, if_absent=True)
    refused("rejected", d.put, "p/x", 2, if_version=version + 1)
    newer = d.put("p/x", "zwei", if_version=version)
    assert newer > version and d.get("p/x", fresh=True) == "zwei"
    d.put("p/y", None)
    d.put("q/z", 3.5)
    assert d.keys("p/") == ["p/x", "p/y"]
    assert d.entries("p/")["p/x"] == dvm.Entry("zwei", newer)
    assert "q/z" in d.keys()
    refused("rejected", d.delete, "p/x", if_version=version)
    d.delete("p/x", if_version=newer)
    d.delete("p/x")
    assert d.keys("p/") == ["p/y"]

    d.configure("window", 88)
    assert d.config()["window"] == 88
    refused("usage", d.configure, "nonesuch", 1)
    d.configure("color", "red", member=member)
    tags = {one["name"]: one["tags"] for one in d.status()["members"]}
    assert tags[member]["color"] == "red", tags
    d.configure("color", None, member=member)
    assert "color" not in {one["name"]: one["tags"] for one in d.status()["members"]}[member]

    for key in ("p/x", "p/x", "p/y", "p/x"):
        told(next(events), key)
    asyncio.run(in_a_loop(d))
