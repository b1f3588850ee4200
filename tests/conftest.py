"""Tests that press Ctrl-C need it to be heard: a shell that runs them in the background has told them to ignore it."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
