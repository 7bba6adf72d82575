//! Command lines: `--name value`, `--name=value`, switches, and whatever follows `--`.

use std::str::FromStr;

use crate::error::{Error, Result};

/// A parsed command line.
#[derive(Debug, Default)]
pub(crate) struct Args {
    options: Vec<(String, String)>,
    switches: Vec<String>,
    rest: Vec<String>,
}

impl Args {
    /// Parses `words`; only the named options (with a value) and switches (without) are known.
    pub(crate) fn parse(words: Vec<String>, options: &[&str], switches: &[&str]) -> Result<Args> {
        let mut parsed = Args::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            if word == "--" {
                parsed.rest = words.collect();
                break;
            }
            let Some(name) = word.strip_prefix("--") else {
                return Err(Error::Usage(format!("unexpected `{word}`")));
            };
            let (name, inline) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            if inline.is_none() && switches.contains(&name) {
                parsed.switches.push(name.to_owned());
            } else if options.contains(&name) {
                let value = inline.or_else(|| words.next());
                let value = value.ok_or_else(|| Error::Usage(format!("--{name} needs a value")))?;
                parsed.options.push((name.to_owned(), value));
            } else {
                return Err(Error::Usage(format!("unknown option `--{name}`")));
            }
        }
        Ok(parsed)
    }

    /// Refuses words after `--` for a command that passes nothing on.
    pub(crate) fn none(self) -> Result<()> {
        match self.rest.first() {
            Some(word) => Err(Error::Usage(format!("unexpected `{word}` after `--`"))),
            None => Ok(()),
        }
    }

    /// The last value given for an option.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.options.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The last value given for an option, parsed, or the default.
    pub(crate) fn number<T: FromStr>(&self, name: &str, default: T) -> Result<T> {
        match self.text(name) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| Error::Usage(format!("--{name}: `{text}` is no such number"))),
        }
    }

    /// Whether a switch was given.
    pub(crate) fn switch(&self, name: &str) -> bool {
        self.switches.iter().any(|known| known == name)
    }

    /// Whether the words after `--` set this flag, with two dashes or, as the server takes it too, with one.
    pub(crate) fn passes(&self, flag: &str) -> bool {
        let mut flags = self.rest.iter().filter_map(|word| word.strip_prefix("--").or_else(|| word.strip_prefix('-')));
        flags.any(|word| word.split('=').next() == Some(flag))
    }

    /// The words after `--`.
    pub(crate) fn rest(&self) -> &[String] {
        &self.rest
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::Args;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn options_switches_and_the_rest() {
        let args = Args::parse(words("--seed 7 --keep --seed=8 -- --name a"), &["seed"], &["keep"]).unwrap();
        assert_eq!(args.number("seed", 1_u64).unwrap(), 8);
        assert!(args.switch("keep"));
        assert_eq!(args.rest(), ["--name", "a"]);
        assert!(args.passes("name") && !args.passes("a") && !args.passes("nam"));
        let args = Args::parse(words("-- -name=a"), &[], &[]).unwrap();
        assert!(args.passes("name") && !args.passes("-name"));
    }

    #[test]
    fn unknown_and_incomplete_words_are_refused() {
        assert!(Args::parse(words("--sede 7"), &["seed"], &[]).is_err());
        assert!(Args::parse(words("--seed"), &["seed"], &[]).is_err());
        assert!(Args::parse(words("seed"), &["seed"], &[]).is_err());
        let args = Args::parse(words("--seed x"), &["seed"], &[]).unwrap();
        assert!(args.number("seed", 1_u64).is_err());
    }
}
