# Times a model in ONNX Runtime. The first line on stdin is a JSON object that says what; each further one is a number of
# runs, answered with their milliseconds and the most memory that this process has had.
import json
import resource
import sys
import time

import numpy
import onnxruntime

task = json.loads(sys.stdin.readline())
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = task["threads"]
options.inter_op_num_threads = 1
options.log_severity_level = 3
inputs = {name: numpy.load(path) for name, path in task["inputs"].items()}
session = onnxruntime.InferenceSession(task["model"], options, providers=["CPUExecutionProvider"])
session.run(None, inputs)
session.run(None, inputs)
print("ready", flush=True)
for line in sys.stdin:
    times = []
    for _ in range(int(line)):
        start = time.perf_counter()
        session.run(None, inputs)
        times.append((time.perf_counter() - start) * 1e3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([times, peak]), flush=True)
