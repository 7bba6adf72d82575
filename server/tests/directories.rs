//! Data directories that must be refused, clearly and without touching them.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt;

use common::{directory, launch, start};

/// A directory with some data, from a server that was stopped.
fn used(root: &std::path::Path) -> std::path::PathBuf {
    let data = root.join("d");
    let tally = start(&data);
    tally.put("k", "v");
    tally.stop();
    data
}

/// It must still serve what it held.
fn intact(data: &std::path::Path) {
    let tally = start(data);
    assert_eq!(tally.value("k").as_deref(), Some("v"));
    tally.stop();
}

#[test]
fn a_new_directory_is_private() {
    let root = directory();
    let data = used(root.path());
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    intact(&data);
}

#[test]
fn the_directory_of_another_cluster_is_refused() {
    let root = directory();
    let data = used(root.path());
    let error = launch(&data).arg("--initial-cluster-token=other").fail();
    assert!(error.contains("cluster") && error.contains("member"), "{error}");
    let error = launch(&data).arg("--initial-advertise-peer-urls=http://10.0.0.1:2380").fail();
    assert!(error.contains("cluster"), "{error}");
    intact(&data);
}

#[test]
fn a_directory_in_use_is_refused() {
    let root = directory();
    let data = root.path().join("d");
    let tally = start(&data);
    tally.put("k", "v");
    let error = launch(&data).fail();
    assert!(error.contains("in use"), "{error}");
    assert_eq!(tally.value("k").as_deref(), Some("v"));
    tally.stop();
    intact(&data);
}

#[test]
fn a_port_in_use_is_refused_before_the_data_is_touched() {
    let root = directory();
    let tally = start(&root.path().join("a"));
    let data = root.path().join("b");
    let error = launch(&data).arg(&format!("--listen-client-urls=http://{}", tally.address)).fail();
    assert!(error.contains(&tally.address), "{error}");
    assert!(!data.exists());
    tally.stop();
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    let error = launch(std::path::Path::new("/proc/tally")).fail();
    assert!(error.contains("/proc/tally"), "{error}");
    let root = directory();
    let file = root.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let error = launch(&file).fail();
    assert!(error.contains("not a directory"), "{error}");
}

#[test]
fn without_its_log_or_without_its_store_a_directory_is_refused_or_rebuilt() {
    let root = directory();
    let data = used(root.path());
    let (wal, aside) = (data.join("member/wal"), root.path().join("wal"));
    std::fs::rename(&wal, &aside).unwrap();
    let error = launch(&data).fail();
    assert!(error.contains("log"), "{error}");
    let _ = std::fs::remove_dir_all(&wal);
    std::fs::rename(&aside, &wal).unwrap();
    intact(&data);
    // A log that reaches back to its beginning can build the store again.
    std::fs::remove_dir_all(data.join("member/db")).unwrap();
    intact(&data);
}

#[test]
fn a_log_directory_that_was_forgotten_or_is_new_is_named() {
    let root = directory();
    let data = root.path().join("d");
    let wal_dir = format!("--wal-dir={}", root.path().join("wal").display());
    let tally = launch(&data).arg(&wal_dir).start();
    tally.put("k", "v");
    tally.stop();
    let forgotten = launch(&data).fail();
    assert!(forgotten.contains("--wal-dir"), "{forgotten}");
    let other = launch(&data).arg(&format!("--wal-dir={}", root.path().join("other").display())).fail();
    assert!(other.contains("--wal-dir"), "{other}");
    let tally = launch(&data).arg(&wal_dir).start();
    assert_eq!(tally.value("k").as_deref(), Some("v"));
    tally.stop();

    let file = root.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let error = launch(&data).arg(&format!("--wal-dir={}", file.display())).fail();
    assert!(error.contains("choose another --wal-dir"), "{error}");
}

#[test]
fn joining_needs_somebody_to_ask_and_returning_does_not() {
    let root = directory();
    let fresh = root.path().join("fresh");
    let error = launch(&fresh).arg("--initial-cluster-state=existing").fail();
    assert!(error.contains("--initial-cluster names no other member"), "{error}");
    let nobody = common::cluster::free_ports(2);
    let error = launch(&fresh)
        .arg(&format!("--initial-advertise-peer-urls=http://127.0.0.1:{}", nobody[0]))
        .arg(&format!("--initial-cluster=default=http://127.0.0.1:{},x=http://127.0.0.1:{}", nobody[0], nobody[1]))
        .arg("--initial-cluster-state=existing")
        .fail();
    assert!(error.contains("cannot ask the cluster") && error.contains(&nobody[1].to_string()), "{error}");
    let data = used(root.path());
    let tally = launch(&data).arg("--initial-cluster-state=existing").start();
    assert_eq!(tally.value("k").as_deref(), Some("v"));
    tally.stop();
    // Its URLs may have been changed since it was founded.
    let tally = launch(&data)
        .arg("--initial-cluster-state=existing")
        .arg("--initial-advertise-peer-urls=http://10.0.0.1:2380")
        .start();
    tally.stop();
    intact(&data);
}
