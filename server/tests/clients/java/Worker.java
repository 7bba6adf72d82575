import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.KeyValue;
import io.etcd.jetcd.Watch;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.LeaseOption;
import io.etcd.jetcd.options.PutOption;
import io.etcd.jetcd.options.WatchOption;
import io.etcd.jetcd.support.CloseableClient;
import io.etcd.jetcd.support.Observers;
import io.etcd.jetcd.watch.WatchEvent;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * Does with jetcd, over gRPC, what programs do with etcd, and checks every answer.
 *
 * <p>It is given the endpoints, comma separated. It prints one line per part, and "java: N checks passed" if all is as it should be;
 * anything else ends it with status 1. When it prints "RESTART", whoever drives it takes a server down and up again, in which time the
 * work goes on, and then writes a line to its standard input.
 */
public final class Worker {
  /** How long an answer may take, in seconds. Nothing waits for it when all is well. */
  private static final long PATIENCE = 60;

  private static final AtomicInteger CHECKS = new AtomicInteger();

  private final Client client;

  private Worker(Client client) {
    this.client = client;
  }

  private interface Part {
    void run() throws Exception;
  }

  public static void main(String[] args) throws Exception {
    int status = 0;
    Client client = Client.builder().endpoints(args[0].split(",")).connectTimeout(Duration.ofSeconds(5)).build();
    try {
      Worker worker = new Worker(client);
      worker.part("kv", worker::kv);
      worker.part("txn", worker::txn);
      worker.part("watch", worker::watch);
      worker.part("leases", worker::leases);
      worker.part("locks", worker::locks);
      worker.part("elections", worker::elections);
      worker.part("maintenance", () -> worker.maintenance(args[0].split(",").length));
      worker.part("watch over a restart", worker::watchOverRestart);
      System.out.printf("java: %d checks passed%n", CHECKS.get());
    } catch (Exception | AssertionError failure) {
      System.out.println("FAILED " + failure);
      failure.printStackTrace(System.out);
      status = 1;
    }
    System.out.flush();
    // Threads of the client need not be waited for.
    Runtime.getRuntime().halt(status);
  }

  private void part(String name, Part part) throws Exception {
    int before = CHECKS.get();
    part.run();
    System.out.printf("%s: %d checks%n", name, CHECKS.get() - before);
  }

  private static void check(boolean holds, String what) {
    if (!holds) {
      throw new AssertionError(what);
    }
    CHECKS.incrementAndGet();
  }

  private static void equal(Object found, Object wanted, String what) {
    check(found.equals(wanted), what + ": " + found + " instead of " + wanted);
  }

  private static <T> T get(CompletableFuture<T> future) throws Exception {
    return future.get(PATIENCE, TimeUnit.SECONDS);
  }

  private static void refused(CompletableFuture<?> future, String wanted, String what) throws Exception {
    try {
      get(future);
    } catch (ExecutionException refusal) {
      check(String.valueOf(refusal.getMessage()).contains(wanted), what + ": " + refusal.getMessage());
      return;
    }
    throw new AssertionError(what + ": it succeeded");
  }

  private static ByteSequence bytes(String text) {
    return ByteSequence.from(text, StandardCharsets.UTF_8);
  }

  private static List<String> keys(List<KeyValue> records) {
    List<String> keys = new ArrayList<>();
    records.forEach(record -> keys.add(record.getKey().toString()));
    return keys;
  }

  private long put(String key, String value) throws Exception {
    return get(client.getKVClient().put(bytes(key), bytes(value))).getHeader().getRevision();
  }

  private void kv() throws Exception {
    var kv = client.getKVClient();
    long first = put("kv/b", "1");
    put("kv/a", "2");
    put("kv/c", "3");
    var previous = get(kv.put(bytes("kv/b"), bytes("4"), PutOption.builder().withPrevKV().build()));
    equal(previous.getPrevKv().getValue().toString(), "1", "the value before");
    var sorted = GetOption.builder().isPrefix(true).withSortField(GetOption.SortTarget.MOD).withSortOrder(GetOption.SortOrder.DESCEND);
    equal(keys(get(kv.get(bytes("kv/"), sorted.build())).getKvs()), List.of("kv/b", "kv/c", "kv/a"), "newest first");
    var old = get(kv.get(bytes("kv/b"), GetOption.builder().withRevision(first).build()));
    equal(old.getKvs().get(0).getValue().toString(), "1", "an old value");
    var page = get(kv.get(bytes("kv/"), GetOption.builder().isPrefix(true).withLimit(2).build()));
    check(page.isMore() && page.getCount() == 3 && page.getKvs().size() == 2, "a page");
    var gone = get(kv.delete(bytes("kv/"), DeleteOption.builder().isPrefix(true).withPrevKV(true).build()));
    equal(gone.getDeleted() + " " + keys(gone.getPrevKvs()), "3 [kv/a, kv/b, kv/c]", "deleted");
    refused(kv.put(bytes(""), bytes("x")), "key is not provided", "an empty key");
    get(kv.compact(first));
    refused(kv.get(bytes("kv/b"), GetOption.builder().withRevision(first - 1).build()), "has been compacted", "the compacted past");
  }

  private void txn() throws Exception {
    var kv = client.getKVClient();
    put("txn/a", "1");
    var done =
        get(
            kv.txn()
                .If(new Cmp(bytes("txn/a"), Cmp.Op.EQUAL, CmpTarget.value(bytes("1"))))
                .Then(
                    Op.put(bytes("txn/a"), bytes("2"), PutOption.DEFAULT),
                    Op.get(bytes("txn/a"), GetOption.DEFAULT))
                .Else(Op.delete(bytes("txn/a"), DeleteOption.DEFAULT))
                .commit());
    check(done.isSucceeded(), "the comparison holds");
    equal(done.getGetResponses().get(0).getKvs().get(0).getValue().toString(), "2", "a read sees the write before it");
    var other =
        get(
            kv.txn()
                .If(new Cmp(bytes("txn/a"), Cmp.Op.GREATER, CmpTarget.version(9)))
                .Then(Op.put(bytes("txn/a"), bytes("3"), PutOption.DEFAULT))
                .commit());
    check(!other.isSucceeded() && other.getHeader().getRevision() == done.getHeader().getRevision(), "not done");
  }

  /** The events of a watch, or what ended it. */
  private BlockingQueue<Object> follow(String key, WatchOption option, List<Watch.Watcher> opened) {
    BlockingQueue<Object> events = new LinkedBlockingQueue<>();
    opened.add(
        client
            .getWatchClient()
            .watch(bytes(key), option, Watch.listener(response -> events.addAll(response.getEvents()), events::add)));
    return events;
  }

  private static WatchEvent next(BlockingQueue<Object> events) throws Exception {
    Object event = events.poll(PATIENCE, TimeUnit.SECONDS);
    if (event instanceof WatchEvent) {
      return (WatchEvent) event;
    }
    throw new AssertionError("instead of an event: " + event);
  }

  private void watch() throws Exception {
    List<Watch.Watcher> opened = new ArrayList<>();
    long first = put("watch/a", "1");
    var events = follow("watch/", WatchOption.builder().isPrefix(true).withRevision(first).withPrevKV(true).build(), opened);
    put("watch/a", "2");
    get(client.getKVClient().delete(bytes("watch/a")));
    equal(next(events).getKeyValue().getVersion(), 1L, "history");
    equal(next(events).getPrevKV().getValue().toString(), "1", "the value before");
    equal(next(events).getEventType(), WatchEvent.EventType.DELETE, "a delete");
    get(client.getKVClient().compact(first + 1));
    Object refusal = follow("watch/a", WatchOption.builder().withRevision(first).build(), opened).poll(PATIENCE, TimeUnit.SECONDS);
    check(String.valueOf(refusal).contains("has been compacted"), "a watch from the compacted past: " + refusal);
    opened.forEach(Watch.Watcher::close);
  }

  private void leases() throws Exception {
    var leases = client.getLeaseClient();
    long id = get(leases.grant(60)).getID();
    var attached = PutOption.builder().withLeaseId(id).build();
    get(client.getKVClient().put(bytes("lease/a"), bytes("x"), attached));
    var left = get(leases.timeToLive(id, LeaseOption.builder().withAttachedKeys().build()));
    check(left.getGrantedTTL() == 60 && left.getTTL() <= 60 && left.getKeys().size() == 1, "time to live");
    equal(get(leases.keepAliveOnce(id)).getTTL(), 60L, "kept alive");
    get(leases.revoke(id));
    equal(get(client.getKVClient().get(bytes("lease/a"))).getCount(), 0L, "gone with its lease");
    refused(leases.revoke(id), "requested lease not found", "revoked twice");
    refused(client.getKVClient().put(bytes("lease/a"), bytes("x"), attached), "requested lease not found", "a lease that is gone");

    long kept = get(leases.grant(4)).getID();
    long lost = get(leases.grant(4)).getID();
    BlockingQueue<Long> answers = new LinkedBlockingQueue<>();
    try (CloseableClient keeper = leases.keepAlive(kept, Observers.observer(answer -> answers.add(answer.getTTL())))) {
      List<Watch.Watcher> opened = new ArrayList<>();
      long start = get(client.getKVClient().put(bytes("expiry/kept"), bytes("x"), PutOption.builder().withLeaseId(kept).build())).getHeader().getRevision();
      get(client.getKVClient().put(bytes("expiry/lost"), bytes("x"), PutOption.builder().withLeaseId(lost).build()));
      var events = follow("expiry/", WatchOption.builder().isPrefix(true).withNoPut(true).withRevision(start).build(), opened);
      equal(next(events).getKeyValue().getKey().toString(), "expiry/lost", "expired");
      equal(get(client.getKVClient().get(bytes("expiry/kept"))).getCount(), 1L, "kept");
      check(answers.poll(PATIENCE, TimeUnit.SECONDS) > 0, "the keeper is answered");
      opened.forEach(Watch.Watcher::close);
    }
    get(leases.revoke(kept));
  }

  /** The server's own lock service: a counter of reads and writes that are not one operation. */
  private void locks() throws Exception {
    put("counter", "0");
    List<CompletableFuture<Void>> workers = new ArrayList<>();
    for (int number = 0; number < 3; number++) {
      CompletableFuture<Void> worker = new CompletableFuture<>();
      workers.add(worker);
      new Thread(
              () -> {
                try {
                  long lease = get(client.getLeaseClient().grant(60)).getID();
                  for (int round = 0; round < 5; round++) {
                    ByteSequence key = get(client.getLockClient().lock(bytes("lock"), lease)).getKey();
                    var counter = get(client.getKVClient().get(bytes("counter"))).getKvs().get(0).getValue();
                    put("counter", String.valueOf(Integer.parseInt(counter.toString()) + 1));
                    get(client.getLockClient().unlock(key));
                  }
                  get(client.getLeaseClient().revoke(lease));
                  worker.complete(null);
                } catch (Exception failure) {
                  worker.completeExceptionally(failure);
                }
              })
          .start();
    }
    for (CompletableFuture<Void> worker : workers) {
      get(worker);
    }
    equal(get(client.getKVClient().get(bytes("counter"))).getKvs().get(0).getValue().toString(), "15", "counted");
  }

  /** The server's own election service. */
  private void elections() throws Exception {
    var elections = client.getElectionClient();
    long one = get(client.getLeaseClient().grant(60)).getID();
    long two = get(client.getLeaseClient().grant(60)).getID();
    var ann = get(elections.campaign(bytes("office"), one, bytes("ann"))).getLeader();
    var second = elections.campaign(bytes("office"), two, bytes("bob"));
    equal(get(elections.leader(bytes("office"))).getKv().getValue().toString(), "ann", "ann leads");
    get(elections.proclaim(ann, bytes("anna")));
    equal(get(elections.leader(bytes("office"))).getKv().getValue().toString(), "anna", "anna leads");
    get(elections.resign(ann));
    equal(get(second).getLeader().getName().toString(), "office", "bob is elected");
    equal(get(elections.leader(bytes("office"))).getKv().getValue().toString(), "bob", "bob leads");
    get(client.getLeaseClient().revoke(one));
    get(client.getLeaseClient().revoke(two));
  }

  private void maintenance(int size) throws Exception {
    equal(get(client.getClusterClient().listMember()).getMembers().size(), size, "members");
    equal(get(client.getMaintenanceClient().listAlarms()).getAlarms().size(), 0, "alarms");
  }

  private static void awaitMore(AtomicInteger written) throws Exception {
    long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(PATIENCE);
    for (int enough = written.get() + 20; written.get() < enough; Thread.sleep(10)) {
      if (System.nanoTime() > deadline) {
        throw new AssertionError("only " + written.get() + " writes");
      }
    }
  }

  /** Loses no event and sees none twice while a server goes away and comes back. */
  private void watchOverRestart() throws Exception {
    List<Watch.Watcher> opened = new ArrayList<>();
    long start = put("over/begin", "0");
    var events = follow("over/", WatchOption.builder().isPrefix(true).withRevision(start).build(), opened);
    AtomicBoolean stop = new AtomicBoolean();
    AtomicInteger last = new AtomicInteger();
    Thread writer =
        new Thread(
            () -> {
              while (!stop.get()) {
                try {
                  var key = bytes("over/" + last.get() % 10);
                  client.getKVClient().put(key, bytes(String.valueOf(last.get() + 1))).get(2, TimeUnit.SECONDS);
                  last.incrementAndGet();
                  Thread.sleep(5);
                } catch (Exception away) {
                  // The server is away: once more.
                }
              }
            });
    writer.start();
    awaitMore(last);
    System.out.println("RESTART");
    System.out.flush();
    new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8)).readLine();
    awaitMore(last);
    stop.set(true);
    writer.join();
    long end = put("over/end", "end");
    long revision = 0;
    int value = 0;
    while (revision < end) {
      Object event = events.poll(PATIENCE, TimeUnit.SECONDS);
      if (event instanceof Throwable && !String.valueOf(event).contains("compacted")) {
        // The connection is lost, and the watch with it: it goes on behind what was seen.
        opened.forEach(Watch.Watcher::close);
        events = follow("over/", WatchOption.builder().isPrefix(true).withRevision(Math.max(revision + 1, start)).build(), opened);
        continue;
      }
      check(event instanceof WatchEvent, "an event: " + event);
      var record = ((WatchEvent) event).getKeyValue();
      if (record.getModRevision() == end) {
        break;
      }
      int number = Integer.parseInt(record.getValue().toString());
      check(record.getModRevision() > revision, "revision " + record.getModRevision() + " after " + revision);
      // A write whose answer was lost is repeated, so a value may be there twice.
      check(number == value || number == value + 1, number + " after " + value);
      revision = record.getModRevision();
      value = number;
    }
    check(value >= last.get(), value + " of " + last.get() + " writes seen");
    opened.forEach(Watch.Watcher::close);
  }
}
