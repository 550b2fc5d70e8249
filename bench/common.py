"""What the benchmarks share: children measured from outside, the machine they ran on, and where things are.

Only the standard library is imported here and in the benchmarks. A child's peak memory counts from before its exec, when it
was a copy of this process: with a model loaded here, every small child would seem to be as large as that.
"""

import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIDTREAD = ROOT / "target" / "release" / "midtread"
ORACLE = [sys.executable, str(ROOT / "tools" / "oracle.py")]

sys.path.insert(0, str(ROOT / "tools"))
from assets import default_directory  # noqa: E402, F401


@dataclass(frozen=True)
class Measured:
    """One child process: wall clock, time on CPUs, its peak resident memory, and what it printed."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    stdout: str


class OutOfMemory(Exception):
    """The child needed more memory than it was given."""


def measure(command, limit_gib=None):
    """Runs the command to its end. wait4 gives this child's own peak, RUSAGE_CHILDREN the largest of all so far."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (int(limit_gib * 2**30),) * 2)

    # Files, not pipes: a pipe would have to be emptied while we wait.
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command], stdout=stdout, stderr=stderr, preexec_fn=limit if limit_gib else None
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        if process.returncode != 0:
            said = stderr.read()
            if any(sign in said for sign in ("MemoryError", "bad_alloc", "Unable to allocate", "Failed to allocate", "memory allocation of")):
                raise OutOfMemory
            raise SystemExit(f"error: `{' '.join(map(str, command))}` failed:\n{said[-2000:]}")
        return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, stdout.read())


def available_gib():
    """Memory that can be used without pushing others out, as the kernel estimates it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 2**20
    raise SystemExit("error: /proc/meminfo does not say how much memory is available")


def sides(only):
    """The two sides of every comparison; `only` is one of them or None for both."""
    chosen = [only] if only else ["onnxruntime", "midtread"]
    if "midtread" in chosen and not MIDTREAD.exists():
        raise SystemExit(f"error: {MIDTREAD} is missing: cargo build --release -p midtread-cli, or --only onnxruntime")
    return chosen


def interleaved(rounds, sides):
    """(round, side) with the order turned round each time, so that neither always runs on a machine the other warmed."""
    for i in range(rounds):
        for side in sides if i % 2 == 0 else sides[::-1]:
            yield i, side


def median(values):
    return statistics.median(values)


def machine():
    """A line for the head of a table."""
    cpu, flags = platform.processor() or platform.machine(), []
    try:
        info = Path("/proc/cpuinfo").read_text()
        fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        cpu, flags = fields.get("model name", cpu), fields.get("flags", "").split()
    except OSError:
        pass
    isa = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if name in flags]
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    commit = done.stdout.strip() or "unknown commit"
    return f"{cpu}, {os.cpu_count()} CPUs, {' '.join(isa) or 'no AVX2'}, load {os.getloadavg()[0]:.1f}, {commit}"


def table(header, rows):
    """Prints a Markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|" + " --- |" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
