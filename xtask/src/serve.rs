//! `cargo xtask serve`: one node for trying things out.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::args::Args;
use crate::error::{Error, Result};
use crate::{cargo, prereq, run};

/// Builds the server and becomes it, so that signals reach it as they are. Never returns unless something fails.
pub(crate) fn run(args: Args) -> Result<()> {
    prereq::ensure_build()?;
    let binary = cargo::build_server()?;
    let mut command = Command::new(&binary);
    let client = "http://127.0.0.1:2379";
    let peer = "http://127.0.0.1:2380";
    let cluster = format!("default={peer}");
    let defaults = [
        ("name", "default"),
        ("data-dir", "./tally-data"),
        ("listen-client-urls", client),
        ("advertise-client-urls", client),
        ("listen-peer-urls", peer),
        ("initial-advertise-peer-urls", peer),
        ("initial-cluster", &cluster),
    ];
    for (name, value) in defaults {
        if !given(args.rest(), name) {
            command.arg(format!("--{name}={value}"));
        }
    }
    command.args(args.rest());
    println!("$ {}", run::shown(&command));
    Err(Error::Start { program: binary.display().to_string(), source: command.exec() })
}

/// Whether the developer's own flags set this one already.
fn given(words: &[String], name: &str) -> bool {
    words.iter().filter_map(|word| word.strip_prefix("--")).any(|flag| flag.split('=').next() == Some(name))
}
