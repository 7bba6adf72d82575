"""Does with the PyPI package etcd3gw, over nothing but HTTP and JSON, what programs do with etcd, and checks every answer.

It is given the endpoints, comma separated. It prints one line per part, and "python: N checks passed" if all is as it should be;
anything else ends it with status 1. When it prints "RESTART", whoever drives it takes a server down and up again, in which time the
work goes on, and then writes a line to its standard input.
"""

import itertools
import sys
import threading
import time
from urllib.parse import urlsplit

import requests
from etcd3gw import exceptions
from etcd3gw.client import Etcd3Client
from etcd3gw.utils import _decode, _encode

CHECKS = itertools.count()
# How long an answer may take. Nothing waits for it when all is well.
PATIENCE = 30
# What a client sees of a server that is away.
AWAY = (exceptions.Etcd3Exception, requests.exceptions.RequestException)


def check(holds, what):
    if not holds:
        raise AssertionError(what)
    next(CHECKS)


def equal(found, wanted, what):
    check(found == wanted, f"{what}: {found!r} instead of {wanted!r}")


def refused(call, wanted, what):
    try:
        call()
    except exceptions.Etcd3Exception as error:
        check(wanted in (error.detail_text or ""), f"{what}: {error.detail_text!r}")
    else:
        raise AssertionError(f"{what}: it succeeded")


def connect(endpoint):
    url = urlsplit(endpoint)
    return Etcd3Client(host=url.hostname, port=url.port, timeout=PATIENCE)


def kv(clients):
    client = clients[0]
    equal(client.api_path, "/v3/", "the path, told by the version")
    client.put("kv/a", "1")
    client.put("kv/b", bytes([0, 255, 10]))
    client.put("kv/c", "3")
    equal(client.get("kv/a"), [b"1"], "get")
    equal(client.get("kv/b"), [bytes([0, 255, 10])], "bytes come back as they were")
    equal(client.get("kv/none"), [], "a key that does not exist")
    for other in clients:
        found = other.get_prefix("kv/", sort_order="descend", sort_target="key")
        equal([record["key"] for _, record in found], [b"kv/c", b"kv/b", b"kv/a"], "sorted")
    check(client.create("kv/d", "once"), "created")
    check(not client.create("kv/d", "twice"), "created once")
    check(client.replace("kv/d", "once", "changed"), "replaced")
    check(not client.replace("kv/d", "once", "again"), "replaced what it was not")
    _, record = client.get("kv/d", metadata=True)[0]
    equal((record["version"], int(record["mod_revision"]) - int(record["create_revision"])), ("2", 1), "metadata")
    check(client.delete("kv/d"), "deleted")
    check(not client.delete("kv/d"), "deleted once")
    check(client.delete_prefix("kv/"), "a prefix deleted")
    equal(client.get_prefix("kv/"), [], "nothing is left")


def txn(clients):
    client = clients[0]
    client.put("txn/a", "1")
    key = _encode("txn/a")
    put = {"request_put": {"key": key, "value": _encode("2"), "prev_kv": True}}
    answer = client.transaction({
        "compare": [{"key": key, "target": "VALUE", "result": "EQUAL", "value": _encode("1")}],
        "success": [put, {"request_range": {"key": key}}],
        "failure": [{"request_delete_range": {"key": key}}],
    })
    check(answer["succeeded"], "the comparison holds")
    before, after = answer["responses"]
    equal(_decode(before["response_put"]["prev_kv"]["value"]), b"1", "the value before")
    equal(_decode(after["response_range"]["kvs"][0]["value"]), b"2", "a read sees the write before it")
    twice = {"success": [put, put]}
    refused(lambda: client.transaction(twice), "duplicate key given in txn request", "a key twice")
    refused(lambda: client.put("", "x"), "key is not provided", "an empty key")
    refused(lambda: client.get("txn/a", revision=10**9), "required revision is a future revision", "the future")


def leases(clients):
    client = clients[0]
    lease = client.lease(60)
    client.put("lease/a", "x", lease)
    client.put("lease/b", "x", lease)
    equal(sorted(lease.keys()), [b"lease/a", b"lease/b"], "attached")
    check(0 < lease.ttl() <= 60, "time to live")
    equal(lease.refresh(), 60, "kept alive")
    lease.revoke()
    equal((client.get_prefix("lease/"), lease.ttl(), lease.refresh()), ([], -1, -1), "gone with its lease")
    refused(lease.revoke, "requested lease not found", "revoked twice")
    kept, lost = client.lease(4), client.lease(4)
    client.put("expiry/kept", "x", kept)
    revision = int(client.status()["header"]["revision"])
    client.put("expiry/lost", "x", lost)
    stop = threading.Event()
    keeper = threading.Thread(target=lambda: [kept.refresh() for _ in iter(lambda: stop.wait(0.3), True)])
    keeper.start()
    try:
        gone = client.watch_once("expiry/", range_end="expiry0", start_revision=revision + 1, filters=["NOPUT"], timeout=PATIENCE)
        equal((gone["type"], gone["kv"]["key"]), ("DELETE", b"expiry/lost"), "expired")
        equal(client.get("expiry/kept"), [b"x"], "kept")
    finally:
        stop.set()
        keeper.join()
    kept.revoke()


def locks(clients):
    inside, failures = [], []

    def work(number):
        client = connect(clients[number % len(clients)].base_url)
        try:
            for _ in range(5):
                lock = client.lock("counting", ttl=30)
                while not lock.acquire():
                    time.sleep(0.002)
                inside.append(number)
                equal(inside, [number], "one holder")
                client.put("counter", str(int(client.get("counter")[0]) + 1))
                inside.remove(number)
                check(lock.release(), "released")
        except Exception as error:  # the thread's failure is told by the one that waits for it
            failures.append(error)

    clients[0].put("counter", "0")
    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    equal(failures, [], "failures")
    equal(clients[0].get("counter"), [b"15"], "counted")


def watch(clients):
    client = clients[0]
    first = int(client.status()["header"]["revision"]) + 1
    events, cancel = client.watch_prefix("watch/", start_revision=first, prev_kv=True)
    client.put("watch/a", "1")
    client.put("watch/a", "2")
    client.delete_prefix("watch/")
    seen = list(itertools.islice(events, 3))
    cancel()
    equal([event["kv"]["value"] for event in seen[:2]], [b"1", b"2"], "puts")
    equal((seen[2]["type"], _decode(seen[2]["prev_kv"]["value"])), ("DELETE", b"2"), "a delete")
    for other in clients:
        again = other.watch_once("watch/a", start_revision=first + 1, timeout=PATIENCE)
        equal(again["kv"]["value"], b"2", "history")
    try:
        client.watch_once("watch/none", timeout=0.2)
        raise AssertionError("an event from nowhere")
    except exceptions.WatchTimedOut:
        next(CHECKS)


def cluster(clients):
    equal(len(clients[0].members()), len(clients), "members")
    leaders = {client.status()["leader"] for client in clients}
    equal(len(leaders), 1, "one leader")
    check(all(int(client.status()["dbSize"]) > 0 for client in clients), "sizes")


def more(written):
    """Waits until some more has been written."""
    enough, deadline = len(written) + 20, time.monotonic() + PATIENCE
    while len(written) < enough:
        if time.monotonic() > deadline:
            raise AssertionError(f"only {len(written)} writes")
        time.sleep(0.01)


def watch_over_restart(clients):
    """Follows a prefix by revision while a server goes away and comes back: no event is lost, none comes twice."""
    stop, written = threading.Event(), []
    start = int(clients[0].status()["header"]["revision"]) + 1

    def write():
        own = itertools.cycle([connect(client.base_url) for client in clients])
        while not stop.wait(0.005):
            try:
                next(own).put(f"over/{len(written) % 10}", str(len(written) + 1))
                written.append(True)
            except AWAY:
                pass

    def follow():
        own = itertools.cycle([connect(client.base_url) for client in clients])
        revision = start
        while True:
            try:
                event = next(own).watch_once("over/", range_end="over0", start_revision=revision, timeout=2)
            except (*AWAY, exceptions.WatchTimedOut):
                time.sleep(0.05)
                continue
            found = int(event["kv"]["mod_revision"])
            if found < revision:
                seen.append(-1)
                return
            revision = found + 1
            if event["kv"]["key"] == b"over/end":
                return
            seen.append(int(event["kv"]["value"]))

    seen = []
    threads = [threading.Thread(target=write), threading.Thread(target=follow)]
    for thread in threads:
        thread.start()
    more(written)
    print("RESTART", flush=True)
    sys.stdin.readline()
    more(written)
    stop.set()
    threads[0].join()
    for other in itertools.cycle(clients):
        try:
            other.put("over/end", "")
            break
        except AWAY:
            time.sleep(0.05)
    threads[1].join()
    # A write whose answer was lost is repeated, so a value may be there twice; none is missing, none out of order.
    steps = {later - earlier for earlier, later in itertools.pairwise([0, *seen])}
    check(steps <= {0, 1}, f"steps: {steps}")
    check(seen[-1] >= len(written), f"{seen[-1]} of {len(written)} seen")


def main():
    clients = [connect(endpoint) for endpoint in sys.argv[1].split(",")]
    for part in (kv, txn, leases, locks, watch, cluster, watch_over_restart):
        part(clients)
        print(f"{part.__name__}: done", flush=True)
    print(f"python: {next(CHECKS)} checks passed", flush=True)


if __name__ == "__main__":
    main()
