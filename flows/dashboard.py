"""Starts the dashboard: a Prefect server, the flow on demand and every night, and the report to look at.

It runs on this machine alone (127.0.0.1), keeps everything in .prefect/, and ends with Ctrl-C. Started again, it has
the same runs, schedules and password.
"""

from __future__ import annotations

import argparse
import base64
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from cronsim import CronSim, CronSimError
from prefect import serve
from prefect.client.schemas.schedules import construct_schedule

from flows import connection, process
from flows.board import FILES
from flows.reproduce import reproduce
from stages.common.paths import REPORTS
from stages.common.settings import BadInput, refuse

HOST = "127.0.0.1"
NIGHTLY = "0 2 * * *"
PATIENCE = 180.0  # seconds that the server has to start
