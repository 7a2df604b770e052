"""Kernels for the tests that need not import torch, scikit-learn and matplotlib once more.

A kernel's imports take eight seconds of CPU time, more than most chapters compute at the smoke budget. So one process
imports them once (`serve`) and forks a kernel for each notebook. To Jupyter it is a kernel like any other, started by
a command line: that command (`ask`) is a messenger that lives as long as the kernel does. `lefcourse run`, the book
and the tests of the runner start kernels of the usual kind.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

PRELOADED = (
    "torch", "torch._dynamo", "torchvision", "sklearn.datasets", "sklearn.linear_model", "sklearn.semi_supervised",
    "pandas", "matplotlib.figure", "matplotlib.backends.backend_agg", "PIL.WebPImagePlugin", "psutil",
    "IPython.terminal.ipapp", "ipykernel.kernelapp", "ipywidgets",
)  # fmt: skip
INLINE = "module://matplotlib_inline.backend_inline"


# --- the messenger: what Jupyter starts ----------------------------------------------------------


def ask(address: str, *words: str) -> None:
    """Have a kernel forked, pass signals on to it, and end when it ends."""
    while not Path(address).exists():
        time.sleep(0.05)
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(address)
        wish = {"words": words, "env": dict(os.environ), "folder": os.getcwd()}
        socket.send_fds(line, [json.dumps(wish).encode() + b"\n"], [1, 2])
        kernel = int(line.recv(64))
        signal.signal(signal.SIGINT, lambda *_: os.kill(kernel, signal.SIGINT))
        while line.recv(64):
            pass  # nothing is said until the kernel is gone


# --- the server ----------------------------------------------------------------------------------


def start(folder: Path) -> None:
    """Start a server of forked kernels, and let Jupyter find it as `python3`. It ends with this process."""
    own = folder / str(os.getpid())
    spec = own / "kernels" / "python3"
    spec.mkdir(parents=True, exist_ok=True)
    address = str(own / "socket")
    subprocess.Popen([sys.executable, __file__, "serve", address])
    argv = [sys.executable, "-I", "-S", __file__, "ask", address, "-f", "{connection_file}"]
    kernel = {"argv": argv, "display_name": "Python 3", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(kernel))
    os.environ["JUPYTER_PATH"] = str(own)


def serve(address: str) -> None:
    """Import what kernels need, once somebody asks, and fork a kernel for each that asks."""
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the kernels
    os.environ["MPLBACKEND"] = INLINE  # as a kernel sets it before matplotlib is imported
    os.environ["JPY_PARENT_PID"] = str(os.getpid())
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    listening.settimeout(5)
    loaded = False
    while os.getppid() == parent:
        try:
            line, _ = listening.accept()
        except TimeoutError:
            continue
        if not loaded:
            preload()
            loaded = True
        if os.fork() == 0:
            listening.close()
            kernel(line)
        line.close()


def preload() -> None:
    import importlib

    for name in PRELOADED:
        importlib.import_module(name)


def kernel(line: socket.socket) -> None:
    """Become the kernel that the messenger at the other end of `line` asks for."""
    message, files, _, _ = socket.recv_fds(line, 2**20, 2)
    while not message.endswith(b"\n"):
        message += line.recv(2**20)
    wish = json.loads(message)
    for file, target in zip(files, (1, 2), strict=True):
        os.dup2(file, target)
    os.environ.clear()
    os.environ.update(wish["env"])
    os.chdir(wish["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    line.sendall(str(os.getpid()).encode())
    threading.Thread(target=_end_with, args=(line,), daemon=True).start()

    from ipykernel.kernelapp import IPKernelApp

    sys.argv = ["ipykernel_launcher", *wish["words"]]
    try:
        IPKernelApp.launch_instance()
    finally:
        sys.stdout.flush()
        os._exit(0)


def _end_with(line: socket.socket) -> None:
    """End this kernel when its messenger has been killed."""
    line.recv(64)
    os._exit(1)


if __name__ == "__main__":
    {"ask": ask, "serve": serve}[sys.argv[1]](*sys.argv[2:])
