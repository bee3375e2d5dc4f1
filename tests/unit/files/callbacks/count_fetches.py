"""Counts how often a run fetches a host's variables and works out a SCRAM verifier.

Appends one letter for each to the file that POOLKIT_COUNTS names, from every process of the run.
"""

import os

import scramp
from ansible.plugins.callback import CallbackBase
from ansible.vars.hostvars import HostVars

DOCUMENTATION = """
name: count_fetches
type: aggregate
short_description: Counts fetches of hostvars and SCRAM verifiers
description: For tests.
"""


def counted(function, letter: str):
    def call(*arguments, **named):
        file = os.open(os.environ["POOLKIT_COUNTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(file, letter.encode())
        os.close(file)
        return function(*arguments, **named)

    return call


HostVars.raw_get = counted(HostVars.raw_get, "f")
scramp.ScramMechanism.make_auth_info = counted(scramp.ScramMechanism.make_auth_info, "v")


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "count_fetches"
