package main

import (
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// keys of a response, in its order.
func keys(response *clientv3.GetResponse) string {
	var found []string
	for _, record := range response.Kvs {
		found = append(found, string(record.Key))
	}
	return fmt.Sprint(found)
}

func kv(w *worker) {
	first := must(w.Put(w.ctx, "kv/b", "1"))
	second := must(w.Put(w.ctx, "kv/b", "2", clientv3.WithPrevKV()))
	w.check(second.Header.Revision == first.Header.Revision+1, "revision %d after %d", second.Header.Revision, first.Header.Revision)
	w.check(string(second.PrevKv.Value) == "1" && second.PrevKv.Version == 1, "previous: %v", second.PrevKv)
	for _, key := range []string{"kv/c", "kv/a", "kv/d", "kv0"} {
		must(w.Put(w.ctx, key, key))
	}
	all := must(w.Get(w.ctx, "kv/", clientv3.WithPrefix()))
	w.check(keys(all) == "[kv/a kv/b kv/c kv/d]" && all.Count == 4, "prefix: %s", keys(all))
	down := must(w.Get(w.ctx, "kv/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend), clientv3.WithKeysOnly()))
	w.check(keys(down) == "[kv/d kv/a kv/c kv/b]" && len(down.Kvs[0].Value) == 0, "newest first: %s", keys(down))
	old := must(w.Get(w.ctx, "kv/b", clientv3.WithRev(first.Header.Revision)))
	w.check(string(old.Kvs[0].Value) == "1", "old value: %v", old.Kvs)
	local := must(w.Get(w.ctx, "kv/", clientv3.WithPrefix(), clientv3.WithCountOnly(), clientv3.WithSerializable()))
	w.check(local.Count <= 4 && len(local.Kvs) == 0, "count: %v", local)
	newer := must(w.Get(w.ctx, "kv/", clientv3.WithPrefix(), clientv3.WithMinModRev(second.Header.Revision), clientv3.WithMaxCreateRev(first.Header.Revision)))
	w.check(keys(newer) == "[kv/b]", "filtered by revision: %s", keys(newer))
	paged(w)
	gone := must(w.Delete(w.ctx, "kv/c", clientv3.WithRange("kv/z"), clientv3.WithPrevKV()))
	w.check(gone.Deleted == 2 && string(gone.PrevKvs[1].Key) == "kv/d", "deleted: %v", gone)
	none := must(w.Get(w.ctx, "kv/c"))
	w.check(none.Count == 0 && none.Header.Revision == gone.Header.Revision, "after the delete: %v", none)
}

// paged reads a hundred keys seven at a time, all at one revision, while they are being changed.
func paged(w *worker) {
	for i := range 100 {
		must(w.Put(w.ctx, fmt.Sprintf("page/%03d", i), "old"))
	}
	from, end := "page/", clientv3.GetPrefixRangeEnd("page/")
	var revision int64
	var seen int
	for more := true; more; {
		page := must(w.Get(w.ctx, from, clientv3.WithRange(end), clientv3.WithLimit(7), clientv3.WithRev(revision)))
		if revision == 0 {
			revision = page.Header.Revision
		}
		for _, record := range page.Kvs {
			w.check(string(record.Key) == fmt.Sprintf("page/%03d", seen) && string(record.Value) == "old", "page: %v", record)
			seen++
		}
		must(w.Put(w.ctx, fmt.Sprintf("page/%03d", 99-seen%100), "new"))
		from, more = string(page.Kvs[len(page.Kvs)-1].Key)+"\x00", page.More
	}
	w.check(seen == 100, "%d keys on all pages", seen)
}

func txn(w *worker) {
	must(w.Put(w.ctx, "txn/a", "1"))
	put := clientv3.OpPut("txn/a", "2", clientv3.WithPrevKV())
	// All comparisons, nested ones too, are made before anything is carried out.
	inner := clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.Value("txn/a"), "=", "1")}, []clientv3.Op{clientv3.OpPut("txn/b", "inner")}, nil)
	done := must(w.Txn(w.ctx).
		If(clientv3.Compare(clientv3.Version("txn/a"), ">", 0), clientv3.Compare(clientv3.Value("txn/"), "<", "9").WithPrefix()).
		Then(put, inner, clientv3.OpGet("txn/", clientv3.WithPrefix())).
		Else(clientv3.OpDelete("txn/", clientv3.WithPrefix())).
		Commit())
	w.check(done.Succeeded && len(done.Responses) == 3, "txn: %v", done)
	w.check(string(done.Responses[0].GetResponsePut().PrevKv.Value) == "1", "put in a txn: %v", done.Responses[0])
	nested := done.Responses[1].GetResponseTxn()
	w.check(nested.Succeeded, "nested txn: %v", nested)
	listed := done.Responses[2].GetResponseRange()
	w.check(listed.Count == 2 && listed.Kvs[0].ModRevision == listed.Kvs[1].ModRevision, "one revision: %v", listed)
	other := must(w.Txn(w.ctx).If(clientv3.Compare(clientv3.CreateRevision("txn/none"), "!=", 0)).Then(put).Else(clientv3.OpGet("txn/b")).Commit())
	w.check(!other.Succeeded && string(other.Responses[0].GetResponseRange().Kvs[0].Value) == "inner", "else: %v", other)
	w.check(other.Header.Revision == done.Header.Revision, "reading changes no revision")
	_, err := w.Txn(w.ctx).Then(put, clientv3.OpPut("txn/a", "3")).Commit()
	w.refused(err, rpctypes.ErrDuplicateKey, "a key twice")
}

func refusals(w *worker) {
	now := must(w.Put(w.ctx, "refused", "x")).Header.Revision
	must(w.Put(w.ctx, "refused", "y"))
	must(w.Compact(w.ctx, now+1))
	_, err := w.Get(w.ctx, "refused", clientv3.WithRev(now))
	w.refused(err, rpctypes.ErrCompacted, "a compacted revision")
	_, err = w.Get(w.ctx, "refused", clientv3.WithRev(now+1000))
	w.refused(err, rpctypes.ErrFutureRev, "a future revision")
	_, err = w.Compact(w.ctx, now)
	w.refused(err, rpctypes.ErrCompacted, "compaction of what is compacted")
	_, err = w.Put(w.ctx, "refused", "z", clientv3.WithLease(12345))
	w.refused(err, rpctypes.ErrLeaseNotFound, "a lease that does not exist")
	_, err = w.Revoke(w.ctx, 12345)
	w.refused(err, rpctypes.ErrLeaseNotFound, "revoking what does not exist")
	_, err = w.Put(w.ctx, "", "z")
	w.refused(err, rpctypes.ErrEmptyKey, "an empty key")
	_, err = w.Put(w.ctx, "refused/none", "", clientv3.WithIgnoreValue())
	w.refused(err, rpctypes.ErrKeyNotFound, "keeping the value of nothing")
	_, err = w.Put(w.ctx, "refused", string(make([]byte, 1600*1024)))
	w.refused(err, rpctypes.ErrRequestTooLarge, "a large value")
	_, err = w.MemberRemove(w.ctx, 4711)
	w.refused(err, rpctypes.ErrMemberNotFound, "removing nobody")
}

func maintenance(w *worker) {
	members := must(w.MemberList(w.ctx)).Members
	w.check(len(members) == len(w.Endpoints()), "%d members", len(members))
	leaders, hashes := 0, map[uint32]int{}
	must(w.Put(w.ctx, "maintenance", "x"))
	for _, endpoint := range w.Endpoints() {
		status := must(w.Status(w.ctx, endpoint))
		w.check(status.DbSize > 0 && status.RaftTerm > 0 && status.RaftAppliedIndex <= status.RaftIndex && len(status.Errors) == 0, "%v", status)
		if status.Leader == status.Header.MemberId {
			leaders++
		}
		must(w.Defragment(w.ctx, endpoint))
		// A member that has not heard of the newest revision waits for it in the read.
		at := must(w.Get(w.ctx, "maintenance")).Header.Revision
		hashes[hash(w, endpoint, at)]++
	}
	w.check(leaders == 1, "%d leaders", leaders)
	w.check(len(hashes) == 1, "hashes of members differ: %v", hashes)
	w.check(len(must(w.AlarmList(w.ctx)).Alarms) == 0, "alarms")
}

// hash of a member at a revision, as soon as it has applied that.
func hash(w *worker, endpoint string, revision int64) uint32 {
	for {
		answer, err := w.HashKV(w.ctx, endpoint, revision)
		if err == nil {
			return answer.Hash
		}
		w.refused(err, rpctypes.ErrFutureRev, "hash")
		time.Sleep(10 * time.Millisecond)
	}
}
