"""What a benchmark says of the machine that it ran on."""
import os
import pathlib
import re
import subprocess


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
