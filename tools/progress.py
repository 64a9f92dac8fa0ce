"""Snakemake's events as lines for people: what runs, what is done, what failed and why, and the time left.

The time left comes from ``resources: seconds=...``, which every rule of the Snakefile gives as measured on
one machine; that another is slower or faster is noticed after a few steps. Where any of them is 0, which
means not known, nothing is said about the whole. A rule's ``message:`` is the name of its step.
"""

import re
import time
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase

TAIL_LINES = 15  # lines of a failed step's log to show
LONG = 300.0  # seconds; of a step that takes longer the log, with its own time left, is named at once
USUAL = 30.0  # core-seconds taken to be as expected, so that a short first step does not decide the speed
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def in_words(seconds):
    """Return a length of time as people say it: ``8 s``, ``1 min 52 s``, ``2 h 5 min``."""
    seconds = round(seconds)
    if seconds >= 3600:
        parts = (seconds // 3600, "h"), (seconds % 3600 // 60, "min")
    else:
        parts = (seconds // 60, "min"), (seconds % 60, "s")
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"


def roughly(seconds):
    """Return an estimate without false precision: to 5 s below two minutes, else to one minute."""
    step = 5 if seconds < 120 else 60
    return in_words(max(step * round(seconds / step), step))


def log_tail(path, lines=TAIL_LINES):
    """Return the last lines of a log that are not blank, without colour codes, each after a bar."""
    try:
        text = ANSI.sub("", Path(path).read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        return f"    ({error.strerror})"
    kept = [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]
    return "\n".join(f"    | {line}" for line in kept) or "    (the log is empty)"


def time_left(planned, done, running, cores):
    """Estimate how long the rest of a run takes.

    Parameters
    ----------
    planned : list of (float, int)
        Expected seconds and threads of every step of the run.
    done : list of (float, float)
        Expected and measured core-seconds of every step that is done.
    running : list of (float, int, float)
        Expected seconds, threads and seconds so far of every step that runs.
    cores : int
        How many threads may run at once.

    Returns
    -------
    float
        Seconds: the work that is left, times how much slower than expected the steps were so far, over the
        cores; but no less than the longest running step still needs.
    """
    expected_done, measured_done = sum(step[0] for step in done), sum(step[1] for step in done)
    slower = (USUAL + measured_done) / (USUAL + expected_done)
    work = slower * (sum(seconds * threads for seconds, threads in planned) - expected_done)
    rests = [max(slower * seconds - so_far, 1.0) for seconds, _, so_far in running]
    # a running step counts with what it still needs, not with all of it
    work += sum((rest - slower * s) * threads for rest, (s, threads, _) in zip(rests, running, strict=True))
    return max([work / cores, *rests])


class LogHandler(LogHandlerBase):
    """The logger plugin, under the name that Snakemake looks for.

    A dry run comes first and fills `planned`, so that the real run knows how much there is to do.
    """

    writes_to_stream, writes_to_file = True, False
    has_filter, has_formatter, needs_rulegraph = True, True, False
    planned = []  # (expected seconds, threads) of each step to run
    cores = 1
    submitted = False  # steps wait in a cluster's queue: how long, nobody knows
    interrupted = False  # then steps fail because they were asked to stop

    def __post_init__(self):
        """Begin with nothing done."""
        self.done = []  # (expected, measured core-seconds)
        self.running = {}  # job id: (name, expected seconds, threads, start)

    def emit(self, record):
        """Hand an event to the method named after it; most events have none."""
        if handle := getattr(self, f"on_{getattr(record, 'event', None)}", None):
            handle(record)

    def say(self, text):
        """Print a line that begins with the number of steps done."""
        total = str(len(self.planned))
        print(f"[{len(self.done):{len(total)}}/{total}] {text}", flush=True)

    def on_job_info(self, record):
        """A step is planned (dry run) or starts. A target, which only collects files, is no step."""
        if not record.shellcmd and not record.output:
            return
        seconds = 0.0 if self.submitted else float(record.resources.get("seconds", 10))
        step = (seconds, record.threads)
        if self.common_settings.dryrun:
            self.planned.append(step)
        else:
            name = record.rule_msg or " ".join([record.rule_name, *record.wildcards.values()])
            self.running[record.jobid] = (name, *step, time.monotonic())
            slow = record.log and not 0 < step[0] < LONG
            begun = "submitted" if self.submitted else "started"
            self.say(f"{name}: {begun}" + (f"; its own time left: {record.log[0]}" if slow else ""))

    def on_job_finished(self, record):
        """A step has ended well."""
        if record.job_id not in self.running:
            return
        name, expected, threads, start = self.running.pop(record.job_id)
        now = time.monotonic()
        self.done.append((expected * threads, (now - start) * threads))
        text = f"{name}: done in {in_words(now - start)}"
        if len(self.done) < len(self.planned) and all(seconds for seconds, _ in self.planned):
            running = [(seconds, n, now - begun) for _, seconds, n, begun in self.running.values()]
            text += f"; about {roughly(time_left(self.planned, self.done, running, self.cores))} left"
        self.say(text)

    def on_job_error(self, record):
        """A step has failed: say which, show the end of its log and where the whole log is."""
        if self.interrupted:
            return
        name, _, _, start = self.running.pop(record.jobid, (record.rule_name, 0, 0, time.monotonic()))
        self.say(f"{name}: FAILED after {in_words(time.monotonic() - start)}")
        for log in record.log:
            print(f"{log_tail(log)}\n    whole log: {log}", flush=True)
        if not record.log:
            print(f"    command: {record.shellcmd}", flush=True)

    def on_error(self, record):
        """Show an error of Snakemake itself, such as an input that nothing makes."""
        # a failing command is told by on_job_error, and the end of the run by the driver
        told = ("CalledProcessError in file", "At least one job did not complete successfully")
        if not self.interrupted and not any(text in record.msg for text in told):
            print(ANSI.sub("", record.msg).rstrip(), flush=True)
