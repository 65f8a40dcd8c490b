"""An asyncio program that gives up waiting and comes back, and waits on two streams at a time: cancel.py URI"""

import asyncio
import sys

import dvm


async def first(events, wanted):
    async for event in events:
        if event.kind == wanted:
            return event


async def main():
    with dvm.open(sys.argv[1]) as d, d.events("config") as events, d.events("plugin") as plugins:
        for _ in range(3):
            try:
                await asyncio.wait_for(events.__anext__(), 0.02)
            except asyncio.TimeoutError:
                pass
        print("waiting", flush=True)
        both = first(events, "config-changed"), first(plugins, "plugin-loaded")
        config, loaded = await asyncio.gather(*both)
        assert config["keys"] == ["window"], config
        assert loaded.plugin == "counter" and loaded.nonesuch is None, loaded
        reply = await asyncio.to_thread(d.call, "counter", {"add": 2})
        print("right", reply["value"], flush=True)


asyncio.run(main())
