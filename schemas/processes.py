"""Processes that other processes of ours start."""

import multiprocessing
import multiprocessing.connection
import os
import threading


def end_with_parent() -> None:
    """From now on this process, which `multiprocessing` started, ends when the one that started it has, whatever it died of.

    Without, who waits for work of a process that was killed waits forever, and keeps its memory.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
