//! Damaged, newer and full disks: refused by name, nothing of what was acknowledged lost or altered, no panic.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Tally, bare, base64, directory, files, launch, start};
use serde_json::{Value, json};

/// The content of every file, to see that a refusal touches nothing.
fn contents(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let all = files(data).into_iter();
    // RocksDB keeps a diary of every opening, and that is all it may write.
    let kept = all.filter(|path| !path.file_name().unwrap().to_str().unwrap().starts_with("LOG"));
    kept.map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect()
}

/// The one line with which a start is refused. Log lines may come before it.
fn refusal(data: &Path) -> String {
    let said = launch(data).fail();
    let plain: Vec<&str> = said.lines().filter(|line| !line.starts_with('{')).collect();
    assert_eq!(plain.len(), 1, "not one line: {said}");
    plain[0].to_owned()
}

/// A number that follows a word in a message.
fn number_after(text: &str, word: &str) -> u64 {
    let (_, rest) = text.split_once(word).unwrap_or_else(|| panic!("no {word:?} in {text}"));
    rest.trim_start().split(|sign: char| !sign.is_ascii_digit()).next().unwrap().parse().unwrap()
}

fn flip(path: &Path, at: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[usize::try_from(at).unwrap()] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

/// Some entry's file, its record's number, and where in the file that record and the one after it begin.
struct Place {
    file: PathBuf,
    record: u64,
    begin: u64,
    end: u64,
}

/// The records of all puts, in order.
fn put_records(wal: &Path) -> Vec<Place> {
    let dump = bare().arg("wal").arg("dump").arg(wal.to_str().unwrap()).arg("--json").run();
    assert!(dump.status.success(), "{}", dump.stderr);
    let all: Vec<Value> = dump.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let puts = all.windows(2).filter(|pair| !pair[0]["command"]["put"].is_null());
    let place = |pair: &[Value]| Place {
        file: wal.join(pair[0]["file"].as_str().unwrap()),
        record: pair[0]["record"].as_u64().unwrap(),
        begin: pair[0]["offset"].as_u64().unwrap(),
        end: pair[1]["offset"].as_u64().unwrap(),
    };
    puts.map(place).collect()
}

#[test]
fn a_flipped_bit_among_acknowledged_records_is_refused_by_file_offset_and_record() {
    let root = directory();
    let data = root.path().join("d");
    let tally = start(&data);
    for n in 0..20 {
        tally.put(&format!("key{n:02}"), "some value");
    }
    tally.kill();
    let places = put_records(&data.join("member/wal"));
    assert!(places.len() >= 19, "{}", places.len());
    // In the header, in the middle, and in the first byte of the payload.
    for (n, part) in [(0, 0), (0, 1), (5, 2), (9, 1), (12, 0), (16, 1)] {
        let Place { file, record, begin, end } = &places[n];
        let at = [begin + 1, (begin + end) / 2, begin + 40][part];
        flip(file, at);
        let before = contents(&data);
        let error = refusal(&data);
        assert!(error.contains(file.file_name().unwrap().to_str().unwrap()), "{error}");
        assert_eq!(number_after(&error, "offset"), *begin, "flipped at {at}: {error}");
        assert_eq!(number_after(&error, "record"), *record, "{error}");
        assert!(error.contains("restore"), "it must say what to do: {error}");
        assert!(contents(&data) == before, "the refusal has changed something");
        flip(file, at);
    }
    let tally = start(&data);
    assert_eq!(tally.value("key19").as_deref(), Some("some value"));
    tally.stop();
}

/// A directory whose state is in table files: one value of 2 KiB for each of 1,000 keys.
fn with_tables(root: &Path) -> PathBuf {
    let data = root.join("d");
    let tally = start(&data);
    for n in 0..1000 {
        tally.put(&format!("key{n:04}"), &value(n));
    }
    tally.stop();
    data
}

/// Bytes that do not compress to nothing.
fn value(n: u64) -> String {
    let mut state = n;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{:016x}", state ^ (state >> 29))
    };
    (0..128).map(|_| word()).collect()
}

/// Every key has the value it was given.
fn all_values_right(tally: &Tally) {
    for n in 0..1000 {
        assert_eq!(tally.value(&format!("key{n:04}")), Some(value(n)));
    }
}

/// A copy with one flipped bit, because even a refused opening lets RocksDB merge tables that are sound.
fn damaged_copy(data: &Path, file: &Path, at: u64) -> tempfile::TempDir {
    let root = directory();
    let copy = Command::new("cp").args(["-r", "--sparse=always"]).arg(data.join(".")).arg(root.path()).status();
    assert!(copy.unwrap().success());
    flip(&root.path().join(file.strip_prefix(data).unwrap()), at);
    root
}

#[test]
fn a_flipped_bit_in_a_table_is_refused_by_name() {
    let root = directory();
    let data = with_tables(root.path());
    let size = |path: &PathBuf| path.metadata().unwrap().len();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut tables = files(&data.join("member/db"));
    tables.retain(|path| path.extension().is_some_and(|kind| kind == "sst"));
    tables.sort_by_key(size);
    let largest = tables.pop().expect("a stop has written tables");
    assert!(size(&largest) > 500_000 && !tables.is_empty(), "{}", size(&largest));
    for part in 1..8 {
        let copy = damaged_copy(&data, &largest, size(&largest) * part / 8);
        let error = refusal(copy.path());
        assert!(error.contains(&name(&largest)), "{error}");
        assert!(error.contains("damaged") && error.contains("kv"), "{error}");
    }
    // In a small table the bit may be one that nobody reads; then nothing may be wrong.
    for table in &tables {
        let copy = damaged_copy(&data, table, size(table) / 2);
        let check = bare().arg("check").arg("--data-dir").arg(copy.path().to_str().unwrap()).run();
        if check.status.success() {
            let tally = start(copy.path());
            all_values_right(&tally);
            tally.stop();
        } else {
            let error = refusal(copy.path());
            assert!(error.contains(&name(table)), "{error}");
        }
    }
    let tally = start(&data);
    all_values_right(&tally);
    tally.stop();
}

#[test]
fn a_log_of_a_newer_format_is_refused() {
    let root = directory();
    let data = with_one_key(root.path());
    let wal = data.join("member/wal");
    let segments: Vec<PathBuf> = files(&wal).into_iter().filter(|path| path.extension().is_some()).collect();
    for path in segments {
        std::fs::remove_file(path).unwrap();
    }
    let newer = include_bytes!("../../wal/tests/golden/newer-format.bin");
    std::fs::write(wal.join("0000000000000001-0000000000000000.wal"), newer).unwrap();
    let before = contents(&data);
    let error = refusal(&data);
    assert!(error.contains("format 2, this program reads up to 1") && error.contains("newer program"), "{error}");
    assert!(error.contains("0000000000000001-0000000000000000.wal"), "{error}");
    assert!(contents(&data) == before, "the refusal has changed something");
}

#[test]
fn a_database_of_a_newer_format_is_refused() {
    let root = directory();
    let data = with_one_key(root.path());
    let pointer = data.join("member/db/LIVE");
    let old = std::fs::read_to_string(&pointer).unwrap();
    // Later formats keep the first two lines and the checksum in the last one.
    let (body, _) = old.split_once("crc32c").unwrap();
    let body = body.replace("format 1\n", "format 2\nsomething new\n");
    let newer = format!("{body}crc32c {:08x}\n", crc32c(body.as_bytes()));
    std::fs::write(&pointer, newer).unwrap();
    let before = contents(&data.join("member/db"));
    let error = refusal(&data);
    assert!(error.contains("format 2, this program reads up to 1") && error.contains("newer program"), "{error}");
    assert!(error.contains("LIVE"), "{error}");
    assert!(contents(&data.join("member/db")) == before, "the refusal has changed something");
    std::fs::write(&pointer, old).unwrap();
    let tally = start(&data);
    assert_eq!(tally.value("k").as_deref(), Some("v"));
    tally.stop();
}

fn with_one_key(root: &Path) -> PathBuf {
    let data = root.join("d");
    let tally = start(&data);
    tally.put("k", "v");
    tally.stop();
    data
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}

/// A small file system in memory. Unmounted when dropped.
struct Disk {
    _root: tempfile::TempDir,
    path: PathBuf,
}

impl Disk {
    /// Nothing, said aloud, where mounting is not allowed.
    fn mount(mebibytes: u32) -> Option<Disk> {
        let root = directory();
        let path = root.path().join("disk");
        std::fs::create_dir(&path).unwrap();
        let size = format!("size={mebibytes}m");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tally-test"]).arg(&path).output();
        match mount {
            Ok(output) if output.status.success() => Some(Disk { _root: root, path }),
            refused => {
                eprintln!("SKIPPED: a full disk needs the right to mount a tmpfs (root): {refused:?}");
                None
            }
        }
    }

    fn resize(&self, mebibytes: u32) {
        let size = format!("remount,size={mebibytes}m");
        assert!(Command::new("mount").args(["-o", &size]).arg(&self.path).status().unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a server that a failed test has left behind must not keep it in the tree.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// Puts values of 1 MB until one is not acknowledged; gives how many were, and how the server ended.
fn fill(mut tally: Tally) -> (usize, String) {
    let mut client = tally.connect();
    for n in 0..400 {
        let body = json!({"key": base64(&format!("big{n}")), "value": base64(&big(n))}).to_string();
        let head = format!("POST /v3/kv/put HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        client.send(head.as_bytes());
        client.send(body.as_bytes());
        let answer = client.answer(false);
        if answer.as_ref().is_some_and(|answer| answer.status == 200) {
            continue;
        }
        // Answered with an error, or not at all because the process ended.
        if let Some(answer) = answer {
            assert!(answer.status == 503 && answer.body.contains("unknown"), "{answer:?}");
        }
        let status = tally.wait();
        assert_eq!(status.code(), Some(1), "{}", tally.log.join("\n"));
        let plain: Vec<&String> = tally.log.iter().filter(|line| !line.starts_with('{')).collect();
        assert_eq!(plain.len(), 1, "not one line: {plain:?}");
        return (n as usize, plain[0].clone());
    }
    panic!("400 MB fit into a smaller disk");
}

/// A value of 1 MB.
fn big(n: u64) -> String {
    value(n).repeat(512)
}

/// What was acknowledged is there, and what was not is as it was given, if it is there.
fn all_big_values_right(tally: &Tally, acknowledged: usize) {
    for n in 0..400 {
        let found = tally.value(&format!("big{n}"));
        match found {
            Some(found) => assert!(found == big(n), "big{n} is not what was put"),
            None => assert!(n as usize >= acknowledged, "big{n} of {acknowledged} was acknowledged and is gone"),
        }
    }
}

#[test]
fn a_disk_that_is_too_small_to_start_on_is_refused() {
    let Some(disk) = Disk::mount(16) else { return };
    let data = disk.path.join("d");
    let error = refusal(&data);
    assert!(error.to_lowercase().contains("no space left"), "{error}");
    disk.resize(200);
    let tally = start(&data);
    tally.put("k", "v");
    tally.stop();
}

#[test]
fn a_disk_that_fills_under_the_database_loses_nothing() {
    let Some(disk) = Disk::mount(104) else { return };
    let data = disk.path.join("d");
    let (acknowledged, said) = fill(start(&data));
    assert!(acknowledged > 0 && said.to_lowercase().contains("no space left"), "{said}");
    assert!(said.contains(disk.path.to_str().unwrap()), "it must say where: {said}");
    disk.resize(600);
    let tally = start(&data);
    all_big_values_right(&tally, acknowledged);
    tally.put("after", "v");
    tally.stop();
}

#[test]
fn a_disk_that_fills_under_the_log_loses_nothing() {
    let Some(disk) = Disk::mount(100) else { return };
    let root = directory();
    let (data, wal) = (root.path().join("d"), disk.path.join("wal"));
    let server = || launch(&data).arg(&format!("--wal-dir={}", wal.display()));
    let (acknowledged, said) = fill(server().start());
    assert!(acknowledged > 0 && said.to_lowercase().contains("no space left"), "{said}");
    assert!(said.contains(wal.to_str().unwrap()), "it must say where: {said}");
    disk.resize(600);
    let tally = server().start();
    all_big_values_right(&tally, acknowledged);
    tally.put("after", "v");
    tally.stop();
}
