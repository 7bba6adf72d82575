//! `cargo xtask serve`: one node for trying things out.
//!
//! It is told no more than where its data goes. Everything else has a default in the server or is derived there from other
//! flags; a default given here would stay as it is when the developer changes a flag that it depends on.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::args::Args;
use crate::error::{Error, Result};
use crate::{cargo, ports, prereq, run};

/// Where the data goes unless the developer says so.
const DATA_DIR: &str = "./tally-data";
/// Where the server listens on loopback unless it is told otherwise, and by which flag it is told.
const LISTENS: [(&str, u16); 2] = [("listen-client-urls", 2379), ("listen-peer-urls", 2380)];
/// With these no server starts, or another source says where it listens.
const ELSEWHERE: [&str; 3] = ["config-file", "help", "version"];

/// Builds the server and becomes it, so that signals reach it as they are. Never returns unless something fails.
pub(crate) fn run(args: Args) -> Result<()> {
    check_free(&addresses(&args, |name| std::env::var_os(name).is_some_and(|value| !value.is_empty())))?;
    prereq::ensure_build()?;
    let binary = cargo::build_server()?;
    let mut command = Command::new(&binary);
    command.args(flags(&args));
    println!("$ {}", run::shown(&command));
    Err(Error::Start { program: binary.display().to_string(), source: command.exec() })
}

/// The server's flags: the developer's, and a data directory if they name none.
fn flags(args: &Args) -> Vec<String> {
    let named = args.passes("data-dir") || args.passes("config-file");
    let own = (!named).then(|| format!("--data-dir={DATA_DIR}"));
    own.into_iter().chain(args.rest().iter().cloned()).collect()
}

/// The default addresses that the server will listen on: those that no flag and no variable replaces.
fn addresses(args: &Args, is_set: impl Fn(&str) -> bool) -> Vec<SocketAddr> {
    let told = |flag: &str| {
        let name = flag.to_uppercase().replace('-', "_");
        args.passes(flag) || ["TALLY", "ETCD"].iter().any(|prefix| is_set(&format!("{prefix}_{name}")))
    };
    if ELSEWHERE.into_iter().any(&told) {
        return Vec::new();
    }
    let kept = LISTENS.into_iter().filter(|listen| !told(listen.0));
    kept.map(|(_, port)| SocketAddr::from((Ipv4Addr::LOCALHOST, port))).collect()
}

/// Refuses to begin where something else listens; better now than after a long build.
fn check_free(addresses: &[SocketAddr]) -> Result<()> {
    let taken = ports::taken(addresses.iter().copied());
    if taken.is_empty() {
        return Ok(());
    }
    Err(Error::Missing(format!(
        "{} {} taken; stop what listens there: another `cargo xtask serve`, a `cargo xtask cluster` or an etcd; or listen \
         elsewhere: cargo xtask serve -- --listen-client-urls=http://127.0.0.1:3379 --listen-peer-urls=http://127.0.0.1:3380",
        taken.join(", "),
        if taken.len() == 1 { "is" } else { "are" },
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{addresses, check_free, flags};
    use crate::args::Args;
    use std::net::TcpListener;

    fn args(line: &str) -> Args {
        Args::parse(line.split_whitespace().map(str::to_owned).collect(), &[], &[]).unwrap()
    }

    fn ports(line: &str, set: &[&str]) -> Vec<u16> {
        addresses(&args(line), |name| set.contains(&name)).iter().map(|address| address.port()).collect()
    }

    #[test]
    fn the_server_is_told_its_data_directory_and_nothing_that_it_derives() {
        assert_eq!(flags(&args("")), ["--data-dir=./tally-data"]);
        assert_eq!(flags(&args("-- --name x")), ["--data-dir=./tally-data", "--name", "x"]);
        assert_eq!(flags(&args("-- --data-dir d")), ["--data-dir", "d"]);
        assert_eq!(flags(&args("-- --config-file=f")), ["--config-file=f"]);
    }

    #[test]
    fn only_ports_that_will_be_listened_on_are_looked_at() {
        assert_eq!(ports("-- --name=x", &[]), [2379, 2380]);
        assert_eq!(ports("-- --listen-peer-urls=http://127.0.0.1:1", &[]), [2379]);
        assert_eq!(ports("-- --listen-client-urls http://127.0.0.1:1", &["TALLY_NAME"]), [2380]);
        assert_eq!(ports("", &["ETCD_LISTEN_PEER_URLS"]), [2379]);
        assert!(ports("-- --help", &[]).is_empty() && ports("", &["TALLY_CONFIG_FILE"]).is_empty());
    }

    #[test]
    fn taken_ports_are_named() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = holder.local_addr().unwrap();
        let error = check_free(&[taken]).unwrap_err().to_string();
        assert!(error.contains(&format!("{taken} is taken")), "{error}");
        drop(holder);
        check_free(&[taken]).unwrap();
    }
}
