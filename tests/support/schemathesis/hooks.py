"""What schemathesis has to be told about bodies and signatures that it cannot know."""

import hashlib
import hmac
import json
import time

import requests
import schemathesis

SECRET = b"right-signature"
# What stands in place of what is signed, where a request is to be a right one: so schemathesis.toml has it.
UNSIGNED = "unsigned"


@schemathesis.serializer("application/x-ndjson")
def lines(_context, value):
    """Lines of JSON, which it cannot write by itself."""
    values = value if isinstance(value, list) else [value]
    return "".join(json.dumps(item) + "\n" for item in values).encode()


@schemathesis.hook
def filter_case(_context, case):
    """Leaves out what breaks the schema as a value, and is sound as it is sent."""
    # A lone object is no array of lines, and yet a line.
    return not (case.media_type == "application/x-ndjson" and isinstance(case.body, dict))


class Signature(requests.auth.AuthBase):
    """Signs a request as it is sent, if it is to be signed."""

    def __call__(self, request):
        body = request.body or b""
        if isinstance(body, str):
            body = body.encode()
        if request.headers.get("x-hub-signature-256") == UNSIGNED:
            request.headers["x-hub-signature-256"] = "sha256=" + sign(body)
        if request.headers.get("x-slack-request-timestamp") == UNSIGNED:
            request.headers["x-slack-request-timestamp"] = str(int(time.time()))
        if request.headers.get("x-slack-signature") == UNSIGNED:
            timestamp = str(request.headers.get("x-slack-request-timestamp", ""))
            request.headers["x-slack-signature"] = "v0=" + sign(f"v0:{timestamp}:".encode() + body)
        return request


def sign(message):
    return hmac.new(SECRET, message, hashlib.sha256).hexdigest()


@schemathesis.hook
def before_call(_context, _case, kwargs):
    """Has the request signed when its body is bytes."""
    kwargs.setdefault("auth", Signature())
