"""A worker of the user registration workflow, in Python, on nothing but grpcio and the stubs that protoc makes.

    worker.py --address HOST:PORT --worker-id NAME --handler STEP... --service NAME=URL... [--namespace NAME] [--journal FILE]

It takes the named steps, calls one HTTP service for each, and reports what it was answered. It neither waits nor counts:
when to try again, and whether to, is the server's business.

Threads: the main one reads the stream, each step has one of its own, and one beats for all of them. They share `ours`, the
lease tokens of the runs that nobody has taken from us.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from datetime import datetime, timezone

import grpc

from tasker.v1 import worker_service_pb2 as pb
from tasker.v1 import worker_service_pb2_grpc as rpc

# After these the same call can never succeed. After all others it is made again, which is always safe.
FINAL = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNAUTHENTICATED", "PERMISSION_DENIED"}
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION.value[0]

BEAT_EVERY = 2  # seconds; confirms new runs within the delivery timeout and keeps the leases of long ones
SILENCE = 45  # seconds without any frame after which the server is taken for gone: three idle intervals

SERVICES = {
    "create_user_account": "user_service",
    "setup_billing": "billing_service",
    "set_preferences": "preference_service",
    "send_billing_notification": "notification_service",
}


class Journal:
    """What this worker saw and was told, one JSON object a line, on disk before it is acted on.

    A lease token is never written down; a digest stands for it.
    """

    def __init__(self, path):
        self.file = open(path, "a", encoding="utf-8") if path else None
        self.lock = threading.Lock()

    def write(self, kind, step, **fields):
        if self.file is None:
            return
        token = hashlib.sha256(step.lease_token.encode()).hexdigest()[:24]
        at = datetime.now(timezone.utc).isoformat()
        entry = {"kind": kind, "at": at, "step_id": step.step_id, "dispatch": step.dispatch, "token": token, **fields}
        with self.lock:
            self.file.write(json.dumps(entry) + "\n")
            self.file.flush()
            os.fsync(self.file.fileno())


class Worker:
    def __init__(self, stub, session, handlers, journal):
        self.stub, self.session, self.handlers, self.journal = stub, session, handlers, journal
        self.ours = set()
        self.stream = None
        self.heard = time.monotonic()
        self.stopping = False
        self.left = threading.Event()  # the stream is followed no more

    def ask(self, method, request):
        """Calls once. Gives (answer, None), or (None, code), where an empty code means: ask again."""
        try:
            return method(request, timeout=5), None
        except grpc.RpcError as error:
            name = error.code().name
            return None, name if name in FINAL else ""

    def run(self, step):
        report = pb.ReportStepResultRequest(lease_token=step.lease_token)
        began = time.monotonic()
        try:
            self.handlers[step.handler](step, report)
        except Exception as error:  # whatever it is, somebody else may have more luck
            report.retryable_failure.failure.error_code = "EXCEPTION"
            report.retryable_failure.failure.error_class = type(error).__name__
            report.retryable_failure.failure.message = str(error)
        report.run_duration.FromNanoseconds(int((time.monotonic() - began) * 1e9))
        outcome = report.WhichOneof("outcome")
        if step.lease_token in self.ours:
            self.journal.write("report", step, outcome=outcome)
        pause = 0.1
        while step.lease_token in self.ours:
            answer, code = self.ask(self.stub.ReportStepResult, report)
            if answer is not None:
                self.journal.write("answer", step, outcome=outcome, already_recorded=answer.already_recorded)
                break
            if code:
                self.journal.write("answer", step, outcome=outcome, reason=code)
                break
            time.sleep(random.uniform(0, pause))
            pause = min(2 * pause, 5)
        self.ours.discard(step.lease_token)

    def beat(self):
        while True:
            time.sleep(BEAT_EVERY)
            if self.stream is not None and time.monotonic() - self.heard > SILENCE:
                self.stream.cancel()
            beats = [pb.StepHeartbeat(lease_token=token) for token in list(self.ours)]
            if not beats:
                continue
            answer, _ = self.ask(self.stub.HeartbeatSteps, pb.HeartbeatStepsRequest(heartbeats=beats))
            for entry in answer.entries if answer else ():
                if entry.status.code == FAILED_PRECONDITION:
                    self.ours.discard(entry.lease_token)

    def take(self, frame):
        kind = frame.WhichOneof("frame")
        if kind == "step":
            self.journal.write("frame", frame.step)
            self.ours.add(frame.step.lease_token)
            threading.Thread(target=self.run, args=[frame.step]).start()
        elif kind == "revoked":
            self.ours.discard(frame.revoked.lease_token)
        elif kind == "opened":
            self.ours.difference_update(frame.opened.lost_lease_tokens)

    def follow(self):
        """Keeps a stream open until the worker stops or the server says that it must."""
        threading.Thread(target=self.beat, daemon=True).start()
        pause = 1
        while not self.stopping:
            time.sleep(random.uniform(0, pause))
            pause = min(2 * pause, 30)
            self.heard = time.monotonic()
            self.stream = self.stub.ReadySteps(pb.ReadyStepsRequest(held_lease_tokens=list(self.ours), **self.session))
            try:
                for frame in self.stream:
                    self.heard, pause = time.monotonic(), 1
                    self.take(frame)
            except grpc.RpcError as error:
                if self.stopping:
                    break
                if error.code().name in FINAL:
                    sys.exit(f"refused by the server: {error.code().name}: {error.details()}")
                print(f"stream ended: {error.code().name}; opening another", file=sys.stderr)
        self.left.set()

    def stop(self):
        """No new step, and an end when those that run have been reported."""
        self.stopping = True
        request = pb.DrainWorkerRequest(**{key: self.session[key] for key in ("namespace", "worker_id", "instance_id")})
        while True:
            answer, code = self.ask(self.stub.DrainWorker, request)
            if answer is not None or code:
                break
            time.sleep(random.uniform(0, 1))
        while self.ours:
            time.sleep(0.05)
        while not self.left.wait(0.05):  # the main thread may be opening another stream just now
            if self.stream is not None:
                self.stream.cancel()


def caller(url):
    """A handler that calls the service at url, and sorts its answer into the three outcomes."""

    def handle(step, report):
        user = json.loads(step.context)["user_id"]
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": step.idempotency_key,
            "X-Attempt": str(step.attempt),
            "X-Dispatch": str(step.dispatch),
        }
        request = urllib.request.Request(f"{url}/users/{user}", step.context.encode(), headers, method="POST")
        timeout = json.loads(step.handler_config).get("request_timeout", 30)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                report.success.results = response.read().decode()
        except urllib.error.HTTPError as error:
            if error.code == 429 or error.code >= 500:
                outcome = report.retryable_failure
                if "Retry-After" in error.headers:
                    outcome.retry_after_header = error.headers["Retry-After"]
            else:
                outcome = report.permanent_failure
            outcome.failure.error_code = f"HTTP_{error.code}"
            outcome.failure.http_status = error.code
            outcome.failure.message = error.reason
        except OSError as error:  # a timeout or a broken connection: nobody knows whether the work was done
            report.retryable_failure.failure.error_code = "NO_ANSWER"
            report.retryable_failure.failure.error_class = type(error).__name__
            report.retryable_failure.failure.message = str(error)

    return handle


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True)
    parser.add_argument("--worker-id", required=True)
    parser.add_argument("--handler", action="append", required=True, choices=SERVICES)
    parser.add_argument("--service", action="append", required=True, metavar="NAME=URL")
    parser.add_argument("--max-in-flight", type=int, default=8)
    parser.add_argument("--namespace", default="")
    parser.add_argument("--journal")
    args = parser.parse_args()
    urls = dict(pair.split("=", 1) for pair in args.service)
    handlers = {name: caller(urls[SERVICES[name]]) for name in args.handler}
    session = {
        "namespace": args.namespace,
        "worker_id": args.worker_id,
        "instance_id": str(uuid.uuid4()),
        "handlers": [pb.HandlerSubscription(name=name) for name in handlers],
        "max_in_flight": args.max_in_flight,
        "sends_heartbeats": True,
        "client_info": f"registration-python grpcio/{grpc.__version__}",
    }
    # gRPC alone would wait for up to two minutes before it tries a lost server again.
    options = [("grpc.max_reconnect_backoff_ms", 2000), ("grpc.initial_reconnect_backoff_ms", 100)]
    channel = grpc.insecure_channel(args.address, options=options)
    worker = Worker(rpc.WorkerServiceStub(channel), session, handlers, Journal(args.journal))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=worker.stop).start())
    worker.follow()


if __name__ == "__main__":
    main()
