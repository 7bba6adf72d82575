//! What `--help` and `--version` print.

use std::fmt::Write as _;

use super::flags::{Class, FLAGS};

/// The etcd version whose API is served; clients switch features on it.
pub(crate) const API_VERSION: &str = "3.7.0";
/// The same, as `/version` reports the cluster's.
pub(crate) const CLUSTER_VERSION: &str = "3.7.0";
/// This program's version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `--version`: first the line that tools of etcd look for.
pub(crate) fn version() -> String {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    format!("etcd Version: {API_VERSION}\nTally Version: {VERSION}\nOS/Arch: {os}/{arch}\n")
}

/// `--help`.
pub(crate) fn help() -> String {
    let mut text = String::from(
        "Tally: a replicated, multi-version key-value store that speaks etcd v3.\n\n\
         Usage:\n\
         \x20 tally [flags]                        start a server\n\
         \x20 tally wal dump|verify DIR            look into a write-ahead log\n\
         \x20 tally check --data-dir DIR           compare the state of a stopped server with its log;\n\
         \x20                                      where that was purged, only their places\n\n\
         Each flag can also be given as TALLY_<NAME> or ETCD_<NAME> in the environment (upper case, underscores).\n\
         The command line beats TALLY_, which beats ETCD_, whether by a flag's name or by its older one.\n\
         With --config-file, nothing else counts.\n\nFlags:\n",
    );
    for flag in FLAGS {
        let note = match flag.class {
            Class::Serve => flag.help.to_owned(),
            Class::Accept(why) => format!("accepted, no effect: {why}"),
            Class::Later(why) => format!("not in this version: {why}"),
            Class::Refuse(why) => format!("refused: {why}"),
            Class::Alias(target) => format!("the same as --{target}"),
        };
        let _ = writeln!(text, "  --{} '{}'\n        {note}", flag.name, flag.default);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_the_version_is_that_of_etcd() {
        assert_eq!(version().lines().next(), Some("etcd Version: 3.7.0"));
    }

    #[test]
    fn the_help_names_every_flag() {
        let help = help();
        assert!(FLAGS.iter().all(|flag| help.contains(&format!("--{} ", flag.name))));
    }
}
