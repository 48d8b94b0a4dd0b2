"""Run a stage several times over, each run in a folder of its own with a fault at one certain moment.

`python faulty.py MODULE` reads what to run from stdin, a line KIND N FOLDER for each, with KIND
cut    the process is killed right before its N-th change of a file below the folder,
full   from its N-th change on every change ends as on a full disk,
size   the process is killed within the write that would make a file longer than N bytes,
count  nothing happens; the number of changes is printed as what it wrote last.
Prints a line as each run ends: its exit status (−9: killed), and what it wrote to stderr last.
The stage is imported once and forked for each run: importing torch takes seconds.
"""

import errno
import importlib
import os
import resource
import signal
import sys
from pathlib import Path

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "shutil.rmtree": 0}
CAN_FREE = ("os.remove", "os.rmdir", "shutil.rmtree")


def changed(event: str, arguments: tuple[object, ...]) -> str:
    """The path of the file that an audited event changes, or nothing."""
    if event == "open":
        path, _, flags = arguments
        return str(path) if isinstance(flags, int) and flags & WRITES and not isinstance(path, int) else ""
    return str(arguments[CHANGES[event]]) if event in CHANGES else ""


def arm(kind: str, number: int) -> list[str]:
    """Make this process meet its fault; returns the list in which its changes gather."""
    seen: list[str] = []
    if kind == "size":
        # Python itself ignores the signal; left to the system it ends the process inside the write.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
        return seen
    here = f"{Path.cwd()}{os.sep}"

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        path = changed(event, arguments)
        if not path or not str(Path(path).absolute()).startswith(here):
            return
        seen.append(path)
        if kind == "cut" and len(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "full" and len(seen) >= number and event not in CAN_FREE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    sys.addaudithook(watch)
    return seen


def main() -> None:
    (module,) = sys.argv[1:]
    stage = importlib.import_module(f"stages.{module}")
    function = getattr(stage, f"{module}_stage", None) or getattr(stage, module)
    for line in sys.stdin:
        kind, number, folder = line.rstrip("\n").split(" ", 2)
        log = Path(folder) / "stderr.txt"
        child = os.fork()
        if not child:
            os.chdir(folder)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            seen = arm(kind, int(number))
            try:
                stage.run(function)
                status = 0
                if kind == "count":
                    print(f"\n{len(seen)}", file=sys.stderr)
            except SystemExit as ending:
                print(ending, file=sys.stderr)
                status = 1
            sys.stderr.flush()
            os._exit(status)
        _, ended = os.waitpid(child, 0)
        said = log.read_text().strip().splitlines() if log.exists() else []
        print(os.waitstatus_to_exitcode(ended), said[-1] if said else "", flush=True)


if __name__ == "__main__":
    main()
