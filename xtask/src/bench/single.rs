//! The suite for one node.

use super::rows::{Event, Goal, Line, Row, Suite, Target, row, target};
use super::work::Kind;

/// One node of each.
pub(crate) const SUITE: Suite = Suite {
    rows: ROWS,
    events: &[Event { name: LARGE, title: "large store", lines: LINES }],
    targets: TARGETS,
    out: "docs/benchmarks.md",
    title: "Benchmarks",
};

/// The row in which everything is done that needs a large store.
pub(crate) const LARGE: &str = "large";

const ROWS: &[Row] = &[
    row("put-64", "put, 64 clients", Kind::Put, 64, 0, 1_000_000),
    row("put-256", "put, 256 clients", Kind::Put, 256, 0, 1_000_000),
    row("get-64", "linearizable get, 64 clients", Kind::Get, 64, 100_000, 100_000),
    row("get-256", "linearizable get, 256 clients", Kind::Get, 256, 100_000, 100_000),
    row("range-64", "range of 100 keys, 64 clients", Kind::Range, 64, 100_000, 100_000),
    row("txn-64", "txn (compare + put), 64 clients", Kind::Txn, 64, 100_000, 100_000),
    row("put-1", "put, one client", Kind::Put, 1, 0, 1_000_000),
];

const LINES: &[Line] = &[
    Line("fill_rate", "fill, 256 clients", " keys/s"),
    Line("rss_fill_mib", "RSS after filling", " MiB"),
    Line("count_ms", "count_only over all keys", " ms"),
    Line("restart_s", "restart to first read", " s"),
    Line("list_s", "list all keys in pages of 500", " s"),
    Line("page_p50", "one page, p50", " µs"),
    Line("page_p99", "one page, p99", " µs"),
    Line("rss_mib", "RSS after the restart and that full read", " MiB"),
    Line("put_p99", "put p99, 64 clients", " µs"),
    Line("put_p99_list", "put p99, 64 clients, while a list runs", " µs"),
    Line("put_p99_ratio", "the latter over the former", ""),
    Line("listed_keys", "keys that list read meanwhile (with warm-up)", ""),
];

const TARGETS: &[Target] = &[
    target("put-64", "rate", "put, 64 clients", "/s", Goal::TimesEtcd(3.0)),
    target("put-64", "cpu", "— server CPU per op", " µs", Goal::ShareOfEtcd(0.25)),
    target("put-64", "fsyncs", "— WAL fsyncs per put", "", Goal::AtMost(0.5)),
    target("put-256", "rate", "put, 256 clients", "/s", Goal::TimesEtcd(3.5)),
    target("put-256", "cpu", "— server CPU per op", " µs", Goal::ShareOfEtcd(0.25)),
    target("put-256", "fsyncs", "— WAL fsyncs per put", "", Goal::AtMost(0.5)),
    target("get-64", "rate", "linearizable get, 64 clients", "/s", Goal::TimesEtcd(3.0)),
    target("get-64", "cpu", "— server CPU per op", " µs", Goal::ShareOfEtcd(0.25)),
    target("get-256", "rate", "linearizable get, 256 clients", "/s", Goal::TimesEtcd(3.0)),
    target("get-256", "cpu", "— server CPU per op", " µs", Goal::ShareOfEtcd(0.25)),
    target("range-64", "rate", "range of 100 keys, 64 clients", "/s", Goal::TimesEtcd(5.0)),
    target("range-64", "cpu", "— server CPU per op", " µs", Goal::ShareOfEtcd(1.0 / 6.0)),
    target("txn-64", "rate", "txn (compare + put), 64 clients", "/s", Goal::TimesEtcd(3.5)),
    target("txn-64", "cpu", "— server CPU per op", " µs", Goal::ShareOfEtcd(0.2)),
    target("put-1", "rate", "put, one client", "/s", Goal::TimesEtcd(1.3)),
    target(LARGE, "count_ms", "count_only over all keys", " ms", Goal::EtcdTimes(1000.0)),
    target(LARGE, "list_s", "list all keys in pages of 500", " s", Goal::EtcdTimes(20.0)),
    target(LARGE, "rss_mib", "RSS after a restart and a full read", " MiB", Goal::ShareOfEtcd(0.5)),
    target(LARGE, "restart_s", "restart to first read", " s", Goal::ShareOfEtcd(0.5)),
    target(LARGE, "put_p99_ratio", "put p99 during a list ÷ without", "", Goal::AtMost(1.5)),
];
