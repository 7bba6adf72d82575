//! Links between the repository's own Markdown pages: the file and the heading they point at must exist.

use std::path::{Component, Path, PathBuf};

use crate::sources::Source;

/// Links that lead nowhere; `root` is where the files' paths begin.
pub(crate) fn problems(root: &Path, sources: &[Source]) -> Vec<String> {
    let pages = sources.iter().filter(|source| source.path.extension().is_some_and(|extension| extension == "md"));
    let mut found = Vec::new();
    for page in pages {
        for (line, target) in links(&page.text) {
            if let Some(why) = broken(root, sources, page, &target) {
                found.push(format!("{}:{line}: link to `{target}`: {why}", page.path.display()));
            }
        }
    }
    found
}

fn broken(root: &Path, sources: &[Source], page: &Source, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
    let path = if file.is_empty() { page.path.clone() } else { resolve(&page.path, file)? };
    if !root.join(&path).exists() && !sources.iter().any(|source| source.path == path) {
        return Some("there is no such file".to_owned());
    }
    let anchor = anchor?;
    let source =
        sources.iter().find(|source| source.path == path && path.extension().is_some_and(|end| end == "md"))?;
    (!headings(&source.text).iter().any(|known| known == anchor)).then(|| format!("no heading makes #{anchor}"))
}

/// A relative target seen from a page, without `.` and `..`.
fn resolve(page: &Path, file: &str) -> Option<PathBuf> {
    let joined = match file.strip_prefix('/') {
        Some(absolute) => PathBuf::from(absolute),
        None => page.parent().unwrap_or(Path::new("")).join(file),
    };
    let mut path = PathBuf::new();
    for part in joined.components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            Component::Normal(name) => path.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(path)
}

/// The lines of a page outside fenced code, numbered from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(number, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence).then_some((number + 1, line))
    })
}

/// Every link target of a page with its line.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        // Every second piece between backticks is code, in which brackets mean nothing.
        let plain: Vec<&str> = line.split('`').step_by(2).collect();
        let plain = plain.join("x");
        for (at, _) in plain.match_indices("](") {
            let rest = &plain[at + 2..];
            if let Some(end) = rest.find(')') {
                let target = rest[..end].split_whitespace().next().unwrap_or_default();
                found.push((number, target.trim_matches(['<', '>']).to_owned()));
            }
        }
        if let Some((label, target)) = plain.split_once("]: ")
            && label.starts_with('[')
            && !label.contains(' ')
        {
            found.push((number, target.trim().to_owned()));
        }
    }
    found
}

/// The anchors that a page's headings make.
fn headings(text: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for (_, line) in prose(text) {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let slug: String = title
            .trim()
            .chars()
            .filter(|sign| sign.is_alphanumeric() || matches!(sign, ' ' | '-' | '_'))
            .map(|sign| if sign == ' ' { '-' } else { sign.to_ascii_lowercase() })
            .collect();
        let same = anchors.iter().filter(|known| **known == slug).count();
        anchors.push(if same == 0 { slug } else { format!("{slug}-{same}") });
    }
    anchors
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Source, problems};

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.to_owned() }
    }

    #[test]
    fn sound_links_pass() {
        let pages = [
            source(
                "README.md",
                "[a](docs/a.md#two-words) [web](https://x.y) `[no](nowhere)`\n```\n[no](nowhere)\n```\n",
            ),
            source("docs/a.md", "# Two words\n[up](../README.md) [here](#two-words)\n"),
        ];
        assert_eq!(problems(Path::new("/nonexistent"), &pages), Vec::<String>::new());
    }

    #[test]
    fn missing_files_and_headings_are_found() {
        let pages = [source("README.md", "# A\n[x](docs/none.md)\n[y](#b)\n"), source("docs/a.md", "[z](none.md)\n")];
        assert_eq!(problems(Path::new("/nonexistent"), &pages).len(), 3);
    }
}
