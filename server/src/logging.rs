//! Log lines: etcd's JSON keys, or a form for people, to any number of outputs.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;

use crate::config::{LogConfig, LogFormat, LogLevel, LogOutput};

/// Why logging cannot begin.
#[derive(Debug, Error)]
pub enum LogError {
    /// A log file cannot be opened.
    #[error("cannot open log file {path}: {source}; check --log-outputs")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another part of the program logs already.
    #[error("logging has been set up already")]
    Twice,
}

/// Begins to log, for the whole process.
pub(crate) fn start(config: &LogConfig) -> Result<(), LogError> {
    let outputs = config.outputs.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(Outputs(Arc::new(outputs)))
        .event_format(Lines { format: config.format });
    let level = match config.level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    // Libraries tell much that only their authors understand.
    let libraries = if level == LevelFilter::DEBUG { LevelFilter::INFO } else { level.min(LevelFilter::WARN) };
    // Consensus repeats its warnings for every heartbeat that a dead peer does not answer; the node says it once.
    let consensus = if level == LevelFilter::DEBUG { LevelFilter::INFO } else { LevelFilter::ERROR };
    let filter = Targets::new().with_default(libraries).with_target("openraft", consensus).with_target("tally", level);
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().map_err(|_| LogError::Twice)
}

enum Output {
    Stderr,
    Stdout,
    File(File),
}

fn open(output: &LogOutput) -> Result<Output, LogError> {
    match output {
        LogOutput::Stderr => Ok(Output::Stderr),
        LogOutput::Stdout => Ok(Output::Stdout),
        LogOutput::File(path) => OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map(Output::File)
            .map_err(|source| LogError::Open { path: path.clone(), source }),
    }
}

/// Each line goes to every output in one write, so that lines of several threads do not mix.
#[derive(Clone)]
struct Outputs(Arc<Vec<Output>>);

impl<'a> MakeWriter<'a> for Outputs {
    type Writer = Outputs;

    fn make_writer(&'a self) -> Outputs {
        self.clone()
    }
}

impl Write for Outputs {
    /// A log that cannot be written must not stop the server, so errors are swallowed.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        for output in self.0.iter() {
            let _ = match output {
                Output::Stderr => io::stderr().write_all(line),
                Output::Stdout => io::stdout().write_all(line),
                Output::File(file) => (&*file).write_all(line),
            };
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Lines {
    format: LogFormat,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let level = match *metadata.level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let caller = caller(metadata.file(), metadata.line());
        let mut fields = Fields { format: self.format, message: String::new(), rest: String::new() };
        event.record(&mut fields);
        match self.format {
            LogFormat::Json => {
                let (caller, message) = (quote(&caller), quote(&fields.message));
                let rest = fields.rest;
                writeln!(writer, r#"{{"level":"{level}","ts":"{time}","caller":{caller},"msg":{message}{rest}}}"#)
            }
            LogFormat::Console => writeln!(writer, "{time}\t{level}\t{caller}\t{}{}", fields.message, fields.rest),
        }
    }
}

/// The last directory, file and line, as zap shortens it.
fn caller(file: Option<&str>, line: Option<u32>) -> String {
    let file = file.unwrap_or("unknown");
    let start = file.rmatch_indices('/').nth(1).map_or(0, |(at, _)| at + 1);
    format!("{}:{}", &file[start..], line.unwrap_or(0))
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Collects the message, and the other fields as `,"key":value` or ` key=value`.
struct Fields {
    format: LogFormat,
    message: String,
    rest: String,
}

impl Fields {
    fn put(&mut self, field: &Field, value: &str) {
        // Names of fields are Rust identifiers; etcd writes them with hyphens.
        let name = field.name().replace('_', "-");
        let _ = match self.format {
            LogFormat::Json => write!(self.rest, r#","{name}":{value}"#),
            LogFormat::Console => write!(self.rest, " {name}={value}"),
        };
    }
}

impl Visit for Fields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, &value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, &value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, &value.to_string());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.push_str(value),
            _ => self.put(field, &quote(value)),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => {
                let _ = write!(self.message, "{value:?}");
            }
            _ => self.put(field, &quote(&format!("{value:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn logged(format: LogFormat) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let output = open(&LogOutput::File(path.clone())).unwrap();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(Outputs(Arc::new(vec![output])))
            .event_format(Lines { format });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(listen_address = %"127.0.0.1:1", count = 3_u64, quoted = "a\"b", "ready \"now\"");
        });
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn json_lines_have_the_keys_of_etcd() {
        let line: serde_json::Value = serde_json::from_str(&logged(LogFormat::Json)).unwrap();
        assert_eq!(line["level"], "info");
        assert_eq!(line["msg"], "ready \"now\"");
        assert_eq!(line["listen-address"], "\"127.0.0.1:1\"".trim_matches('"'));
        assert_eq!(line["count"], 3);
        assert_eq!(line["quoted"], "a\"b");
        assert!(line["ts"].as_str().unwrap().ends_with('Z'));
        assert!(line["caller"].as_str().unwrap().starts_with("src/logging.rs:"));
    }

    #[test]
    fn console_lines_are_for_people() {
        let line = logged(LogFormat::Console);
        assert!(line.contains("\tinfo\t") && line.contains("ready \"now\"") && line.contains("count=3"), "{line}");
    }

    #[test]
    fn a_log_file_that_cannot_be_opened_is_named() {
        let Err(error) = open(&LogOutput::File("/nonexistent/log".into())) else { panic!("opened") };
        assert!(error.to_string().contains("/nonexistent/log"));
    }
}
