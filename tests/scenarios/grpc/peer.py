#!/usr/bin/env python3
"""A gRPC server and its client, of messages that are plain bytes.

usage: peer.py serve       listens on a free port of loopback, and says which
       peer.py call PORT   prints a line a call that went as it should; the first that did not ends it with 1
"""
import sys
import threading
from concurrent import futures

import grpc

BIG = 10 * 1024 * 1024
MANY = 10_000
OPTIONS = [("grpc.max_receive_message_length", 2 * BIG), ("grpc.max_send_message_length", 2 * BIG)]
# For what must not take long, and for what must happen at all.
PATIENCE = 30


class Server(grpc.GenericRpcHandler):
    """What each method does is said by its name."""

    def __init__(self):
        self.cancelled = threading.Semaphore(0)

    def service(self, call):
        kinds = {
            "/t/unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "/t/collect": grpc.stream_unary_rpc_method_handler(lambda messages, _: b"%d" % sum(map(len, messages))),
            "/t/count": grpc.unary_stream_rpc_method_handler(self.count),
            "/t/echo": grpc.stream_stream_rpc_method_handler(lambda messages, _: messages),
            "/t/refuse": grpc.unary_unary_rpc_method_handler(self.refuse),
            "/t/break": grpc.unary_stream_rpc_method_handler(self.break_off),
            "/t/hang": grpc.unary_unary_rpc_method_handler(self.hang),
            "/t/begin": grpc.unary_stream_rpc_method_handler(self.begin),
            "/t/was_cancelled": grpc.unary_unary_rpc_method_handler(self.was_cancelled),
        }
        return kinds.get(call.method)

    @staticmethod
    def unary(message, context):
        given = dict(context.invocation_metadata())
        context.send_initial_metadata((("x-initial", given.get("x-asked", "")),))
        context.set_trailing_metadata((("x-last-bin", given.get("x-asked-bin", b"")),))
        return message

    @staticmethod
    def count(message, _):
        return (b"%d" % number for number in range(int(message)))

    @staticmethod
    def refuse(message, context):
        context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: \u00e9%")

    @staticmethod
    def break_off(message, context):
        yield message
        context.abort(grpc.StatusCode.DATA_LOSS, "half of it")

    def hang(self, message, context):
        over = threading.Event()
        context.add_callback(over.set)
        if over.wait(PATIENCE):
            self.cancelled.release()
        return message

    def begin(self, message, context):
        yield message
        self.hang(message, context)

    def was_cancelled(self, message, _):
        return b"%d" % self.cancelled.acquire(timeout=PATIENCE)


def serve():
    server = grpc.server(futures.ThreadPoolExecutor(16), options=OPTIONS)
    server.add_generic_rpc_handlers((Server(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print("listens on", port, flush=True)
    server.wait_for_termination()


def failure(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError("it did not fail")


def unary(channel):
    metadata = (("x-asked", "yes"), ("x-asked-bin", b"\x00\xff"))
    answer, call = channel.unary_unary("/t/unary").with_call(b"x", metadata=metadata, timeout=PATIENCE)
    assert answer == b"x"
    assert ("x-initial", "yes") in call.initial_metadata()
    assert ("x-last-bin", b"\x00\xff") in call.trailing_metadata()


def big(channel):
    message = bytes(BIG)
    assert channel.unary_unary("/t/unary")(message, timeout=PATIENCE) == message


def empty(channel):
    assert channel.unary_unary("/t/unary")(b"", timeout=PATIENCE) == b""


def client_stream(channel):
    assert channel.stream_unary("/t/collect")(iter([b"1234"] * 1000), timeout=PATIENCE) == b"4000"


def server_stream(channel):
    numbers = [int(number) for number in channel.unary_stream("/t/count")(b"1000", timeout=PATIENCE)]
    assert numbers == list(range(1000))


def turns(channel):
    """Both ways in turn: neither message waits for the stream's end."""
    turn = threading.Semaphore(1)

    def messages():
        for number in range(100):
            assert turn.acquire(timeout=PATIENCE)
            yield b"%d" % number

    for number, message in enumerate(channel.stream_stream("/t/echo")(messages(), timeout=PATIENCE)):
        assert int(message) == number
        turn.release()
    assert number == 99


def many(channel):
    sent = (b"%d" % number for number in range(MANY))
    numbers = [int(number) for number in channel.stream_stream("/t/echo")(sent, timeout=PATIENCE)]
    assert numbers == list(range(MANY))


def trailers_only(channel):
    code, details = failure(lambda: channel.unary_unary("/t/refuse")(b"x", timeout=PATIENCE))
    assert code == grpc.StatusCode.NOT_FOUND and details == "no such thing: \u00e9%", (code, details)


def broken_off(channel):
    answers = channel.unary_stream("/t/break")(b"x", timeout=PATIENCE)
    assert next(answers) == b"x"
    assert failure(lambda: next(answers)) == (grpc.StatusCode.DATA_LOSS, "half of it")


def unimplemented(channel):
    code, _ = failure(lambda: channel.unary_unary("/t/nothing")(b"x", timeout=PATIENCE))
    assert code == grpc.StatusCode.UNIMPLEMENTED, code


def deadline(channel):
    code, _ = failure(lambda: channel.unary_unary("/t/hang")(b"x", timeout=0.5))
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED, code
    assert channel.unary_unary("/t/was_cancelled")(b"", timeout=PATIENCE) == b"1"


def cancel(channel):
    call = channel.stream_stream("/t/echo")(iter(()), timeout=PATIENCE)
    assert list(call) == []
    call = channel.unary_stream("/t/begin")(b"x", timeout=PATIENCE)
    assert next(call) == b"x"
    call.cancel()
    assert channel.unary_unary("/t/was_cancelled")(b"", timeout=PATIENCE) == b"1"


CALLS = [unary, empty, big, client_stream, server_stream, turns, many]
CALLS += [trailers_only, broken_off, unimplemented, deadline, cancel]


def call(port):
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
        for one in CALLS:
            one(channel)
            print("fine:", one.__name__, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        call(int(sys.argv[2]))
