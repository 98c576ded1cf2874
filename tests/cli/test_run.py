"""Signals, bugs and closed pipes end a command as they should."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from mlmigrate import demo

STUCK = """
import sys, time
import click
from mlmigrate.cli.run import run
@click.command()
@click.option("--json", is_flag=True)
def command(json):
    print("ready", flush=True)
    {body}
run(command)
"""
CLEANING = """
    try:
        print("working", flush=True)
        time.sleep(600)
    finally:
        print("cleaning", flush=True)
        {body}
"""


def started(body, *arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK.format(body=body), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_with_130(number):
    process = started("time.sleep(600)")
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "mlmigrate: stopped.\n  Run the same command again to go on.\n")


def test_a_second_signal_stops_at_once():
    process = started(CLEANING.format(body="time.sleep(600)"))
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "cleaning\n"
    time.sleep(1.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, "stopped at once" in err) == (130, True)


def test_an_echo_of_the_first_signal_does_not_break_the_cleaning():
    body = "sys.stdin.readline(); print('clean', flush=True)"
    echo = "import mlmigrate.cli.run as it; it.IMPATIENT = 600"  # however long the second one takes to come here
    process = started(f"{echo}{CLEANING.format(body=body)}")
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate("go on\n", timeout=120)
    assert (process.returncode, out) == (130, "clean\n")


def test_a_bug_is_shown_whole_and_its_secrets_are_not():
    process = started("raise KeyError('postgresql://me:secret@host \\x1b[31m')")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" in err
    assert "KeyError" in err
    assert "secret" not in err.replace("me:secret@host", "", 1) or "raise KeyError" in err
    assert "\x1b" not in err


def test_an_error_of_ours_is_short_and_safe():
    process = started(
        "from mlmigrate.errors import Refused; raise Refused('http://me:secret@host \\x1b[31m refused', 'Try\\nagain')"
    )
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (12, "mlmigrate: http://***@host \\x1b[31m refused\n  Try\n  again\n")


def test_with_json_the_last_line_of_stderr_is_an_object():
    process = started("1 / 0", "--json")
    _, err = process.communicate(timeout=120)
    last = json.loads(err.splitlines()[-1])
    assert (last["message_type"], last["code"]) == ("exit_error", 1)


def test_a_reader_that_goes_away_is_no_bug(tmp_path):
    demo.make(tmp_path)
    command = f"{sys.executable} -m mlmigrate list mlflow:./mlruns --json -r '*' | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 130)
    assert "Traceback" not in done.stderr


def test_hostile_names_never_reach_a_terminal_raw(tmp_path):
    store = demo.make(tmp_path)
    run = next(path for path in (store / "0").iterdir() if path.is_dir())
    (run / "tags" / "mlflow.runName").write_text("\x1b]0;owned\x07\u202eevil")
    meta = (store / "0" / "meta.yaml").read_text().replace("name: vision", 'name: "vi\\e[31msion"')
    (store / "0" / "meta.yaml").write_text(meta)
    for arguments in (
        ["list", "mlflow:./mlruns", "-r", "*"],
        ["plan", "mlflow:./mlruns", "./a"],
        ["export", "-v", "mlflow:./mlruns", "./a"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "mlmigrate", *arguments], cwd=tmp_path, capture_output=True, check=False
        )
        assert done.returncode == 0
        assert not {b"\x1b", b"\x07"} & {bytes([one]) for one in done.stdout + done.stderr}
        assert "\u202e".encode() not in done.stdout


def test_on_a_terminal_bars_are_drawn_and_cleared(tmp_path):
    demo.make(tmp_path)
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "mlmigrate", "export", "mlflow:./mlruns", "./archive"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=follower,
    )
    os.close(follower)
    screen = b""
    while True:
        try:
            screen += os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert b"runs  " in screen
    assert out.startswith(b"All 12 runs")


def test_ctrl_c_in_a_copy_says_how_far_it_came_and_the_same_again_goes_on(tmp_path):
    demo.make(tmp_path)
    again = [sys.executable, "-m", "mlmigrate", "export", "mlflow:./mlruns", "./archive"]
    script = """
import os, signal, sys
from mlmigrate import progress, transfer
begin = progress.Plain.begin
def stopping(self, *given):
    begin(self, *given)
    os.kill(os.getpid(), signal.SIGINT)
progress.Plain.begin = stopping
sys.argv = ["mlmigrate", "export", "mlflow:./mlruns", "./archive"]
signal.signal(signal.SIGINT, signal.default_int_handler)
from mlmigrate.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "Run the same command again to go on." in done.stdout + done.stderr
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:12]) == (0, "All 12 runs ")


def test_what_libraries_do_at_the_end_does_not_change_how_a_command_ended():
    program = (
        "import atexit, os, sys; sys.argv = ['mlmigrate', *sys.argv[1:]]\n"
        "atexit.register(os.abort)\n"
        "from mlmigrate.cli import main\n"
        "main()\n"
    )
    for arguments, code in ((["adapters"], 0), (["list", "there-is-none"], 10)):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert done.stdout + done.stderr


def test_no_command_loads_pandas(tmp_path):
    program = (
        "import sys; sys.argv = ['mlmigrate', 'export', *sys.argv[1:]]\n"
        "from mlmigrate.cli import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    print(ended.code, 'pandas' in sys.modules)\n"
    )
    run = tmp_path / "mlruns" / "0" / ("a" * 32)
    run.mkdir(parents=True)
    (run.parent / "meta.yaml").write_text(
        "artifact_location: x\nexperiment_id: '0'\nlifecycle_stage: active\nname: Default\n"
    )
    (run / "meta.yaml").write_text(f"run_id: {'a' * 32}\nstatus: 3\nstart_time: 1\n")
    (run / "metrics").mkdir()
    (run / "metrics" / "loss").write_text("1 0.5 0\n")
    done = subprocess.run(
        [sys.executable, "-c", program, f"mlflow:{tmp_path / 'mlruns'}", str(tmp_path / "archive")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "0 False"
