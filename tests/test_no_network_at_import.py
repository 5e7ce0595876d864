"""Importing tgi-probe, every module of it, opens no socket, asks no name server and starts no process."""

import subprocess
import sys

# grpc's core is C: what it did would show as an open socket.
IMPORTS = """
import importlib, os, pkgutil, sys
seen = []
WATCHED = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname",
           "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "urllib.Request")
sys.addaudithook(lambda event, args: seen.append(event) if event in WATCHED else None)
import exporter
modules = [found.name for found in pkgutil.walk_packages(exporter.__path__, "exporter.")]
for name in modules:
    if name != "exporter.__main__":
        importlib.import_module(name)
sockets = [link for number in os.listdir("/proc/self/fd") if number.isdecimal() and int(number) > 2
           and os.path.lexists(f"/proc/self/fd/{number}")
           and (link := os.readlink(f"/proc/self/fd/{number}")).startswith("socket:")]
print(len(modules), seen, sockets)
"""
CONTACT = IMPORTS + "\nimport socket\nsocket.getaddrinfo('127.0.0.1', 1)\nprint(seen)"


def test_no_module_contacts_anything_when_it_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    count, rest = done.stdout.strip().split(" ", 1)
    assert int(count) > 150, "all modules were found"
    assert rest == "[] []"


def test_a_contact_would_be_seen() -> None:
    done = subprocess.run([sys.executable, "-c", CONTACT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['socket.getaddrinfo']"
