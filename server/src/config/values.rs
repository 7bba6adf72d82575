//! Where the value of a flag comes from: command line, environment or config file.
//!
//! **Invariant**: a flag beats `TALLY_…`, which beats `ETCD_…`, which beats the default; and a config file, once named,
//! is the only source. A variable that is empty is not set: compose files and unit files pass on what they do not have.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ConfigError;
use super::duration;
use super::file;
use super::flags::{Class, FLAGS, Flag, Kind, find, nearest};

/// The prefixes of environment variables, the strongest first.
const ENV_PREFIXES: [&str; 2] = ["TALLY_", "ETCD_"];

/// The values of all flags that were given, already checked against their kinds.
#[derive(Debug, Default)]
pub(super) struct Values {
    given: BTreeMap<&'static str, String>,
    /// Lines to log once the log is open.
    pub(super) notices: Vec<String>,
}

impl Values {
    /// Collects the values of all sources. `args` excludes the program's name.
    pub(super) fn collect(args: &[String], env: impl Iterator<Item = (String, String)>) -> Result<Values, ConfigError> {
        let mut values = Values::default();
        values.read_env(env)?;
        let from_env = values.given.len();
        let typed = parse_args(args)?;
        let from_args = typed.len();
        for (flag, value) in typed {
            values.set(flag, value, "the command line")?;
        }
        let path = values.given.get("config-file").filter(|path| !path.is_empty()).cloned();
        if let Some(path) = path {
            let help = ["help", "version"].map(|name| (name, values.given.get(name).cloned()));
            let ignored = from_env + from_args > 1;
            values = Values::default();
            if ignored {
                values.notices.push(format!("config file {path} is given: other flags and variables are ignored"));
            }
            values.given.extend(help.into_iter().filter_map(|(name, value)| Some((name, value?))));
            for (flag, value) in file::read(&path)? {
                values.set(flag, value, &path)?;
            }
        }
        values.check_classes()?;
        Ok(values)
    }

    fn read_env(&mut self, env: impl Iterator<Item = (String, String)>) -> Result<(), ConfigError> {
        let env: BTreeMap<String, String> = env.collect();
        for flag in FLAGS {
            let name = flag.name.to_uppercase().replace('-', "_");
            let given = ENV_PREFIXES.iter().find_map(|prefix| {
                let variable = format!("{prefix}{name}");
                let value = env.get(&variable).filter(|value| !value.is_empty())?;
                Some((variable, value))
            });
            if let Some((variable, value)) = given {
                self.set(flag, value.clone(), &format!("${variable}"))?;
            }
        }
        for variable in env.keys().filter(|name| ENV_PREFIXES.iter().any(|prefix| name.starts_with(prefix))) {
            let name = ENV_PREFIXES.iter().find_map(|prefix| variable.strip_prefix(prefix)).unwrap_or(variable);
            if find(&name.to_lowercase().replace('_', "-")).is_none() {
                self.notices.push(format!("environment variable {variable} is not a flag and is ignored"));
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
                Class::Later(why) | Class::Refuse(why) if value != flag.default => {
                    return Err(ConfigError::Refused { name: flag.name, value: value.clone(), why });
                }
                Class::Later(_) | Class::Refuse(_) => {}
            }
        }
        Ok(())
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
        let number: i64 = self.text(name).trim().parse().unwrap_or_default();
        T::try_from(number).map_err(|_| ConfigError::Invalid { name, why: format!("{number} is out of range") })
    }

    /// The value of a [`Kind::Duration`].
    pub(super) fn duration(&self, name: &'static str) -> Duration {
        duration::parse(self.text(name)).unwrap_or_default()
    }
}

/// Go's spellings of booleans.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// `Err` says what was expected.
fn check_kind(flag: &Flag, value: &str) -> Result<(), &'static str> {
    match flag.kind {
        Kind::Text | Kind::List => Ok(()),
        Kind::Int => value.trim().parse::<i64>().map(drop).map_err(|_| "a decimal integer"),
        Kind::Bool => parse_bool(value).map(drop).ok_or("true or false"),
        Kind::Duration => duration::parse(value).map(drop).ok_or("a duration such as 100ms, 5s or 1h30m"),
    }
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
    fn accepted_flags_and_unknown_variables_leave_a_notice() {
        let values = collect(&["--max-wals=3"], &[("ETCD_NO_SUCH", "1"), ("ETCDCTL_API", "3")]).unwrap();
        assert!(values.notices.iter().any(|line| line.contains("--max-wals")));
        assert!(values.notices.iter().any(|line| line.contains("ETCD_NO_SUCH")));
        assert!(!values.notices.iter().any(|line| line.contains("ETCDCTL_API")));
    }

    #[test]
    fn aliases_set_the_flag_that_they_stand_for() {
        let values = collect(&["--experimental-compaction-batch-limit=7"], &[]).unwrap();
        assert_eq!(values.int::<u64>("compaction-batch-limit").unwrap(), 7);
    }
}
