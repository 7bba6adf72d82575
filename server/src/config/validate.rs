//! From texts to a [`Config`], with every check that needs no disk and no network.

use std::path::PathBuf;
use std::time::Duration;

use super::duration;
use super::values::Values;
use super::{
    Allowed, AutoCompaction, Config, ConfigError, InitialMember, LogConfig, LogFormat, LogLevel, LogOutput, Url,
};

/// Largest election timeout, as in etcd.
const ELECTION_MS_MAX: u64 = 50_000;
/// An election timeout shorter than this many heartbeats elects needlessly.
const HEARTBEATS_PER_ELECTION_MIN: u64 = 5;
/// Most worker threads that can be asked for.
const WORKER_THREADS_MAX: usize = 256;
/// Largest request that can be allowed: a log entry holds it whole.
const REQUEST_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// What a pause of zero after a batch of the sweep means, as in etcd.
const COMPACTION_SLEEP: Duration = Duration::from_millis(10);
/// Time between two looks at the revision in revision mode.
const REVISION_CHECK_MS: u64 = 5 * 60 * 1000;

/// Least time that another member has to answer or to take what is sent, as in etcd.
const PEER_TIMEOUT_MIN: Duration = Duration::from_secs(5);

const INITIAL_CLUSTER: &str = "initial-cluster";
const ADVERTISE_PEER: &str = "initial-advertise-peer-urls";
/// The flags that a member's ids are derived from.
const IDENTITY_FLAGS: [&str; 3] = [INITIAL_CLUSTER, "initial-cluster-token", ADVERTISE_PEER];
const NOBODY_REACHES: &str = "which no other member can reach";

fn invalid(name: &'static str, why: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { name, why: why.into() }
}

impl Config {
    pub(super) fn from_values(mut values: Values) -> Result<Config, ConfigError> {
        let mut notices = std::mem::take(&mut values.notices);
        let name = values.text("name").to_owned();
        if name.is_empty() || name.contains([',', '=']) {
            return Err(invalid("name", "must not be empty nor contain a comma or an equals sign"));
        }
        let listen_client_urls = listen(&values, "listen-client-urls", true)?;
        let listen_peer_urls = listen(&values, "listen-peer-urls", true)?;
        let advertise_client_urls = advertise(&values, "advertise-client-urls", &listen_client_urls)?;
        advertised(&values, &advertise_client_urls)?;
        let members = initial_cluster(&values)?;
        let advertise_peer_urls = advertise_peer_urls(&values, &name, members.as_deref(), &listen_peer_urls)?;
        if let Some(url) = everywhere(&advertise_peer_urls) {
            // A member that has data goes on with what its cluster knows, and a single one may stay so: no refusal.
            let which = format!("as its peer URL this member names {url}, {NOBODY_REACHES}");
            notices.push(format!("{which}, unless its cluster knows another; see --{ADVERTISE_PEER}"));
        }
        let alone = || vec![InitialMember { name: name.clone(), peer_urls: advertise_peer_urls.clone() }];
        let initial_cluster = members.unwrap_or_else(alone);
        let (heartbeat_ms, election_ms) = timing(&values)?;
        let (http2_ping_interval, http2_ping_timeout) = keepalive(&values);
        let data_dir = match values.text("data-dir") {
            "" => PathBuf::from(format!("{name}.etcd")),
            given => PathBuf::from(given),
        };
        let wal_dir = Some(values.text("wal-dir")).filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let config = Config {
            data_dir,
            wal_dir,
            listen_client_urls,
            listen_peer_urls,
            grpc_gateway: values.bool("enable-grpc-gateway"),
            extensive_metrics: choice(&values, "metrics", &[("basic", false), ("extensive", true)])?,
            listen_metrics_urls: listen(&values, "listen-metrics-urls", false)?,
            advertise_client_urls,
            advertise_peer_urls,
            initial_cluster,
            initial_cluster_token: values.text("initial-cluster-token").to_owned(),
            initial_cluster_existing: choice(&values, "initial-cluster-state", &[("new", false), ("existing", true)])?,
            initial_cluster_given: IDENTITY_FLAGS.iter().any(|name| values.is_given(name)),
            strict_reconfig_check: values.bool("strict-reconfig-check"),
            max_learners: positive(&values, "max-learners")? as usize,
            raft_read_timeout: peer_timeout(&values, "raft-read-timeout", &mut notices),
            raft_write_timeout: peer_timeout(&values, "raft-write-timeout", &mut notices),
            snapshot_send_rate_bytes: values.int("snapshot-send-rate-bytes")?,
            snapshot_count: positive_or(&values, "snapshot-count", 10_000)?,
            snapshot_catchup_entries: positive_or(&values, "snapshot-catchup-entries", 5_000)?,
            heartbeat_ms,
            election_ms,
            quota_backend_bytes: values.int("quota-backend-bytes")?,
            max_request_bytes: request_bytes(&values)?,
            max_txn_ops: positive(&values, "max-txn-ops")? as usize,
            max_concurrent_streams: positive_or(&values, "max-concurrent-streams", u32::MAX)?,
            http2_ping_interval,
            http2_ping_timeout,
            watch_progress_notify_interval: progress_interval(values.duration("watch-progress-notify-interval")),
            http2_client_ping_interval_min: values.duration("grpc-keepalive-min-time"),
            socket_reuse_port: values.bool("socket-reuse-port"),
            auto_compaction: auto_compaction(&values)?,
            auto_compaction_check_ms: REVISION_CHECK_MS,
            compaction_batch_limit: positive_or(&values, "compaction-batch-limit", 1_000)?,
            compaction_sleep: match values.duration("compaction-sleep-interval") {
                Duration::ZERO => COMPACTION_SLEEP,
                given => given,
            },
            cors: allowed(&values, "cors"),
            host_whitelist: allowed(&values, "host-whitelist"),
            log: log(&values, &mut notices)?,
            warning_apply: values.duration("warning-apply-duration"),
            warning_request: values.duration("warning-unary-request-duration"),
            unsafe_no_fsync: values.bool("unsafe-no-fsync"),
            worker_threads: values.int("worker-threads")?,
            name,
            notices,
        };
        if config.worker_threads > WORKER_THREADS_MAX {
            return Err(invalid("worker-threads", format!("at most {WORKER_THREADS_MAX}")));
        }
        Ok(config)
    }
}

fn urls(values: &Values, name: &'static str) -> Result<Vec<Url>, ConfigError> {
    let mut urls = Url::parse_list(values.text(name)).map_err(|source| ConfigError::Url { name, source })?;
    urls.sort();
    urls.dedup();
    Ok(urls)
}

fn listen(values: &Values, name: &'static str, required: bool) -> Result<Vec<Url>, ConfigError> {
    let urls = urls(values, name)?;
    for url in &urls {
        url.endpoint().map_err(|source| ConfigError::Url { name, source })?;
    }
    if required && urls.is_empty() {
        return Err(invalid(name, "at least one URL is needed"));
    }
    Ok(urls)
}

fn advertise(values: &Values, name: &'static str, listened: &[Url]) -> Result<Vec<Url>, ConfigError> {
    let urls = urls(values, name)?;
    Ok(if urls.is_empty() { listened.to_vec() } else { urls })
}

/// An address to listen on that is told to others means each one's own machine to them.
fn everywhere(urls: &[Url]) -> Option<&Url> {
    urls.iter().find(|url| url.is_unspecified())
}

/// Clients elsewhere would take an address that means "all of mine" for their own machine's.
fn advertised(values: &Values, urls: &[Url]) -> Result<(), ConfigError> {
    const FLAG: &str = "advertise-client-urls";
    match everywhere(urls).filter(|_| !values.is_given(FLAG)) {
        Some(url) => Err(invalid(
            FLAG,
            format!("is required when --listen-client-urls is {url}, which no client elsewhere can reach"),
        )),
        None => Ok(()),
    }
}

/// The members that `--initial-cluster` names, if it is given.
fn initial_cluster(values: &Values) -> Result<Option<Vec<InitialMember>>, ConfigError> {
    const FLAG: &str = INITIAL_CLUSTER;
    if values.text(FLAG).is_empty() {
        return Ok(None);
    }
    let mut members: Vec<InitialMember> = Vec::new();
    for item in values.text(FLAG).split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let (member, url) =
            item.split_once('=').ok_or_else(|| invalid(FLAG, format!("{item:?} must have the form name=url")))?;
        let url = Url::parse(url).map_err(|source| ConfigError::Url { name: FLAG, source })?;
        match members.iter_mut().find(|known| known.name == member) {
            Some(known) => known.peer_urls.push(url),
            None => members.push(InitialMember { name: member.to_owned(), peer_urls: vec![url] }),
        }
    }
    let several = members.len() > 1;
    for member in &mut members {
        member.peer_urls.sort();
        reachable(FLAG, &member.peer_urls)?;
        // A single one may have what nobody can reach, as in etcd's container example: nobody has to.
        if several && let Some(url) = everywhere(&member.peer_urls) {
            let advice = format!("write an address of its own there, and in its --{ADVERTISE_PEER}");
            return Err(invalid(FLAG, format!("{} has {url} there, {NOBODY_REACHES}; {advice}", member.name)));
        }
    }
    let mut all: Vec<&Url> = members.iter().flat_map(|member| &member.peer_urls).collect();
    all.sort();
    if let Some(twice) = all.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(invalid(FLAG, format!("{} stands in it twice; every member needs URLs of its own", twice[0])));
    }
    Ok(Some(members))
}

/// Where other members reach this one: as the flag says, else as `--initial-cluster` does, else where it listens. A
/// member that joins has told its URLs to the cluster already, so etcd does not ask it for this flag either.
fn advertise_peer_urls(
    values: &Values,
    name: &str,
    members: Option<&[InitialMember]>,
    listened: &[Url],
) -> Result<Vec<Url>, ConfigError> {
    const FLAG: &str = ADVERTISE_PEER;
    let Some(members) = members else {
        let urls = advertise(values, FLAG, listened)?;
        reachable(FLAG, &urls)?;
        return Ok(urls);
    };
    let Some(own) = members.iter().find(|member| member.name == name) else {
        let why = format!("there is no member named {name:?} in it; set --name, or add it");
        return Err(invalid(INITIAL_CLUSTER, why));
    };
    let urls = advertise(values, FLAG, &own.peer_urls)?;
    reachable(FLAG, &urls)?;
    if urls != own.peer_urls {
        let list = |urls: &[Url]| urls.iter().map(Url::to_string).collect::<Vec<_>>().join(",");
        let (there, here) = (list(&own.peer_urls), list(&urls));
        return Err(invalid(INITIAL_CLUSTER, format!("{name} has {there} there, but {here} in --{FLAG}")));
    }
    Ok(urls)
}

/// Peers speak plain HTTP over TCP in this version.
fn reachable(name: &'static str, urls: &[Url]) -> Result<(), ConfigError> {
    urls.iter().try_for_each(Url::check_peer).map_err(|source| ConfigError::Url { name, source })
}

/// A time that another member has; less than [`PEER_TIMEOUT_MIN`] is raised to it, with a notice.
fn peer_timeout(values: &Values, name: &'static str, notices: &mut Vec<String>) -> Duration {
    let given = values.duration(name);
    if given < PEER_TIMEOUT_MIN {
        notices.push(format!("--{name} is raised to {} s, which is the least", PEER_TIMEOUT_MIN.as_secs()));
    }
    given.max(PEER_TIMEOUT_MIN)
}

/// Time between two pings of an idle client, and time to answer one. As in etcd, none of either leaves both at the
/// defaults of gRPC: without a time to answer, every ping would end its connection.
fn keepalive(values: &Values) -> (Duration, Duration) {
    const DEFAULT: (Duration, Duration) = (Duration::from_secs(2 * 3600), Duration::from_secs(20));
    let (interval, timeout) = (values.duration("grpc-keepalive-interval"), values.duration("grpc-keepalive-timeout"));
    if interval.is_zero() || timeout.is_zero() { DEFAULT } else { (interval, timeout) }
}

/// Heartbeat interval and election timeout.
fn timing(values: &Values) -> Result<(u64, u64), ConfigError> {
    let heartbeat_ms = positive(values, "heartbeat-interval")?;
    let election_ms = positive(values, "election-timeout")?;
    if election_ms < HEARTBEATS_PER_ELECTION_MIN.saturating_mul(heartbeat_ms) {
        let why = format!(
            "{election_ms} ms must be at least {HEARTBEATS_PER_ELECTION_MIN} times the heartbeat interval of {heartbeat_ms} ms"
        );
        return Err(invalid("election-timeout", why));
    }
    if election_ms > ELECTION_MS_MAX {
        return Err(invalid("election-timeout", format!("{election_ms} ms is too long; at most {ELECTION_MS_MAX} ms")));
    }
    Ok((heartbeat_ms, election_ms))
}

/// As etcd takes it: nothing is the default, and less than a tenth of a second is a tenth of a second.
fn progress_interval(given: Duration) -> Duration {
    const DEFAULT: Duration = Duration::from_secs(600);
    const LEAST: Duration = Duration::from_millis(100);
    if given.is_zero() { DEFAULT } else { given.max(LEAST) }
}

fn positive(values: &Values, name: &'static str) -> Result<u64, ConfigError> {
    match values.int::<u64>(name)? {
        0 => Err(invalid(name, "must be at least 1")),
        number => Ok(number),
    }
}

/// Zero means the default, as in etcd.
fn positive_or<T: TryFrom<i64> + Default + PartialEq>(
    values: &Values,
    name: &'static str,
    default: T,
) -> Result<T, ConfigError> {
    let given: T = values.int(name)?;
    Ok(if given == T::default() { default } else { given })
}

fn request_bytes(values: &Values) -> Result<u64, ConfigError> {
    match positive(values, "max-request-bytes")? {
        bytes if bytes > REQUEST_BYTES_MAX => {
            Err(invalid("max-request-bytes", format!("{bytes} is too large; at most {REQUEST_BYTES_MAX}")))
        }
        bytes => Ok(bytes),
    }
}

fn choice<T: Clone>(values: &Values, name: &'static str, choices: &[(&str, T)]) -> Result<T, ConfigError> {
    let given = values.text(name);
    choices.iter().find(|(choice, _)| *choice == given).map(|(_, meaning)| meaning.clone()).ok_or_else(|| {
        let known: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
        invalid(name, format!("{given:?} is none of {}", known.join(", ")))
    })
}

fn allowed(values: &Values, name: &'static str) -> Allowed {
    let names: Vec<&str> = values.text(name).split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    if names.is_empty() || names.contains(&"*") {
        Allowed::All
    } else {
        Allowed::Only(names.into_iter().map(str::to_owned).collect())
    }
}

fn auto_compaction(values: &Values) -> Result<AutoCompaction, ConfigError> {
    const RETENTION: &str = "auto-compaction-retention";
    let retention = match values.text(RETENTION).trim() {
        "" => "0",
        given => given,
    };
    let number: Option<i64> = retention.parse().ok();
    let periodic = choice(values, "auto-compaction-mode", &[("periodic", true), ("revision", false)])?;
    match (periodic, number) {
        (_, Some(0)) => Ok(AutoCompaction::Off),
        (_, Some(negative)) if negative < 0 => Err(invalid(RETENTION, "must not be negative")),
        (true, Some(hours)) => hours
            .checked_mul(3600)
            .map(|seconds| AutoCompaction::Periodic(Duration::from_secs(seconds as u64)))
            .ok_or_else(|| invalid(RETENTION, "is too long")),
        (true, None) => match duration::parse(retention) {
            Some(Duration::ZERO) => Ok(AutoCompaction::Off),
            Some(span) => Ok(AutoCompaction::Periodic(span)),
            None => {
                Err(invalid(RETENTION, format!("{retention:?} is neither a duration such as 5m nor a number of hours")))
            }
        },
        (false, Some(revisions)) => Ok(AutoCompaction::Revision(revisions)),
        (false, None) => Err(invalid(RETENTION, format!("{retention:?} is not a number of revisions"))),
    }
}

/// The level, in letters of any case. What etcd has above errors counts as errors.
fn log_level(values: &Values) -> Result<LogLevel, ConfigError> {
    const FLAG: &str = "log-level";
    match values.text(FLAG).to_ascii_lowercase().as_str() {
        "debug" => Ok(LogLevel::Debug),
        "info" | "" => Ok(LogLevel::Info),
        "warn" | "warning" => Ok(LogLevel::Warn),
        "error" | "dpanic" | "panic" | "fatal" => Ok(LogLevel::Error),
        given => Err(invalid(FLAG, format!("{given:?} is none of debug, info, warn, error, dpanic, panic, fatal"))),
    }
}

fn log(values: &Values, notices: &mut Vec<String>) -> Result<LogConfig, ConfigError> {
    const OUTPUTS: &str = "log-outputs";
    const JOURNAL: &str = "systemd/journal";
    let format = choice(values, "log-format", &[("json", LogFormat::Json), ("console", LogFormat::Console)])?;
    let mut outputs: Vec<LogOutput> = Vec::new();
    for given in values.text(OUTPUTS).split(',').map(str::trim).filter(|output| !output.is_empty()) {
        let output = match given {
            "default" | "stderr" | JOURNAL => LogOutput::Stderr,
            "stdout" => LogOutput::Stdout,
            path => LogOutput::File(PathBuf::from(path)),
        };
        if given == JOURNAL {
            notices.push(format!("--{OUTPUTS}={JOURNAL} means standard error, which systemd writes to the journal"));
        }
        if !outputs.contains(&output) {
            outputs.push(output);
        }
    }
    if outputs.is_empty() {
        return Err(invalid(OUTPUTS, "at least one output is needed"));
    }
    Ok(LogConfig { level: log_level(values)?, format, outputs })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Invocation;
    use super::*;

    fn config(args: &[&str]) -> Result<Config, ConfigError> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        match Config::from_args(&args, std::iter::empty())? {
            Invocation::Serve(config) => Ok(*config),
            Invocation::Print(text) => panic!("prints {text}"),
        }
    }

    #[test]
    fn defaults_are_those_of_etcd() {
        let config = config(&[]).unwrap();
        assert_eq!(config.name, "default");
        assert_eq!(config.data_dir, PathBuf::from("default.etcd"));
        assert_eq!(config.listen_client_urls[0].to_string(), "http://localhost:2379");
        assert_eq!(config.initial_cluster[0].peer_urls[0].to_string(), "http://localhost:2380");
        assert_eq!((config.heartbeat_ms, config.election_ms), (100, 1000));
        assert_eq!(config.request_timeout(), Duration::from_secs(7));
        assert_eq!((config.snapshot_count, config.snapshot_catchup_entries), (10_000, 5_000));
        assert_eq!((config.max_txn_ops, config.max_request_bytes), (128, 1_572_864));
        assert_eq!(config.quota_bytes(), Some(2 << 30));
        assert_eq!(config.auto_compaction, AutoCompaction::Off);
        let (warn_ms, warn_apply_ms) = (config.warning_request.as_millis(), config.warning_apply.as_millis());
        assert_eq!((warn_ms, warn_apply_ms, config.grpc_gateway), (300, 100, true));
        assert!(config.workers().home >= 1);
        for (threads, home, lanes) in [(1, 1, 0), (2, 1, 1), (3, 2, 1), (8, 4, 4)] {
            let config = self::config(&[&format!("--worker-threads={threads}")]).unwrap();
            let workers = config.workers();
            assert_eq!((workers.home, workers.lanes), (home, lanes));
        }
    }

    #[test]
    fn the_data_directory_follows_the_name() {
        assert_eq!(config(&["--name=n1"]).unwrap().data_dir, PathBuf::from("n1.etcd"));
        assert_eq!(config(&["--name=n1", "--data-dir=d"]).unwrap().data_dir, PathBuf::from("d"));
    }

    #[test]
    fn retention_is_read_as_etcd_reads_it() {
        for (mode, retention, expected) in [
            ("periodic", "0", AutoCompaction::Off),
            ("periodic", "0s", AutoCompaction::Off),
            ("periodic", "", AutoCompaction::Off),
            ("revision", "", AutoCompaction::Off),
            ("periodic", "2", AutoCompaction::Periodic(Duration::from_secs(7200))),
            ("periodic", "5m", AutoCompaction::Periodic(Duration::from_secs(300))),
            ("revision", "0", AutoCompaction::Off),
            ("revision", "1000", AutoCompaction::Revision(1000)),
        ] {
            let args = [format!("--auto-compaction-mode={mode}"), format!("--auto-compaction-retention={retention}")];
            let config = config(&[&args[0], &args[1]]).unwrap();
            assert_eq!(config.auto_compaction, expected, "{mode} {retention}");
        }
    }

    #[test]
    fn zero_means_the_default_where_it_does_for_etcd() {
        let config = config(&[
            "--snapshot-count=0",
            "--snapshot-catchup-entries=0",
            "--max-concurrent-streams=0",
            "--compaction-batch-limit=0",
            "--compaction-sleep-interval=0",
        ])
        .unwrap();
        assert_eq!((config.snapshot_count, config.snapshot_catchup_entries), (10_000, 5_000));
        assert_eq!((config.max_concurrent_streams, config.compaction_batch_limit), (u32::MAX, 1_000));
        assert_eq!(config.compaction_sleep, COMPACTION_SLEEP);
    }

    #[test]
    fn an_address_that_is_everywhere_is_told_to_nobody() {
        let urls = ["--listen-client-urls=http://0.0.0.0:1,http://[::]:2", "--advertise-client-urls=http://h:1"];
        assert_eq!(config(&urls).unwrap().advertise_client_urls[0].to_string(), "http://h:1");
        let peers = "--listen-peer-urls=http://0.0.0.0:1,http://[::]:2";
        for told in ["--initial-advertise-peer-urls=http://h:1", "--initial-cluster=default=http://h:1"] {
            let config = config(&[peers, told]).unwrap();
            assert_eq!((config.advertise_peer_urls[0].to_string().as_str(), config.notices.len()), ("http://h:1", 0));
        }
        // Unless it is that of a single member, who hears of it.
        for flag in ["--initial-cluster=default=http://0.0.0.0:1", "--listen-peer-urls=http://0.0.0.0:1"] {
            let notices = config(&[flag]).unwrap().notices;
            assert!(notices.iter().any(|line| line.contains("--initial-advertise-peer-urls")), "{notices:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let cases: &[(&[&str], &str)] = &[
            (&["--name="], "--name"),
            (&["--election-timeout=400"], "5 times"),
            (&["--election-timeout=50001"], "50000"),
            (&["--heartbeat-interval=0"], "--heartbeat-interval"),
            (&["--heartbeat-interval=-1"], "--heartbeat-interval"),
            (&["--listen-client-urls=http://example.org:1"], "IP address"),
            (&["--listen-client-urls=https://127.0.0.1:1"], "TLS"),
            (&["--listen-client-urls="], "--listen-client-urls"),
            (&["--advertise-client-urls=nonsense"], "--advertise-client-urls"),
            (&["--listen-client-urls=http://0.0.0.0:1"], "--advertise-client-urls: is required"),
            (&["--listen-client-urls=http://127.0.0.1:1,http://[::]:2"], "--advertise-client-urls: is required"),
            (&["--initial-cluster=default=http://0.0.0.0:1,x=http://h:1"], "--initial-advertise-peer-urls"),
            (&["--initial-cluster=x=http://localhost:2380"], "\"default\""),
            (&["--initial-cluster=,"], "\"default\""),
            (&["--initial-cluster=default=http://h:1", "--initial-advertise-peer-urls=http://h:2"], "but http://h:2"),
            (&["--initial-cluster=default=http://localhost:2380,b=http://localhost:2380"], "twice"),
            (&["--initial-cluster=default=http://localhost:2380,default=http://localhost:2380"], "twice"),
            (&["--initial-cluster=default=http://localhost:2380,b=https://h:1"], "TLS"),
            (&["--initial-cluster=default=http://localhost:2380,b=unix://s"], "TCP"),
            (&["--max-learners=0"], "--max-learners"),
            (&["--snapshot-send-rate-bytes=-1"], "--snapshot-send-rate-bytes"),
            (&["--pre-vote=false"], "pre-vote"),
            (&["--initial-cluster=nonsense"], "name=url"),
            (&["--initial-cluster-state=old"], "existing"),
            (&["--auto-compaction-mode=sometimes"], "periodic"),
            (&["--auto-compaction-retention=soon"], "soon"),
            (&["--auto-compaction-retention=-1"], "negative"),
            (&["--auto-compaction-mode=revision", "--auto-compaction-retention=5m"], "revisions"),
            (&["--log-level=loud"], "warn"),
            (&["--log-format=xml"], "json"),
            (&["--metrics=all"], "extensive"),
            (&["--max-concurrent-streams=4294967296"], "out of range"),
            (&["--max-txn-ops=0"], "--max-txn-ops"),
            (&["--worker-threads=1000"], "256"),
            (&["--max-request-bytes=1000000000"], "too large"),
        ];
        for (args, needle) in cases {
            let error = config(args).unwrap_err().to_string();
            assert!(error.contains(needle), "{args:?}: {error}");
        }
    }

    #[test]
    fn a_cluster_of_several_members() {
        let members = "a=http://h:1,b=http://h:2,c=http://h:3";
        let args = [
            "--name=b",
            "--initial-advertise-peer-urls=http://h:2",
            &format!("--initial-cluster={members}"),
            "--initial-cluster-state=existing",
            "--max-learners=2",
            "--strict-reconfig-check=false",
            "--raft-read-timeout=8s",
            "--snapshot-send-rate-bytes=1000000",
        ];
        let config = config(&args).unwrap();
        assert_eq!(config.initial_cluster.len(), 3);
        assert!(config.initial_cluster_existing && config.initial_cluster_given && !config.strict_reconfig_check);
        assert_eq!((config.max_learners, config.snapshot_send_rate_bytes), (2, 1_000_000));
        assert_eq!(config.raft_read_timeout, Duration::from_secs(8));
        assert_eq!(config.raft_write_timeout, Duration::from_secs(5));
        assert!(!self::config(&[]).unwrap().initial_cluster_given);
        assert!(self::config(&["--initial-cluster-token=t"]).unwrap().initial_cluster_given);
    }

    #[test]
    fn a_member_that_is_not_told_its_peer_urls_has_those_of_the_cluster() {
        let cluster = "--initial-cluster=a=http://h:1,b=http://h:3,b=http://h:2";
        for state in ["new", "existing"] {
            let config = config(&["--name=b", cluster, &format!("--initial-cluster-state={state}")]).unwrap();
            assert_eq!(config.advertise_peer_urls.len(), 2, "{state}");
            assert_eq!(config.advertise_peer_urls, config.initial_cluster[1].peer_urls, "{state}");
        }
        // What it is told is compared as it is written: nobody is asked where a name leads.
        let told = ["--initial-cluster=default=http://localhost:1", "--initial-advertise-peer-urls=http://127.0.0.1:1"];
        let error = config(&told).unwrap_err().to_string();
        assert!(error.contains("but http://127.0.0.1:1 in --initial-advertise-peer-urls"), "{error}");
    }

    #[test]
    fn other_members_have_five_seconds_at_least() {
        let raised = config(&["--raft-read-timeout=100ms", "--raft-write-timeout=0s"]).unwrap();
        assert_eq!((raised.raft_read_timeout, raised.raft_write_timeout), (PEER_TIMEOUT_MIN, PEER_TIMEOUT_MIN));
        for flag in ["--raft-read-timeout", "--raft-write-timeout"] {
            assert!(raised.notices.iter().any(|line| line.contains(flag)), "{flag}: {:?}", raised.notices);
        }
        assert!(config(&["--raft-read-timeout=5s"]).unwrap().notices.is_empty());
    }

    #[test]
    fn pings_without_a_time_are_those_of_grpc() {
        let default = (7200, 20);
        for (interval, timeout, expected) in [("3s", "4s", (3, 4)), ("0", "4s", default), ("3s", "0s", default)] {
            let args = [format!("--grpc-keepalive-interval={interval}"), format!("--grpc-keepalive-timeout={timeout}")];
            let config = config(&[&args[0], &args[1]]).unwrap();
            let pings = (config.http2_ping_interval.as_secs(), config.http2_ping_timeout.as_secs());
            assert_eq!(pings, expected, "{args:?}");
        }
        assert!(config(&["--grpc-keepalive-min-time=0"]).unwrap().http2_client_ping_interval_min.is_zero());
    }

    #[test]
    fn logs_are_asked_for_in_the_words_of_etcd() {
        for (level, expected) in [
            ("DEBUG", LogLevel::Debug),
            ("Info", LogLevel::Info),
            ("", LogLevel::Info),
            ("Warn", LogLevel::Warn),
            ("warning", LogLevel::Warn),
            ("dpanic", LogLevel::Error),
            ("panic", LogLevel::Error),
        ] {
            assert_eq!(config(&[&format!("--log-level={level}")]).unwrap().log.level, expected, "{level:?}");
        }
        let config = config(&["--log-outputs=systemd/journal,stdout,stderr"]).unwrap();
        assert_eq!(config.log.outputs, [LogOutput::Stderr, LogOutput::Stdout]);
        assert!(config.notices.iter().any(|line| line.contains("systemd/journal")), "{:?}", config.notices);
    }

    #[test]
    fn a_member_with_several_peer_urls_is_one_member() {
        let config = config(&[
            "--name=a",
            "--initial-advertise-peer-urls=http://h:2,http://h:1",
            "--initial-cluster=a=http://h:1,a=http://h:2",
        ])
        .unwrap();
        assert_eq!(config.initial_cluster.len(), 1);
        assert_eq!(config.initial_cluster[0].peer_urls.len(), 2);
    }
}
