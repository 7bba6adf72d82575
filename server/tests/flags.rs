//! Flags, environment and config file, as the real binary takes them.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use common::grpc::{block_on, pb};
use common::{bare, directory, field, launch};

#[test]
fn the_version_begins_as_tools_expect() {
    for flag in ["--version", "-version"] {
        let ended = bare().arg(flag).run();
        assert!(ended.status.success());
        let mut lines = ended.stdout.lines();
        assert_eq!(lines.next(), Some("etcd Version: 3.7.0"));
        assert_eq!(lines.next(), Some(concat!("Tally Version: ", env!("CARGO_PKG_VERSION"))));
    }
    let help = bare().arg("--help").run();
    assert!(help.status.success() && help.stdout.contains("--listen-client-urls"));
}

#[test]
fn bad_command_lines_are_refused_with_status_2() {
    for (args, needle) in [
        (&["--nosuch"][..], "--nosuch"),
        (&["--data-dri=x"], "--data-dir"),
        (&["--heartbeat-interval=abc"], "abc"),
        (&["--heartbeat-interval=500"], "election"),
        (&["--cert-file=x"], "TLS"),
        (&["--discovery=http://x"], "discovery"),
        (&["--discovery-keepalive-time=1s"], "discovery"),
        (&["--listen-client-http-urls=http://localhost:1"], "--listen-client-urls"),
        (&["--enable-log-rotation"], "copytruncate"),
        (&["--initial-cluster=default=http://localhost:2380,b=http://localhost:2380"], "twice"),
        (&["--pre-vote=false"], "pre-vote"),
        (&["--initial-cluster=default=http://0.0.0.0:1,b=http://localhost:2"], "--initial-advertise-peer-urls"),
        (&["--feature-gates=SetMemberLocalAddr=true"], "ip route"),
        (&["--feature-gates=NoSuch=true"], "NoSuch"),
        (&["--name=x", "stray"], "stray"),
        (&["--listen-client-urls=nonsense"], "nonsense"),
        (&["--config-file=/nonexistent"], "/nonexistent"),
    ] {
        let launch = args.iter().fold(bare(), |launch, arg| launch.arg(arg));
        let ended = launch.run();
        assert_eq!(ended.status.code(), Some(2), "{args:?}");
        assert!(ended.stderr.contains(needle), "{args:?}: {}", ended.stderr);
    }
    let ended = bare().env("TALLY_ELECTION_TIMEOUT", "soon").run();
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stderr.contains("TALLY_ELECTION_TIMEOUT"), "{}", ended.stderr);
}

#[test]
fn arguments_that_are_not_utf8_are_refused() {
    let path = OsStr::from_bytes(b"--data-dir=/tmp/\xff");
    let output = Command::new(env!("CARGO_BIN_EXE_tally")).env_clear().arg(path).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("UTF-8") && stderr.contains(r"/tmp/\xFF"), "{stderr}");
}

#[test]
fn a_log_that_cannot_be_written_is_told_once_with_status_1() {
    let root = directory();
    let file = root.path().join("no/such/directory/log");
    let ended = launch(&root.path().join("d")).arg(&format!("--log-outputs={}", file.display())).run();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    assert!(ended.stderr.starts_with("tally: ") && ended.stderr.contains("--log-outputs"), "{}", ended.stderr);
}

#[test]
fn the_command_line_beats_tally_beats_etcd() {
    let root = directory();
    let name = |tally: common::Tally| {
        let line = tally.log.iter().find(|line| line.contains("starting a member")).unwrap();
        let name = field(line, "name");
        tally.stop();
        name
    };
    let data = root.path().join("d");
    let base = || launch(&data).env("ETCD_NAME", "from-etcd");
    assert_eq!(name(base().start()), "from-etcd");
    assert_eq!(name(base().env("TALLY_NAME", "").start()), "from-etcd");
    assert_eq!(name(base().env("TALLY_NAME", "from-tally").start()), "from-tally");
    assert_eq!(name(base().env("TALLY_NAME", "from-tally").arg("--name=typed").start()), "typed");
}

#[test]
fn a_config_file_is_the_only_source() {
    let root = directory();
    let file = root.path().join("config.yaml");
    let data = root.path().join("from-file");
    let text = format!(
        "name: filed\ndata-dir: {}\nlisten-client-urls: http://127.0.0.1:0\nlisten-peer-urls: http://127.0.0.1:0\n\
         compaction-sleep-interval: 5000000\nlog-outputs: [stderr]\n",
        data.display()
    );
    std::fs::write(&file, text).unwrap();
    let tally = bare()
        .arg("--name=typed")
        .arg(&format!("--config-file={}", file.display()))
        .env("ETCD_NAME", "from-etcd")
        .start();
    let line = tally.log.iter().find(|line| line.contains("starting a member")).unwrap();
    assert_eq!(field(line, "name"), "filed");
    assert!(tally.log.iter().any(|line| line.contains("are ignored")));
    assert!(data.exists());
    tally.stop();

    std::fs::write(&file, "nmae: x\n").unwrap();
    let ended = bare().arg(&format!("--config-file={}", file.display())).run();
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stderr.contains("nmae") && ended.stderr.contains("name"), "{}", ended.stderr);
}

#[test]
fn flags_without_effect_are_accepted_with_a_line() {
    let root = directory();
    let tally = launch(&root.path().join("d")).arg("--max-wals=3").arg("--experimental-initial-corrupt-check").start();
    for name in ["--max-wals", "--experimental-initial-corrupt-check"] {
        assert!(tally.log.iter().any(|line| line.contains(name)), "{name}: {:?}", tally.log);
    }
    tally.stop();
}

#[test]
fn without_the_gateway_grpc_is_served_and_json_is_not() {
    let root = directory();
    let tally = launch(&root.path().join("d")).arg("--enable-grpc-gateway=false").start();
    for path in ["/v3/kv/put", "/v3beta/kv/put", "/v3/nosuch", "/v3/watch", "/nosuch"] {
        let answer = tally.post(path, r#"{"key":"YQ==","value":"YQ=="}"#);
        assert_eq!((answer.status, answer.body.as_str()), (404, "404 page not found\n"), "{path}");
    }
    let upgrade = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    assert_eq!(tally.connect().request_with("GET", "/v3/watch", &upgrade, "").status, 404);
    for path in ["/health", "/livez", "/readyz", "/version", "/metrics", "/tally/roots"] {
        assert_eq!(tally.get(path).status, 200, "{path}");
    }
    block_on(async {
        let put = pb::PutRequest { key: "a".into(), value: "1".into(), ..Default::default() };
        let answer = pb::kv_client::KvClient::new(tally.channel()).put(put).await.unwrap().into_inner();
        assert_eq!(answer.header.unwrap().revision, 2, "nothing was put before");
    });
    tally.stop();
}

#[test]
fn slow_requests_are_logged() {
    let root = directory();
    let mut tally = launch(&root.path().join("d")).arg("--warning-unary-request-duration=1ns").start();
    tally.put("a", "1");
    let line = tally.wait_for(r#""msg":"request took too long""#);
    assert_eq!((field(&line, "level"), field(&line, "method")), ("warn".to_owned(), "Put".to_owned()));
    assert_eq!((field(&line, "code"), field(&line, "expected-ms")), ("OK".to_owned(), "0".to_owned()));
    tally.stop();
}

#[test]
fn logs_can_go_to_a_file_in_a_form_for_people() {
    let root = directory();
    let file = root.path().join("log");
    let data = root.path().join("d");
    std::fs::write(&data, b"not a directory").unwrap();
    let stderr = launch(&data).arg(&format!("--log-outputs={}", file.display())).arg("--log-format=console").fail();
    let log = std::fs::read_to_string(file).unwrap();
    assert!(log.contains("\tinfo\t") && log.contains("starting a member"), "{log}");
    assert!(log.contains("not a directory"), "{log}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}
