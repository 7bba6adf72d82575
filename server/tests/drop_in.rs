//! Installed under the name `etcd`, the program passes for etcd in scripts: what they read, wait for and test is the same.
//!
//! A real etcd (`TALLY_TEST_ETCD`, set by `cargo xtask test`) is put through the same where there is one.
#![allow(clippy::unwrap_used, dead_code)]

mod common;

use std::path::{Path, PathBuf};

use common::cluster::{eventually, free_ports};
use common::{Ended, Launch, Tally, directory, program};
use tempfile::TempDir;

/// A directory with a program named `etcd` in it, as somebody installs it.
struct Installed {
    dir: TempDir,
    is_tally: bool,
}

impl Installed {
    fn of(binary: &Path) -> Installed {
        let dir = directory();
        std::os::unix::fs::symlink(binary, dir.path().join("etcd")).unwrap();
        Installed { dir, is_tally: binary == Path::new(env!("CARGO_BIN_EXE_tally")) }
    }

    /// Tally, and etcd if there is one.
    fn all() -> Vec<Installed> {
        let etcd = std::env::var_os("TALLY_TEST_ETCD").map(PathBuf::from).filter(|path| path.is_file());
        if etcd.is_none() {
            eprintln!("SKIPPED: TALLY_TEST_ETCD names no etcd to compare with");
        }
        etcd.iter().map(PathBuf::as_path).chain([Path::new(env!("CARGO_BIN_EXE_tally"))]).map(Installed::of).collect()
    }

    /// Its command line, in its directory.
    fn launch(&self) -> Launch {
        program(&self.dir.path().join("etcd")).cwd(self.dir.path()).env("PATH", "/usr/bin:/bin")
    }

    fn run(&self, args: &[&str]) -> Ended {
        args.iter().fold(self.launch(), |launch, arg| launch.arg(arg)).run()
    }

    /// Starts it on ports of its own, told by flags or by the environment, and waits as scripts do: for the line in its log.
    fn start(&self, by_environment: bool) -> (Tally, u16) {
        let (ports, data) = (free_ports(2), self.dir.path().join(format!("data-{by_environment}")));
        let (client, peer) = (format!("http://127.0.0.1:{}", ports[0]), format!("http://127.0.0.1:{}", ports[1]));
        let settings = [
            ("name", "infra0".to_owned()),
            ("data-dir", data.display().to_string()),
            ("listen-client-urls", client.clone()),
            ("advertise-client-urls", client),
            ("listen-peer-urls", peer.clone()),
            ("initial-advertise-peer-urls", peer.clone()),
            ("initial-cluster", format!("infra0={peer}")),
            ("initial-cluster-token", "scripted".to_owned()),
            ("initial-cluster-state", "new".to_owned()),
            ("auto-compaction-mode", "periodic".to_owned()),
            ("auto-compaction-retention", "1h".to_owned()),
            ("quota-backend-bytes", "8589934592".to_owned()),
            ("heartbeat-interval", "50".to_owned()),
            ("election-timeout", "500".to_owned()),
            ("log-level", "info".to_owned()),
        ];
        let launch = settings.iter().fold(self.launch(), |launch, (name, value)| {
            if by_environment {
                launch.env(&format!("ETCD_{}", name.replace('-', "_").to_uppercase()), value)
            } else {
                // Both of the ways in which Go's flags may be written.
                launch.arg(&format!("-{name}")).arg(value)
            }
        });
        let mut server = launch.spawn();
        server.wait_for("ready to serve client requests");
        server.address = format!("127.0.0.1:{}", ports[0]);
        (server, ports[0])
    }
}

#[test]
fn the_version_is_read_from_the_first_line() {
    for installed in Installed::all() {
        for flag in ["--version", "-version"] {
            let ended = installed.run(&[flag]);
            assert_eq!((ended.status.code(), &*ended.stderr), (Some(0), ""));
            // etcd --version | head -n 1 | cut -d' ' -f3
            let version = ended.stdout.lines().next().unwrap().strip_prefix("etcd Version: ").unwrap();
            let numbers: Vec<u32> = version.split('.').map(|number| number.parse().unwrap()).collect();
            assert_eq!(numbers.len(), 3, "{version}");
            assert_eq!(numbers[0], 3, "{version}");
        }
    }
}

#[test]
fn refusals_have_the_same_status() {
    for installed in Installed::all() {
        for args in [
            &["--nosuch"][..],
            &["-nosuch", "x"],
            &["--heartbeat-interval=abc"],
            &["--listen-client-urls=nonsense"],
            &["--initial-cluster-state=wrong"],
        ] {
            let ended = installed.run(args);
            assert_eq!(ended.status.code(), Some(2), "{args:?}: {}", ended.stderr);
            let flag = args[0].trim_start_matches('-').split('=').next().unwrap();
            assert!(ended.stderr.contains(flag), "{args:?}: {}", ended.stderr);
        }
        // What can be read but does not fit together: etcd says 1 here, Tally 2 for everything that is wrong with its configuration.
        let status = if installed.is_tally { 2 } else { 1 };
        for args in [&["--heartbeat-interval=500"][..], &["stray"], &["--config-file=/nonexistent"]] {
            let ended = installed.run(args);
            assert_eq!(ended.status.code(), Some(status), "{args:?}: {}", ended.stderr);
        }
        assert_eq!(installed.run(&["--help"]).status.code(), Some(0));
        assert_eq!(std::fs::read_dir(installed.dir.path()).unwrap().count(), 1, "a refusal leaves nothing behind");
    }
}

#[test]
fn a_script_starts_asks_and_stops_it() {
    for installed in Installed::all() {
        for by_environment in [false, true] {
            let (mut server, port) = installed.start(by_environment);
            let health = server.get("/health");
            assert_eq!((health.status, &health.json()["health"]), (200, &"true".into()), "{}", health.body);
            let version = server.get("/version").json();
            for name in ["etcdserver", "etcdcluster"] {
                assert!(version[name].as_str().is_some_and(|version| version.starts_with("3.")), "{version}");
            }
            server.put("script", "was here");
            assert_eq!(server.value("script").as_deref(), Some("was here"));
            assert!(server.get("/metrics").body.contains("etcd_server_has_leader 1\n"));

            // A second one on the same port and data does not start, and says so with a status.
            let ended = installed
                .launch()
                .arg("--name=second")
                .arg("--data-dir=second")
                .arg(&format!("--listen-client-urls=http://127.0.0.1:{port}"))
                .arg(&format!("--advertise-client-urls=http://127.0.0.1:{port}"))
                .arg("--listen-peer-urls=http://127.0.0.1:0")
                .run();
            assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);

            server.signal("TERM");
            let status = server.wait();
            // etcd ends by the signal that it was sent, after it has closed everything; Tally ends with success.
            if installed.is_tally {
                assert_eq!(status.code(), Some(0));
            }
            eventually("the port is free", || std::net::TcpListener::bind(("127.0.0.1", port)).ok());
        }
    }
}

#[test]
fn its_data_goes_where_etcd_puts_it() {
    for installed in Installed::all() {
        let ports = free_ports(2);
        let mut server = installed
            .launch()
            .arg("--name=infra1")
            .arg(&format!("--listen-client-urls=http://127.0.0.1:{}", ports[0]))
            .arg(&format!("--advertise-client-urls=http://127.0.0.1:{}", ports[0]))
            .arg(&format!("--listen-peer-urls=http://127.0.0.1:{}", ports[1]))
            .arg(&format!("--initial-advertise-peer-urls=http://127.0.0.1:{}", ports[1]))
            .arg(&format!("--initial-cluster=infra1=http://127.0.0.1:{}", ports[1]))
            .env("ETCD_NOSUCH", "is only warned of")
            .spawn();
        server.wait_for("ready to serve client requests");
        assert!(installed.dir.path().join("infra1.etcd").is_dir());
        server.kill();
    }
}
