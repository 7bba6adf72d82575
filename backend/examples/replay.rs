//! A counter per word, built from a log. The program "crashes" between two syncs and replays what the state lacks.
//!
//! `cargo run --example replay`

use std::error::Error;
use std::path::Path;

use tally_backend::{Applied, Backend, Bucket, Config, Identity, WriteBatch};

/// The log: somebody else keeps it, durably.
const LOG: [&str; 8] = ["tea", "milk", "tea", "sugar", "tea", "milk", "salt", "tea"];

fn count(backend: &Backend, word: &str) -> Result<u64, Box<dyn Error>> {
    match backend.get(Bucket::Kv, word.as_bytes())? {
        Some(value) => Ok(u64::from_be_bytes(value[..].try_into()?)),
        None => Ok(0),
    }
}

/// Applies one entry; its effect and its position become visible together.
fn apply(backend: &Backend, index: usize) -> Result<(), Box<dyn Error>> {
    let word = LOG[index - 1];
    let mut batch: WriteBatch = backend.batch();
    batch.put(Bucket::Kv, word.as_bytes(), &(count(backend, word)? + 1).to_be_bytes());
    batch.commit(&Applied { index: index as u64, term: 1, ..Applied::default() })?;
    Ok(())
}

fn run(path: &Path) -> Result<(), Box<dyn Error>> {
    let identity = Identity { cluster_id: 1, member_id: 1, directory_uuid: [1; 16] };
    let backend = Backend::open(Config::new(path.join("data"), identity))?;
    for index in 1..=5 {
        apply(&backend, index)?;
    }
    println!("applied {}, durable {}", backend.applied().index, backend.sync()?.index);

    // A snapshot of this moment, as another member would receive it.
    let export = backend.export(&path.join("exports"))?;
    let mut wire = Vec::new();
    export.write_to(&mut wire)?;
    let received = tally_backend::Export::receive(&mut &wire[..], &path.join("received"))?;
    let other = Identity { member_id: 2, directory_uuid: [2; 16], ..identity };
    let member = Backend::install(Config::new(path.join("other"), other), received.path())?;

    // That member lacks what came after: it replays from where it stands.
    println!("the other member starts at {}", member.applied().index);
    for index in member.applied().index as usize + 1..=LOG.len() {
        apply(&member, index)?;
    }
    member.read().for_each(Bucket::Kv, b"", None, |word, value| {
        println!("{:>6} {}", String::from_utf8_lossy(word), value[7]);
        std::ops::ControlFlow::Continue(())
    })?;
    Ok(member.close()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::temp_dir().join(format!("tally-backend-replay-{}", std::process::id()));
    let result = run(&path);
    std::fs::remove_dir_all(&path)?;
    result
}
