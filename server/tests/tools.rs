//! `tally wal` and `tally check` on what a real server left behind.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::Command;

use common::cluster::eventually;
use common::{Ended, bare, base64, directory, files, launch, start};
use serde_json::{Value, json};

/// A directory with puts, a transaction, a deletion and a compaction.
fn used(root: &Path) -> std::path::PathBuf {
    let data = root.join("d");
    let tally = start(&data);
    for n in 0..30 {
        tally.put(&format!("key{n}"), "v");
    }
    tally.ok("/v3/kv/deleterange", &json!({"key": base64("key1")}));
    tally.ok("/v3/kv/txn", &json!({"success": [{"request_put": {"key": base64("txn"), "value": base64("t")}}]}));
    tally.ok("/v3/kv/compaction", &json!({"revision": "20"}));
    tally.stop();
    data
}

fn check(data: &Path) -> Ended {
    bare().arg("check").arg(&format!("--data-dir={}", data.display())).run()
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap().success());
}

/// Both the tool and a server refuse this data, with the same reason.
fn refused_alike(data: &Path, reason: &str) {
    let checked = check(data);
    assert_eq!(checked.status.code(), Some(1), "{}", checked.stdout);
    for said in [checked.stderr, launch(data).fail()] {
        assert!(said.contains(reason) && said.contains("rebuild this member"), "{said}");
    }
}

#[test]
fn the_log_is_dumped_for_people_and_programs() {
    let root = directory();
    let wal = used(root.path()).join("member/wal");
    let dump = |args: &[&str]| {
        let launch = bare().arg("wal").arg("dump").arg(wal.to_str().unwrap());
        let ended = args.iter().fold(launch, |launch, arg| launch.arg(arg)).run();
        assert!(ended.status.success(), "{}", ended.stderr);
        ended.stdout
    };
    let all = dump(&[]);
    for text in [
        "metadata format 1",
        "membership voters",
        "blank",
        "put \"key0\" = \"v\"",
        "delete \"key1\"",
        "txn if [] then [put \"txn\" = \"t\" (1 bytes)] else []",
        "compact to revision 20",
        "name \"default\"",
    ] {
        assert!(all.contains(text), "{text} is missing in\n{all}");
    }
    let json: Vec<Value> = dump(&["--json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(json.len(), all.lines().count());
    let puts: Vec<&Value> = json.iter().filter(|line| !line["command"]["put"].is_null()).collect();
    assert_eq!(puts.len(), 30);
    assert_eq!(puts[0]["command"]["put"]["key"], base64("key0"));

    assert_eq!(dump(&["--type", "entry", "--grep", "key29"]).lines().count(), 1);
    assert_eq!(dump(&["--grep", "key1"]).lines().count(), 12, "key1, key10 to key19, and the deletion");
    assert_eq!(dump(&["--type=metadata"]).lines().count(), 1);
    let some = dump(&["--from", "5", "--to", "7", "--type", "entry"]);
    assert_eq!(some.lines().count(), 3, "{some}");
}

#[test]
fn a_log_is_verified_and_damage_is_named() {
    let root = directory();
    let wal = used(root.path()).join("member/wal");
    let verify = || bare().arg("wal").arg("verify").arg(wal.to_str().unwrap()).run();
    let sound = verify();
    assert!(sound.status.success() && sound.stdout.contains("sound"), "{}", sound.stdout);

    let path = files(&wal).into_iter().find(|path| path.extension().is_some_and(|kind| kind == "wal")).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(4).position(|window| window == b"key5").unwrap();
    bytes[at] ^= 0x20;
    std::fs::write(&path, bytes).unwrap();
    let damaged = verify();
    assert_eq!(damaged.status.code(), Some(1));
    assert!(damaged.stdout.contains("NOT SOUND"), "{}", damaged.stdout);
    assert!(damaged.stdout.contains(path.file_name().unwrap().to_str().unwrap()), "{}", damaged.stdout);
}

#[test]
fn the_state_is_that_of_the_log() {
    let root = directory();
    let data = used(root.path());
    let check = || check(&data);
    let ended = check();
    assert!(ended.status.success(), "{}", ended.stderr);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["root"], report["replayed_root"]);
    assert_eq!(report["revision"], 33);
    assert_eq!(report["equal"], true);
    assert_eq!(report["applied"], report["wal"]["last"]["index"]);

    // It has changed nothing, and does not disturb a running server.
    let tally = start(&data);
    assert_eq!(tally.value("key2").as_deref(), Some("v"));
    let busy = check();
    assert_eq!(busy.status.code(), Some(1));
    assert!(busy.stderr.contains("in use") && busy.stderr.contains("stop"), "{}", busy.stderr);
    assert_eq!(tally.put("key2", "w"), 34);
    tally.kill();
    let killed: Value = serde_json::from_str(&check().stdout).unwrap();
    assert_eq!(killed["equal"], true, "{killed}");
}

#[test]
fn a_database_that_does_not_open_is_not_said_to_be_in_use() {
    let root = directory();
    let data = used(root.path());
    std::fs::write(data.join("member/db/LIVE"), b"x").unwrap();
    let ended = check(&data);
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("LIVE") && !ended.stderr.contains("stop"), "{}", ended.stderr);
}

#[test]
fn a_log_that_ends_before_the_state_is_refused_as_at_a_start() {
    let root = directory();
    let data = used(root.path());
    let (wal, old) = (data.join("member/wal"), root.path().join("old"));
    copy(&wal, &old);
    let tally = start(&data);
    tally.put("more", "v");
    tally.stop();
    copy(&old, &wal);
    refused_alike(&data, "the log was replaced by an older copy");
}

#[test]
fn where_the_log_was_purged_only_the_places_are_compared() {
    let root = directory();
    let data = used(root.path());
    let (db, old) = (data.join("member/db"), root.path().join("old"));
    copy(&db, &old);
    let before: Value = serde_json::from_str(&check(&data).stdout).unwrap();
    let applied = before["applied"].as_u64().unwrap();
    let tally = launch(&data).arg("--snapshot-count=10").arg("--snapshot-catchup-entries=1").start();
    let value = "x".repeat(1 << 20);
    eventually("the log is purged beyond what the copy has", || {
        tally.put("k", &value);
        (tally.metric("tally_log_purged_index") > applied as f64).then_some(())
    });
    tally.stop();
    let ended = check(&data);
    assert!(ended.status.success(), "{}", ended.stderr);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert!(report["equal"].is_null() && report["wal"]["purged"].is_object(), "{report}");
    assert!(report["not_replayed_because"].as_str().unwrap().contains("purged"), "{report}");
    copy(&old, &db);
    refused_alike(&data, "the store was replaced by an older copy");
}

#[test]
fn a_log_in_a_directory_of_its_own_is_named_to_the_check() {
    let root = directory();
    let (data, wal) = (root.path().join("d"), root.path().join("wal"));
    let wal_dir = format!("--wal-dir={}", wal.display());
    let tally = launch(&data).arg(&wal_dir).start();
    tally.put("k", "v");
    tally.stop();
    let forgotten = check(&data);
    assert_eq!(forgotten.status.code(), Some(1));
    assert!(forgotten.stderr.contains("--wal-dir"), "{}", forgotten.stderr);
    let named = bare().arg("check").arg(&format!("--data-dir={}", data.display())).arg(&wal_dir).run();
    assert!(named.status.success(), "{}", named.stderr);
}

#[test]
fn what_is_not_there_or_not_understood_is_refused() {
    let root = directory();
    let empty = root.path().to_str().unwrap();
    assert!(bare().arg("wal").arg("dump").arg("/nonexistent").fail().contains("/nonexistent"));
    assert!(bare().arg("check").arg("--data-dir").arg(empty).fail().contains(empty));
    for args in [&["nosuch"][..], &["wal"], &["wal", "nosuch"], &["check"], &["wal", "dump", empty, "--type", "x"]] {
        let ended = args.iter().fold(bare(), |launch, arg| launch.arg(arg)).run();
        assert_eq!(ended.status.code(), Some(2), "{args:?}: {}", ended.stderr);
    }
}
