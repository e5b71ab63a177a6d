"""The other end of a health check: asks a running service over loopback, with the standard library only.

A container runs this every few seconds beside the service, so it starts fast: it parses no file and loads no library.
"""

from __future__ import annotations

import http.client
import json

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - read, not bound
MAX_ANSWER_BYTES = 65_536


def ask(host: str, port: int, path: str, timeout_s: float) -> tuple[bool, str]:
    """GET `path` from the health port; return whether the answer is 200, and a line for whoever reads the output."""
    connection = http.client.HTTPConnection(WILDCARDS.get(host, host), port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read(MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last for a name that no host can have
        return False, f"no answer from port {port}: {error}"
    finally:
        connection.close()
    return response.status == http.client.OK, f"{response.status} {summary(body)}"


def summary(body: bytes) -> str:
    """Return the verdict and the complaints of an answer in one line."""
    try:
        answer = json.loads(body)
        verdict = next(str(answer[key]) for key in ("status", "live", "ready", "started") if key in answer)
        complaints = [f"{complaint['component']}: {complaint['text']}" for complaint in answer.get("complaints", [])]
    except (ValueError, TypeError, KeyError, StopIteration):
        return "and no verdict: is another program on this port?"
    return "; ".join([verdict, *complaints])
