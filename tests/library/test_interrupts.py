"""KeyboardInterrupt at each line of opening, closing and replacing leaves nothing, and neither do many at once.

A script raises it in itself, by a trace function, at one line after the other. Where signals are blocked, none can
come.
"""

import pytest

from tests.helpers import HANG, run_script

SCRIPT = """
import gc, multiprocessing, os, signal, sys, time
import shmqueue

def echo(payload):  # here, so that a worker that imports this file imports nothing else
    return payload

def kill_itself(payload):
    os.kill(os.getpid(), signal.SIGKILL)

class Interrupter:
    def __init__(self, at):
        self.at = at
        self.places = {}  # those that were passed, in this order

    def __call__(self, frame, event, argument):
        code = frame.f_code
        if code.co_filename != shmqueue.__file__ or code.co_name == "__del__":
            return None
        place = (code.co_name, frame.f_lineno)
        if event == "line" and place not in self.places:
            if signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
                self.places[place] = None
                if place == self.at:
                    raise KeyboardInterrupt
        return self

def supervisor():
    workers = 2 if METHOD == "fork" else 1  # a start by another method takes ten times as long
    options = {"start_method": METHOD, "num_slots": 64}  # to reserve the space of many slots takes a tenth of the time
    return shmqueue.Supervisor([echo, kill_itself], workers=workers, **options)

def opening(interrupter):
    sys.settrace(interrupter)
    made = supervisor()
    sys.settrace(None)
    made.close()

def closing(interrupter):
    with supervisor() as made:
        list(made.run([("echo", b"x")] * 2))
        sys.settrace(interrupter)
    sys.settrace(None)

def leaving(interrupter):
    try:
        with supervisor():
            sys.settrace(interrupter)
            raise LookupError
    except LookupError:
        sys.settrace(None)

def replacing(interrupter):
    with supervisor() as made:
        list(made.run([("echo", b"x")] * 2))
        made._pool.lanes[0].process.kill()
        sys.settrace(interrupter)
        while made.stats()["respawned"] < 1 or len(made._pool.living()) < len(made._pool.lanes):
            list(made.run([("echo", b"x")]))
        sys.settrace(None)

def left():
    gc.collect()
    multiprocessing.active_children()  # reaps
    children = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            children += file.read().split()
    files = [name for name in os.listdir("/dev/shm") if name.startswith(f"shmq-{os.getpid()}-")]
    return files, sorted(children), sorted(os.listdir("/proc/self/fd")), signal.pthread_sigmask(signal.SIG_BLOCK, ())

def interrupt(place):
    interrupter = Interrupter(place)
    try:
        PHASE(interrupter)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return list(interrupter.places)

def lines_that_deal_with_processes():
    with open(shmqueue.__file__, encoding="utf-8") as file:
        banners = ("# The worker pool:", "# The worker process:")
        return range(*(number for number, line in enumerate(file, 1) if line.startswith(banners)))

if __name__ == "__main__":
    from tests.helpers import wait_until
    METHOD, PHASE, part, parts = sys.argv[1], globals()[sys.argv[2]], int(sys.argv[3]), int(sys.argv[4])
    interrupt(None)  # what is made once is there
    places = interrupt(None)
    if METHOD != "fork":
        lines = lines_that_deal_with_processes()
        places = [place for place in places if place[1] in lines]
    before = left()
    gc.freeze()  # what is there now is no garbage later: not to look at it again saves a fifth of the time
    for place in places[part::parts]:
        interrupt(place)
        if not wait_until(lambda: left() == before):
            print("LEFT", *place, before, left())
            break
    print(len(places) > 20)
"""


PHASES = ["opening", "closing", "leaving", "replacing"]


@pytest.mark.long
@pytest.mark.timeout(4 * HANG)
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("phase", PHASES)
def test_an_interrupt_at_each_line_leaves_nothing(tmp_path, phase, part):
    assert run_script(tmp_path, SCRIPT, "fork", phase, part, 4, limit=3 * HANG) == ["True"]


# A process that was spawned ends as one that was forked: only its start is another.
ANEW = [("spawn", "opening"), *(("forkserver", phase) for phase in PHASES)]


@pytest.mark.long
@pytest.mark.timeout(4 * HANG)
@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize(("method", "phase"), ANEW)
def test_an_interrupt_at_each_line_that_deals_with_processes_leaves_nothing(tmp_path, method, phase, part):
    """The other lines are the same with each method, and a start takes longer with these."""
    assert run_script(tmp_path, SCRIPT, method, phase, part, 2, limit=3 * HANG) == ["True"]
