"""What tests of copies share: a real S3 server here, and a proxy before it that fails."""

import functools
import http.client
import threading
import uuid
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import boto3
from moto.server import ThreadedMotoServer

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "canary-of-a-secret"}


@functools.cache
def server_url():
    """Start moto's server once and return its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


def use(monkeypatch, url):
    """Let the environment name an S3 server, as a user's would."""
    for name, value in {**CREDENTIALS, "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)


def client(url=None):
    """Return Amazon's own client, another eye on what is there."""
    return boto3.client(
        "s3",
        endpoint_url=url or server_url(),
        region_name="us-east-1",
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )


def new_bucket():
    """Make a bucket of one test's own and return its name."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client().create_bucket(Bucket=name)
    return name


def keys(bucket):
    """Return the keys of all objects in a bucket that are not empty."""
    found = client().list_objects_v2(Bucket=bucket).get("Contents", [])
    return sorted(item["Key"] for item in found if item["Size"])


class Proxy:
    """Hands requests on to the S3 server, but answers some itself.

    Attributes:
        answer: Called with each request's method and path; the status to fail it with, or None.
        requests: Method, path and status of each, in order.
    """

    def __init__(self):
        self.answer = lambda _method, _path: None
        self.requests = []
        self.url = ""

    @contextmanager
    def running(self):
        """Serve at `url` while the body runs."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _take(self):
                body = _body(self)
                status = proxy.answer(self.command, self.path)
                if status is None:
                    status, headers, content = _hand_on(self, body)
                else:
                    headers, content = [], b""
                proxy.requests.append((self.command, self.path, status))
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                if not any(name.lower() == "content-length" for name, _ in headers):
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _take  # noqa: N815 - Python's names

            def log_message(self, *_args):
                """Keep quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def _body(request):
    """Read a request's body, which Amazon's library sends in chunks."""
    if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))
    body = b""
    while size := int(request.rfile.readline().split(b";")[0], 16):
        body += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return body


def _hand_on(request, body):
    """Give a request to the S3 server; return its status, headers and content."""
    connection = http.client.HTTPConnection(urlsplit(server_url()).netloc, timeout=20)
    dropped = {"transfer-encoding", "connection", "keep-alive", "server", "date", "expect"}
    sent = {k: v for k, v in request.headers.items() if k.lower() not in dropped}
    connection.request(request.command, request.path, body, sent)
    answer = connection.getresponse()
    content = answer.read()
    headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in dropped]
    connection.close()
    return answer.status, headers, content
