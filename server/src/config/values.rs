//! Where the value of a flag comes from: command line, environment or config file.
//!
//! **Invariant**: a flag beats `TALLY_…`, which beats `ETCD_…`, which beats the default, whichever of its names is used; of
//! two variables with one prefix the newer name counts. And a config file, once named, is the only source. A variable that
//! is empty is not set: compose files and unit files pass on what they do not have.
//! `--version` and `--help` are answered before any other value is looked at; only the command line can ask for them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ConfigError;
use super::duration;
use super::file;
use super::flags::{Class, FLAGS, Flag, Kind, find, nearest};
use super::gates;

/// The prefixes of environment variables, the strongest first.
const ENV_PREFIXES: [&str; 2] = ["TALLY_", "ETCD_"];
/// What the command line can ask for instead of a server. Not the environment, where images say by `ETCD_VERSION` what is
/// in them; and not a config file, which is there for a server.
pub(super) const QUESTIONS: [&str; 2] = ["version", "help"];
const CONFIG_FILE: &str = "config-file";
/// A source, as errors name it.
const COMMAND_LINE: &str = "the command line";

/// The values of all flags that were given, already checked against their kinds.
#[derive(Debug, Default)]
pub(super) struct Values {
    given: BTreeMap<&'static str, String>,
    /// Lines to log once the log is open.
    pub(super) notices: Vec<String>,
}

impl Values {
    /// Collects the values of all sources. `args` excludes the program's name. If `version` or `help` is asked for,
    /// nothing else is collected.
    pub(super) fn collect(args: &[String], env: impl Iterator<Item = (String, String)>) -> Result<Values, ConfigError> {
        let mut values = Values::default();
        let (questions, settings): (Vec<_>, Vec<_>) =
            parse_args(args)?.into_iter().partition(|(flag, _)| QUESTIONS.contains(&flag.name));
        for (flag, value) in questions {
            values.set(flag, value, COMMAND_LINE)?;
        }
        if QUESTIONS.iter().any(|name| values.bool(name)) {
            return Ok(values);
        }
        let env: BTreeMap<String, String> = env.collect();
        let path = config_file(&settings, &env);
        let ignored = settings.iter().map(|(flag, _)| flag.name).chain(set_by(&env)).any(|name| name != CONFIG_FILE);
        if path.is_none() {
            values.read_env(&env)?;
        }
        // What is typed has to make sense even beside a config file, as it has to for etcd.
        for (flag, value) in settings {
            values.set(flag, value, COMMAND_LINE)?;
        }
        if let Some(path) = path {
            values = Values::default();
            if ignored {
                values.notices.push(format!("config file {path} is given: other flags and variables are ignored"));
            }
            for (flag, value) in file::read(&path)? {
                values.set(flag, value, &path)?;
            }
        }
        values.check_classes()?;
        Ok(values)
    }

    fn read_env(&mut self, env: &BTreeMap<String, String>) -> Result<(), ConfigError> {
        let settings = FLAGS.iter().filter(|flag| !QUESTIONS.contains(&flag.name));
        let mut found: Vec<_> = settings.filter_map(|flag| from_env(env, flag.name).map(|from| (flag, from))).collect();
        // The strongest last: what an alias sets and what its target sets is the same value.
        found.sort_by_key(|(flag, (variable, _))| {
            let weakness = ENV_PREFIXES.iter().position(|prefix| variable.starts_with(prefix));
            (std::cmp::Reverse(weakness), !matches!(flag.class, Class::Alias(_)))
        });
        for (flag, (variable, value)) in found {
            self.set(flag, value.to_owned(), &format!("${variable}"))?;
        }
        for variable in env.keys().filter(|name| ENV_PREFIXES.iter().any(|prefix| name.starts_with(prefix))) {
            let name = ENV_PREFIXES.iter().find_map(|prefix| variable.strip_prefix(prefix)).unwrap_or(variable);
            let flag = find(&name.to_lowercase().replace('_', "-"));
            if flag.is_none_or(|flag| QUESTIONS.contains(&flag.name)) {
                self.notices.push(format!("environment variable {variable} sets no flag and is ignored"));
            }
        }
        Ok(())
    }

    /// Takes over one value, under the name that aliases stand for.
    fn set(&mut self, flag: &'static Flag, value: String, source: &str) -> Result<(), ConfigError> {
        check_kind(flag, &value).map_err(|expected| ConfigError::Value {
            name: flag.name,
            value: value.clone(),
            from: source.to_owned(),
            expected,
        })?;
        let name = match flag.class {
            Class::Alias(target) => target,
            Class::Serve | Class::Accept(_) | Class::Later(_) | Class::Refuse(_) => flag.name,
        };
        self.given.insert(name, value);
        Ok(())
    }

    /// Refuses what this version cannot do, and notes what has no effect.
    fn check_classes(&mut self) -> Result<(), ConfigError> {
        for (name, value) in &self.given {
            let Some(flag) = find(name) else { continue };
            match flag.class {
                Class::Serve | Class::Alias(_) => {}
                Class::Accept(why) => self.notices.push(format!("--{name} has no effect: {why}")),
                Class::Later(why) | Class::Refuse(why) if !same_value(flag, value, flag.default) => {
                    return Err(ConfigError::Refused { name: flag.name, value: value.clone(), why });
                }
                Class::Later(_) | Class::Refuse(_) => {}
            }
        }
        gates::check(self.text(gates::FLAG))
    }

    /// The value of a flag of the table, or its default.
    pub(super) fn text(&self, name: &'static str) -> &str {
        let default = find(name).map_or("", |flag| flag.default);
        self.given.get(name).map_or(default, String::as_str)
    }

    /// Whether a flag of the table was given a value.
    pub(super) fn is_given(&self, name: &'static str) -> bool {
        self.given.get(name).is_some_and(|value| !value.is_empty())
    }

    /// The value of a [`Kind::Bool`].
    pub(super) fn bool(&self, name: &'static str) -> bool {
        parse_bool(self.text(name)).unwrap_or(false)
    }

    /// The value of a [`Kind::Int`] that must fit into `T`.
    pub(super) fn int<T: TryFrom<i64>>(&self, name: &'static str) -> Result<T, ConfigError> {
        let number = parse_int(self.text(name)).unwrap_or_default();
        T::try_from(number).map_err(|_| ConfigError::Invalid { name, why: format!("{number} is out of range") })
    }

    /// The value of a [`Kind::Duration`].
    pub(super) fn duration(&self, name: &'static str) -> Duration {
        duration::parse(self.text(name)).unwrap_or_default()
    }
}

/// Whether two texts say the same to a flag, as `1` and `true` do to a [`Kind::Bool`].
pub(super) fn same_value(flag: &Flag, left: &str, right: &str) -> bool {
    match flag.kind {
        Kind::Text | Kind::List | Kind::Any => left == right,
        Kind::Int => parse_int(left) == parse_int(right),
        Kind::Bool => parse_bool(left) == parse_bool(right),
        Kind::Duration => duration::parse(left) == duration::parse(right),
    }
}

/// Go's spellings of booleans.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Go's spellings of integers: decimal, `0x…`, `0o…` or `0…`, `0b…`, and `_` between digits.
fn parse_int(text: &str) -> Option<i64> {
    let (sign, body) = match text.strip_prefix('-') {
        Some(body) => ("-", body),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let body = body.to_ascii_lowercase();
    let prefixed = [("0x", 16), ("0o", 8), ("0b", 2), ("0", 8)]
        .into_iter()
        .find_map(|(prefix, radix)| Some((body.strip_prefix(prefix)?, radix)))
        .filter(|_| body != "0");
    let (digits, radix) = match prefixed {
        // After a prefix there may be an underscore, as if the prefix were a digit.
        Some((digits, radix)) => (digits.strip_prefix('_').unwrap_or(digits), radix),
        None => (body.as_str(), 10),
    };
    let is_number = |group: &str| !group.is_empty() && group.chars().all(|digit| digit.is_digit(radix));
    let number = digits.split('_').all(is_number).then(|| format!("{sign}{}", digits.replace('_', "")))?;
    i64::from_str_radix(&number, radix).ok()
}

/// `Err` says what was expected.
fn check_kind(flag: &Flag, value: &str) -> Result<(), &'static str> {
    match flag.kind {
        Kind::Text | Kind::List | Kind::Any => Ok(()),
        Kind::Int => parse_int(value).map(drop).ok_or("an integer"),
        Kind::Bool => parse_bool(value).map(drop).ok_or("true or false"),
        Kind::Duration => duration::parse(value).map(drop).ok_or("a duration such as 100ms, 5s or 1h30m"),
    }
}

/// The variable that sets a flag, if any does, and its value.
fn from_env<'a>(env: &'a BTreeMap<String, String>, flag: &str) -> Option<(String, &'a str)> {
    let name = flag.to_uppercase().replace('-', "_");
    ENV_PREFIXES.iter().find_map(|prefix| {
        let variable = format!("{prefix}{name}");
        let value = env.get(&variable).filter(|value| !value.is_empty())?;
        Some((variable, value.as_str()))
    })
}

/// The flags that the environment sets.
fn set_by(env: &BTreeMap<String, String>) -> impl Iterator<Item = &'static str> {
    let names = FLAGS.iter().map(|flag| flag.name).filter(|name| !QUESTIONS.contains(name));
    names.filter(move |name| from_env(env, name).is_some())
}

/// The path of the config file, if one is named; the command line comes before the environment.
fn config_file(typed: &[(&'static Flag, String)], env: &BTreeMap<String, String>) -> Option<String> {
    let typed = typed.iter().rev().find(|(flag, _)| flag.name == CONFIG_FILE).map(|(_, path)| path.as_str());
    let path = typed.filter(|path| !path.is_empty()).or_else(|| Some(from_env(env, CONFIG_FILE)?.1));
    path.map(str::to_owned)
}

/// Reads `-flag`, `--flag`, `--flag=value` and `--flag value`.
fn parse_args(args: &[String]) -> Result<Vec<(&'static Flag, String)>, ConfigError> {
    let mut found = Vec::new();
    let mut args = args.iter().peekable();
    while let Some(arg) = args.next() {
        let Some(body) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).filter(|body| !body.is_empty())
        else {
            return Err(ConfigError::Argument(arg.clone()));
        };
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        let name = if name == "h" { "help" } else { name };
        let flag =
            find(name).ok_or_else(|| ConfigError::UnknownFlag { name: name.to_owned(), nearest: nearest(name) })?;
        let value = match (inline, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Bool) => match args.peek().map(|next| next.as_str()) {
                Some("true" | "false") => args.next().cloned().unwrap_or_default(),
                _ => "true".to_owned(),
            },
            (None, Kind::Any) => "true".to_owned(),
            (None, _) => args.next().cloned().ok_or(ConfigError::NoValue { name: flag.name })?,
        };
        found.push((flag, value));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn collect(args: &[&str], env: &[(&str, &str)]) -> Result<Values, ConfigError> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        Values::collect(&args, env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn flags_beat_tally_beats_etcd_beats_the_default() {
        let etcd = ("ETCD_NAME", "etcd");
        let tally = ("TALLY_NAME", "tally");
        assert_eq!(collect(&[], &[]).unwrap().text("name"), "default");
        assert_eq!(collect(&[], &[etcd]).unwrap().text("name"), "etcd");
        assert_eq!(collect(&[], &[etcd, tally]).unwrap().text("name"), "tally");
        assert_eq!(collect(&["--name", "typed"], &[etcd, tally]).unwrap().text("name"), "typed");
    }

    #[test]
    fn empty_variables_are_not_set() {
        let (etcd, empty) = (("ETCD_NAME", "etcd"), ("TALLY_NAME", ""));
        assert_eq!(collect(&[], &[etcd, empty]).unwrap().text("name"), "etcd");
        assert_eq!(collect(&[], &[("ETCD_NAME", ""), empty]).unwrap().text("name"), "default");
        // Emptiness is no number, no boolean, and no feature that would have to be refused.
        let unset = [("ETCD_ELECTION_TIMEOUT", ""), ("ETCD_UNSAFE_NO_FSYNC", ""), ("TALLY_AUTH_TOKEN", "")];
        let values = collect(&[], &unset).unwrap();
        assert_eq!((values.int::<u64>("election-timeout").unwrap(), values.bool("unsafe-no-fsync")), (1000, false));
        assert!(values.notices.is_empty(), "{:?}", values.notices);
        // On the command line it is a value like any other.
        assert_eq!(collect(&["--name="], &[etcd]).unwrap().text("name"), "");
        assert!(collect(&["--election-timeout="], &[]).is_err());
    }

    #[test]
    fn a_question_is_answered_whatever_else_is_given() {
        let env = [("ETCD_ELECTION_TIMEOUT", "soon"), ("ETCD_CERT_FILE", "/x"), ("ETCD_CONFIG_FILE", "/nonexistent")];
        for question in QUESTIONS {
            let flag = format!("--{question}");
            let beside = ["--pre-vote=false", "--election-timeout=soon", "--config-file=/nonexistent", flag.as_str()];
            assert!(collect(&beside, &env).unwrap().bool(question), "{question}");
            assert!(collect(&[&format!("{flag}=maybe")], &[]).is_err(), "{question}");
            let no = collect(&[&format!("{flag}=false"), "--name=x"], &[]).unwrap();
            assert_eq!((no.bool(question), no.text("name")), (false, "x"));
        }
    }

    #[test]
    fn the_environment_asks_for_neither_version_nor_help() {
        let values = collect(&[], &[("ETCD_VERSION", "v3.5.1"), ("TALLY_HELP", "true"), ("ETCD_NAME", "x")]).unwrap();
        assert!(!values.bool("version") && !values.bool("help"));
        assert_eq!(values.text("name"), "x");
        assert!(values.notices.iter().any(|line| line.contains("ETCD_VERSION")), "{:?}", values.notices);
    }

    #[test]
    fn beside_a_config_file_the_environment_is_not_even_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, format!("name: {name}\n")).unwrap();
            path.display().to_string()
        };
        let (typed, tally, etcd) = (file("typed"), file("tally"), file("etcd"));
        let env = [
            ("TALLY_CONFIG_FILE", tally.as_str()),
            ("ETCD_CONFIG_FILE", etcd.as_str()),
            ("ETCD_ELECTION_TIMEOUT", "soon"),
            ("ETCD_CERT_FILE", "/x"),
        ];
        let from_args = collect(&["--config-file", typed.as_str()], &env).unwrap();
        assert_eq!(from_args.text("name"), "typed");
        assert!(from_args.notices.iter().any(|line| line.contains("are ignored")), "{:?}", from_args.notices);
        assert_eq!(collect(&["--config-file=", "--name=x"], &env).unwrap().text("name"), "tally");
        assert_eq!(collect(&[], &env[1..]).unwrap().text("name"), "etcd");
        assert!(collect(&[], &env[2..]).is_err());
        let alone = collect(&[], &env[..1]).unwrap();
        assert!(alone.notices.is_empty(), "{:?}", alone.notices);
        // What is typed is ignored, too, but it has to be a value.
        assert!(collect(&["--election-timeout=soon"], &env).is_err());
    }

    #[test]
    fn integers_are_read_as_go_reads_them() {
        for (text, number) in [
            ("0", 0),
            ("00", 0),
            ("-7", -7),
            ("+7", 7),
            ("0x1F", 31),
            ("-0X10", -16),
            ("0o17", 15),
            ("017", 15),
            ("0b101", 5),
            ("1_000", 1000),
            ("0x_ff", 255),
            ("0_7", 7),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(parse_int(text), Some(number), "{text}");
        }
        for text in ["", "-", "+-1", "--1", " 1", "1 ", "08", "0x", "0b2", "_1", "1_", "1__0", "0x_", "0x-1", "1e3"] {
            assert_eq!(parse_int(text), None, "{text}");
        }
        assert_eq!(parse_int("9223372036854775808"), None);
        let values = collect(&["--election-timeout=0x7d0"], &[]).unwrap();
        assert_eq!(values.int::<u64>("election-timeout").unwrap(), 2000);
        assert!(collect(&["--election-timeout= 2000"], &[]).is_err());
    }

    #[test]
    fn all_spellings_of_go_work() {
        for args in [&["-name", "x"][..], &["--name", "x"], &["-name=x"], &["--name=x"]] {
            assert_eq!(collect(args, &[]).unwrap().text("name"), "x");
        }
        for (args, expected) in [
            (&["--unsafe-no-fsync"][..], true),
            (&["--unsafe-no-fsync=false"], false),
            (&["--unsafe-no-fsync", "false"], false),
            (&["--unsafe-no-fsync", "true", "--name=x"], true),
            (&["--unsafe-no-fsync", "--name=x"], true),
        ] {
            assert_eq!(collect(args, &[]).unwrap().bool("unsafe-no-fsync"), expected, "{args:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_source() {
        let error = |args: &[&str], env: &[(&str, &str)]| collect(args, env).unwrap_err().to_string();
        assert!(error(&["--nosuch"], &[]).contains("--nosuch"));
        assert!(error(&["--data-dri=x"], &[]).contains("--data-dir"));
        assert!(error(&["--name"], &[]).contains("--name"));
        assert!(error(&["stray"], &[]).contains("stray"));
        assert!(error(&["--heartbeat-interval=abc"], &[]).contains("abc"));
        assert!(error(&[], &[("ETCD_UNSAFE_NO_FSYNC", "maybe")]).contains("ETCD_UNSAFE_NO_FSYNC"));
    }

    #[test]
    fn features_that_are_not_there_are_refused_unless_off() {
        assert!(collect(&["--cert-file=/x"], &[]).unwrap_err().to_string().contains("TLS"));
        assert!(collect(&["--cert-file=", "--auto-tls=false", "--pre-vote=true"], &[]).is_ok());
        assert!(collect(&["--discovery=http://x"], &[]).is_err());
        assert!(collect(&["--discovery-dial-timeout=9s"], &[]).unwrap_err().to_string().contains("initial-cluster"));
        assert!(
            collect(&["--discovery-dial-timeout=2s", "--discovery-insecure-transport=true", "--proxy=off"], &[])
                .is_ok()
        );
        assert!(collect(&["--proxy=on"], &[]).unwrap_err().to_string().contains("member"));
        assert!(collect(&["--enable-log-rotation"], &[]).unwrap_err().to_string().contains("copytruncate"));
        let http = collect(&["--listen-client-http-urls=http://localhost:1"], &[]).unwrap_err().to_string();
        assert!(http.contains("--listen-client-urls"), "{http}");
        assert!(collect(&["--enable-pprof"], &[]).unwrap_err().to_string().contains("perf"));
    }

    #[test]
    fn a_default_is_one_however_it_is_written() {
        for arg in ["--pre-vote=1", "--force-new-cluster=0", "--discovery-dial-timeout=2000ms", "--auto-tls=F"] {
            assert!(collect(&[arg], &[]).is_ok(), "{arg}");
        }
        for variable in [("ETCD_PRE_VOTE", "True"), ("ETCD_CLIENT_CERT_AUTH", "False"), ("ETCD_ENABLE_V2", "0")] {
            assert!(collect(&[], &[variable]).is_ok(), "{variable:?}");
        }
        for arg in ["--pre-vote=0", "--force-new-cluster=1", "--discovery-dial-timeout=2001ms", "--proxy=Off"] {
            assert!(matches!(collect(&[arg], &[]), Err(ConfigError::Refused { .. })), "{arg}");
        }
    }

    #[test]
    fn gates_are_looked_at_wherever_they_come_from() {
        let (local, unknown) = (("ETCD_FEATURE_GATES", "SetMemberLocalAddr=true"), "--feature-gates=NoSuch=true");
        assert!(matches!(collect(&[], &[local]), Err(ConfigError::Refused { .. })));
        assert!(matches!(collect(&[unknown], &[]), Err(ConfigError::Invalid { .. })));
        let values = collect(&["--feature-gates=LeaseCheckpoint=true"], &[]).unwrap();
        assert!(values.notices.iter().any(|line| line.contains("--feature-gates")), "{:?}", values.notices);
    }

    #[test]
    fn accepted_flags_and_unknown_variables_leave_a_notice() {
        let values = collect(&["--max-wals=3"], &[("ETCD_NO_SUCH", "1"), ("ETCDCTL_API", "3")]).unwrap();
        assert!(values.notices.iter().any(|line| line.contains("--max-wals")));
        assert!(values.notices.iter().any(|line| line.contains("ETCD_NO_SUCH")));
        assert!(!values.notices.iter().any(|line| line.contains("ETCDCTL_API")));
    }

    #[test]
    fn flags_that_etcd_ignores_take_any_value_or_none() {
        let args = ["--v", "--vv=3", "--config=/etc/etcd.conf", "--name=x"];
        let values = collect(&args, &[("ETCD_FORCE", "maybe")]).unwrap();
        assert_eq!(values.text("name"), "x");
        for flag in ["--v ", "--vv ", "--config ", "--force "] {
            assert!(values.notices.iter().any(|line| line.starts_with(flag)), "{flag}: {:?}", values.notices);
        }
        assert!(collect(&["--experimental-set-member-localaddr=false"], &[]).is_ok());
        let error = collect(&["--experimental-set-member-localaddr"], &[]).unwrap_err().to_string();
        assert!(error.contains("address"), "{error}");
    }

    #[test]
    fn aliases_set_the_flag_that_they_stand_for() {
        let values = collect(&["--experimental-compaction-batch-limit=7"], &[]).unwrap();
        assert_eq!(values.int::<u64>("compaction-batch-limit").unwrap(), 7);
    }

    #[test]
    fn an_alias_has_the_rank_of_its_prefix() {
        let limit = |env: &[(&str, &str)]| collect(&[], env).unwrap().int::<u64>("compaction-batch-limit").unwrap();
        let etcd = [("ETCD_EXPERIMENTAL_COMPACTION_BATCH_LIMIT", "5"), ("ETCD_COMPACTION_BATCH_LIMIT", "6")];
        let tally = [("TALLY_EXPERIMENTAL_COMPACTION_BATCH_LIMIT", "8"), ("TALLY_COMPACTION_BATCH_LIMIT", "7")];
        assert_eq!(limit(&etcd[..1]), 5);
        assert_eq!(limit(&etcd), 6);
        assert_eq!(limit(&[etcd[0], tally[1]]), 7);
        assert_eq!(limit(&[etcd[1], tally[0]]), 8);
        assert_eq!(limit(&tally), 7);
        // The older names of some flags stand behind them in the alphabet, those of others before.
        let learners = [("ETCD_EXPERIMENTAL_MAX_LEARNERS", "2"), ("TALLY_MAX_LEARNERS", "3")];
        assert_eq!(collect(&[], &learners).unwrap().int::<u64>("max-learners").unwrap(), 3);
    }

    #[test]
    fn a_file_that_gives_a_flag_two_values_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            collect(&["--config-file", &path.display().to_string()], &[])
        };
        let two = "compaction-batch-limit: 7\nexperimental-compaction-batch-limit: 5\n";
        let error = read(two).unwrap_err().to_string();
        assert!(error.contains("\"experimental-compaction-batch-limit\""), "{error}");
        assert!(error.contains("\"compaction-batch-limit\""), "{error}");
        let same = "compaction-sleep-interval: 5ms\nexperimental-compaction-sleep-interval: 5000000\n";
        assert_eq!(read(same).unwrap().duration("compaction-sleep-interval"), Duration::from_millis(5));
        assert!(read("experimental-max-learners: 2\n").is_ok());
    }
}
