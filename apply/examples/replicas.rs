//! Two replicas apply the same log in different chunks, and tally.

use tally_apply::{Applier, Body, Command, Committed};
use tally_backend::{Backend, Config, Identity};
use tally_mvcc::{Options, PutRequest};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let log: Vec<Committed> = (1..=1000u64)
        .map(|index| {
            let put = PutRequest::new(format!("key/{}", index % 97), format!("value {index}"));
            Committed { index, term: 1, body: Body::Command(Command::Put(put).to_bytes()), asked: true }
        })
        .collect();
    let mut roots = Vec::new();
    for (replica, chunk) in [(1u8, 1usize), (2, 64)] {
        let dir = std::env::temp_dir().join(format!("tally-replicas-{}-{replica}", std::process::id()));
        let identity = Identity { cluster_id: 1, member_id: u64::from(replica), directory_uuid: [replica; 16] };
        let backend = Backend::open(Config::new(&dir, identity))?;
        let (mut applier, reads) = Applier::open(backend, Options::default())?;
        for entries in log.chunks(chunk) {
            applier.apply(entries)?;
        }
        let applied = reads.applied();
        println!("replica {replica}: chunks of {chunk:>2}, index {}, root {:032x}", applied.index, applied.root);
        roots.push(applied.root);
        drop((applier, reads));
        std::fs::remove_dir_all(&dir)?;
    }
    assert_eq!(roots[0], roots[1]);
    println!("the replicas tally");
    Ok(())
}
