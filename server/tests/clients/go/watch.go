package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// events receives from a watch until there are so many.
func (w *worker) events(from clientv3.WatchChan, count int) []*clientv3.Event {
	var events []*clientv3.Event
	for len(events) < count {
		response, open := <-from
		w.check(open && response.Err() == nil, "watch ended after %d of %d: %v", len(events), count, response.Err())
		events = append(events, response.Events...)
	}
	return events
}

func watch(w *worker) {
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	created := w.Watch(ctx, "w/", clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
	w.check((<-created).Created, "created")
	quiet := w.Watch(ctx, "w/", clientv3.WithPrefix(), clientv3.WithFilterDelete(), clientv3.WithCreatedNotify())
	w.check((<-quiet).Created, "created")
	start := must(w.Put(w.ctx, "w/a", "1")).Header.Revision
	must(w.Put(w.ctx, "w/a", "2"))
	must(w.Delete(w.ctx, "w/a"))
	both := must(w.Txn(w.ctx).Then(clientv3.OpPut("w/b", "3"), clientv3.OpPut("w/c", "4")).Commit()).Header.Revision
	events := w.events(created, 5)
	w.check(events[0].IsCreate() && events[1].IsModify() && string(events[1].PrevKv.Value) == "1", "puts: %v", events)
	w.check(events[2].Type == clientv3.EventTypeDelete && string(events[2].PrevKv.Value) == "2", "delete: %v", events[2])
	w.check(events[3].Kv.ModRevision == both && events[4].Kv.ModRevision == both, "one revision: %v", events)
	puts := w.events(quiet, 4)
	w.check(string(puts[2].Kv.Key) == "w/b", "filtered: %v", puts)

	past := w.events(w.Watch(ctx, "w/a", clientv3.WithRev(start), clientv3.WithRange("w/c")), 4)
	for i, event := range past {
		w.check(event.Kv.ModRevision == start+int64(i), "history: %v", past)
	}
	future := w.Watch(ctx, "w/f", clientv3.WithRev(both+3), clientv3.WithCreatedNotify())
	w.check((<-future).Created, "created")
	for i := range 4 {
		must(w.Put(w.ctx, "w/f", strconv.Itoa(i)))
	}
	w.check(string(w.events(future, 1)[0].Kv.Value) == "2", "nothing before the revision asked for")
	progress(w)
}

// progress asks how far a watch is, on a stream of its own: the answer covers all watchers of a stream.
func progress(w *worker) {
	ctx, cancel := context.WithCancel(context.WithValue(w.ctx, struct{ name string }{"progress"}, true))
	defer cancel()
	own := clientv3.NewWatcher(w.Client)
	defer own.Close()
	idle := own.Watch(ctx, "idle", clientv3.WithCreatedNotify())
	w.check((<-idle).Created, "created")
	now := must(w.Put(w.ctx, "not idle", "x")).Header.Revision
	// A member that is behind tells an older revision: ask again.
	for {
		if err := own.RequestProgress(ctx); err != nil {
			panic(failure{err})
		}
		told := <-idle
		w.check(told.IsProgressNotify(), "progress: %v", told)
		if told.Header.Revision >= now {
			return
		}
	}
}

func compactedWatch(w *worker) {
	begin := must(w.Put(w.ctx, "cw", "1")).Header.Revision
	now := must(w.Put(w.ctx, "cw", "2")).Header.Revision
	must(w.Compact(w.ctx, now, clientv3.WithCompactPhysical()))
	response := <-w.Watch(w.ctx, "cw", clientv3.WithRev(begin))
	w.check(response.Canceled && response.CompactRevision == now, "canceled at %d instead of %d", response.CompactRevision, now)
	w.refused(response.Err(), rpctypes.ErrCompacted, "a watch from the compacted past")
	w.check(string(w.events(w.Watch(w.ctx, "cw", clientv3.WithRev(now)), 1)[0].Kv.Value) == "2", "from the compaction on")
}

// bigEvents are more than one message holds, in one revision.
func bigEvents(w *worker) {
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	value := strings.Repeat("v", 300<<10)
	var first int64
	for i := range 12 {
		revision := must(w.Put(w.ctx, fmt.Sprintf("big/%02d", i), value)).Header.Revision
		if i == 0 {
			first = revision
		}
	}
	events := w.events(w.Watch(ctx, "big/", clientv3.WithPrefix(), clientv3.WithFragment(), clientv3.WithRev(first)), 12)
	for i, event := range events {
		w.check(string(event.Kv.Key) == fmt.Sprintf("big/%02d", i) && string(event.Kv.Value) == value, "event %d: %s", i, event.Kv.Key)
	}
	deleted := must(w.Delete(w.ctx, "big/", clientv3.WithPrefix(), clientv3.WithPrevKV()))
	w.check(deleted.Deleted == 12 && len(deleted.PrevKvs) == 12, "deleted %d", deleted.Deleted)
}

// watchOverRestart loses no event and sees none twice while a server goes away and comes back.
func watchOverRestart(w *worker) {
	// Requests that are cut off are repeated, so a value may be written twice; each revision may be seen once.
	watched := w.Watch(clientv3.WithRequireLeader(w.ctx), "over/", clientv3.WithPrefix())
	plain := w.Watch(w.ctx, "over/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	w.check((<-plain).Created, "created")
	var written atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			ctx, cancel := context.WithTimeout(w.ctx, 2*time.Second)
			last := int(written.Load())
			if _, err := w.Put(ctx, fmt.Sprintf("over/%d", last%10), strconv.Itoa(last+1)); err == nil {
				written.Add(1)
			}
			cancel()
		}
	}()
	more := func() {
		for enough := written.Load() + 20; written.Load() < enough; {
			must(0, w.ctx.Err())
			time.Sleep(10 * time.Millisecond)
		}
	}
	more()
	w.restart()
	more()
	close(stop)
	<-stopped
	last := int(written.Load())
	final := must(w.Put(w.ctx, "over/end", "end")).Header.Revision
	history := w.history(plain, final)
	w.check(history[len(history)-1].Kv.ModRevision == final, "the end is seen")
	value, revision := 0, int64(0)
	for _, event := range history[:len(history)-1] {
		number := must(strconv.Atoi(string(event.Kv.Value)))
		w.check(event.Kv.ModRevision > revision, "revision %d after %d", event.Kv.ModRevision, revision)
		w.check(number == value || number == value+1, "%d after %d", number, value)
		value, revision = number, event.Kv.ModRevision
	}
	w.check(value >= last, "%d of %d writes seen", value, last)
	w.leaderless(watched, final)
}

// history of a watch up to a revision.
func (w *worker) history(from clientv3.WatchChan, upTo int64) []*clientv3.Event {
	var history []*clientv3.Event
	for len(history) == 0 || history[len(history)-1].Kv.ModRevision < upTo {
		history = append(history, w.events(from, 1)...)
	}
	return history
}

// leaderless checks a watch that asked to be ended when there is no leader: it may have been, and else is whole.
func (w *worker) leaderless(from clientv3.WatchChan, upTo int64) {
	for response := range from {
		if err := response.Err(); err != nil {
			w.refused(err, rpctypes.ErrNoLeader, "a watch that requires a leader")
			return
		}
		if count := len(response.Events); count > 0 && response.Events[count-1].Kv.ModRevision == upTo {
			w.checks++
			return
		}
	}
	w.check(false, "the watch that requires a leader ended without a reason")
}
