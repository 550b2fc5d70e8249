# Times models in ONNX Runtime, in turns. A JSON object comes in on stdin, one goes out on stdout.
import json
import sys
import time

import numpy
import onnxruntime

task = json.load(sys.stdin)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = task["threads"]
options.inter_op_num_threads = 1
options.log_severity_level = 3
inputs = {name: numpy.load(path) for name, path in task["inputs"].items()}
sessions = [onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for path in task["models"]]
for session in sessions:
    session.run(None, inputs)
    session.run(None, inputs)
runs = [[] for _ in sessions]
for _ in range(task["runs"]):
    for session, times in zip(sessions, runs):
        start = time.perf_counter()
        session.run(None, inputs)
        times.append((time.perf_counter() - start) * 1e3)
json.dump({"runs": runs}, sys.stdout)
