// Does with the npm package etcd3, over gRPC, what programs do with etcd, and checks every answer.
//
// It is given the endpoints, comma separated. It prints one line per part, and "node: N checks passed" if all is as it should be;
// anything else ends it with status 1. When it prints "RESTART", whoever drives it takes a server down and up again, in which time
// the work goes on, and then writes a line to its standard input.
"use strict";

const { Etcd3, EtcdLockFailedError, EtcdLeaseInvalidError } = require("etcd3");
const { once } = require("node:events");
const readline = require("node:readline");

const PATIENCE_MS = 60_000;
let checks = 0;

function check(holds, what) {
  if (!holds) throw new Error(what);
  checks += 1;
}

function equal(found, wanted, what) {
  const [a, b] = [JSON.stringify(found), JSON.stringify(wanted)];
  check(a === b, `${what}: ${a} instead of ${b}`);
}

async function refused(promise, wanted, what) {
  const error = await promise.then(
    () => new Error("it succeeded"),
    (error) => error,
  );
  const found = typeof wanted === "string" ? error.message.includes(wanted) : error instanceof wanted;
  check(found, `${what}: ${error.message}`);
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function kv(client) {
  await client.put("kv/a").value("1");
  await client.put("kv/b").value(Buffer.from([0, 255, 10]));
  await client.put("kv/c").value("3");
  equal(await client.get("kv/a").string(), "1", "get");
  check((await client.get("kv/b").buffer()).equals(Buffer.from([0, 255, 10])), "bytes come back as they were");
  equal(await client.get("kv/none").string(), null, "a key that does not exist");
  equal(await client.getAll().prefix("kv/").sort("Key", "Descend").keys(), ["kv/c", "kv/b", "kv/a"], "sorted");
  equal(await client.getAll().prefix("kv/").limit(2).keys(), ["kv/a", "kv/b"], "limited");
  equal(await client.getAll().prefix("kv/").count(), 3, "counted");
  const past = (await client.put("kv/a").value("2")).header.revision;
  equal(await client.get("kv/a").revision(Number(past) - 1).string(), "1", "an old value");
  const previous = await client.delete().key("kv/a").getPrevious();
  equal([previous.length, previous[0].value.toString()], [1, "2"], "what was deleted");
  const inside = client.namespace("kv/");
  equal(await inside.get("c").string(), "3", "a namespace");
  equal((await inside.delete().all()).deleted, "2", "deleted");
}

async function txn(client) {
  await client.put("txn/a").value("1");
  const done = await client
    .if("txn/a", "Value", "==", "1")
    .and("txn/none", "Create", "==", 0)
    .then(client.put("txn/a").value("2"), client.get("txn/a"))
    .else(client.delete().key("txn/a"))
    .commit();
  equal([done.succeeded, done.responses.length], [true, 2], "txn");
  equal(done.responses[1].response_range.kvs[0].value.toString(), "2", "a read sees the write before it");
  const not = await client.if("txn/a", "Version", ">", 9).then(client.put("txn/a").value("3")).commit();
  equal([not.succeeded, await client.get("txn/a").string()], [false, "2"], "not done");
  await refused(
    client.if("txn/a", "Version", ">", 0).then(client.put("txn/b").value("1"), client.put("txn/b").value("2")).commit(),
    "duplicate key given in txn request",
    "a key twice",
  );
  // Optimistic transactions: four at once, none is lost.
  await client.put("counter").value(0);
  const add = () =>
    client.stm({ retries: 100 }).transact(async (tx) => tx.put("counter").value((await tx.get("counter").number()) + 1));
  await Promise.all([add(), add(), add(), add()]);
  equal(await client.get("counter").number(), 4, "counted");
}

async function watch(client) {
  const first = (await client.put("watch/a").value("1")).header.revision;
  const watcher = await client.watch().prefix("watch/").withPreviousKV().create();
  const seen = [];
  const enough = new Promise((resolve) =>
    watcher.on("data", (response) => {
      seen.push(...response.events);
      if (seen.length >= 4) resolve();
    }),
  );
  await client.put("watch/a").value("2");
  await client.put("watch/b").value("3");
  await client.delete().prefix("watch/");
  await enough;
  equal(seen.map((event) => event.type), ["Put", "Put", "Delete", "Delete"], "events");
  equal(seen[0].prev_kv.value.toString(), "1", "the value before");
  equal(seen[2].kv.mod_revision, seen[3].kv.mod_revision, "one revision");
  await watcher.cancel();
  const history = await client.watch().key("watch/a").startRevision(first).create();
  const [put] = await once(history, "put");
  equal([put.value.toString(), put.mod_revision], ["1", first], "history");
  await history.cancel();
  await client.kv.compact({ revision: seen[3].kv.mod_revision, physical: true });
  const [canceled] = await once(client.watch().key("watch/a").startRevision(first).watcher(), "error").catch((error) => [error]);
  check(canceled.message.startsWith("Watcher canceled"), `a watch from the compacted past: ${canceled.message}`);
  await refused(client.get("watch/a").revision(first).string(), "required revision has been compacted", "a compacted read");
}

async function lease(client) {
  const granted = client.lease(60);
  await granted.put("lease/a").value("x");
  const id = await granted.grant();
  const left = await client.leaseClient.leaseTimeToLive({ ID: id, keys: true });
  equal([left.grantedTTL, left.keys.map(String)], ["60", ["lease/a"]], "time to live");
  check(Number(left.TTL) > 0 && Number(left.TTL) <= 60, `left: ${left.TTL}`);
  await granted.keepaliveOnce();
  await granted.revoke();
  equal(await client.get("lease/a").string(), null, "gone with its lease");
  await refused(client.put("lease/a").value("x").lease(4711).exec(), "requested lease not found", "a lease that is not there");

  // Of two leases of four seconds, the one that the client keeps alive is there when the other is gone.
  const kept = client.lease(4);
  await kept.put("expiry/kept").value("x");
  const lost = await client.leaseClient.leaseGrant({ TTL: 4, ID: 0 });
  await client.put("expiry/lost").value("x").lease(lost.ID);
  const watcher = await client.watch().prefix("expiry/").create();
  const [gone] = await once(watcher, "delete");
  equal(gone.key.toString(), "expiry/lost", "expired");
  equal(await client.get("expiry/kept").string(), "x", "kept");
  await watcher.cancel();
  await kept.revoke();
}

async function coordination(client) {
  let inside = 0;
  const work = async () => {
    for (let round = 0; round < 5; round += 1) {
      for (;;) {
        const lock = client.lock("lock").ttl(30);
        try {
          await lock.acquire();
        } catch (error) {
          if (!(error instanceof EtcdLockFailedError)) throw error;
          await pause(2);
          continue;
        }
        inside += 1;
        equal(inside, 1, "one holder");
        await client.put("held").value(round);
        inside -= 1;
        await lock.release();
        break;
      }
    }
  };
  await Promise.all([work(), work(), work()]);

  const [one, two] = [client.election("office", 30), client.election("office", 30)];
  const first = one.campaign("ann");
  await first.wait();
  const second = two.campaign("bob");
  // The event is not repeated for who comes late.
  const elected = second.wait();
  equal(await two.leader(), "ann", "ann leads");
  await first.resign();
  await elected;
  equal(await one.leader(), "bob", "bob leads");
  await second.resign();
}

async function maintenance(client, endpoints) {
  const { members } = await client.cluster.memberList({});
  equal(members.length, endpoints.length, "members");
  const status = await client.maintenance.status();
  check(Number(status.dbSize) > 0 && status.leader !== "0", "status");
  equal((await client.maintenance.alarm({ action: "Get" })).alarms, [], "alarms");
}

// Loses no event and sees none twice while a server goes away and comes back.
async function watchOverRestart(client, input) {
  const revisions = [];
  const values = new Set();
  const watcher = await client.watch().prefix("over/").create();
  let ended;
  const end = new Promise((resolve) => {
    ended = resolve;
  });
  watcher.on("put", (record) => {
    revisions.push(Number(record.mod_revision));
    values.add(Number(record.value.toString()));
    if (record.key.toString() === "over/end") ended();
  });
  let stop = false;
  let last = 0;
  const writing = (async () => {
    while (!stop) {
      try {
        await client.put(`over/${last % 10}`).value(last + 1);
        last += 1;
      } catch {
        // The server is away: once more.
      }
      await pause(5);
    }
  })();
  const more = async () => {
    for (const enough = last + 20; last < enough; ) await pause(10);
  };
  await more();
  console.log("RESTART");
  await input.next();
  await more();
  stop = true;
  await writing;
  for (;;) {
    try {
      await client.put("over/end").value(0);
      break;
    } catch {
      await pause(50);
    }
  }
  await end;
  check(revisions.every((revision, at) => at === 0 || revision > revisions[at - 1]), "each revision once, in order");
  for (let value = 1; value <= last; value += 1) check(values.has(value), `write ${value} was not seen`);
  await watcher.cancel();
}

async function main() {
  if (process.argv.length !== 3) throw new Error("usage: node worker.js ENDPOINT[,ENDPOINT...]");
  const endpoints = process.argv[2].split(",");
  const client = new Etcd3({ hosts: endpoints, dialTimeout: 5000 });
  const input = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  for (const part of [kv, txn, watch, lease, coordination, maintenance, watchOverRestart]) {
    const before = checks;
    const late = setTimeout(() => fail(new Error(`${part.name} is not done after ${PATIENCE_MS} ms`)), PATIENCE_MS);
    await part(client, part === maintenance ? endpoints : input);
    clearTimeout(late);
    console.log(`${part.name}: ${checks - before} checks`);
  }
  client.close();
  console.log(`node: ${checks} checks passed`);
  process.exit(0);
}

function fail(error) {
  console.log("FAILED", error);
  process.exit(1);
}

main().catch(fail);
