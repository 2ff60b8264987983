"""A local server that speaks S3, for tests; importing this needs moto."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen

import pytest


@contextmanager
def object_store() -> Iterator[str]:
    """Serve an empty bucket to this process and those it starts; yield its URL."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with pytest.MonkeyPatch.context() as patch:
            # What a client sends to a server that accepts everything.
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.setenv(name, "testing")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            patch.setenv("NO_PROXY", ",".join([host, *filter(None, [os.environ.get("NO_PROXY")])]))
            # An earlier server in this process had the same content.
            urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
            import s3fs

            s3fs.S3FileSystem.clear_instance_cache()
            s3fs.S3FileSystem().mkdir("bucket")
            yield "s3://bucket"
            s3fs.S3FileSystem.clear_instance_cache()
    finally:
        server.stop()
