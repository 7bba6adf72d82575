package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func lease(w *worker) {
	granted := must(w.Grant(w.ctx, 60))
	w.check(granted.TTL == 60 && granted.ID != 0, "grant: %v", granted)
	for _, key := range []string{"lease/b", "lease/a"} {
		must(w.Put(w.ctx, key, "x", clientv3.WithLease(granted.ID)))
	}
	left := must(w.TimeToLive(w.ctx, granted.ID, clientv3.WithAttachedKeys()))
	w.check(left.TTL <= 60 && left.TTL >= 58-int64(patience.Seconds()) && left.GrantedTTL == 60 && len(left.Keys) == 2, "time to live: %v", left)
	once := must(w.KeepAliveOnce(w.ctx, granted.ID))
	w.check(once.TTL == 60, "kept alive: %v", once)
	found := false
	for _, status := range must(w.Leases(w.ctx)).Leases {
		found = found || status.ID == granted.ID
	}
	w.check(found, "the lease is listed")
	must(w.Put(w.ctx, "lease/b", "y"))
	before := must(w.Get(w.ctx, "lease/a")).Header.Revision
	must(w.Revoke(w.ctx, granted.ID))
	rest := must(w.Get(w.ctx, "lease/", clientv3.WithPrefix()))
	w.check(keys(rest) == "[lease/b]" && rest.Header.Revision == before+1, "what was detached stays: %s", keys(rest))
	w.check(must(w.TimeToLive(w.ctx, granted.ID)).TTL == -1, "gone")
	_, err := w.KeepAliveOnce(w.ctx, granted.ID)
	w.refused(err, rpctypes.ErrLeaseNotFound, "keeping alive what is gone")
	_, err = w.Grant(w.ctx, 9_000_000_001)
	w.refused(err, rpctypes.ErrLeaseTTLTooLarge, "a TTL of centuries")
}

// expiry keeps one lease alive by a stream while another, of the same length, is let go.
func expiry(w *worker) {
	kept, lost := must(w.Grant(w.ctx, 4)), must(w.Grant(w.ctx, 4))
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	answers := must(w.KeepAlive(ctx, kept.ID))
	watched := w.Watch(ctx, "expiry/", clientv3.WithPrefix(), clientv3.WithFilterPut(), clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
	w.check((<-watched).Created, "created")
	must(w.Put(w.ctx, "expiry/kept", "x", clientv3.WithLease(kept.ID)))
	must(w.Put(w.ctx, "expiry/lost", "x", clientv3.WithLease(lost.ID)))
	gone := w.events(watched, 1)[0]
	w.check(string(gone.Kv.Key) == "expiry/lost" && gone.PrevKv.Lease == int64(lost.ID), "expired: %v", gone)
	answer := <-answers
	w.check(answer != nil && answer.ID == kept.ID && answer.TTL == kept.TTL, "kept alive: %v", answer)
	w.check(must(w.Get(w.ctx, "expiry/kept")).Count == 1, "what is kept alive stays")
	must(w.Revoke(w.ctx, kept.ID))
}

// mutex makes a counter of reads and writes that are not one operation, so that it is right only if nobody else is in between.
func mutex(w *worker) {
	const workers, rounds = 4, 6
	must(w.Put(w.ctx, "counter", "0"))
	failures := make(chan error, workers)
	var done sync.WaitGroup
	for range workers {
		done.Go(func() {
			failures <- count(w, rounds)
		})
	}
	done.Wait()
	close(failures)
	for err := range failures {
		w.check(err == nil, "a worker failed: %v", err)
	}
	counter := must(w.Get(w.ctx, "counter"))
	w.check(string(counter.Kvs[0].Value) == strconv.Itoa(workers*rounds), "counted %s", counter.Kvs[0].Value)

	mine, theirs := must(concurrency.NewSession(w.Client)), must(concurrency.NewSession(w.Client))
	defer theirs.Close()
	held, wanted := concurrency.NewMutex(mine, "lock/"), concurrency.NewMutex(theirs, "lock/")
	must(0, held.Lock(w.ctx))
	w.check(wanted.TryLock(w.ctx) == concurrency.ErrLocked, "a lock that is held is not given")
	// A holder that goes away loses the lock with its lease, and knows it.
	must(0, mine.Close())
	must(0, wanted.Lock(w.ctx))
	// A transaction without a linearizable read in it may be answered from a state that is not the newest.
	owned := must(w.Txn(w.ctx).If(wanted.IsOwner()).Then(clientv3.OpGet(wanted.Key())).Commit())
	w.check(owned.Succeeded, "the lock is owned by who holds it")
	owned = must(w.Txn(w.ctx).If(held.IsOwner()).Then(clientv3.OpGet(held.Key())).Commit())
	w.check(!owned.Succeeded, "and by nobody else")
}

// count adds to the counter, each time under the lock.
func count(w *worker, rounds int) error {
	session, err := concurrency.NewSession(w.Client, concurrency.WithTTL(30))
	if err != nil {
		return err
	}
	defer session.Close()
	lock := concurrency.NewMutex(session, "counting")
	for range rounds {
		if err := lock.Lock(w.ctx); err != nil {
			return err
		}
		counter, err := w.Get(w.ctx, "counter")
		if err != nil {
			return err
		}
		number, err := strconv.Atoi(string(counter.Kvs[0].Value))
		if err != nil {
			return err
		}
		if _, err := w.Put(w.ctx, "counter", strconv.Itoa(number+1)); err != nil {
			return err
		}
		if err := lock.Unlock(w.ctx); err != nil {
			return err
		}
	}
	return nil
}

func election(w *worker) {
	one, two := must(concurrency.NewSession(w.Client)), must(concurrency.NewSession(w.Client))
	defer one.Close()
	defer two.Close()
	first, second := concurrency.NewElection(one, "office"), concurrency.NewElection(two, "office")
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	observed := second.Observe(ctx)
	must(0, first.Campaign(w.ctx, "ann"))
	w.check(string((<-observed).Kvs[0].Value) == "ann", "ann leads")
	must(0, first.Proclaim(w.ctx, "anna"))
	w.check(string((<-observed).Kvs[0].Value) == "anna", "anna leads")
	elected := make(chan error, 1)
	go func() { elected <- second.Campaign(w.ctx, "bob") }()
	leader := must(second.Leader(w.ctx))
	w.check(string(leader.Kvs[0].Value) == "anna", "bob waits")
	must(0, first.Resign(w.ctx))
	must(0, <-elected)
	w.check(string((<-observed).Kvs[0].Value) == "bob", "bob leads")
	w.refused(first.Proclaim(w.ctx, "again"), concurrency.ErrElectionNotLeader, "who resigned does not lead")
}

// transfers moves money between accounts in optimistic transactions; none is made or lost.
func transfers(w *worker) {
	const accounts, clients, rounds = 5, 4, 10
	for i := range accounts {
		must(w.Put(w.ctx, fmt.Sprintf("account/%d", i), "100"))
	}
	failures := make(chan error, clients)
	var done sync.WaitGroup
	for range clients {
		done.Go(func() {
			for range rounds {
				from, to := rand.IntN(accounts), rand.IntN(accounts)
				reads := concurrency.WithIsolation(concurrency.RepeatableReads)
				_, err := concurrency.NewSTM(w.Client, transfer(from, to), reads)
				for err == errBehind {
					_, err = concurrency.NewSTM(w.Client, transfer(from, to), reads)
				}
				if err != nil {
					failures <- err
					return
				}
			}
		})
	}
	done.Wait()
	close(failures)
	for err := range failures {
		w.check(false, "a transfer failed: %v", err)
	}
	sum := 0
	for _, record := range must(w.Get(w.ctx, "account/", clientv3.WithPrefix())).Kvs {
		sum += must(strconv.Atoi(string(record.Value)))
	}
	w.check(sum == accounts*100, "the sum is %d", sum)
}

// errBehind says that a member has not heard of an account yet: reads inside of these transactions are not linearizable, what
// they have read is compared when they are committed.
var errBehind = errors.New("a member is behind")

func transfer(from, to int) func(concurrency.STM) error {
	return func(stm concurrency.STM) error {
		source, target := fmt.Sprintf("account/%d", from), fmt.Sprintf("account/%d", to)
		balance, err := strconv.Atoi(stm.Get(source))
		if err != nil {
			return errBehind
		}
		other, err := strconv.Atoi(stm.Get(target))
		if err != nil {
			return errBehind
		}
		if from == to {
			return nil
		}
		stm.Put(source, strconv.Itoa(balance-7))
		stm.Put(target, strconv.Itoa(other+7))
		return nil
	}
}
