//! Leases from grant to expiry, with a change of leaders in between. Time is what this program says it is.
//!
//! `cargo run --release -p tally-lease --example expiry`

use tally_backend::{Applied, Backend, Config, Identity};
use tally_lease::{ExpiryQueue, Leases, Promotion, Renewal};

const HOW: Promotion = Promotion { extend_ms: 1_000, ends_per_second_max: 750 };

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let backend = Backend::open(Config::new(dir.path(), Identity::default()))?;
    let mut leases = Leases::load(&backend.read())?;
    let mut queue = ExpiryQueue::new();
    queue.promote([], 0, HOW);

    let mut batch = backend.batch();
    for (id, ttl_s, key) in [(1, 60, "kept"), (2, 60, "forgotten")] {
        leases.check_grant(id, ttl_s)?;
        let lease = leases.grant(id, ttl_s, &mut batch);
        leases.attach(key.into(), id);
        queue.granted(id, lease, 0);
    }
    batch.commit(&Applied { index: 1, term: 1, root: leases.sum(), ..Applied::default() })?;

    let mut batch = backend.batch();
    for now_s in 1..=40 {
        let now_ms = now_s * 1_000;
        if now_s % 20 == 0 {
            let lease = leases.get(1).ok_or("lease 1 was granted")?;
            assert_eq!(queue.renew(1, lease, now_ms), Renewal::Renewed { ttl_s: 60 });
        }
        for (id, remaining_s) in queue.due_notes(now_ms, 100) {
            println!("{now_s} s: {remaining_s} s are left of lease {id}, which goes into the log");
            leases.checkpoint(id, remaining_s, &mut batch);
            queue.noted(id, remaining_s);
            queue.settle([id]);
        }
    }
    batch.commit(&Applied { index: 2, term: 1, root: leases.sum(), ..Applied::default() })?;

    println!("40 s: another leader, which has the table alone");
    let mut queue = ExpiryQueue::new();
    queue.promote(leases.view().iter(), 40_000, HOW);
    for now_s in 40..=120 {
        for id in queue.expired(now_s * 1_000, 100) {
            println!("{now_s} s: lease {id} has ended, its keys are {:?}", leases.keys(id));
        }
    }
    Ok(())
}
