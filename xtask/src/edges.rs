//! Which crate may name which: the drawing of the architecture, as a table that is checked against every manifest.

use crate::cargo::{Dependency, Package};

/// Workspace edges: a crate, and the crates it may reach down to. Every kind of dependency counts.
const EDGES: &[(&str, &[&str])] = &[
    ("tally-wal", &[]),
    ("tally-backend", &[]),
    ("tally-mvcc", &["tally-backend"]),
    ("tally-lease", &["tally-backend"]),
    ("tally-auth", &["tally-backend", "tally-mvcc"]),
    ("tally-apply", &["tally-backend", "tally-mvcc", "tally-lease", "tally-auth"]),
    ("tally-raftnode", &["tally-apply", "tally-wal", "tally-backend", "tally-mvcc"]),
    (
        "tally-server",
        &["tally-raftnode", "tally-apply", "tally-auth", "tally-lease", "tally-mvcc", "tally-backend", "tally-wal"],
    ),
    ("xtask", &[]),
];

/// Foreign crates that only some crates may name. A trailing `*` stands for any ending.
const ROOMS: &[(&str, &[&str])] = &[
    ("openraft*", &["tally-raftnode"]),
    ("rocksdb", &["tally-backend"]),
    ("librocksdb-sys", &["tally-backend"]),
    ("axum*", &["tally-server", "tally-raftnode"]),
    ("hyper*", &["tally-server", "tally-raftnode"]),
    ("tokio*", &["tally-server", "tally-raftnode", "xtask"]),
    ("tracing-subscriber", &["tally-server"]),
    ("clap", &["tally-server"]),
    ("prometheus", &["tally-server"]),
    ("prost*", &["tally-server"]),
    ("tonic*", &["tally-server"]),
    ("serde_json", &["tally-server", "xtask"]),
    ("mio", &["xtask"]),
    ("h2", &["xtask"]),
];

/// Crates whose results must depend on replicated state alone, and what would let something else in.
const DETERMINISTIC: &[&str] = &["tally-mvcc", "tally-lease", "tally-auth", "tally-apply"];
const NONDETERMINISTIC: &[&str] = &["rand", "fastrand", "getrandom", "uuid", "chrono", "time", "ahash"];

/// Crates that somebody may want alone: complete package metadata and an example each.
pub(crate) const STORAGE: &[&str] =
    &["tally-wal", "tally-backend", "tally-mvcc", "tally-lease", "tally-apply", "tally-raftnode"];

/// What is wrong with the dependencies and manifests of these packages.
pub(crate) fn problems(packages: &[Package]) -> Vec<String> {
    let mut found = Vec::new();
    for package in packages {
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == package.name) else {
            found.push(format!("{}: not in the table of crate edges (xtask/src/edges.rs)", package.name));
            continue;
        };
        for dependency in &package.dependencies {
            found.extend(edge_problem(&package.name, allowed, dependency));
        }
        if STORAGE.contains(&package.name.as_str()) {
            let fields = package.unpublished_fields.iter();
            found.extend(fields.map(|field| format!("{}: package.{field} is empty", package.name)));
            if package.examples.is_empty() {
                found.push(format!("{}: no program under examples/", package.name));
            }
        }
    }
    found
}

fn edge_problem(package: &str, allowed: &[&str], dependency: &Dependency) -> Option<String> {
    let Dependency { name, kind } = dependency;
    let ours = name.starts_with("tally-") || name == "xtask";
    if ours && !allowed.contains(&name.as_str()) {
        return Some(format!("{package} -> {name} ({kind}): this edge is not in the architecture"));
    }
    if let Some((_, rooms)) = ROOMS.iter().find(|(pattern, _)| matches(pattern, name))
        && !rooms.contains(&package)
    {
        return Some(format!("{package} names {name} ({kind}): only {} may", rooms.join(", ")));
    }
    if kind != "dev" && DETERMINISTIC.contains(&package) && NONDETERMINISTIC.contains(&name.as_str()) {
        return Some(format!(
            "{package} names {name} ({kind}): what it computes must depend on replicated state alone"
        ));
    }
    None
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_'])),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::{Dependency, Package, problems};

    fn package(name: &str, dependencies: &[(&str, &str)]) -> Package {
        Package {
            name: name.to_owned(),
            dir: name.into(),
            dependencies: dependencies
                .iter()
                .map(|(name, kind)| Dependency { name: (*name).to_owned(), kind: (*kind).to_owned() })
                .collect(),
            examples: vec!["alone".to_owned()],
            unpublished_fields: Vec::new(),
        }
    }

    #[test]
    fn the_drawn_edges_pass() {
        let sound = [
            package("tally-mvcc", &[("tally-backend", "normal"), ("proptest", "dev")]),
            package("tally-raftnode", &[("openraft", "normal"), ("tally-wal", "normal"), ("tokio", "normal")]),
        ];
        assert_eq!(problems(&sound), Vec::<String>::new());
    }

    #[test]
    fn every_wrong_edge_is_named() {
        for (from, to, kind) in [
            ("tally-wal", "tally-backend", "dev"),
            ("tally-backend", "tally-mvcc", "normal"),
            ("tally-mvcc", "rocksdb", "normal"),
            ("tally-apply", "tokio", "normal"),
            ("tally-apply", "rand", "normal"),
            ("tally-server", "openraft-rocksstore", "normal"),
            ("tally-raftnode", "prometheus", "normal"),
            ("tally-raftnode", "serde_json", "dev"),
            ("xtask", "tally-wal", "normal"),
        ] {
            let found = problems(&[package(from, &[(to, kind)])]);
            assert_eq!(found.len(), 1, "{from} -> {to}: {found:?}");
            assert!(found[0].contains(from) && found[0].contains(to), "{found:?}");
        }
    }

    #[test]
    fn unknown_crates_and_empty_metadata_are_named() {
        assert_eq!(problems(&[package("tally-new", &[])]).len(), 1);
        let mut bare = package("tally-wal", &[]);
        bare.unpublished_fields = vec!["readme"];
        bare.examples.clear();
        assert_eq!(problems(&[bare]).len(), 2);
    }
}
