"""Look at PEM files on the controller before anything changes on a host."""

from __future__ import annotations

DOCUMENTATION = """
name: pem_errors
short_description: Say what is wrong with PEM files on the controller
version_added: 0.1.0
author: The poolkit authors (@poolkit)
description:
  - Finds and reads them as the lookup ansible.builtin.file does, which also opens those that
    Ansible Vault encrypted. A variable whose name ends in key_file holds a private key, any other
    one certificates.
options:
  _terms:
    description: Dictionaries of variables and their paths; an empty path is none.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = """
- ansible.builtin.assert:
    that: errors | length == 0
    fail_msg: "{{ errors | join('; ') }}"
  vars:
    files: {database_ca_file: "{{ database_ca_file }}"}
    errors: "{{ query('poolkit.poolkit.pem_errors', files) }}"
"""

RETURN = """
_raw:
  description: A message for each file that is missing, unreadable or not what its variable needs.
  type: list
  elements: str
"""

import re
import ssl
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleError

from ansible.plugins.lookup import LookupBase


def private_key_error(text: str) -> str | None:
    """Return what is wrong with a private key's PEM text, without a word of it."""
    if not re.search(r"^-----BEGIN ([A-Z]+ )?PRIVATE KEY-----\s*$", text, re.MULTILINE):
        return "it holds no private key in PEM format"
    if re.search(r"^-----BEGIN ENCRYPTED |^Proc-Type: 4,ENCRYPTED", text, re.MULTILINE):
        return "its key has a passphrase, which a service cannot type: write it without one"
    return None


def certificates_error(text: str) -> str | None:
    """Return what is wrong with the PEM text of one certificate or several."""
    # Without the text between them: names of authorities are not always ASCII.
    found = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL)
    if not found:
        return "it holds no certificate in PEM format"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata="\n".join(found))
    except (ssl.SSLError, TypeError) as error:  # TypeError: not ASCII
        return f"it holds a certificate that cannot be read ({error})"
    return None


class LookupModule(LookupBase):
    def run(
        self, terms: list[Mapping[str, str]], variables: Any = None, **options: Any
    ) -> list[str]:
        return [
            f"{variable} is {path}: {error}"
            for term in terms
            for variable, path in term.items()
            if path and (error := self.error(variable, path, variables))
        ]

    def error(self, variable: str, path: str, variables: Any) -> str | None:
        try:
            found = self.find_file_in_search_path(variables, "files", path, ignore_missing=True)
            if not found:
                return "there is no such file on the controller"
            text = self._loader.get_text_file_contents(found)
        except (AnsibleError, OSError, UnicodeError) as error:
            return f"the controller cannot read it ({str(error).splitlines()[0]})"
        check = private_key_error if variable.endswith("key_file") else certificates_error
        return check(text)
