"""Buckets on loopback, in one process of their own: `with serving(log) as environment` gives the variables with which a door finds them.

gs:// is gcp-storage-emulator and s3:// is moto, each with a bucket `bkt`. Both refuse whatever is asked of a bucket `closed`, and any write into a
bucket `readonly`. What the emulator of Cloud Storage lacks is added here: the generation of what is read, which tensorstore needs, and the
condition under which something is written.
"""

import contextlib
import functools
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
REFUSED = {"error": {"code": 403, "message": "the account of the test does not have storage.objects.create access"}}


@contextlib.contextmanager
def serving(log: pathlib.Path) -> Iterator[dict[str, str]]:
    """Runs the servers for as long as the block does; yields variables for the environment of whoever uses them."""
    command, pipe = [sys.executable, "-m", "tests.buckets"], subprocess.PIPE
    with log.open("w") as errors, subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process:
        assert process.stdout and process.stdin
        said = process.stdout.readline()
        assert said, log.read_text()
        gs, s3 = json.loads(said)
        try:
            yield {
                "STORAGE_EMULATOR_HOST": gs, "TENSORSTORE_GCS_HTTP_URL": gs, "NO_GCE_CHECK": "true", "AWS_ENDPOINT_URL": s3,
                "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1",
            }  # fmt: skip
        finally:
            process.stdin.close()


def refuses(method: str, path: str) -> bool:
    """Whether a request is for a bucket that refuses it."""
    return bool(re.search(r"/closed(/|$)", path)) or method != "GET" and "/readonly/" in path


def cloud_storage() -> str:
    """Starts the emulator of Cloud Storage; its address."""
    from gcp_storage_emulator import server
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import buckets
    from gcp_storage_emulator.storage import Storage

    storage, one_at_a_time = Storage(use_memory_fs=True), threading.Lock()

    def generation(bucket: str, name: str) -> str:
        try:
            return storage.get_file_obj(bucket, name)["generation"]
        except NotFound:
            return "0"

    def amended(handle: Callable[..., None]) -> Callable[..., None]:
        def inner(request: Any, response: Any, storage: Storage) -> None:
            bucket, name = (request.params.get(key) for key in ("bucket_name", "object_id"))
            body = request.data if request.method != "GET" else None  # read before the lock is taken
            wanted = request.query.get("ifGenerationMatch", [])
            if refuses(request.method, request.path):
                response.status = HTTPStatus.FORBIDDEN
                return response.json(REFUSED)
            with one_at_a_time:
                if wanted and request.method == "POST":
                    target = request.query["name"][0] if "name" in request.query else body["meta"]["name"]
                    if wanted != [generation(bucket, target)]:
                        response.status = HTTPStatus.PRECONDITION_FAILED
                        return response.json({"error": {"code": 412, "message": "conditionNotMet"}})
                handle(request, response, storage)
                if name and request.method == "GET" and response.status < 300:
                    response["X-Goog-Generation"] = generation(bucket, name)

        return inner

    server.HANDLERS = tuple((regex, {method: amended(handle) for method, handle in handlers.items()}) for regex, handlers in server.HANDLERS)
    for bucket in ("bkt", "readonly"):
        buckets.create_bucket(bucket, storage)
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(server.RequestHandler, storage))
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{listening.server_port}"


def s3() -> str:
    """Starts moto; its address."""
    import boto3
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    inner = DomainDispatcherApplication(create_backend_app)

    def application(environment: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if refuses(environment["REQUEST_METHOD"], environment["PATH_INFO"]):
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            said = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            return [] if environment["REQUEST_METHOD"] == "HEAD" else [said]  # whose answer has no body, or clients call it broken
        return inner(environment, start_response)

    listening = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{listening.server_port}"
    client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test")
    for bucket in ("bkt", "readonly"):
        client.create_bucket(Bucket=bucket)
    return address


if __name__ == "__main__":
    os.environ["NO_PROXY"] = "127.0.0.1"
    print(json.dumps([cloud_storage(), s3()]), flush=True)
    sys.stdin.read()
