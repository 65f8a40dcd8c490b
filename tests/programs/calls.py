"""Sends each line of standard input to the plug-in `counter` and prints what comes of it: calls.py [URI]"""

import json
import sys

import dvm

try:
    with dvm.open(*sys.argv[1:]) as d:
        for line in iter(sys.stdin.readline, ""):
            try:
                print(json.dumps(d.call("counter", json.loads(line)), separators=(",", ":")), flush=True)
            except dvm.Error as error:
                assert error.message and error.code
                print(error.code, error, flush=True)
except dvm.Error as error:
    print(error.code, error)
    sys.exit(1)
