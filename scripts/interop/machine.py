"""What a benchmark says of the machine that it ran on, and how it times a command."""
import os
import pathlib
import re
import subprocess
import time


def machine(path):
    lscpu = command("lscpu")
    field = lambda name: re.search(rf"^{name}:\s*(.+)$", lscpu, re.MULTILINE).group(1)
    memory = re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text()).group(1)
    disk = command("findmnt", "-n", "-o", "FSTYPE", "-T", str(path))
    return f"{field('Model name')}, {field('CPU.s.')} cores, {int(memory) / 2**20:.0f} GiB memory, {disk}"


def command(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def load():
    return "/".join(f"{x:.1f}" for x in os.getloadavg())


def timed(words, log):
    """Runs a command and syncs: seconds, processor seconds, peak memory in bytes; its output goes to `log`."""
    with log.open("w") as stream:
        start = time.monotonic()
        child = subprocess.Popen(list(map(str, words)), stdout=stream, stderr=stream, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        _, status, usage = os.wait4(child.pid, 0)
        os.sync()
        seconds = time.monotonic() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} failed:\n{log.read_text()}")
    return dict(seconds=seconds, cpu=usage.ru_utime + usage.ru_stime, peak=usage.ru_maxrss * 1024)
