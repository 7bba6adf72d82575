//! Debian's package indexes as records: a package's name and its control paragraph.

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
    use super::{Record, parse};

    #[test]
    fn paragraphs_become_records() {
        let mut records = Vec::new();
        parse("Package: a\nVersion: 1\n\nPackage: b\nDescription: x\n more\n\n\nSource: none\n", &mut records);
        let record = |key: &str, paragraph: &str| Record { key: key.to_owned(), paragraph: paragraph.to_owned() };
        let wanted = [record("pkg/a", "Package: a\nVersion: 1"), record("pkg/b", "Package: b\nDescription: x\n more")];
        assert_eq!(records, wanted);
    }
}
