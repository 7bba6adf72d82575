//! Debian's package indexes as records: a package's name and its control paragraph. They are put pass after pass.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::{prereq, run};

/// The longest paragraph that is loaded, in bytes; well below what one request may carry in base64.
const PARAGRAPH_BYTES_MAX: usize = 512 * 1024;

/// One package of an index.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// `pkg/<name>`
    pub(crate) key: String,
    pub(crate) paragraph: String,
}

/// What is put: item by item through all records, pass after pass, and every item has a value of its own.
#[derive(Debug)]
pub(crate) struct Load {
    records: Vec<Record>,
    value_bytes_min: usize,
}

impl Load {
    /// The records with their values padded to at least so many bytes.
    pub(crate) fn new(records: Vec<Record>, value_bytes_min: usize) -> Load {
        Load { records, value_bytes_min }
    }

    /// Items per pass.
    pub(crate) fn pass(&self) -> u64 {
        self.records.len() as u64
    }

    /// The key of an item.
    pub(crate) fn key(&self, item: u64) -> &str {
        &self.record(item).key
    }

    /// Appends the value of an item: the paragraph, from the second pass on the pass, and padding.
    pub(crate) fn value(&self, item: u64, out: &mut Vec<u8>) {
        let (pass, paragraph) = (item / self.pass(), self.record(item).paragraph.as_bytes());
        let begun = out.len();
        out.extend_from_slice(paragraph);
        if pass > 0 {
            out.extend_from_slice(format!("\nX-Tally-Pass: {pass}").as_bytes());
        }
        while out.len() - begun < self.value_bytes_min {
            let missing = self.value_bytes_min - (out.len() - begun);
            out.push(b'\n');
            out.extend_from_slice(&paragraph[..paragraph.len().min(missing - 1)]);
        }
    }

    /// The bytes of a value, on average.
    pub(crate) fn value_bytes_mean(&self) -> u64 {
        let bytes = |record: &Record| record.paragraph.len().max(self.value_bytes_min) as u64;
        self.records.iter().map(bytes).sum::<u64>() / self.pass().max(1)
    }

    fn record(&self, item: u64) -> &Record {
        &self.records[(item % self.pass()) as usize]
    }
}

/// The records of one index, or of all that apt keeps here.
pub(crate) fn load(index: Option<&Path>, limit: usize) -> Result<Vec<Record>> {
    let files = match index {
        Some(file) => vec![file.to_path_buf()],
        None => {
            prereq::ensure_apt_lists()?;
            indexes(Path::new(prereq::APT_LISTS))?
        }
    };
    let mut records = Vec::new();
    for file in &files {
        parse(&read(file)?, &mut records);
    }
    // The same paragraph in two indexes is one record; two versions of a package are two.
    let mut known = HashSet::new();
    records.retain(|record: &Record| {
        known.insert(crate::rng::hash(&[record.key.as_bytes(), record.paragraph.as_bytes()]))
    });
    records.truncate(limit);
    if records.is_empty() {
        let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        return Err(Error::Missing(format!("no packages in {}; run: apt-get update", names.join(", "))));
    }
    Ok(records)
}

fn indexes(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(Error::file("read", dir))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| prereq::is_package_list(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect();
    // The order of a directory is not the same everywhere, and a seed must repeat a run.
    files.sort_unstable();
    Ok(files)
}

/// A file's text, unpacked by apt's own helper, or by the tool of its ending.
fn read(file: &Path) -> Result<String> {
    let helper = Path::new("/usr/lib/apt/apt-helper");
    if helper.is_file() {
        return run::captured(Command::new(helper).arg("cat-file").arg(file));
    }
    let tool = match file.extension().and_then(|extension| extension.to_str()) {
        Some("lz4") => "lz4",
        Some("gz") => "gzip",
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("bz2") => "bzip2",
        _ => return fs::read_to_string(file).map_err(Error::file("read", file)),
    };
    run::captured(Command::new(tool).arg("-dc").arg(file))
}

/// Appends the records of an index: paragraphs with empty lines between them.
fn parse(text: &str, records: &mut Vec<Record>) {
    for paragraph in text.split("\n\n").map(|paragraph| paragraph.trim_matches('\n')) {
        let name = paragraph.lines().find_map(|line| line.strip_prefix("Package: "));
        if let Some(name) = name
            && paragraph.len() <= PARAGRAPH_BYTES_MAX
        {
            records.push(Record { key: format!("pkg/{}", name.trim()), paragraph: paragraph.to_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Load, Record, parse};

    #[test]
    fn paragraphs_become_records() {
        let mut records = Vec::new();
        parse("Package: a\nVersion: 1\n\nPackage: b\nDescription: x\n more\n\n\nSource: none\n", &mut records);
        let record = |key: &str, paragraph: &str| Record { key: key.to_owned(), paragraph: paragraph.to_owned() };
        let wanted = [record("pkg/a", "Package: a\nVersion: 1"), record("pkg/b", "Package: b\nDescription: x\n more")];
        assert_eq!(records, wanted);
    }
    fn records() -> Vec<Record> {
        ["a", "b"].map(|name| Record { key: format!("pkg/{name}"), paragraph: name.to_owned() }).into()
    }

    #[test]
    fn values_tell_their_pass() {
        let mut out = Vec::new();
        Load::new(records(), 0).value(3, &mut out);
        assert_eq!(out, b"b\nX-Tally-Pass: 1");
    }

    #[test]
    fn values_are_padded_to_the_byte() {
        for (size, padded) in [(0, "a"), (1, "a"), (2, "a\n"), (3, "a\na"), (6, "a\na\na\n")] {
            let (load, mut out) = (Load::new(records(), size), Vec::new());
            load.value(0, &mut out);
            assert_eq!(out, padded.as_bytes(), "{size}");
            assert_eq!(load.value_bytes_mean(), size.max(1) as u64);
        }
    }
}
