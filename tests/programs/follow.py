"""Prints every event of a DVM as a line of JSON, until it is halted: follow.py URI CURSOR for|async"""

import asyncio
import json
import sys

import dvm


def tell(event):
    print(json.dumps(event, separators=(",", ":"), ensure_ascii=False), flush=True)


async def follow(events):
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    other = asyncio.create_task(tick())
    async for event in events:
        tell(event)
    other.cancel()
    assert ticks > 0, "nothing else ran in the loop"


uri, since, how = sys.argv[1:]
events = dvm.open(uri).events(since=since)
if how == "async":
    asyncio.run(follow(events))
else:
    for event in events:
        tell(event)
